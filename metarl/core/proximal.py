"""The implicit inner rule: adapt to a regularised optimum, and differentiate it without its path (iMAML)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarl.core.inner import TaskLoss
from metarl.core.params import Params, leaf

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class ProximalSolve:
    r"""Solve a regularised problem on the support set, and differentiate its solution implicitly.

    $$ U(\theta_i) = \arg\min_\phi L_i(\phi) + \frac\lambda2 \lVert \phi - \theta_i \rVert^2, \qquad
       \frac{dU}{d\theta_i} = \Bigl(I + \tfrac1\lambda \nabla^2 L_i(\phi_i)\Bigr)^{-1} $$

    The problem is solved by gradient descent until its gradient has shrunk by ``tolerance``, or for ``solver_steps``; every
    task ends by itself. The derivative is the inverse above, by conjugate gradient on Hessian-vector products at the
    solution: memory does not grow with the steps. Where a task's I + H/lambda is seen not to be positive definite, its last
    sound iterate counts, and without one the identity, which is the first-order derivative. The derivative is as exact as
    the two solutions are; conjugate gradient that stops early is not quite a linear map, so that a trust region's Fisher
    products, which need one, want more iterations than a gradient does.

    Attributes:
        loss: support loss of every task, (M,).
        lr: step size of the solver.
        strength: lambda, how strongly the solution is held near its start.
        solver_steps: most steps of the solver.
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
        """Check the strength, which divides."""
        if self.strength <= 0:
            raise ValueError(f"strength={self.strength} must be greater than 0")

    def init(self, params: Params) -> Params:
        """Return nothing: the rule learns nothing of its own."""
        del params
        return {}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        """Solve; the derivative is attached where ``params`` require gradients."""
        del step
        centre = {name: value.detach() for name, value in params.items()}
        solution = self._solve(centre, support)
        if not any(value.requires_grad for value in params.values()):
            return solution
        inverse: Callable[[Tensors], Tensors] = _identity if self.first_order else self._inverse(solution, support)
        outputs = _attach(inverse, len(params), *solution.values(), *params.values())
        return dict(zip(params, outputs, strict=True))

    def _solve(self, centre: Params, support: object) -> Params:
        """Descend until every task's gradient is small; tasks that are done stand still."""
        point, first = centre, None
        for _ in range(self.solver_steps):
            start = leaf(point)
            with torch.enable_grad():
                gradients = _gradient(self.loss(start, support), start)
            pulled = [g + self.strength * (point[n] - centre[n]) for n, g in zip(point, gradients, strict=True)]
            norm = _dot(pulled, pulled).sqrt()
            first = norm if first is None else first
            moving = norm > self.tolerance * first
            if not bool(moving.any()):
                break
            step = self.lr * moving
            point = {n: v - _broadcast(step, v) * g for (n, v), g in zip(point.items(), pulled, strict=True)}
        return point

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
