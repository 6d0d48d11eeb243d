"""Inner rules against closed forms and against each other; float64. M tasks, P parameters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metarl.core import GradientStep, LearnedRates, Objective, ProximalSolve, Reptile, Terms, adapt
from metarl.core.params import expand, leaf, ravel
from metarl.core.proximal import _conjugate_gradients
from metarl.core.solvers import linearize
from metarl.testing import check_inner_rule

M, P = 4, 3
RULES = {
    "maml": (lambda loss: GradientStep(loss, 0.2), True),
    "first order": (lambda loss: GradientStep(loss, 0.2, first_order=True), False),
    "meta-sgd": (lambda loss: GradientStep(loss, 0.2, rates=LearnedRates(0.1)), True),
    "meta-sgd, first order": (lambda loss: GradientStep(loss, 0.2, True, rates=LearnedRates(0.1)), False),
    "a rate for every tensor and step": (lambda loss: GradientStep(loss, 0.2, rates=LearnedRates(0.1, False, 3)), True),
    "anil": (lambda loss: GradientStep(loss, 0.2, subset=("1.*",)), True),
    "anil with learned rates": (lambda loss: GradientStep(loss, 0.2, subset=("1.*",), rates=LearnedRates(0.2)), True),
    "from zero": (lambda loss: GradientStep(loss, 0.2, subset=("0.bias",), from_zero=True), True),
    "proximal": (lambda loss: ProximalSolve(loss, 0.1, 4.0, 3000, 1e-13, 60), True),
    "proximal, first order": (lambda loss: ProximalSolve(loss, 0.1, 4.0, 20, first_order=True), False),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_contract(name):
    """Purity, tasks apart, and the meta-gradient, of learned rates too, against central differences."""
    make, exact = RULES[name]
    check_inner_rule(make, exact=exact)


@dataclass(frozen=True)
class Quadratics:
    """Support or query data of M quadratic losses 1/2 x'A x + b'x."""

    a: Tensor
    b: Tensor

    num_samples = 1

    @property
    def num_tasks(self):
        return len(self.a)

    def rows(self, tasks):
        return Quadratics(self.a[tasks], self.b[tasks])

    def samples(self, index):
        return self


def _loss(params, data):
    x = params["x"]
    return 0.5 * torch.einsum("mi,mij,mj->m", x, data.a, x) + (data.b * x).sum(1)


@dataclass(frozen=True)
class Query:
    geometry: None = None

    def __call__(self, params, data):
        return Terms(_loss(params, data), None)


def _problem(seed=0, low=0.5):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(2, M, P, P, generator=g, dtype=torch.double)
    a = root @ root.mT + low * torch.eye(P, dtype=torch.double)
    b = torch.randn(2, M, P, generator=g, dtype=torch.double)
    theta = torch.randn(P, generator=g, dtype=torch.double)
    return theta, Quadratics(a[0], b[0]), Quadratics(a[1], b[1])


def test_the_proximal_solution_and_its_meta_gradient_have_the_closed_form_of_quadratics():
    """phi = (A + lambda)^-1 (lambda theta - b), gradient the mean of lambda (A + lambda)^-1 (B phi + d)."""
    theta, support, query = _problem()
    strength, eye = 1.7, torch.eye(P, dtype=torch.double)
    rule = ProximalSolve(_loss, 0.05, strength, 5000, 1e-14, 20)
    phi = torch.linalg.solve(support.a + strength * eye, strength * theta - support.b)
    solved = rule(expand({"x": theta}, M), support)["x"]
    torch.testing.assert_close(solved, phi, rtol=1e-9, atol=1e-9)
    _, gradient = Objective(rule, [support], query, Query()).gradient({"x": theta})
    slope = torch.einsum("mij,mj->mi", query.a, phi) + query.b
    expected = strength * torch.linalg.solve(support.a + strength * eye, slope)
    torch.testing.assert_close(gradient["x"], expected.mean(0), rtol=1e-8, atol=1e-8)


def test_the_implicit_jacobian_serves_both_products():
    """J v and J'u by linearize, which TRPO's Fisher products use: a derivative that is lost in the second pass shows."""
    theta, support, _ = _problem(1)
    strength = 2.5
    rule = ProximalSolve(_loss, 0.05, strength, 5000, 1e-14, 20)
    jacobian = strength * torch.linalg.inv(support.a + strength * torch.eye(P, dtype=torch.double))
    linear = linearize(lambda t: (rule(expand(t, M), support)["x"],), leaf({"x": theta}))
    v, u = torch.randn(P, dtype=torch.double), torch.randn(M, P, dtype=torch.double)
    torch.testing.assert_close(linear.jvp({"x": v})[0], jacobian @ v, rtol=1e-8, atol=1e-8)
    expected = torch.einsum("mij,mi->j", jacobian, u)
    torch.testing.assert_close(linear.vjp((u,))["x"], expected, rtol=1e-8, atol=1e-8)


def test_the_implicit_gradient_is_what_long_unrolling_comes_to():
    """MAML through n steps on the regularised loss tends to the implicit gradient as n grows."""
    theta, support, query = _problem(2)
    strength, lr = 2.0, 0.05

    def unrolled(steps):
        start = theta.clone().requires_grad_()
        x = start.expand(M, P)
        for _ in range(steps):
            slope = torch.einsum("mij,mj->mi", support.a, x) + support.b + strength * (x - start)
            x = x - lr * slope
        return torch.autograd.grad(_loss({"x": x}, query).mean(), start)[0]

    rule = ProximalSolve(_loss, lr, strength, 5000, 1e-14, 20)
    implicit = Objective(rule, [support], query, Query()).gradient({"x": theta})[1]["x"]
    gaps = [float((unrolled(n) - implicit).norm()) for n in (1, 10, 100, 1000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-8 < gaps[0]


def test_an_indefinite_task_falls_back_to_first_order_and_leaves_the_others_exact():
    """Task 0 has I + H/lambda with an eigenvalue below 0 along the very direction that is asked for."""
    theta, support, query = _problem(3)
    strength, eye = 1.0, torch.eye(P, dtype=torch.double)
    a = support.a.clone()
    a[0] = -3.0 * eye
    support = Quadratics(a, support.b)
    rule = ProximalSolve(_loss, 0.01, strength, 3, 0.0, 20)
    point = rule(expand({"x": theta}, M), support)["x"]
    linear = linearize(lambda t: (rule(t, support)["x"],), leaf(expand({"x": theta}, M)))
    u = torch.einsum("mij,mj->mi", query.a, point) + query.b
    product = linear.vjp((u,))["x"]
    torch.testing.assert_close(product[0], u[0])
    expected = torch.linalg.solve(eye + a[1:] / strength, u[1:])
    torch.testing.assert_close(product[1:], expected, rtol=1e-8, atol=1e-8)


def test_a_task_that_is_solved_does_not_wait_for_the_others():
    """Every task stops by its own tolerance: a batch-wide stop would let task 0 go on for as long as the hardest."""
    theta, support, _ = _problem(4)
    rule = ProximalSolve(_loss, 0.05, 2.0, 5000, 1e-3, 5)
    together = rule(expand({"x": theta}, M), support)["x"]
    for i in range(M):
        alone = rule(expand({"x": theta}, 1), support.rows(slice(i, i + 1)))["x"]
        torch.testing.assert_close(together[i], alone[0], rtol=1e-12, atol=1e-12)


def test_only_the_subset_adapts_bit_for_bit():
    """Catches a pattern that is read as a prefix ("1.*" and "11.weight"), and a zero step that rounds."""

    def loss(params, data):
        return sum(value.flatten(1).square().sum(1) for value in params.values())

    names = ("0.weight", "1.weight", "11.weight", "log_std")
    params = {name: torch.randn(M, 2, dtype=torch.double) for name in names}
    rule = GradientStep(loss, 0.1, subset=("1.*", "log_std"))
    adapted = rule(params, None)
    assert [n for n in names if torch.equal(adapted[n], params[n])] == ["0.weight", "11.weight"]
    torch.testing.assert_close(adapted["1.weight"], 0.8 * params["1.weight"])
    with pytest.raises(ValueError, match=r"nothing to adapt: '2\.\*' meets none of 0\.weight, 1\.weight"):
        GradientStep(loss, 0.1, subset=("2.*",)).init(params)


def test_a_context_starts_from_zero_and_is_not_meta_learned():
    """Catches a context that keeps what another task, or the meta-update, put into it."""

    def loss(params, data):
        return (params["context"].sum(1) + params["w"].sum(1) - 1.0).square()

    meta = {"context": torch.full((2,), 7.0, dtype=torch.double), "w": torch.zeros(1, dtype=torch.double)}
    rule = GradientStep(loss, 0.1, subset=("context",), from_zero=True)
    once = adapt(rule, expand(meta, M), [None])["context"]
    torch.testing.assert_close(once, torch.full((M, 2), 0.2, dtype=torch.double))
    twice = adapt(rule, expand(meta, M), [None, None])["context"]
    torch.testing.assert_close(twice, once + 0.2 * (1 - 0.4))
    theta = leaf(meta)
    final = adapt(rule, expand(theta, M), [None])
    slopes = torch.autograd.grad(
        loss(final, None).sum(), list(theta.values()), allow_unused=True, materialize_grads=True
    )
    assert not slopes[0].any()
    assert slopes[1].all()


def test_learned_rates_take_their_step_and_scale_with_the_rate_that_evaluation_asks_for():
    """Catches rates of the wrong step, a last step without rates, and an evaluation that cannot change the step size."""

    def loss(params, data):
        return params["w"].flatten(1).sum(1)

    start = LearnedRates(0.1, per_weight=False, steps=2)
    params = {"w": torch.zeros(M, 2, dtype=torch.double)}
    rule = GradientStep(loss, 0.1, rates=start)
    rates = rule.init({"w": params["w"][0]})
    assert {name: float(value) for name, value in rates.items()} == {"rate.0.w": 0.1, "rate.1.w": 0.1}
    rates = {
        "rate.0.w": torch.full((M,), 1.0, dtype=torch.double),
        "rate.1.w": torch.full((M,), 10.0, dtype=torch.double),
    }
    after = adapt(rule, params | rates, [None, None, None])["w"]
    torch.testing.assert_close(after, torch.full((M, 2), -21.0, dtype=torch.double))
    half = GradientStep(loss, 0.05, rates=start)
    torch.testing.assert_close(adapt(half, params | rates, [None])["w"], torch.full((M, 2), -0.5, dtype=torch.double))
    with pytest.raises(ValueError, match=r"name starts with 'rate\.'"):
        rule.init({"rate.speed": params["w"][0]})


def test_one_step_is_the_maximum_a_posteriori_estimate_of_a_hierarchical_gaussian():
    """phi ~ N(theta, tau^2), x_j ~ N(phi, sigma^2): a step alpha on sum (phi - x_j)^2 / 2 sigma^2, 1/tau^2 = 1/alpha - n/sigma^2.

    Grant et al. (2018), arXiv:1801.08930: the posterior mean is (theta/tau^2 + sum x/sigma^2) / (1/tau^2 + n/sigma^2).
    """
    n, sigma, alpha, theta = 5, 0.8, 0.07, 0.3
    x = torch.randn(M, n, dtype=torch.double)

    def total(params, data):
        return (params["phi"] - data).square().sum(1) / (2 * sigma**2)

    def mean(params, data):
        return (params["phi"] - data).square().mean(1) / 2

    meta = expand({"phi": torch.tensor([theta], dtype=torch.double)}, M)
    precision = 1 / alpha - n / sigma**2
    expected = (theta * precision + x.sum(1) / sigma**2) / (precision + n / sigma**2)
    torch.testing.assert_close(GradientStep(total, alpha)(meta, x)["phi"][:, 0], expected)
    fraction = (n / sigma**2) / (precision + n / sigma**2)
    torch.testing.assert_close(GradientStep(mean, fraction)(meta, x)["phi"][:, 0], expected)


def test_the_learned_start_of_scalar_quadratics_is_the_weighted_mean_of_their_optima():
    """1/2 h_i (x - x_i)^2: the meta-gradient is zero at sum w_i x_i / sum w_i with w_i = h_i (1 - alpha h_i)^2."""
    h, optimum, alpha = torch.rand(M, dtype=torch.double) + 0.5, torch.randn(M, dtype=torch.double), 0.3
    data = Quadratics(h.view(M, 1, 1), (-h * optimum).view(M, 1))
    weights = h * (1 - alpha * h).square()
    start = {"x": (weights * optimum).sum().view(1) / weights.sum()}
    second = Objective(GradientStep(_loss, alpha), [data], data, Query()).gradient(start)[1]["x"]
    assert abs(float(second)) < 1e-12
    first = Objective(GradientStep(_loss, alpha, first_order=True), [data], data, Query()).gradient(start)[1]["x"]
    assert abs(float(first)) > 1e-3


def test_reptile_goes_to_the_mean_of_what_the_tasks_adapt_to():
    """theta + epsilon (mean of U^2(theta) - theta), with U(x) = x - alpha (A x + b) written out."""
    theta, support, query = _problem(5)
    rule, epsilon = GradientStep(_loss, 0.1), 0.4
    x = theta.expand(M, P)
    for _ in range(2):
        x = x - 0.1 * (torch.einsum("mij,mj->mi", support.a, x) + support.b)
    reptile = Reptile(epsilon)
    update = reptile.step({"x": theta}, Objective(rule, [support, support], query, Query()), reptile.init({}))
    torch.testing.assert_close(ravel(update.meta), theta + epsilon * (x.mean(0) - theta))


def test_reptile_says_why_it_rejects():
    """A warning of a meta-gradient, which it does not take."""
    theta, support, query = _problem(6)
    broken, reptile = Quadratics(support.a * torch.nan, support.b), Reptile()
    state, meta = reptile.init({}), {"x": theta}
    objective = Objective(GradientStep(_loss, 0.1), [broken], query, Query())
    for _ in range(4):
        state = reptile.step(meta, objective, state).state
    with pytest.warns(RuntimeWarning, match=r"last 5 .* \(the adapted parameters are not finite\)"):
        update = reptile.step(meta, objective, state)
    assert update.meta is meta


def test_a_task_whose_products_overflow_keeps_its_last_sound_iterate():
    """Task 0's second product is infinite; 0 times that would be NaN, in it and in the mean over tasks."""
    _, support, _ = _problem(6)
    calls = []

    def product(v):
        calls.append(1)
        image = torch.einsum("mij,mj->mi", support.a, v[0])
        if len(calls) == 2:
            image[0] = torch.inf
        return [image]

    b = torch.randn(M, P, dtype=torch.double)
    (x,) = _conjugate_gradients(product, (b,), 20)
    step = b[0].square().sum() / (b[0] @ support.a[0] @ b[0])
    torch.testing.assert_close(x[0], step * b[0])
    torch.testing.assert_close(x[1:], torch.linalg.solve(support.a[1:], b[1:]), rtol=1e-8, atol=1e-8)


def test_numbers_that_divide_are_checked():
    """A rate that starts at 0 or a strength of 0 would give NaN much later."""
    for make in (lambda: LearnedRates(0.0), lambda: LearnedRates(0.1, steps=0), lambda: ProximalSolve(_loss, 0.1, 0.0)):
        with pytest.raises(ValueError, match="must"):
            make()
