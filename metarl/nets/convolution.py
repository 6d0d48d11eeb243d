r"""3x3 convolution whose second derivatives take no longer than they must, where PyTorch's own do.

A convolution $y = w * x$ is linear in its maps and in its filters. So every derivative of any order is again a convolution, its
transpose for the maps, $w^T g$, or that for the filters, $x^T g$, each one call of a fast kernel:

$$ \langle u, w^T g \rangle + \langle v, x^T g \rangle = \langle w * u + v * x, g \rangle $$

PyTorch's (version 2.13) goes through the groups one by one, and turns the maps around for it. On a CPU, with 8 tasks of 5 images as
groups, the second derivative of a layer of 64 filters takes 0.6 to 0.9 of its time, and that of the first layer, whose images are
constant, 0.15 with a stride of two and 0.6 without. A single group is left to PyTorch, which is as fast there, and never waits for
another thread's Python; so is a GPU, where nothing was measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def once(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Return the convolution of maps (N, G*C, H, W) in G groups with filters (G*F, C, 3, 3), the edges padded by one zero."""
    return functional.conv2d(x, weight, bias, stride=stride, padding=1, groups=groups)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Return the same, as it takes least time where somebody takes the gradient of its gradient; not for ``torch.func``."""
    if groups == 1 or x.device.type != "cpu" or not (torch.is_grad_enabled() and weight.requires_grad):
        return once(x, weight, bias, stride, groups)
    how = _OfMaps if x.requires_grad else _OfImages
    maps: Tensor = how.apply(x, weight, stride, groups)  # type: ignore[no-untyped-call]
    return maps if bias is None else maps + bias.reshape(-1, 1, 1)


class _OfImages(torch.autograd.Function):
    """The convolution of constant images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        ctx.how, ctx.shape = (stride, groups), weight.shape
        ctx.save_for_backward(x)
        return once(x, weight, None, stride, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, _OfImagesFilters.apply(x, gradients[0], ctx.shape, *ctx.how), None, None  # type: ignore[no-untyped-call]


class _OfImagesFilters(torch.autograd.Function):
    """The gradient of its filters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, shape: torch.Size, stride: int, groups: int) -> Tensor:
        ctx.how = (stride, groups)
        ctx.save_for_backward(x)
        return _filters(x, gradient, shape, stride, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, _OfImages.apply(x, gradients[0], *ctx.how), None, None, None  # type: ignore[no-untyped-call]


class _OfMaps(torch.autograd.Function):
    """The convolution of maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        ctx.how = (stride, groups)
        ctx.save_for_backward(x, weight)
        return once(x, weight, None, stride, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight = _OfBoth.apply(*ctx.saved_tensors, gradients[0], *ctx.how)  # type: ignore[no-untyped-call]
        return of_x, of_weight, None, None


class _OfBoth(torch.autograd.Function):
    """The gradients of its maps and of its filters; of either, nothing may come back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gradient: Tensor, stride: int, groups: int
    ) -> tuple[Tensor, Tensor]:
        ctx.how = (stride, groups)
        ctx.save_for_backward(x, weight, gradient)
        ctx.set_materialize_grads(False)
        of_x, of_weight, _ = _transposed(gradient, x, weight, stride, groups, (True, True, False))
        return of_x, of_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (x, weight, gradient), (u, v), (stride, groups) = ctx.saved_tensors, gradients, ctx.how
        of_x = of_weight = of_gradient = None
        if u is not None:
            of_weight = _filters(u, gradient, weight.shape, stride, groups)
            of_gradient = once(u, weight, None, stride, groups)
        if v is not None:
            of_x, _, _ = _transposed(gradient, x, v, stride, groups, (True, False, False))
            more = once(x, v, None, stride, groups)
            of_gradient = more if of_gradient is None else of_gradient + more
        return of_x, of_weight, of_gradient, None, None


def _filters(x: Tensor, gradient: Tensor, shape: torch.Size, stride: int, groups: int) -> Tensor:
    weight = gradient.new_empty(1).expand(shape)  # of which the shape alone is looked at
    found: Tensor = _transposed(gradient, x, weight, stride, groups, (False, True, False))[1]
    return found


def _transposed(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, asked: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    how = (None, (stride, stride), (1, 1), (1, 1), False, (0, 0), groups)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(gradient, x, weight, *how, asked)
    return found
