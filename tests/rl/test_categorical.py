"""Categorical and multi-discrete policies, with and without masks, against torch.distributions; float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from metarl.core import GradientStep, Objective, Workers, adapt
from metarl.core.params import expand, leaf, ravel, unravel
from metarl.nets import MLP
from metarl.rl import CategoricalPolicy, PolicyLoss, PolicyQuery
from metarl.rl.losses import Batch

M, N = 3, 8
CASES = {
    "one": ((5,), False),
    "one masked": ((5,), True),
    "several": ((3, 2, 4), False),
    "several masked": ((3, 2, 4), True),
}
every_case = pytest.mark.parametrize(("counts", "masked"), CASES.values(), ids=CASES)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _case(counts, masked, seed=0):
    """A policy, parameters of M tasks, observations whose last columns are the mask, and legal actions."""
    g, total = _generator(seed), sum(counts)
    size = 2 + (total if masked else 0)
    policy = CategoricalPolicy(MLP((size, 4, total)), counts, 2 if masked else None)
    meta = {
        n: v.double() + 0.5 * torch.randn(v.shape, generator=g, dtype=torch.double) for n, v in policy.init(g).items()
    }
    observations = torch.randn(M, N, size, generator=g, dtype=torch.double)
    legal = torch.ones(M, N, total, dtype=torch.bool)
    if masked:
        legal = torch.rand(M, N, total, generator=g) < 0.6
        start = 0
        for count in counts:  # one of each component is always legal
            forced = torch.randint(count, (M, N, 1), generator=g) + start
            legal.scatter_(-1, forced, True)
            start += count
        observations[..., 2:] = legal.double()
    return policy, meta, observations, legal


def _theirs(policy, params, observations, legal):
    """torch's distribution of every component; illegal logits are minus infinity."""
    logits = policy.net(params, observations).masked_fill(~legal, -torch.inf)
    return [Categorical(logits=part) for part in logits.split(policy.counts, -1)]


def _actions(theirs, seed=1):
    g = _generator(seed)
    draws = [torch.multinomial(d.probs.flatten(0, -2), 1, generator=g).view(M, N) for d in theirs]
    return torch.stack(draws, -1)


@every_case
def test_log_prob_entropy_and_mode_are_torchs(counts, masked):
    """A column of another component, a mean instead of a sum over components, NaN from 0 times infinity."""
    policy, meta, observations, legal = _case(counts, masked)
    params = expand(meta, M)
    theirs = _theirs(policy, params, observations, legal)
    actions = _actions(theirs)
    ours = policy.distribution(params, observations)
    expected = sum(d.log_prob(actions[..., j]) for j, d in enumerate(theirs))
    torch.testing.assert_close(policy.log_prob(ours, actions), expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(M, N, generator=_generator(2), dtype=torch.double)
    entropies = sum(-torch.special.entr(d.probs).sum(-1) for d in theirs)
    torch.testing.assert_close(policy.entropy(ours, weights), -(weights * entropies).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(policy.mode(ours), torch.stack([d.probs.argmax(-1) for d in theirs], -1))
    probs = ours[0].exp()
    assert torch.equal(probs == 0, ~legal)
    assert torch.equal(ours[0].float().exp() == 0, ~legal)


@every_case
def test_kl_is_torchs_of_the_old_to_the_new(counts, masked):
    policy, meta, observations, legal = _case(counts, masked)
    old, new = expand(meta, M), expand({n: v + 0.3 for n, v in meta.items()}, M)
    new = {n: v + 0.2 * torch.randn(v.shape, generator=_generator(9), dtype=torch.double) for n, v in new.items()}
    pairs = zip(_theirs(policy, old, observations, legal), _theirs(policy, new, observations, legal), strict=True)
    expected = 0
    for a, b in pairs:  # torch's own KL makes NaN of 0 * (inf - inf): legal choices only
        terms = a.probs * (a.logits - b.logits)
        expected = expected + torch.where(a.probs > 0, terms, 0.0).sum(-1)
        if not masked:
            torch.testing.assert_close(terms.sum(-1), kl_divergence(a, b), rtol=1e-10, atol=1e-12)
    ours = [policy.distribution(p, observations) for p in (old, new)]
    torch.testing.assert_close(policy.kl(*ours), expected, rtol=1e-11, atol=1e-13)
    assert policy.kl(ours[0], ours[0]).abs().max() == 0
    assert (policy.kl(*ours) > 1e-4).all()


@every_case
def test_fisher_is_the_hessian_of_the_kl_in_the_logits(counts, masked):
    """The product of probabilities left out, components mixed, or curvature in illegal directions."""
    policy, meta, observations, legal = _case(counts, masked)
    (at,) = policy.distribution(expand(meta, M), observations)
    weights = torch.rand(M, N, generator=_generator(4), dtype=torch.double)
    tangent = torch.randn(at.shape, generator=_generator(5), dtype=torch.double)
    product = policy.fisher((at,), (tangent,), weights)[0]
    for m, n in ((0, 0), (1, 3), (2, 7)):

        def divergence(logits, m=m, n=n):
            new = logits.masked_fill(~legal[m, n], -1e9)
            new = torch.cat([part.log_softmax(-1) for part in new.split(counts, -1)])
            return weights[m, n] * (at[m, n].exp() * (at[m, n] - new)).sum()

        logits = policy.net(expand(meta, M), observations)[m, n]
        hessian = torch.autograd.functional.hessian(divergence, logits)
        torch.testing.assert_close(product[m, n], hessian @ tangent[m, n], rtol=1e-9, atol=1e-12)
    assert (product[~legal] == 0).all()


@every_case
def test_draws_have_the_policys_frequencies_and_are_legal(counts, masked):
    policy, meta, observations, legal = _case(counts, masked)
    params = {n: v.float() for n, v in expand(meta, M).items()}
    seen = observations.float()
    draws = 4000
    noise = np.empty((M, N * draws, len(counts)), dtype=np.float32)
    policy.noise(np.random.default_rng(3), noise)
    actions, log_probs = policy.actor(params)(seen.repeat_interleave(draws, 1), torch.from_numpy(noise))
    columns = (actions + torch.tensor(np.cumsum([0, *counts[:-1]]))).view(M, N, -1)
    assert legal.gather(-1, columns).all()
    frequency = torch.zeros(M, N, sum(counts)).scatter_add_(-1, columns, torch.ones(columns.shape)) / draws
    probs = torch.cat([d.probs for d in _theirs(policy, params, seen, legal)], -1)
    assert actions.dtype == torch.int64
    torch.testing.assert_close(log_probs.exp().view(M, N, draws, -1)[:, :, 0], probs, rtol=1e-5, atol=1e-6)
    assert ((frequency - probs).abs() <= 5 * (probs * (1 - probs) / draws).sqrt() + 1e-6).all()


def test_the_ends_of_the_noise_draw_legal_choices():
    """0 must not draw a first choice of probability 0, nor the largest number below 1 run off the end."""
    policy = CategoricalPolicy(MLP((4, 4)), (4,), 0)
    params = {"0.weight": torch.zeros(1, 4, 4), "0.bias": torch.tensor([[3.0, -40.0, 0.1, 0.2]])}
    mask = torch.tensor([[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    for u, expected in ((0.0, {1, 2, 3}), (float(np.nextafter(np.float32(1), np.float32(0))), {2, 3})):
        actions, _ = policy.actor(params)(mask, torch.full((1, 3, 1), u))
        assert set(actions.flatten().tolist()) <= expected
        assert mask.gather(-1, actions).all()


def test_probabilities_that_are_not_finite_draw_no_choice():
    """NaN would quietly become choice 0."""
    policy = CategoricalPolicy(MLP((1, 3)), (3,))
    params = {"0.weight": torch.zeros(1, 1, 3), "0.bias": torch.tensor([[0.0, torch.nan, 0.0]])}
    assert policy.actor(params)(torch.ones(1, 2, 1), torch.full((1, 2, 1), 0.5))[0].tolist() == [[[-1], [-1]]]


def _problem(counts, masked, steps, surrogate="lvc"):
    """An objective whose query was drawn by the adapted policies; some weights are 0 (padding, with an empty mask)."""
    policy, meta, _, _ = _case(counts, masked)
    batches, rule = [], GradientStep(PolicyLoss(policy, surrogate), 0.4)
    for step in range(steps + 1):
        _, other, observations, legal = _case(counts, masked, seed=20 + step)
        params = expand({n: 0.5 * v for n, v in other.items()}, M)
        if step == steps:
            params = adapt(rule, expand(meta, M), batches)
        actions = _actions(_theirs(policy, params, observations, legal), seed=step)
        weights = torch.rand(M, N, generator=_generator(30 + step), dtype=torch.double)
        weights[:, -1] = 0
        if masked:
            observations[:, -1, 2:] = 0
        behaviour = tuple(x.detach() for x in policy.distribution(params, observations))
        advantages = torch.randn(M, N, generator=_generator(40 + step), dtype=torch.double)
        weights = weights / weights.sum(1, keepdim=True)
        log_probs = policy.log_prob(behaviour, actions)
        batches.append(Batch(observations, actions, advantages, weights, log_probs, behaviour))
    *supports, query = batches
    return policy, meta, Objective(rule, supports, query, PolicyQuery(policy), Workers(1), 2)


@every_case
@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_is_the_slope_of_the_objective(counts, masked, steps):
    """Central differences in float64, through the adaptation; the stand-in for minus infinity must not leak."""
    _, meta, objective = _problem(counts, masked, steps)
    outcome, gradient = objective.gradient(meta)
    assert outcome.kl == pytest.approx(0.0, abs=1e-12)
    flat, own = ravel(meta), ravel(gradient)

    def value(x):
        return objective.value(unravel(x, meta)).loss

    slope = torch.tensor([(value(flat + h) - value(flat - h)) / 2e-5 for h in 1e-5 * torch.eye(len(flat)).double()])
    assert (own - slope).norm() < 1e-6 * slope.norm()


@every_case
def test_fisher_product_is_the_hessian_of_the_mean_kl_through_the_adaptation(counts, masked):
    policy, meta, objective = _problem(counts, masked, 1)

    def mean_kl(flat):
        adapted = adapt(objective.rule, expand(unravel(flat, meta), M), objective.supports)
        new = policy.distribution(adapted, objective.query.observations)
        return (objective.query.weights * policy.kl(objective.query.behaviour, new)).sum(1).mean()

    flat = ravel(meta).detach().requires_grad_()
    hessian = torch.autograd.functional.hessian(mean_kl, flat)
    product = objective.fisher(meta)
    for seed in range(3):
        v = torch.randn(len(flat), generator=_generator(seed), dtype=torch.double)
        torch.testing.assert_close(ravel(product(unravel(v, meta))), hessian @ v, rtol=1e-8, atol=1e-11)


def test_illegal_choices_have_no_gradient():
    """In the loss, in its second derivative and in the prediction: the logits of a choice that is never legal."""
    policy, meta, objective = _problem((5,), True, 1)

    def closed(batch):
        observations = batch.observations.clone()
        observations[..., 2 + 1] = 0.0
        observations[..., 2] = 1.0
        acted = policy.distribution(expand(meta, M), observations)
        actions = torch.where(batch.actions == 1, 0, batch.actions)
        return Batch(observations, actions, batch.advantages, batch.weights, policy.log_prob(acted, actions), acted)

    supports, query = [closed(s) for s in objective.supports], closed(objective.query)
    theta = leaf(meta)
    adapted = adapt(objective.rule, expand(theta, M), supports)
    gradients = torch.autograd.grad(PolicyQuery(policy)(adapted, query).loss.sum(), list(theta.values()))
    gradients = dict(zip(theta, gradients, strict=True))
    assert (gradients["1.bias"][1] == 0).all()
    assert (gradients["1.weight"][:, 1] == 0).all()
    assert (gradients["1.bias"][[0, 2, 3, 4]] != 0).all()
