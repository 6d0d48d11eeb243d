"""The batched solver against closed forms and scipy; float64 but for one. M tasks, P numbers of each."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

import metarl
from metarl.core import ProximalSolve
from metarl.core.minimize import minimize
from metarl.core.params import ravel_rows, unravel_rows
from metarl.nets import MLP

M, P = 4, 6


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def _autograd(values):
    """Functions for the solver from values alone; rows are independent, so the sum's gradient is each one's."""

    def functions(point):
        leaf = point.detach().requires_grad_()
        value = values(leaf)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return functions


def _solved(functions, start, **settings):
    known = {"first_step": 0.1, "longest_step": 1.0, "evaluations": 500, "tolerance": 1e-11} | settings
    return minimize(functions, start, **known)


def _badly_scaled():
    """A with eigenvalues from 1 to 10^4 in random directions, and b."""
    basis = torch.linalg.qr(_normal(M, P, P))[0]
    a = basis @ torch.diag(torch.logspace(0, 4, P, dtype=torch.double)) @ basis.mT
    return a, _normal(M, P, seed=1)


def _quadratic(params, data):
    x, (a, b) = params["x"], data
    return 0.5 * torch.einsum("mi,mij,mj->m", x, a, x) + (b * x).sum(1)


def test_badly_scaled_problems_have_their_closed_form_where_plain_descent_diverges():
    """phi = (A + lambda)^-1 (lambda theta - b), with the first step 500 times too long: what the fixed step made of it."""
    (a, b), theta, strength, lr = _badly_scaled(), _normal(M, P, seed=2), 2.0, 0.1
    rule = ProximalSolve(_quadratic, lr, strength, 400, 1e-10)
    full = a + strength * torch.eye(P, dtype=torch.double)
    expected = torch.linalg.solve(full, strength * theta - b)
    solution = rule.solve({"x": theta}, (a, b))
    torch.testing.assert_close(solution.params["x"], expected, rtol=1e-6, atol=1e-6)
    assert (solution.residual <= 1e-10).all()
    x = theta
    for _ in range(16):
        x = x - lr * (torch.einsum("mij,mj->mi", full, x) + b - strength * theta)
    assert x.abs().max() > 1e30


def test_sixteen_gradients_go_most_of_the_way():
    """A solver that only shortens its steps is safe and gets nowhere; scipy's with as many gradients is the measure."""
    a, b = _badly_scaled()
    start = torch.zeros(M, P, dtype=torch.double)
    functions = _autograd(lambda x: _quadratic({"x": x}, (a, b)))
    best = -0.5 * (b * torch.linalg.solve(a, b)).sum(1)
    left = (_solved(functions, start, evaluations=16).value - best) / -best
    options = {"maxfun": 16, "maxcor": 5, "ftol": 0, "gtol": 0}
    reference = []
    for i in range(M):

        def one(x, i=i):
            return 0.5 * x @ a[i].numpy() @ x + b[i].numpy() @ x, a[i].numpy() @ x + b[i].numpy()

        value = scipy.optimize.minimize(one, np.zeros(P), jac=True, method="L-BFGS-B", options=options).fun
        reference.append((value - float(best[i])) / -float(best[i]))
    assert float(left.mean()) < 2 * np.mean(reference)


def test_scipy_finds_the_same_solution_of_a_networks_problem():
    """One task after another in scipy, all at once here: a step length, or a memory, that tasks share shows."""
    net, strength = MLP((1, 8, 1), "tanh"), 0.3
    own = {n: v.double() for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    theta = {n: v + 0.3 * _normal(M, *v.shape, seed=5) for n, v in own.items()}
    x = _normal(M, 10, 1, seed=6)
    y = torch.sin(2 * x) * torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.double).view(M, 1, 1)

    def loss(params, data):
        return (net(params, data[0]) - data[1]).square().mean((1, 2))

    solution = ProximalSolve(loss, 0.1, strength, 1000, 1e-9).solve(theta, (x, y))
    found = ravel_rows(solution.params)
    for i in range(M):
        row = slice(i, i + 1)
        start = ravel_rows({n: v[row] for n, v in theta.items()})

        def one(flat, row=row, start=start):
            point = torch.as_tensor(flat).view(1, -1)
            functions = _autograd(
                lambda p: (
                    loss(unravel_rows(p, {n: v[row] for n, v in theta.items()}), (x[row], y[row]))
                    + 0.5 * strength * (p - start).square().sum(1)
                )
            )
            value, slope = functions(point)
            return float(value), slope[0].numpy()

        reference = scipy.optimize.minimize(one, start[0].numpy(), jac=True, method="BFGS", options={"gtol": 1e-8})
        assert reference.success or reference.status == 2  # 2: no better value can be represented
        assert one(found[i].numpy())[0] == pytest.approx(reference.fun, rel=1e-9)
        torch.testing.assert_close(found[i], torch.as_tensor(reference.x), rtol=1e-4, atol=1e-5)


NONCONVEX = {
    "Rosenbrock's valley": lambda x: (100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(1),
    "many minima": lambda x: (x.square() - 10 * torch.cos(6 * x)).sum(1),
    "a saddle": lambda x: 0.5 * (x[:, ::2].square().sum(1) - x[:, 1::2].square().sum(1)),
    "no minimum": lambda x: -torch.exp(3 * x).sum(1) + x.square().sum(1),
    "a wall of NaN": lambda x: (x.abs() - torch.log(1.5 + x)).sum(1),
    "an edge": lambda x: 100 * x.abs().sum(1),
}


@pytest.mark.parametrize("name", NONCONVEX)
@pytest.mark.parametrize("first_step", [1e-3, 1.0, 100.0])
def test_no_row_ends_above_its_start_however_few_gradients_it_takes(name, first_step):
    """Where nothing is convex, values end, or fall without end: an update without the check of the value shows at once."""
    start = 0.5 * _normal(50, P, seed=3)
    functions = _autograd(NONCONVEX[name])
    begin, slope = functions(start)
    before = begin
    for evaluations in (1, 2, 3, 5, 8, 30):
        found = _solved(functions, start, first_step=first_step, evaluations=evaluations)
        value, gradient = functions(found.point)
        assert torch.equal(found.value, value)
        torch.testing.assert_close(found.residual, gradient.norm(dim=1) / slope.norm(dim=1))
        assert (value <= begin).all()
        assert (value <= before + 0.01 * (begin - before)).all()  # the last point is as good as the best, but for 1 %
        assert (found.residual <= 10.0 + 1e-12).all()
        before = torch.minimum(before, value)
    assert (value < begin).all()


def test_rosenbrocks_valley_is_followed_to_its_end():
    """In two dimensions (1, 1) is its only minimum; a curvature that is never forgotten or never trusted does not get there."""
    start = _normal(20, 2, seed=4)
    found = _solved(_autograd(NONCONVEX["Rosenbrock's valley"]), start, first_step=1e-3, tolerance=1e-8)
    torch.testing.assert_close(found.point, torch.ones_like(start), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_and_disturbs_no_other(bad):
    """NaN times a mask of 0 is NaN: one broken task made all of a meta-batch NaN."""
    (a, b), start = _badly_scaled(), _normal(M, P, seed=2)
    broken = b.clone()
    broken[1] = bad
    fine = _solved(_autograd(lambda x: _quadratic({"x": x}, (a, b))), start)
    found = _solved(_autograd(lambda x: _quadratic({"x": x}, (a, broken))), start)
    assert torch.equal(found.point[1], start[1])
    others = [0, 2, 3]
    torch.testing.assert_close(found.point[others], fine.point[others], rtol=1e-9, atol=1e-9)


def test_a_row_does_not_see_the_others():
    """A memory that moves on while only others step, or a length they share. Elementwise, so that rounding is alike."""
    curvature = torch.logspace(-1, 4, M * P, dtype=torch.double).view(P, M).T

    def functions(rows):
        return _autograd(lambda x: (0.5 * curvature[rows] * x.square() + torch.cos(3 * x)).sum(1))

    start = _normal(M, P, seed=7)
    together = _solved(functions(slice(None)), start, evaluations=12)
    for i in range(M):
        row = slice(i, i + 1)
        alone = _solved(functions(row), start[row], evaluations=12)
        torch.testing.assert_close(together.point[row], alone.point, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("evaluations", [1, 2, 7])
def test_no_more_gradients_are_taken_than_allowed_and_none_when_all_is_solved(evaluations):
    """A cost that a comparison with other algorithms does not know of."""
    calls = []

    def functions(point):
        calls.append(1)
        return _autograd(lambda x: (x.square().square() + x).sum(1))(point)

    start = _normal(M, P, seed=8)
    _solved(functions, start, evaluations=evaluations, tolerance=0.0)
    assert len(calls) == evaluations
    calls.clear()
    _solved(functions, start, evaluations=100, tolerance=0.5)
    assert len(calls) < 10


def test_single_precision_gets_below_the_rounding_of_values():
    """At a gradient 10^-4 of the first the value has 10^-8 to fall and single precision 10^-7 to tell it with."""
    a = torch.logspace(0, 2, P).expand(M, P)
    centre = _normal(M, P, seed=9).float()
    functions = _autograd(lambda x: 1.0 + (0.5 * a * (x - centre).square()).sum(1))
    found = _solved(functions, torch.zeros(M, P), evaluations=60, tolerance=1e-4)
    assert (found.residual < 1e-4).all()


def test_any_number_of_threads_trains_the_same_bits():
    """Tasks that were solved side by side, in chunks of their own."""
    states = []
    for threads in (1, 2):
        learner = metarl.build("sinusoid", "imaml-adam", meta_batch_size=4, chunk_tasks=2, threads=threads)
        state = learner.init(0)
        for _ in range(2):
            state, _ = learner.iteration(state)
        states.append(state.meta)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
