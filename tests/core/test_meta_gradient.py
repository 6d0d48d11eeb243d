"""The meta-gradient against a loop over tasks, finite differences and closed forms, which share no code with it.

All float64. M tasks, N samples, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from metarl.core import GradientStep, Objective, Terms, Workers, adapt
from metarl.core.params import expand, ravel, unravel
from metarl.nets import MLP
from metarl.rl import GaussianPolicy, PolicyLoss, PolicyQuery
from metarl.rl.losses import Batch

M, LR = 5, 0.3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compare bits, not the order in which torch's own threads add."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Columns:
    """Any tensors that lead with M, N as data of the meta-core."""

    tensors: tuple[Tensor, ...]

    @property
    def num_tasks(self):
        return self.tensors[0].shape[0]

    @property
    def num_samples(self):
        return self.tensors[0].shape[1]

    def rows(self, tasks):
        return Columns(tuple(t[tasks] for t in self.tensors))

    def samples(self, index):
        return Columns(tuple(t[:, index] for t in self.tensors))


@dataclass(frozen=True)
class Plain:
    """An outer loss without a distribution."""

    loss: object
    geometry: None = None

    def __call__(self, params, query):
        return Terms(self.loss(params, query), None)


@dataclass(frozen=True)
class Problem:
    """A meta-learning problem twice: for the library (all tasks at once), and as two plain functions of one task."""

    meta: dict
    supports: list
    query: object
    inner_loss: object
    outer: object
    one_inner: object  # (params of one task, task, step) -> loss
    one_outer: object  # (params of one task, task) -> loss

    def objective(self, first_order, chunk=None, workers=None):
        rule = GradientStep(self.inner_loss, LR, first_order)
        return Objective(rule, self.supports, self.query, self.outer, workers or Workers(1), chunk)

    def adapted(self, theta, task, graph):
        """Plain MAML of one task: a Python loop over inner steps."""
        for step in range(len(self.supports)):
            loss = self.one_inner(theta, task, step)
            gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=graph)
            theta = {name: value - LR * g for (name, value), g in zip(theta.items(), gradients, strict=True)}
        return theta


def _forward(params, x):
    """A tanh network with one hidden layer, one task, written without the library."""
    hidden = torch.tanh(x @ params["0.weight"] + params["0.bias"])
    return hidden @ params["1.weight"] + params["1.bias"]


def _double(params, generator):
    noise = {k: torch.randn(v.shape, generator=generator, dtype=torch.double) for k, v in params.items()}
    return {k: v.double() + 0.3 * noise[k] for k, v in params.items()}


def regression(steps):
    g = torch.Generator().manual_seed(1)
    net = MLP((2, 4, 2))
    data = [
        Columns(tuple(torch.randn(M, 6, 2, generator=g, dtype=torch.double) for _ in "xy")) for _ in range(steps + 1)
    ]
    *supports, query = data

    def loss(params, points):
        return (net(params, points.tensors[0]) - points.tensors[1]).square().mean((1, 2))

    def one(params, task, points):
        x, y = (t[task] for t in points.tensors)
        return (_forward(params, x) - y).square().mean()

    return Problem(
        _double(net.init(g), g),
        supports,
        query,
        loss,
        Plain(loss),
        lambda p, task, step: one(p, task, supports[step]),
        lambda p, task: one(p, task, query),
    )


def policy_batch(g, n=9):
    """A batch whose numbers owe nothing to any rollout; the weights are ragged (some states are padding)."""
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.double)  # noqa: E731
    weights = torch.rand(M, n, generator=g, dtype=torch.double)
    weights[torch.arange(M), torch.arange(M) % n] = 0.0
    observations, actions, means, log_std = draw(M, n, 3), draw(M, n, 2), 0.3 * draw(M, n, 2), 0.2 * draw(M, 2)
    log_probs = Independent(Normal(means, log_std.exp().unsqueeze(1)), 1).log_prob(actions)
    weights = weights / weights.sum(1, keepdim=True)
    return Batch(observations, actions, draw(M, n), weights, log_probs, (means, log_std))


def policy_gradient(steps, surrogate):
    g = torch.Generator().manual_seed(2)
    policy = GaussianPolicy(MLP((3, 3, 2)), 2)
    *supports, query = [policy_batch(g) for _ in range(steps + 1)]

    def one(params, task, batch, ratio):
        normal = Normal(_forward(params, batch.observations[task]), params["log_std"].exp())
        score = Independent(normal, 1).log_prob(batch.actions[task])
        score = (score - batch.log_probs[task]).exp() if ratio else score
        return -(batch.weights[task] * score * batch.advantages[task]).sum()

    return Problem(
        _double(policy.init(g), g),
        supports,
        query,
        PolicyLoss(policy, surrogate),
        PolicyQuery(policy),
        lambda p, task, step: one(p, task, supports[step], surrogate == "lvc"),
        lambda p, task: one(p, task, query, True),
    )


PROBLEMS = {
    "regression": regression,
    "lvc": lambda steps: policy_gradient(steps, "lvc"),
    "logp": lambda steps: policy_gradient(steps, "logp"),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)
every_depth = pytest.mark.parametrize("steps", [0, 1, 3])


def _leaves(params):
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def _loop(problem, first_order):
    """Mean loss and mean gradient over tasks, one task after another, with plain autograd."""
    losses, gradients = [], []
    for task in range(M):
        theta = _leaves(problem.meta)
        adapted = problem.adapted(theta, task, graph=not first_order)
        if first_order:  # by its definition: the gradient of the query loss with respect to the *adapted* parameters
            theta = adapted = _leaves(adapted)
        loss = problem.one_outer(adapted, task)
        losses.append(loss.item())
        gradients.append(torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, list(theta.values()))]))
    return sum(losses) / M, torch.stack(gradients).mean(0)


def _central(function, point, eps=1e-5):
    """Central differences of a function of a flat vector, (P,)."""
    columns = []
    for p in range(len(point)):
        step = torch.zeros_like(point)
        step[p] = eps
        columns.append((function(point + step) - function(point - step)) / (2 * eps))
    return torch.tensor(columns, dtype=torch.double)


@every_problem
@every_depth
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_batched_gradient_is_the_gradient_of_a_loop_over_tasks(name, steps, first_order, chunk):
    """Catches leaks between tasks, means where sums belong, chunks counted wrongly, a first order that is not."""
    problem = PROBLEMS[name](steps)
    outcome, gradient = problem.objective(first_order, chunk).gradient(problem.meta)
    loss, expected = _loop(problem, first_order)
    assert outcome.loss == pytest.approx(loss, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(ravel(gradient), expected, rtol=1e-10, atol=1e-12)
    assert {n: v.shape for n, v in gradient.items()} == {n: v.shape for n, v in problem.meta.items()}


@every_problem
@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_gradient_is_the_slope_of_the_objective(name, steps):
    """Finite differences need no calculus: they catch a lost or doubled term that loop and batch could share."""
    problem = PROBLEMS[name](steps)

    def value(flat):
        theta = unravel(flat, problem.meta)
        adapted = [problem.adapted(_leaves(theta), task, graph=False) for task in range(M)]
        return sum(problem.one_outer(p, task).item() for task, p in enumerate(adapted)) / M

    _, gradient = problem.objective(False).gradient(problem.meta)
    expected = _central(value, ravel(problem.meta))
    torch.testing.assert_close(ravel(gradient), expected, rtol=1e-6, atol=1e-8)
    _, first = problem.objective(True).gradient(problem.meta)
    assert (ravel(first) - expected).norm() > 0.05 * expected.norm(), "the test problem has no second-order part"


@every_problem
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_gradient_is_the_slope_of_the_query_loss_at_the_adapted_parameters(name, steps):
    """FOMAML's definition, by finite differences in theta': the adaptation is treated as a constant shift."""
    problem = PROBLEMS[name](steps)
    slopes = []
    for task in range(M):
        adapted = problem.adapted(_leaves(problem.meta), task, graph=False)
        flat = torch.cat([v.detach().reshape(-1) for v in adapted.values()])
        slopes.append(_central(lambda x, i=task: problem.one_outer(unravel(x, problem.meta), i).item(), flat))
    _, gradient = problem.objective(True).gradient(problem.meta)
    torch.testing.assert_close(ravel(gradient), torch.stack(slopes).mean(0), rtol=1e-6, atol=1e-8)


@every_problem
def test_value_and_gradient_do_not_depend_on_threads_and_see_the_same_loss(name):
    """Catches threads that race or add in the order of their finishing; bits must agree."""
    problem = PROBLEMS[name](2)
    workers = Workers(2)
    for chunk in (1, 2, None):
        one = problem.objective(False, chunk)
        two = problem.objective(False, chunk, workers)
        outcome, gradient = one.gradient(problem.meta)
        for _ in range(3):
            again, threaded = two.gradient(problem.meta)
            assert again == outcome
            assert all(torch.equal(threaded[n], gradient[n]) for n in gradient)
        assert one.value(problem.meta) == two.value(problem.meta) == outcome


def test_mean_kl_of_the_objective_is_the_mean_of_the_tasks_kl():
    """KL(old||new) over all query states with their weights; swapped arguments give another number."""
    problem = PROBLEMS["lvc"](1)
    expected = []
    for task in range(M):
        adapted = problem.adapted(_leaves(problem.meta), task, graph=False)
        query = problem.query
        old = Independent(Normal(query.behaviour[0][task], query.behaviour[1][task].exp()), 1)
        mean = _forward(adapted, query.observations[task])
        new = Independent(Normal(mean, adapted["log_std"].exp()), 1)
        expected.append((query.weights[task] * torch.distributions.kl_divergence(old, new)).sum().item())
    assert problem.objective(False, 2).value(problem.meta).kl == pytest.approx(sum(expected) / M, rel=1e-12)


def test_nothing_is_written_and_no_graph_is_left():
    """A meta-gradient that mutates the parameters or returns tensors with a graph leaks memory and breaks rejection."""
    problem = PROBLEMS["lvc"](1)
    before = {name: value.clone() for name, value in problem.meta.items()}
    _, gradient = problem.objective(False).gradient(problem.meta)
    assert all(torch.equal(problem.meta[n], before[n]) and not problem.meta[n].requires_grad for n in before)
    assert not any(value.requires_grad for value in gradient.values())


def test_evaluating_builds_no_graph_through_the_adaptation():
    """Fifteen line-search candidates must not pay for second derivatives, whoever owns the parameters."""
    problem = PROBLEMS["regression"](1)
    graphs = []

    def watching(params, query):
        graphs.append(any(value.requires_grad for value in params.values()))
        return problem.outer.loss(params, query)

    objective = problem.objective(False)
    watched = Objective(objective.rule, objective.supports, objective.query, Plain(watching))
    assert watched.value(_leaves(problem.meta)) == objective.value(problem.meta)
    assert graphs == [False]


@pytest.mark.parametrize("first_order", [False, True])
def test_a_parameter_that_no_loss_uses_has_a_zero_gradient(first_order):
    """``allow_unused`` gives None where zeros are meant, and dropping it raises."""
    problem = PROBLEMS["regression"](1)
    meta = {**problem.meta, "spare": torch.ones(3, dtype=torch.double)}
    _, gradient = problem.objective(first_order).gradient(meta)
    assert torch.equal(gradient["spare"], torch.zeros(3, dtype=torch.double))


@pytest.mark.parametrize("first_order", [False, True])
def test_inner_step_does_not_depend_on_the_meta_batch_size(first_order):
    """Catches a mean over tasks in the inner loss, which divides the inner learning rate by M."""
    problem = PROBLEMS["lvc"](2)
    rule = GradientStep(problem.inner_loss, LR, first_order)
    five = adapt(rule, expand(problem.meta, M), problem.supports)
    for task in range(M):
        alone = adapt(rule, expand(problem.meta, 1), [s.rows(slice(task, task + 1)) for s in problem.supports])
        expected = problem.adapted(_leaves(problem.meta), task, graph=False)
        for name, value in alone.items():
            torch.testing.assert_close(five[name][task], value[0], rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(value[0], expected[name].detach(), rtol=1e-12, atol=1e-13)


# -- closed forms ------------------------------------------------------------------------------------------------------


def _symmetric(g, *lead, size=4):
    a = torch.randn(*lead, size, size, generator=g, dtype=torch.double)
    return a + a.transpose(-1, -2)


def _quadratic(params, data):
    """0.5 theta' A theta + b' theta of every task; A is (M, 1, P, P), b (M, 1, P): one "sample" each."""
    theta, (a, b) = params["theta"], data.tensors
    return 0.5 * torch.einsum("mi,mij,mj->m", theta, a[:, 0], theta) + torch.einsum("mi,mi->m", b[:, 0], theta)


def _quadratics(steps):
    g = torch.Generator().manual_seed(3)
    data = [
        Columns((_symmetric(g, M, 1), torch.randn(M, 1, 4, generator=g, dtype=torch.double))) for _ in range(steps + 1)
    ]
    return torch.randn(4, generator=g, dtype=torch.double), data[:-1], data[-1]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_quadratic_closed_form(steps, chunk):
    r"""(I - aA_1)'(I - aA_2)'...(B theta' + d): A and B do not commute, so order and transposition show.

    The first-order gradient is B theta' + d, and for one step it exceeds the second-order one by +a A (B theta' + d).
    """
    theta, supports, query = _quadratics(steps)
    alpha, eye = 0.07, torch.eye(4, dtype=torch.double)
    second, first, difference = (torch.zeros(4, dtype=torch.double) for _ in range(3))
    for task in range(M):
        adapted, jacobian = theta, eye
        for support in supports:
            a, b = support.tensors[0][task, 0], support.tensors[1][task, 0]
            adapted = adapted - alpha * (a @ adapted + b)
            jacobian = (eye - alpha * a) @ jacobian
        outer = query.tensors[0][task, 0] @ adapted + query.tensors[1][task, 0]
        second += jacobian.T @ outer / M
        first += outer / M
        difference += alpha * supports[0].tensors[0][task, 0] @ outer / M

    def gradient(first_order):
        rule = GradientStep(_quadratic, alpha, first_order)
        objective = Objective(rule, supports, query, Plain(_quadratic), Workers(1), chunk)
        return objective.gradient({"theta": theta})[1]["theta"]

    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(gradient(False), second, **close)
    torch.testing.assert_close(gradient(True), first, **close)
    if steps == 1:
        torch.testing.assert_close(gradient(True) - gradient(False), difference, **close)
