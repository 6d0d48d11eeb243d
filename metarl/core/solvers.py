"""Linear algebra on functions: Jacobian products, conjugate gradient, sub-sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.core.params import Params

Tensors = tuple[Tensor, ...]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class Linear(NamedTuple):
    """A function linearised at a point: its value, v -> J v and u -> J^T u."""

    value: Tensors
    jvp: Callable[[Params], Tensors]
    vjp: Callable[[Tensors], Params]


def linearize(function: Callable[[Params], Tensors], point: Params) -> Linear:
    r"""Linearise ``function`` so that many Jacobian products cost one backward pass each.

    $J^T u$ is a backward pass. It is linear in u, so its own derivative with respect to a dummy u, applied to v, is $J v$
    (the double-backward trick). Both graphs are built once and kept. Chosen over forward-mode differentiation because it
    works for every operation that has a second derivative, is safe in several threads (PyTorch's forward mode is one
    global state), and repeats neither the function nor its inner gradient for each product.

    Args:
        function: differentiable, may itself differentiate (an inner rule does).
        point: leaves that require gradients.

    Returns:
        Value, ``jvp`` (argument shaped like ``point``, result like the value) and ``vjp`` (the reverse).
    """
    inputs = list(point.values())
    value = function(point)
    live = [v for v in value if v.requires_grad]  # the rest is constant: its rows of J are zero
    dummies = [torch.zeros_like(v, requires_grad=True) for v in live]
    transposed = _vjp(live, inputs, dummies, create_graph=True)
    reached = [(name, t) for name, t in zip(point, transposed, strict=True) if t.requires_grad]

    def jvp(v: Params) -> Tensors:
        products = _vjp([t for _, t in reached], dummies, [v[name] for name, _ in reached])
        moving = iter(products)
        return tuple(next(moving) if x.requires_grad else torch.zeros_like(x) for x in value)

    def vjp(u: Tensors) -> Params:
        cotangents = [c for c, v in zip(u, value, strict=True) if v.requires_grad]
        return dict(zip(point, _vjp(live, inputs, cotangents), strict=True))

    return Linear(tuple(v.detach() for v in value), jvp, vjp)


def _vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool = False
) -> Tensors:
    """Differentiate, keeping the graph; zeros where nothing depends on an input."""
    if not outputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        outputs,
        inputs,
        cotangents,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


class Solution(NamedTuple):
    """Result of :func:`conjugate_gradient`: x, the residual b - A x, and the number of products used."""

    x: Tensor
    residual: Tensor
    iterations: int


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Solution:
    r"""Solve $A x = b$ for symmetric positive definite A, given only $v \mapsto A v$.

    Stops early when $\lVert b - A x \rVert^2 \le$ ``tolerance`` $\cdot \lVert b \rVert^2$, or when a direction shows no positive
    curvature (A is not positive definite there); x is then the last sound iterate, so that the caller can judge it.

    Args:
        product: v (P,) -> A v (P,).
        b: right-hand side, (P,).
        iterations: most products.
        tolerance: relative, on the squared norm.

    Reference: Hestenes and Stiefel (1952).
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    square = residual @ residual
    target = tolerance * square
    for done in range(iterations):
        if not square > target:
            return Solution(x, residual, done)
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:  # also catches NaN
            return Solution(x, residual, done)
        step = square / curvature
        x = x + step * direction
        residual = residual - step * image
        previous, square = square, residual @ residual
        direction = residual + (square / previous) * direction
    return Solution(x, residual, iterations)


def spread(total: int, count: int) -> Tensor:
    """Choose ``count`` of ``total`` indices, evenly and without a period, int64 (count,), ascending; no randomness.

    One index from each of ``count`` equal stretches, at an offset that goes by the golden section: samples laid out as
    (steps, episodes) are covered evenly in both, where every k-th index could fall on a few episodes only.
    """
    part = torch.arange(count + 1, dtype=torch.int64) * total // count
    offset = (torch.arange(count, dtype=torch.float64) * _GOLDEN) % 1.0
    return part[:-1] + (offset * part.diff()).long()
