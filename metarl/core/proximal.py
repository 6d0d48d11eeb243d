"""The implicit inner rule: adapt to a regularised optimum, and differentiate it without its path (iMAML)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metarl.core.inner import TaskLoss
from metarl.core.minimize import minimize
from metarl.core.params import Params, detach, leaf, ravel_rows, unravel_rows

Tensors = tuple[Tensor, ...]


class Solution(NamedTuple):
    """A regularised problem as far as it has been solved.

    Attributes:
        params: (M, ...).
        residual: norm of the problem's gradient there, relative to that at the start, (M,): 0 is solved.
    """

    params: Params
    residual: Tensor


@dataclass(frozen=True)
class ProximalSolve:
    r"""Solve a regularised problem on the support set, and differentiate its solution implicitly.

    $$ U(\theta_i) = \arg\min_\phi L_i(\phi) + \frac\lambda2 \lVert \phi - \theta_i \rVert^2, \qquad
       \frac{dU}{d\theta_i} = \Bigl(I + \tfrac1\lambda \nabla^2 L_i(\phi_i)\Bigr)^{-1} $$

    The problem is solved by limited-memory BFGS (:func:`metarl.core.minimize.minimize`) until its gradient has shrunk by
    ``tolerance``, or for ``solver_steps`` gradients; every task has its own steps and ends by itself, nowhere above the
    value at theta. The derivative is the inverse above, by conjugate gradient on Hessian-vector products at the solution:
    memory does not grow with the steps. Where a task's I + H/lambda is seen not to be positive definite, its last sound
    iterate counts, and without one the identity, which is the first-order derivative. The derivative is as exact as the two
    solutions are; conjugate gradient that stops early is not quite a linear map, so that a trust region's Fisher products,
    which need one, want more iterations than a gradient does.

    Where the loss curves downward more strongly than lambda curves upward, there need be no solution (a policy's surrogates
    fall without end); :meth:`solve` tells how near each task has come to one. The loss must be a function whose derivative
    is its gradient: DiCE, whose value is always 0, is none.

    Attributes:
        loss: support loss of every task, (M,).
        lr: the solver's first step along the gradient; at most 1/lambda is taken.
        strength: lambda, how strongly the solution is held near its start.
        solver_steps: most gradients that the solver takes, that at theta included; at least 2.
        tolerance: of the gradient's norm, relative to its first value.
        cg_iterations: most products of the conjugate gradient.
        first_order: take the identity for the derivative.

    Reference: Rajeswaran et al. (2019), iMAML, arXiv:1909.04630, equations 4 and 6. Differs from the authors' code, which
    descends on L alone with one proximal step at the end, and damps the linear system besides.
    """

    loss: TaskLoss[Any]
    lr: float
    strength: float = 2.0
    solver_steps: int = 16
    tolerance: float = 1e-3
    cg_iterations: int = 5
    first_order: bool = False

    def __post_init__(self) -> None:
        """Check the strength, which divides, and the steps, of which the first only looks."""
        if self.strength <= 0 or self.solver_steps < 2:
            raise ValueError(
                f"strength={self.strength} must be greater than 0, and solver_steps={self.solver_steps} at least 2"
            )

    def init(self, params: Params) -> Params:
        """Return nothing: the rule learns nothing of its own."""
        del params
        return {}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        """Solve; the derivative is attached where ``params`` require gradients."""
        del step
        solution = self.solve(params, support).params
        if not any(value.requires_grad for value in params.values()):
            return solution
        inverse: Callable[[Tensors], Tensors] = _identity if self.first_order else self._inverse(solution, support)
        outputs = _attach(inverse, len(params), *solution.values(), *params.values())
        return dict(zip(params, outputs, strict=True))

    def solve(self, params: Params, support: object) -> Solution:
        """Return the solution from parameters (M, ...), without a derivative, and how far each task has come to it."""
        centre = ravel_rows(detach(params))

        def functions(point: Tensor) -> tuple[Tensor, Tensor]:
            start = point.detach().requires_grad_()
            with torch.enable_grad():
                losses = self.loss(unravel_rows(start, params), support)
                (slope,) = torch.autograd.grad(losses.sum(), start)
            pull = point - centre
            return losses.detach() + 0.5 * self.strength * pull.square().sum(1), slope + self.strength * pull

        longest = 1 / self.strength  # which is right where the loss has no curvature
        found = minimize(
            functions,
            centre,
            first_step=min(self.lr, longest),
            longest_step=longest,
            evaluations=self.solver_steps,
            tolerance=self.tolerance,
        )
        return Solution(unravel_rows(found.point, params), found.residual)

    def _inverse(self, solution: Params, support: object) -> Callable[[Tensors], Tensors]:
        """Return v -> (I + H/lambda)^-1 v, every task by itself; the graph of H is built once, when it is first needed."""
        graph: list[tuple[Params, Tensors]] = []

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            with torch.enable_grad():
                if not graph:
                    start = leaf(solution)
                    graph.append((start, _gradient(self.loss(start, support), start, create_graph=True)))
                start, gradients = graph[0]
                live = [(g, x) for g, x in zip(gradients, v, strict=True) if g.requires_grad]
                if not live:
                    return list(v)
                curved = torch.autograd.grad(
                    [g for g, _ in live],
                    list(start.values()),
                    [x for _, x in live],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            return [x + h / self.strength for x, h in zip(v, curved, strict=True)]

        return lambda v: _conjugate_gradients(product, v, self.cg_iterations)


def _conjugate_gradients(product: Callable[[Sequence[Tensor]], list[Tensor]], b: Tensors, iterations: int) -> Tensors:
    """Solve A x = b for every task (rows of the tensors), each with its own step lengths, all at once."""
    x, residual, direction = [torch.zeros_like(v) for v in b], list(b), list(b)
    square = _dot(residual, residual)
    target, going, solved = 1e-20 * square, square > 0, square == 0
    for _ in range(iterations):
        if not bool(going.any()):
            break
        image = product(direction)
        curvature = _dot(direction, image)
        going = going & (curvature > 0) & (square > target)  # the former also catches NaN
        step = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        # where a task has stopped its image may be infinite, and 0 times that is NaN
        image = [torch.where(_broadcast(going, i), i, 0.0) for i in image]
        x = [v + _broadcast(step, v) * d for v, d in zip(x, direction, strict=True)]
        residual = [v - _broadcast(step, v) * i for v, i in zip(residual, image, strict=True)]
        following = _dot(residual, residual)
        ratio = torch.where(going, following / torch.where(going, square, 1.0), 0.0)
        direction = [r + _broadcast(ratio, d) * d for r, d in zip(residual, direction, strict=True)]
        square, solved = following, solved | going
    return tuple(torch.where(_broadcast(solved, v), v, start) for v, start in zip(x, b, strict=True))


class _Attach(Function):
    """The solution forward, (I + H/lambda)^-1 backward from it to the parameters it started from."""

    @staticmethod
    def forward(ctx: Any, inverse: Callable[[Tensors], Tensors], count: int, *tensors: Tensor) -> Tensors:
        ctx.inverse, ctx.count = inverse, count
        return tuple(value.clone() for value in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, None, *[None] * ctx.count, *_inverse(ctx.inverse, *cotangents)


class _Inverse(Function):
    """A symmetric linear map, which is its own derivative: so the double-backward trick gives J v as well as J' u."""

    @staticmethod
    def forward(ctx: Any, inverse: Callable[[Tensors], Tensors], *tensors: Tensor) -> Tensors:
        ctx.inverse = inverse
        return tuple(value.clone() for value in inverse(tensors))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *_inverse(ctx.inverse, *cotangents)


# autograd functions are called through an untyped method
_attach: Callable[..., Any] = _Attach.apply
_inverse: Callable[..., Any] = _Inverse.apply


def _identity(v: Tensors) -> Tensors:
    return v


def _gradient(loss_M: Tensor, start: Params, create_graph: bool = False) -> Tensors:
    return torch.autograd.grad(
        loss_M.sum(), list(start.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product of every task's rows, (M,)."""
    return torch.stack([(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)


def _broadcast(row: Tensor, like: Tensor) -> Tensor:
    return row.reshape(row.shape + (1,) * (like.dim() - 1))
