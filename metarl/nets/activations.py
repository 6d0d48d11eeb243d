"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class _Tanh(torch.autograd.Function):
    r"""$\tanh x = 2 \sigma(2x) - 1$: torch's sigmoid is vectorised on the CPU, its tanh takes six times as long (measured).

    The absolute error is that of rounding 1 (6e-8 in float32). Derivatives of every order are torch's own for tanh.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(2 * x).mul_(2).sub_(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return tangents[0] * (1 - y * y)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent: fast on the CPU, torch's own on a GPU."""
    if x.device.type != "cpu":
        return torch.tanh(x)
    if not torch.is_grad_enabled():  # while physics waits: the same numbers without the detour through autograd
        return (2 * x).sigmoid_().mul_(2).sub_(1)
    result: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
    return result


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": torch.relu}
