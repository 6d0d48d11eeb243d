"""Minimise M unrelated functions at once, each with its own steps. Shapes: M tasks, P numbers of each, K remembered steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (M, P) -> values (M,) and gradients (M, P); row i of both depends on row i alone
Functions = Callable[[Tensor], tuple[Tensor, Tensor]]

# Steps whose change of the gradient is remembered: on sinusoid 5 leave half the gradient that Barzilai-Borwein's 1 leaves.
_MEMORY = 5
# A step is taken where the value falls by this part of what the slope promises ...
_ARMIJO = 1e-4
# ... or, because small differences of values are all rounding, where the gradient gets shorter and the value rises by no
# more than this part of what has been won since the start.
_GIVEN_BACK = 1e-3
# No step goes where the gradient is more than so many times as long as at the start: that is no way to where it vanishes,
# but where losses made of likelihood ratios lead, which fall without end. A factor of 4 slows badly scaled problems down.
_LONGEST_GRADIENT = 10.0
# A step that was refused is shortened to the minimum of a parabola, within these limits; to the first if there is none.
_SHORTEST_CUT, _LONGEST_CUT = 0.01, 0.5


class Minimum(NamedTuple):
    """Where the search ended.

    Attributes:
        point: (M, P).
        value: (M,), nowhere above that at the start.
        residual: norm of the gradient over its norm at the start, (M,).
    """

    point: Tensor
    value: Tensor
    residual: Tensor


class _Place(NamedTuple):
    point: Tensor
    value: Tensor
    gradient: Tensor


def minimize(
    functions: Functions, start: Tensor, *, first_step: float, longest_step: float, evaluations: int, tolerance: float
) -> Minimum:
    r"""Minimise every row's function by limited-memory BFGS with backtracking.

    $$ x \leftarrow x - s H \nabla f(x), \qquad H \approx (\nabla^2 f)^{-1} \text{ from the last steps} $$

    All rows are evaluated together, once an iteration, value and gradient at once; each has its own H, shortens its own
    step where a trial is refused, stays where it is meanwhile, and ends when its gradient has shrunk by ``tolerance``, or
    its step to rounding. A trial that is worse, or not finite, is never taken: a row whose start is not finite stays at it.

    Args:
        functions: values and gradients.
        start: (M, P).
        first_step: along the gradient, before there is any knowledge of curvature.
        longest_step: what such steps grow to where the function does not curve upward.
        evaluations: most calls of ``functions``, that at the start included.
        tolerance: of the gradient's norm, relative to that at the start.

    Reference: Liu and Nocedal (1989), On the limited memory BFGS method, algorithm 2.1. Differs from it: a row skips
    steps without positive curvature, because backtracking, unlike their line search, does not prevent them.
    """
    now = _Place(start, *functions(start))
    begin, norm = now.value, _norm(now.gradient)
    first = norm
    memory, shortest = _Memory.empty(start), torch.finfo(start.dtype).eps
    scale, length = torch.full_like(begin, first_step), torch.ones_like(begin)
    for _ in range(evaluations - 1):
        moving = (norm > tolerance * first) & (length > shortest)  # not where it is NaN
        if not bool(moving.any()):
            break
        direction = memory.apply(scale, now.gradient)
        promised = length * _dot(now.gradient, direction).clamp_min(0.0)
        point = _chosen(moving, now.point - _column(length) * direction, now.point)
        trial = _Place(point, *functions(point))
        reached = _norm(trial.gradient)
        falls = trial.value <= now.value - _ARMIJO * promised
        level = (trial.value <= now.value + _GIVEN_BACK * (begin - now.value)) & (reached < norm)
        taken = moving & (falls | level) & torch.isfinite(trial.value) & (reached <= _LONGEST_GRADIENT * first)
        cut = 0.5 * promised / (trial.value - now.value + promised)
        cut = torch.where(torch.isfinite(cut), cut.clamp(_SHORTEST_CUT, _LONGEST_CUT), _SHORTEST_CUT)
        length = torch.where(taken, 1.0, torch.where(moving, length * cut, length))
        memory, scale = memory.after(taken, trial, now, scale, longest_step)
        now = _Place(*(_chosen(taken, new, old) for new, old in zip(trial, now, strict=True)))
        norm = torch.where(taken, reached, norm)
    return Minimum(now.point, now.value, torch.where(first > 0, norm / first, norm))


class _Memory(NamedTuple):
    """The last steps of every row and what the gradient changed by along them; the latest is the last.

    Attributes:
        steps: (K, M, P).
        changes: (K, M, P).
        inverses: 1 over their inner products, (K, M); 0 where there was no step yet.
    """

    steps: Tensor
    changes: Tensor
    inverses: Tensor

    @staticmethod
    def empty(start: Tensor) -> _Memory:
        """Return no steps."""
        blank = start.new_zeros(_MEMORY, *start.shape)
        return _Memory(blank, blank, blank[..., 0])

    def apply(self, scale: Tensor, gradient: Tensor) -> Tensor:
        """Multiply gradients by H, which without any step is ``scale`` (M,)."""
        parts = list(zip(self.steps, self.changes, self.inverses, strict=True))
        weights = []
        for step, change, inverse in reversed(parts):
            weights.append(inverse * _dot(step, gradient))
            gradient = gradient - _column(weights[-1]) * change
        product = _column(scale) * gradient
        for (step, change, inverse), weight in zip(parts, reversed(weights), strict=True):
            product = product + _column(weight - inverse * _dot(change, product)) * step
        return product

    def after(
        self, taken: Tensor, new: _Place, old: _Place, scale: Tensor, longest_step: float
    ) -> tuple[_Memory, Tensor]:
        """Return memory and scale after a step of those rows where one was taken."""
        step, change = new.point - old.point, new.gradient - old.gradient
        product, square = _dot(step, change), _dot(change, change)
        inverse = 1 / product
        curved = taken & (product > 1e-8 * _norm(step) * square.sqrt()) & torch.isfinite(inverse)
        pair = (step, change, inverse)
        memory = _Memory(*(_pushed(kept, value, curved) for kept, value in zip(self, pair, strict=True)))
        straight = torch.where(taken, (2 * scale).clamp_max(longest_step), scale)
        return memory, torch.where(curved, product / square, straight)


def _pushed(kept: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    """Put a value behind those of some rows, whose first one is forgotten."""
    at = _column(rows) if value.dim() > 1 else rows
    return torch.where(at, torch.cat([kept[1:], value.unsqueeze(0)]), kept)


def _chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the new values of some rows, and the old ones of the others."""
    return torch.where(_column(rows) if new.dim() > 1 else rows, new, old)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _column(row: Tensor) -> Tensor:
    return row.unsqueeze(1)
