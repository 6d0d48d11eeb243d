"""Fisher products and linearised functions against dense Hessians, dense Jacobians and forward mode; float64."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import functional_call, jacrev

from metarl.core import GradientStep, Objective, Workers, adapt
from metarl.core.params import expand, ravel, unravel
from metarl.core.solvers import linearize, spread
from metarl.nets import MLP, from_module
from metarl.rl import GaussianPolicy, PolicyLoss, PolicyQuery
from metarl.rl.losses import Batch

M, N, LR = 3, 8, 0.4


def _random_batch(g, shape=(3,), log_std=0.2):
    """Numbers that owe nothing to a rollout; every task has padding (weight 0) at another place."""
    draw = lambda *dims: torch.randn(*dims, generator=g, dtype=torch.double)  # noqa: E731
    weights = torch.rand(M, N, generator=g, dtype=torch.double)
    weights[torch.arange(M), torch.arange(M)] = 0.0
    weights = weights / weights.sum(1, keepdim=True)
    means, stds = 0.3 * draw(M, N, 2), log_std * draw(M, 2)
    actions = draw(M, N, 2)
    log_probs = Independent(Normal(means, stds.exp().unsqueeze(1)), 1).log_prob(actions)
    return Batch(draw(M, N, *shape), actions, draw(M, N), weights, log_probs, (means, stds))


@dataclass(frozen=True)
class Point:
    """A policy at its sampling parameters: the query's old distribution is the adapted one."""

    policy: GaussianPolicy
    meta: dict
    objective: Objective


def point(steps=1, surrogate="lvc", first_order=False, net=None, shape=(3,)):
    g = torch.Generator().manual_seed(4)
    policy = GaussianPolicy(net or MLP((3, 3, 2)), 2)
    start = policy.init(g)
    meta = {k: v.double() + 0.3 * torch.randn(v.shape, generator=g, dtype=torch.double) for k, v in start.items()}
    *supports, query = [_random_batch(g, shape) for _ in range(steps + 1)]
    rule = GradientStep(PolicyLoss(policy, surrogate), LR, first_order)
    acted = policy.distribution(adapt(rule, expand(meta, M), supports), query.observations)
    query = replace(query, behaviour=tuple(x.detach() for x in acted))
    return Point(policy, meta, Objective(rule, supports, query, PolicyQuery(policy), Workers(1), 2))


def dense(product, meta):
    """The matrix of a product, one basis vector after another, (P, P)."""
    size = ravel(meta).numel()
    return torch.stack([ravel(product(unravel(row, meta))) for row in torch.eye(size, dtype=torch.double)], 1)


def mean_kl(p, flat):
    """Mean KL(old||new) by torch.distributions, differentiable through the adaptation as often as one likes."""
    o = p.objective
    adapted = adapt(o.rule, expand(unravel(flat, p.meta), M), o.supports)
    new = p.policy.distribution(adapted, o.query.observations)
    old = Independent(Normal(o.query.behaviour[0], o.query.behaviour[1].exp().unsqueeze(1)), 1)
    divergence = kl_divergence(old, Independent(Normal(new.mean, new.log_std.exp().unsqueeze(1)), 1))
    return (o.query.weights * divergence).sum(1).mean()


@pytest.mark.parametrize("surrogate", ["lvc", "logp"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_product_is_the_hessian_of_the_mean_kl(surrogate, steps, first_order):
    """Third derivatives through the whole adaptation; catches a wrong Fisher matrix, weight, mean, transpose or sum."""
    p = point(steps, surrogate, first_order)
    flat = ravel(p.meta)
    assert mean_kl(p, flat).item() == pytest.approx(0.0, abs=1e-14)
    expected = torch.autograd.functional.hessian(lambda x: mean_kl(p, x), flat)
    actual = dense(p.objective.fisher(p.meta, 1.0), p.meta)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(actual, actual.T, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(actual).min() > -1e-11
    assert torch.linalg.eigvalsh(actual).max() > 0.01


def test_product_is_the_explicit_sum_of_jacobians():
    """J by reverse mode over a second implementation of policy and adaptation, F written out as a diagonal matrix."""
    p = point(2)
    o = p.objective

    def predict(flat, task):
        def mean(q, batch):
            hidden = torch.tanh(batch.observations[task] @ q["0.weight"] + q["0.bias"])
            return hidden @ q["1.weight"] + q["1.bias"]

        def loss(q, batch):
            score = Independent(Normal(mean(q, batch), q["log_std"].exp(), validate_args=False), 1, validate_args=False)
            ratio = (score.log_prob(batch.actions[task]) - batch.log_probs[task]).exp()
            return -(batch.weights[task] * ratio * batch.advantages[task]).sum()

        q = unravel(flat, p.meta)
        for support in o.supports:
            gradient = torch.func.grad(loss)(q, support)
            q = {name: value - LR * gradient[name] for name, value in q.items()}
        return torch.cat([mean(q, o.query).reshape(-1), q["log_std"]])

    expected = 0.0
    for task in range(M):
        jacobian = jacrev(predict)(ravel(p.meta), task)
        precision = torch.exp(-2 * o.query.behaviour[1][task])  # 1 / sigma^2, known because old is adapted
        weights = o.query.weights[task]
        of_means = (weights[:, None] * precision[None, :]).reshape(-1)
        fisher = torch.cat([of_means, torch.full((2,), 2.0, dtype=torch.double) * weights.sum()])
        expected = expected + jacobian.T @ (fisher[:, None] * jacobian) / M
    torch.testing.assert_close(dense(o.fisher(p.meta, 1.0), p.meta), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_product_does_not_depend_on_chunks_threads_or_kept_graphs(chunk, monkeypatch):
    """Bit-equal between threads, and between graphs kept and graphs built again for every product."""
    p = point()
    g = torch.Generator().manual_seed(0)
    v = {n: torch.randn(x.shape, generator=g, dtype=torch.double) for n, x in p.meta.items()}
    objective = replace(p.objective, chunk_tasks=chunk)
    expected = ravel(objective.fisher(p.meta, 1.0)(v))
    torch.testing.assert_close(expected, ravel(p.objective.fisher(p.meta, 1.0)(v)), rtol=1e-12, atol=1e-14)
    product = replace(objective, workers=Workers(2)).fisher(p.meta, 1.0)
    assert torch.equal(ravel(product(v)), expected)
    assert torch.equal(ravel(product(v)), expected), "a product changed the next one"
    monkeypatch.setattr(importlib.import_module("metarl.core.adapt"), "_KEPT_SAMPLES", 0)
    assert torch.equal(ravel(objective.fisher(p.meta, 1.0)(v)), expected)


@pytest.mark.parametrize(("kept", "graphs"), [(M * N, 2), (M * N - 1, 2 * 3)])
def test_graphs_are_kept_up_to_a_size_and_built_for_every_product_beyond(kept, graphs, monkeypatch):
    """Two chunks and three products: memory must not grow with the meta-batch, nor small problems be built again."""
    module, built = importlib.import_module("metarl.core.adapt"), []
    monkeypatch.setattr(module, "_KEPT_SAMPLES", kept)
    original = module.linearize
    monkeypatch.setattr(module, "linearize", lambda *args: built.append(1) or original(*args))
    p = point()
    product = p.objective.fisher(p.meta, 1.0)
    for _ in range(3):
        product(p.meta)
    assert len(built) == graphs


@pytest.mark.parametrize("fraction", [0.25, 0.6])
def test_fraction_looks_at_the_spread_samples_only(fraction):
    """The product of a fraction is the whole product of an objective cut to those samples by hand, weights renewed."""
    p = point(2)
    index = spread(N, round(fraction * N))
    assert 0 < len(index) < N

    def cut(batch):
        weights = batch.weights[:, index]
        return Batch(
            batch.observations[:, index],
            batch.actions[:, index],
            batch.advantages[:, index],
            weights / weights.sum(1, keepdim=True),
            batch.log_probs[:, index],
            (batch.behaviour[0][:, index], batch.behaviour[1]),
        )

    by_hand = replace(p.objective, supports=[cut(s) for s in p.objective.supports], query=cut(p.objective.query))
    expected = dense(by_hand.fisher(p.meta, 1.0), p.meta)
    torch.testing.assert_close(dense(p.objective.fisher(p.meta, fraction), p.meta), expected, rtol=1e-12, atol=1e-14)
    assert (expected - dense(p.objective.fisher(p.meta, 1.0), p.meta)).norm() > 0.01 * expected.norm()


def test_a_task_without_a_valid_sample_in_the_fraction_contributes_nothing():
    """A task of short episodes may be all padding on the chosen samples: 0, not 0/0."""
    p = point()
    index = spread(N, round(0.25 * N))
    weights = p.objective.query.weights.clone()
    weights[0, index] = 0.0
    objective = replace(p.objective, query=replace(p.objective.query, weights=weights))
    others = dense(objective.fisher(p.meta, 0.25), p.meta)
    assert bool(torch.isfinite(others).all())
    rest = slice(1, M)
    alone = replace(objective, supports=[s.rows(rest) for s in objective.supports], query=objective.query.rows(rest))
    torch.testing.assert_close(others, dense(alone.fisher(p.meta, 0.25), p.meta) * (M - 1) / M, rtol=1e-11, atol=1e-13)


def test_predictions_without_a_distribution_are_refused():
    p = point()

    class Nothing:
        geometry = None

    with pytest.raises(ValueError, match="distribution"):
        replace(p.objective, loss=Nothing()).fisher(p.meta)


# -- linearize ---------------------------------------------------------------------------------------------------------


def _inner_gradient_functions():
    """theta -> predictions after one inner step: for linearize (autograd inside) and for torch.func (func inside)."""
    g = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    at = {n: torch.randn(v.shape, generator=g, dtype=torch.double) for n, v in net.named_parameters()}
    v = {n: torch.randn(x.shape, generator=g, dtype=torch.double) for n, x in at.items()}
    x, y, z = (torch.randn(6, k, generator=g, dtype=torch.double) for k in (3, 2, 3))

    def loss(params):
        return (functional_call(net, params, (x,)) - y).square().mean()

    def by_autograd(params):
        gradients = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
        adapted = {n: p - 0.3 * d for (n, p), d in zip(params.items(), gradients, strict=True)}
        return functional_call(net, adapted, (z,)), adapted["0.bias"]

    def by_func(params):
        gradients = torch.func.grad(loss)(params)
        adapted = {n: p - 0.3 * gradients[n] for n, p in params.items()}
        return functional_call(net, adapted, (z,)), adapted["0.bias"]

    return by_autograd, by_func, at, v


def test_jvp_is_forward_mode_and_vjp_its_transpose():
    """The double-backward trick against dual numbers."""
    by_autograd, by_func, at, v = _inner_gradient_functions()
    value, tangent = torch.func.jvp(by_func, (at,), (v,))
    linear = linearize(by_autograd, {n: x.clone().requires_grad_() for n, x in at.items()})
    u = tuple(torch.randn(t.shape, generator=torch.Generator().manual_seed(6), dtype=torch.double) for t in tangent)
    for _ in range(2):  # the graphs are kept: a second product must be as good as the first
        for expected, actual in zip((*value, *tangent), (*linear.value, *linear.jvp(v)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
        back = linear.vjp(u)
        pulled = torch.func.vjp(by_func, at)[1](u)[0]
        for name in at:
            torch.testing.assert_close(back[name], pulled[name], rtol=1e-11, atol=1e-12)


def test_linearize_where_parameters_are_unused_or_the_function_is_linear_or_constant():
    """Zeros where nothing depends on anything; a fixed log-std makes a constant output."""
    at = {"a": torch.tensor([1.0, 2.0], dtype=torch.double, requires_grad=True), "b": torch.ones(1, requires_grad=True)}
    v = {"a": torch.tensor([3.0, 4.0], dtype=torch.double), "b": torch.ones(1)}
    linear = linearize(lambda p: (p["a"] * 2,), at)
    assert torch.equal(linear.jvp(v)[0], 2 * v["a"])
    assert torch.equal(linear.vjp((v["a"],))["b"], torch.zeros(1))
    constant = torch.ones(3, dtype=torch.double)
    linear = linearize(lambda p: (p["a"] * 2, constant), at)
    assert torch.equal(linear.jvp(v)[0], 2 * v["a"])
    assert torch.equal(linear.jvp(v)[1], torch.zeros(3, dtype=torch.double))
    assert torch.equal(linear.vjp((v["a"], constant))["a"], 2 * v["a"])


class LastStep(nn.Module):
    """A recurrent layer over sequences (N, 3, 2) whose last output (N, 2) is the answer."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(2, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("first_order", [False, True])
def test_recurrent_modules_have_exact_fisher_products(kind, first_order):
    """Fused recurrent layers have no forward-mode derivative; their products are held to finite differences.

    J v by differences of the predictions (plain inner steps, no second-order graph), H v by differences of the gradient
    of the KL.
    """
    net = from_module(LastStep(kind).double(), vectorize=False)
    p = point(1, first_order=first_order, net=net, shape=(3, 2))
    o, flat = p.objective, ravel(p.meta)
    v = torch.randn(len(flat), generator=torch.Generator().manual_seed(7), dtype=torch.double)
    shift = adapt(o.rule, expand(p.meta, M), o.supports) if first_order else {}

    def predict(theta):
        params = expand(theta, M)
        if first_order:  # its definition: the inner gradient is a constant
            params = {n: x + shift[n].detach() - p.meta[n] for n, x in params.items()}
        else:
            params = adapt(o.rule, params, o.supports)
        return p.policy.distribution(params, o.query.observations)

    def kl_gradient(x):
        x = x.clone().requires_grad_()
        new = predict(unravel(x, p.meta))
        old = Independent(Normal(o.query.behaviour[0], o.query.behaviour[1].exp().unsqueeze(1)), 1)
        divergence = kl_divergence(old, Independent(Normal(new.mean, new.log_std.exp().unsqueeze(1)), 1))
        return torch.autograd.grad((o.query.weights * divergence).sum(1).mean(), x)[0]

    def slope(function, eps=1e-5):
        return (function(flat + eps * v) - function(flat - eps * v)) / (2 * eps)

    def predictions(x):
        return torch.cat([y.detach().reshape(-1) for y in predict(unravel(x, p.meta))])

    linear = linearize(predict, {n: x.detach().requires_grad_() for n, x in p.meta.items()})
    product = torch.cat([x.reshape(-1) for x in linear.jvp(unravel(v, p.meta))])
    torch.testing.assert_close(product, slope(predictions), rtol=1e-6, atol=1e-8)
    hessian_product = ravel(o.fisher(p.meta, 1.0)(unravel(v, p.meta)))
    torch.testing.assert_close(hessian_product, slope(kl_gradient), rtol=1e-5, atol=1e-8)
