"""Inner surrogates and E-MAML's term against finite sums over all trajectories of a small MDP, where nothing is estimated.

What is compared with is NumPy in ``experiments.meta_gradients``: dynamic programming, analytic scores, central differences.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from experiments import meta_gradients as exact
from metarl.core.params import ravel, unravel
from metarl.rl import Exploration, PolicyLoss, PolicyQuery
from metarl.rl.losses import SURROGATES

THETA = ravel(exact.start()).numpy()
CHANCES = exact.chances(THETA)


def expected(parts):
    """Mean over trajectories of (8, ...)."""
    return np.tensordot(CHANCES, parts, 1)


def second_derivative():
    """Of V, by differences of differences."""
    rows = [exact.slope(lambda x, i=i: exact.slope(exact.value, x, 1e-3)[i], THETA, 1e-3) for i in range(6)]
    return np.stack(rows)


def products_of_scores():
    """E of sum_t A_t (g_t u' + u g_t') for u the scores of earlier steps, and of sum_t A_t g_t g_t'."""
    g, advantage = exact.scores(THETA), exact.to_go()
    crossed = np.einsum("ni,nj->nij", g[:, 1], g[:, 0])
    across = advantage[:, 1, None, None] * (crossed + crossed.transpose(0, 2, 1))
    same = np.einsum("nt,nti,ntj->nij", advantage, g, g)
    return expected(across), expected(same)


def test_the_exact_values_fit_together():
    """The truth itself: probabilities sum to 1, V is the mean reward, and the mean score times return its gradient."""
    assert CHANCES.sum() == pytest.approx(1)
    assert CHANCES @ exact.to_go()[:, 0] == pytest.approx(float(exact.value(THETA)))
    gradient = expected((exact.scores(THETA) * exact.to_go()[..., None]).sum(1))
    np.testing.assert_allclose(gradient, exact.slope(exact.value, THETA), rtol=1e-8)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_has_the_policy_gradient(surrogate):
    """A surrogate whose first derivative is another's would adapt to something else."""
    batch = exact.supports(THETA, np.arange(8)[:, None])
    params = {n: v.expand(8, *v.shape).clone().requires_grad_() for n, v in exact.start().items()}
    loss = -PolicyLoss(exact.POLICY, surrogate)(params, batch)
    gradients = torch.autograd.grad((torch.tensor(CHANCES) * loss).sum(), list(params.values()))
    total = torch.cat([g.sum(0).flatten() for g in gradients]).numpy()
    np.testing.assert_allclose(total, exact.slope(exact.value, THETA), rtol=1e-8, atol=1e-10)


def test_dice_expects_the_second_derivative_of_the_return():
    """Catches any lost product of scores."""
    np.testing.assert_allclose(expected(exact.hessians(THETA, "dice")), second_derivative(), rtol=1e-6, atol=1e-8)


def test_the_magic_box_is_worth_nothing_wherever_it_is_evaluated():
    """Also at parameters that did not act (a candidate of the line search): no ratio of whole trajectories may explode."""
    batch = exact.supports(THETA, np.arange(8)[:, None])
    params = {n: (v + 3.0).expand(8, *v.shape).clone().requires_grad_() for n, v in exact.start().items()}
    params["0.weight"] = (params["0.weight"] * torch.tensor([1.0, -1.0], dtype=torch.float64)).detach().requires_grad_()
    for surrogate in ("dice", "loaded-dice"):
        loss = PolicyLoss(exact.POLICY, surrogate)(params, batch)
        assert not loss.any()
        found = torch.autograd.grad(loss.sum(), list(params.values()))
        plain = torch.autograd.grad(PolicyLoss(exact.POLICY, "logp")(params, batch).sum(), list(params.values()))
        torch.testing.assert_close(found, plain)


def test_lvc_lacks_exactly_the_products_across_time():
    across, _ = products_of_scores()
    found = expected(exact.hessians(THETA, "lvc"))
    np.testing.assert_allclose(found + across, second_derivative(), rtol=1e-6, atol=1e-8)
    assert np.abs(across).max() > 0.1  # a bandit would hide it


def test_logp_lacks_the_products_of_one_step_besides():
    across, same = products_of_scores()
    found = expected(exact.hessians(THETA, "logp"))
    np.testing.assert_allclose(found + across + same, second_derivative(), rtol=1e-6, atol=1e-8)
    assert np.abs(same).max() > 0.1


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_loaded_dice_lies_between_lvc_and_dice(decay):
    """With two steps a product across time is one step apart, and counts decay times."""
    across, _ = products_of_scores()
    found = expected(exact.hessians(THETA, "loaded-dice", decay))
    np.testing.assert_allclose(found, expected(exact.hessians(THETA, "lvc")) + decay * across, atol=1e-10)


def test_lvc_varies_less_than_dice():
    deviation = {}
    for name in ("lvc", "dice"):
        each = exact.hessians(THETA, name)
        deviation[name] = float(CHANCES @ np.square(each - expected(each)).sum((1, 2)))
    assert deviation["lvc"] < 0.6 * deviation["dice"]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_logp_with_the_exploration_term_is_the_gradient_of_what_is_sampled(samples):
    """E over inner samples of V(adapted): both terms together are exact for every n, and MAML's alone is not."""
    truth = exact.slope(lambda x: exact.expected_adapted(x, samples), THETA)
    whole = exact.expected_meta_gradient(THETA, samples, "logp", exploration=True)
    np.testing.assert_allclose(whole, truth, rtol=1e-7, atol=1e-9)
    for surrogate in SURROGATES:
        biased = exact.expected_meta_gradient(THETA, samples, surrogate)
        assert np.linalg.norm(biased - truth) > 0.02 * np.linalg.norm(truth), surrogate


def test_only_dice_goes_to_the_ideal_gradient_as_the_inner_sample_grows():
    """Its bias falls like 1/n (nonlinear V of a noisy step); what logp and lvc lack stays."""
    truth = exact.slope(exact.ideal_adapted, THETA)

    def off(surrogate, samples):
        return np.linalg.norm(exact.expected_meta_gradient(THETA, samples, surrogate) - truth) / np.linalg.norm(truth)

    dice, lvc, logp = ([off(name, n) for n in (2, 4)] for name in ("dice", "lvc", "logp"))
    assert dice[1] < 0.5 * dice[0]
    # Richardson: what is left at n to infinity, if the error is a + b/n
    limits = [2 * errors[1] - errors[0] for errors in (dice, lvc, logp)]
    assert abs(limits[0]) < 0.05
    assert limits[1] > 0.05
    assert limits[2] > 0.2


def test_steps_after_the_end_count_nothing():
    """DiCE of a short episode beside a long one is that of each alone: padding may not enter the cumulated sums."""
    batch = exact.supports(THETA, np.array([[0, 5]]))
    weights = torch.tensor(
        [[0.25, 0.25, 0.0, 0.5]], dtype=torch.float64
    )  # rows (step, episode): the first ends after a step
    ragged = dataclasses.replace(batch, weights=weights)
    other = dataclasses.replace(ragged, actions=ragged.actions.clone())
    other.actions[0, 2] = 1 - other.actions[0, 2]

    def curvature(data):
        loss = PolicyLoss(exact.POLICY, "dice")
        start = exact.start()
        return torch.autograd.functional.hessian(
            lambda x: loss({n: v.unsqueeze(0) for n, v in unravel(x, start).items()}, data).sum(), torch.tensor(THETA)
        )

    assert torch.equal(curvature(ragged), curvature(other))
    parts = [dataclasses.replace(exact.supports(THETA, np.array([[n]]))) for n in (0, 5)]
    parts[0] = dataclasses.replace(parts[0], weights=torch.tensor([[0.25, 0.0]], dtype=torch.float64))
    parts[1] = dataclasses.replace(parts[1], weights=torch.tensor([[0.25, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(curvature(ragged), curvature(parts[0]) + curvature(parts[1]))


def test_thinning_keeps_whole_episodes():
    """A Fisher product on some of the states: DiCE needs all steps of those episodes, in order."""
    batch = exact.supports(THETA, np.array([[0, 3, 5, 6], [1, 2, 4, 7]]))
    thin = batch.samples(torch.arange(4))  # half of the 8 states: two of four episodes
    assert thin.num_samples == 4
    assert thin.horizon == 2
    whole = [batch.actions[0, [e, 4 + e], 0].tolist() for e in range(4)]
    assert all(thin.actions[0, [e, 2 + e], 0].tolist() in whole for e in range(2))
    torch.testing.assert_close(thin.weights.sum(1), torch.ones(2, dtype=torch.float64))
    assert batch.samples(torch.arange(1)).num_samples == 2  # at least one


def test_dice_without_episodes_is_refused():
    batch = dataclasses.replace(exact.supports(THETA, np.array([[0]])), horizon=None)
    params = {n: v.unsqueeze(0) for n, v in exact.start().items()}
    with pytest.raises(ValueError, match="surrogate dice needs batches of whole episodes"):
        PolicyLoss(exact.POLICY, "dice")(params, batch)
    with pytest.raises(ValueError, match="decay=2 must be in"):
        PolicyLoss(exact.POLICY, "loaded-dice", 2)
    with pytest.raises(ValueError, match="needs a query batch with credit"):
        Exploration(exact.POLICY)(params, batch, batch, 0)


@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_the_clipped_loss_is_its_formula(epsilon):
    """min(r A, clip(r) A): a ratio beyond the bound earns nothing more, and loses all the same."""
    batch = exact.supports(THETA, np.array([[0, 3, 5, 6], [1, 2, 4, 7]]))
    params = {n: v.expand(2, *v.shape) + 0.7 for n, v in exact.start().items()}
    params["0.weight"] = params["0.weight"] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    query = PolicyQuery(exact.POLICY)
    terms = (query if epsilon is None else query.clipped(epsilon))(params, batch)
    new = exact.POLICY.log_prob(exact.POLICY.distribution(params, batch.observations), batch.actions)
    for m in range(2):
        total = 0.0
        for n in range(batch.num_samples):
            ratio, advantage = float((new - batch.log_probs)[m, n].exp()), float(batch.advantages[m, n])
            bound = ratio if epsilon is None else float(np.clip(ratio, 1 - epsilon, 1 + epsilon))
            total -= float(batch.weights[m, n]) * min(ratio * advantage, bound * advantage)
        assert float(terms.loss[m]) == pytest.approx(total)
    torch.testing.assert_close(query.divergence(params, batch), terms.kl)
