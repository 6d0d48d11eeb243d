"""Multilayer perceptron, batched over tasks by hand: the fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets.activations import ACTIVATIONS


@dataclass(frozen=True)
class MLP:
    """Fully connected layers with one activation between them.

    Parameters are ``{i}.weight`` (in, out) and ``{i}.bias`` (out,), initialised as in the MAML-RL codes: Xavier uniform
    weights (Glorot and Bengio, 2010), zero biases. With ``std`` the weights are normal, drawn again beyond two standard
    deviations, as in the MAML paper's regression (0.01).

    Attributes:
        sizes: inputs, hidden widths, outputs.
        activation: ``"tanh"`` or ``"relu"``.
        std: standard deviation of untrained weights; None for Xavier's.

    Example:
        >>> net = MLP((2, 8, 1))
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    std: float | None = None

    def __post_init__(self) -> None:
        """Check the activation's name."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got '{self.activation}'")

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        params: Params = {}
        for layer, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            weight = torch.empty(inputs, outputs)
            if self.std is None:
                bound = math.sqrt(6.0 / (inputs + outputs))
                weight = (torch.rand(inputs, outputs, generator=generator) * 2 - 1) * bound
            else:
                torch.nn.init.trunc_normal_(weight, 0.0, self.std, -2 * self.std, 2 * self.std, generator)
            params[f"{layer}.weight"] = weight
            params[f"{layer}.bias"] = torch.zeros(outputs)
        return params

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, in) to outputs (M, N, out)."""
        return self.last(params, self.body(params, inputs, None))

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The last layer's parameters."""
        return f"{len(self.sizes) - 2}.weight", f"{len(self.sizes) - 2}.bias"

    def body(self, params: Params, inputs: Tensor, reference: Tensor | None) -> Tensor:
        """Map inputs (M, N, in) to what the last layer sees, (M, N, width); one row of parameters serves all tasks."""
        del reference  # rows are independent
        x = inputs
        for layer in range(len(self.sizes) - 2):
            x = ACTIVATIONS[self.activation](_layer(params, layer, x))
        return x

    def last(self, params: Params, features: Tensor) -> Tensor:
        """Map what the last layer sees, (M, N, width), to outputs (M, N, out)."""
        return _layer(params, len(self.sizes) - 2, features)


def _layer(params: Params, layer: int, x: Tensor) -> Tensor:
    weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
    if len(weight) == 1 and len(x) > 1:  # one row for all tasks: their examples are one batch
        return torch.addmm(bias[0], x.flatten(0, 1), weight[0]).view(*x.shape[:2], -1)
    return torch.baddbmm(bias.unsqueeze(1), x, weight)
