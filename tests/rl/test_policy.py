"""The Gaussian against torch.distributions, the losses against their formulas; float64."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from metarl.core.params import ravel, unravel
from metarl.nets import MLP, from_module
from metarl.rl import GaussianPolicy, PolicyLoss, PolicyQuery
from metarl.rl.gaussian import Gaussian
from metarl.rl.losses import Batch

M, N, A = 3, 5, 4


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def _pair():
    """Two Gaussians (mean (M, N, A), log-std (M, A)) and the same as torch's distributions over actions."""
    ours = [Gaussian(_draw(M, N, A, seed=s), 0.7 * _draw(M, A, seed=s + 10)) for s in (1, 2)]
    return ours, [Independent(Normal(g.mean, g.log_std.exp().unsqueeze(1).expand(M, N, A)), 1) for g in ours]


def test_log_prob_is_the_sum_over_action_components():
    """Averaging over components (or forgetting one constant) changes every ratio and every KL."""
    (g, _), (d, _) = _pair()
    actions = _draw(M, N, A, seed=3)
    torch.testing.assert_close(GaussianPolicy.log_prob(g, actions), d.log_prob(actions), rtol=1e-12, atol=1e-12)


def test_entropy_is_torchs():
    (g, _), (d, _) = _pair()
    torch.testing.assert_close(GaussianPolicy.entropy(g, torch.ones(M, N)), d.entropy()[:, 0], rtol=1e-12, atol=1e-12)


def test_kl_is_of_the_old_to_the_new():
    """KL(new||old) has the same second derivative but another value."""
    (old, new), (d_old, d_new) = _pair()
    torch.testing.assert_close(GaussianPolicy.kl(old, new), kl_divergence(d_old, d_new), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(GaussianPolicy.kl(old, old), torch.zeros(M, N, dtype=torch.double), rtol=0, atol=1e-14)


def test_fisher_is_the_hessian_of_the_kl_in_mean_and_log_std():
    """Both blocks and the weights, on a random tangent; log-std in the Fisher matrix is 2, not 1 or 1/sigma^2."""
    (at, _), _ = _pair()
    weights = torch.rand(M, N, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    tangent = Gaussian(_draw(M, N, A, seed=5), _draw(M, A, seed=6))
    split = M * N * A

    def divergence(flat):
        new = Gaussian(flat[:split].view(M, N, A), flat[split:].view(M, A))
        old, new = (Independent(Normal(g.mean, g.log_std.exp().unsqueeze(1)), 1) for g in (at, new))
        return (weights * kl_divergence(old, new)).sum()

    flat, v = (torch.cat([g.mean.reshape(-1), g.log_std.reshape(-1)]) for g in (at, tangent))
    hessian = torch.autograd.functional.hessian(divergence, flat)
    product = GaussianPolicy.fisher(at, tangent, weights)
    actual = torch.cat([product.mean.reshape(-1), product.log_std.reshape(-1)])
    torch.testing.assert_close(actual, hessian @ v, rtol=1e-11, atol=1e-12)


def test_actions_are_mean_plus_std_times_noise():
    policy = GaussianPolicy(MLP((2, A)), A)
    params = {"0.weight": _draw(M, 2, A), "0.bias": _draw(M, A, seed=1), "log_std": 0.5 * _draw(M, A, seed=2)}
    observations, noise = _draw(M, N, 2, seed=3), _draw(M, N, A, seed=4)
    actions, means = policy.actor(params)(observations, noise)
    for m in range(M):
        mean = observations[m] @ params["0.weight"][m] + params["0.bias"][m]
        torch.testing.assert_close(means[m], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(actions[m], mean + params["log_std"][m].exp() * noise[m], rtol=1e-12, atol=1e-12)


def test_a_network_cannot_bring_a_log_std_of_its_own():
    """It would be overwritten without a word."""
    module = torch.nn.Module()
    module.log_std = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="log_std"):
        GaussianPolicy(from_module(module), 2).init(torch.Generator())


def test_the_smallest_standard_deviation_holds_and_has_no_gradient():
    policy = GaussianPolicy(MLP((2, 1)), 1, init_std=0.5, min_std=0.1)
    params = policy.init(torch.Generator())
    assert params["log_std"].tolist() == pytest.approx([math.log(0.5)])
    low = torch.tensor([[-5.0]], requires_grad=True)
    acting = policy.clamped(low)
    assert acting.exp().item() == pytest.approx(0.1)
    assert torch.autograd.grad(acting.sum(), low)[0].item() == 0.0


# -- losses ------------------------------------------------------------------------------------------------------------


def _batch():
    means, log_std = _draw(M, N, A, seed=20), 0.3 * _draw(M, A, seed=21)
    actions = _draw(M, N, A, seed=22)
    weights = torch.rand(M, N, generator=torch.Generator().manual_seed(23), dtype=torch.double)
    weights[0, 3:] = 0
    log_probs = Independent(Normal(means, log_std.exp().unsqueeze(1)), 1).log_prob(actions)
    return Batch(
        _draw(M, N, 2, seed=24),
        actions,
        _draw(M, N, seed=25),
        weights / weights.sum(1, keepdim=True),
        log_probs,
        Gaussian(means, log_std),
    )


def _policy():
    params = {
        "0.weight": _draw(M, 2, A, seed=30),
        "0.bias": _draw(M, A, seed=31),
        "log_std": 0.5 * _draw(M, A, seed=32),
    }
    return GaussianPolicy(MLP((2, A)), A), params


def _formula(params, batch, m, ratio):
    """One task's loss, from torch's distributions."""
    mean = batch.observations[m] @ params["0.weight"][m] + params["0.bias"][m]
    score = Independent(Normal(mean, params["log_std"][m].exp()), 1).log_prob(batch.actions[m])
    score = (score - batch.log_probs[m]).exp() if ratio else score
    return -(batch.weights[m] * score * batch.advantages[m]).sum()


@pytest.mark.parametrize("surrogate", ["lvc", "logp"])
def test_inner_loss_is_its_formula(surrogate):
    policy, params = _policy()
    batch = _batch()
    expected = torch.stack([_formula(params, batch, m, surrogate == "lvc") for m in range(M)])
    torch.testing.assert_close(PolicyLoss(policy, surrogate)(params, batch), expected, rtol=1e-11, atol=1e-12)


def test_query_is_the_ratio_surrogate_with_the_weighted_kl():
    policy, params = _policy()
    batch = _batch()
    terms = PolicyQuery(policy)(params, batch)
    expected = torch.stack([_formula(params, batch, m, True) for m in range(M)])
    torch.testing.assert_close(terms.loss, expected, rtol=1e-11, atol=1e-12)
    for m in range(M):
        mean = batch.observations[m] @ params["0.weight"][m] + params["0.bias"][m]
        old, new = Normal(batch.behaviour[0][m], batch.behaviour[1][m].exp()), Normal(mean, params["log_std"][m].exp())
        divergence = (batch.weights[m] * kl_divergence(old, new).sum(-1)).sum()
        torch.testing.assert_close(terms.kl[m], divergence, rtol=1e-11, atol=1e-12)


def test_both_surrogates_have_the_policy_gradient_where_the_data_were_drawn():
    """Where the ratio is 1 its gradient is the score: LVC and logp agree in slope, not in curvature."""
    policy, params = _policy()
    batch = _batch()
    acted = policy.distribution(params, batch.observations)
    batch = Batch(**{f.name: getattr(batch, f.name) for f in fields(Batch)} | {
        "log_probs": GaussianPolicy.log_prob(acted, batch.actions), "behaviour": acted
    })  # fmt: skip
    flat = ravel(params)

    def loss(x, surrogate):
        return PolicyLoss(policy, surrogate)(unravel(x, params), batch).sum()

    slopes, curvatures = [], []
    for surrogate in ("lvc", "logp"):
        slopes.append(torch.autograd.functional.jacobian(lambda x, s=surrogate: loss(x, s), flat))
        curvatures.append(torch.autograd.functional.hessian(lambda x, s=surrogate: loss(x, s), flat))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-12)
    # d2 ratio = d2 log p + (d log p)(d log p)': the difference is minus the weighted sum of outer products of scores
    assert (curvatures[0] - curvatures[1]).norm() > 0.1 * curvatures[1].norm()
    assert PolicyQuery(policy)(params, batch).kl.abs().max() < 1e-13


def test_rows_and_samples_select_the_same_thing_in_every_column():
    """A column left behind pairs actions with other states; weights must be a mean again."""
    batch = replace(_batch(), credit=torch.tensor([1.0, 2.0, 3.0, 4.0])[: _batch().num_tasks])
    index = torch.tensor([0, 2, 4])
    part = batch.samples(index).rows(slice(1, 3))
    for f in fields(Batch):
        if f.name in ("behaviour", "credit", "horizon"):
            continue
        expected = getattr(batch, f.name)[1:3][:, index]
        if f.name == "weights":
            expected = expected / expected.sum(1, keepdim=True)
        torch.testing.assert_close(getattr(part, f.name), expected, rtol=1e-14, atol=0)
    means, log_std = part.behaviour
    assert torch.equal(means, batch.behaviour[0][1:3][:, index])
    assert torch.equal(log_std, batch.behaviour[1][1:3])
    assert part.credit.tolist() == [2.0, 3.0]
    assert (part.num_tasks, part.num_samples) == (2, 3)
