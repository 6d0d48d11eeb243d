"""The rules that inner and outer rules keep, on a small float64 regression. Shapes: M tasks, N samples."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor

from metarl.core import GradientStep, InnerRule, Objective, OuterRule, Params, Terms, adapt
from metarl.core.inner import TaskLoss
from metarl.core.params import expand, is_finite, leaf, ravel, unravel
from metarl.nets import MLP
from metarl.testing._asserting import close, require

_NET = MLP((2, 3, 1))
_TASKS = 3


@dataclass(frozen=True)
class Points:
    """Regression data: inputs (M, N, 2), targets (M, N, 1), predictions when the data were taken (M, N, 1)."""

    inputs: Tensor
    targets: Tensor
    predicted: Tensor

    @property
    def num_tasks(self) -> int:
        """M."""
        return self.inputs.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[1]

    def rows(self, tasks: slice) -> Points:
        """Return the data of some tasks."""
        return Points(self.inputs[tasks], self.targets[tasks], self.predicted[tasks])

    def samples(self, index: Tensor) -> Points:
        """Return some of every task's samples."""
        return Points(self.inputs[:, index], self.targets[:, index], self.predicted[:, index])


@dataclass(frozen=True)
class Regression:
    """Squared error, of a normal distribution of variance 1 around the prediction; its own geometry."""

    broken: bool = False

    @property
    def geometry(self) -> Regression:
        """A normal distribution."""
        return self

    def __call__(self, params: Params, query: Points) -> Terms:
        """Return losses and KL(old||new), both (M,); infinite losses where the data are broken."""
        mean = _NET(params, query.inputs)
        loss = (mean - query.targets).square().mean((1, 2)) * (math.inf if self.broken else 1.0)
        return Terms(loss, 0.5 * (mean.detach() - query.predicted).square().mean((1, 2)))

    @property
    def ratio(self) -> Regression:
        """Rules that clip likelihood ratios are checked too, on a loss that has nothing to clip."""
        return self

    def clipped(self, epsilon: float) -> Regression:
        """Return the same loss."""
        del epsilon
        return self

    def divergence(self, params: Params, data: Points) -> Tensor:
        """Return KL(old||new), (M,)."""
        return 0.5 * (_NET(params, data.inputs) - data.predicted).square().mean((1, 2))

    def predict(self, params: Params, query: Points) -> tuple[Tensor, ...]:
        """Return the means."""
        return (_NET(params, query.inputs),)

    def fisher(self, predicted: tuple[Tensor, ...], tangent: tuple[Tensor, ...], query: Points) -> tuple[Tensor, ...]:
        """Variance 1: the identity, as a mean over samples."""
        del predicted
        return (tangent[0] / query.num_samples,)


def check_inner_rule(
    make_rule: Callable[[TaskLoss[Any]], InnerRule[Any]], *, inner_steps: Sequence[int] = (1, 3), exact: bool = True
) -> None:
    """Hold an inner rule to its contract (:class:`~metarl.core.InnerRule`).

    The rule is pure and keeps tasks apart, what it learns itself passes through unchanged and receives a gradient, all of
    it, its batched meta-gradient is that of a loop over tasks and (``exact``) the slope of the objective by central
    differences. A rule that says of itself whether it is of first order, by an attribute ``first_order``, is: its
    meta-gradient stays as it is, or does not, where the support loss has its values and gradients but no curvature.

    Args:
        make_rule: makes the rule from the support loss (params (M, ...), support) -> (M,). The model's parameters are
            ``0.weight``, ``0.bias``, ``1.weight`` and ``1.bias``.
        inner_steps: how often the rule is applied; every number is checked. What belongs to a later step receives its
            gradient in the largest.
        exact: False for rules that leave out derivatives on purpose (first order).

    Raises:
        AssertionError: on the first broken rule.
    """
    normal, own = _random()

    def loss(params: Params, data: tuple[Tensor, Tensor]) -> Tensor:
        return (_NET({n: params[n] for n in own}, data[0]) - data[1]).square().mean((1, 2))

    rule, flat = make_rule(loss), make_rule(_without_curvature(loss, own))
    added = rule.init(own)
    require(not set(added) & set(own), "what a rule learns has names of its own", ", ".join(set(added) & set(own)))
    idle = set(added)
    for steps in inner_steps:
        data = [(normal(_TASKS, 5, 2), normal(_TASKS, 5, 1)) for _ in range(steps + 1)]
        trial = _Trial(rule, loss, own | added, data)
        _check_inner(trial, list(added), exact)
        parts = unravel(trial.gradient(), trial.meta)
        idle -= {name for name in added if bool(parts[name].any())}
        if isinstance(rule, _SaysItsOrder):
            _check_order(rule.first_order, trial, dataclasses.replace(trial, rule=flat))
    require(not idle, "what a rule learns receives a gradient", ", ".join(sorted(idle)))


@runtime_checkable
class _SaysItsOrder(Protocol):
    @property
    def first_order(self) -> bool: ...


def _without_curvature(loss: TaskLoss[Any], own: Params) -> TaskLoss[Any]:
    """Return a loss that has the values and gradients of another one wherever it is evaluated, and no second derivative."""

    def flat(params: Params, data: Any) -> Tensor:
        with torch.enable_grad():
            start = leaf({n: params[n] for n in own})
            losses = loss(start, data)
            slopes = torch.autograd.grad(losses.sum(), list(start.values()))
        away = [params[n] - start[n].detach() for n in own]
        # the square has a graph, which rules of second order look for, and adds nothing
        terms = [(a * g + 0.0 * a.square()).flatten(1).sum(1) for a, g in zip(away, slopes, strict=True)]
        return losses.detach() + torch.stack(terms).sum(0)

    return flat


@dataclass(frozen=True)
class _Trial:
    """A rule, applied once for each pair of inputs and targets but the last, which tells the outer loss."""

    rule: InnerRule[Any]
    loss: TaskLoss[Any]
    meta: Params
    data: list[tuple[Tensor, Tensor]]

    def adapted(self, theta: Params, tasks: slice = slice(_TASKS)) -> Params:
        supports = [(x[tasks], y[tasks]) for x, y in self.data[:-1]]
        return adapt(self.rule, expand(theta, len(self.data[0][0][tasks])), supports)

    def total(self, theta: Params, tasks: slice = slice(_TASKS)) -> Tensor:
        """Return the sum of the outer losses."""
        inputs, targets = self.data[-1]
        return self.loss(self.adapted(theta, tasks), (inputs[tasks], targets[tasks])).sum()

    def gradient(self, tasks: slice = slice(_TASKS)) -> Tensor:
        """Return the meta-gradient, (P,)."""
        theta = leaf(self.meta)
        parts = torch.autograd.grad(
            self.total(theta, tasks), list(theta.values()), allow_unused=True, materialize_grads=True
        )
        return ravel(dict(zip(theta, parts, strict=True)))


def _check_inner(trial: _Trial, added: list[str], exact: bool) -> None:
    single = [slice(i, i + 1) for i in range(_TASKS)]
    given = expand(trial.meta, _TASKS)
    kept = {name: value.clone() for name, value in given.items()}
    together = adapt(trial.rule, given, trial.data[:-1])
    require(all(torch.equal(given[n], kept[n]) for n in kept), "a rule writes nothing in place")
    shapes, wanted = ({n: v.shape for n, v in p.items()} for p in (together, given))
    require(shapes == wanted, "adapted parameters keep names and shapes", f"{shapes} instead of {wanted}")
    require(not any(v.requires_grad for v in together.values()), "no graph is built that nobody asked for")
    for name in added:
        require(torch.equal(together[name], given[name]), "what a rule learns passes through unchanged", name)
    for i, one in enumerate(single):
        row = ravel({n: v[i] for n, v in together.items()})
        close(row, ravel(trial.adapted(trial.meta, one)), 1e-9, "a task adapts alike alone and in a meta-batch")
    whole = trial.gradient()
    each = torch.stack([trial.gradient(one) for one in single])
    close(whole, each.sum(0), 1e-9, "meta-gradients of tasks add up")
    if exact:
        at, shifts = ravel(trial.meta), 1e-5 * torch.eye(len(whole), dtype=torch.float64)
        ends = [[trial.total(unravel(at + sign * row, trial.meta)) for row in shifts] for sign in (1, -1)]
        slope = (torch.stack(ends[0]) - torch.stack(ends[1])) / 2e-5
        steps = len(trial.data) - 1
        close(whole, slope, 1e-5, f"the meta-gradient through {steps} steps is the slope of the outer loss")


def _check_order(first_order: bool, trial: _Trial, flat: _Trial) -> None:
    """Compare the meta-gradients on two support losses that differ in their second derivatives alone."""
    curved, straight = trial.gradient(), flat.gradient()
    if first_order:
        close(curved, straight, 1e-9, "a rule with first_order=True carries no second derivative of the support loss")
        return
    gap = float((curved - straight).norm() / curved.norm())
    require(
        gap > 1e-6, "a rule with first_order=False carries second derivatives of the support loss", f"only {gap:.2g}"
    )


def check_outer_rule(rule: OuterRule, *, max_kl: float | None = None, steps: int = 20) -> None:
    """Hold an outer rule to its contract (:class:`~metarl.core.OuterRule`).

    The rule writes nothing in place and is a function of what it is given, its state survives a checkpoint to the bit, the
    loss falls, a step from which no finite loss can be seen returns the very same parameters and is counted, and
    (``max_kl``) no step goes beyond the bound.

    Args:
        rule: the rule.
        max_kl: its bound on the mean KL(old||new) of a step, nats, if it has one.
        steps: steps after which the loss of a regression must have fallen.

    Raises:
        AssertionError: on the first broken rule.
    """
    normal, meta = _random()
    state, rejected = rule.init(meta), 0.0
    probes = [_objective(normal, meta) for _ in range(10)]
    first = sum(probe.value(meta).loss for probe in probes)
    for _ in range(steps):
        objective = _objective(normal, meta)
        before = {name: value.clone() for name, value in meta.items()}
        update = rule.step(meta, objective, state)
        require(all(torch.equal(meta[n], before[n]) for n in before), "a rule writes nothing in place")
        loaded = safetensors.torch.load(safetensors.torch.save({n: v.clone() for n, v in state.items()}))
        again = rule.step(before, objective, loaded)
        same = all(torch.equal(again.meta[n], update.meta[n]) for n in before)
        require(same and again.state.keys() == update.state.keys(), "its state survives a checkpoint to the bit")
        shapes, wanted = ({n: v.shape for n, v in p.items()} for p in (update.meta, meta))
        require(shapes == wanted, "new parameters keep names and shapes", f"{shapes} instead of {wanted}")
        reached = objective.value(update.meta).kl
        require(max_kl is None or reached <= max_kl, "no step goes beyond max_kl", f"{reached:.4g} nats")
        meta, state, rejected = update.meta, update.state, update.metrics.get("rejected_updates", 0.0)
    last = sum(probe.value(meta).loss for probe in probes)
    require(last < first, "the loss falls", f"from {first:.4g} to {last:.4g} in {steps} steps")
    _check_rejection(rule, normal, meta, state, rejected)


def _check_rejection(rule: OuterRule, normal: Callable[..., Tensor], meta: Params, state: Any, rejected: float) -> None:
    broken = Points(*(x * math.nan for x in (normal(_TASKS, 8, 2), normal(_TASKS, 8, 1), normal(_TASKS, 8, 1))))
    inner = GradientStep(lambda params, data: Regression()(params, data).loss, 0.1)
    update = rule.step(meta, Objective(inner, [broken], broken, Regression(broken=True)), state)
    require(update.meta is meta, "a step without a finite loss returns the very same parameters")
    require(is_finite(update.meta), "parameters stay finite")
    counted = update.metrics.get("rejected_updates", 0.0)
    require(
        counted == rejected + 1,
        "a rejected step is counted in rejected_updates",
        f"{rejected:g} before, {counted:g} after",
    )


def _objective(normal: Callable[..., Tensor], meta: Params) -> Objective:
    """Lines of random slope, with the predictions that the adapted parameters make now."""

    def points(slope: Tensor) -> Points:
        inputs = normal(_TASKS, 8, 2)
        return Points(inputs, inputs @ slope + 1.0, torch.zeros(_TASKS, 8, 1, dtype=torch.float64))

    slope = normal(_TASKS, 2, 1)
    support, query = points(slope), points(slope)
    inner = GradientStep(lambda params, data: Regression()(params, data).loss, 0.1)
    predicted = _NET(adapt(inner, expand(meta, _TASKS), [support]), query.inputs)
    return Objective(inner, [support], Points(query.inputs, query.targets, predicted), Regression())


def _random() -> tuple[Callable[..., Tensor], Params]:
    random = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=random, dtype=torch.float64)
    return normal, {n: v.double() + 0.1 * normal(v.shape) for n, v in _NET.init(random).items()}
