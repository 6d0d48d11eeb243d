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
    weights (Glorot and Bengio, 2010), zero biases.

    Attributes:
        sizes: inputs, hidden widths, outputs.
        activation: ``"tanh"`` or ``"relu"``.

    Example:
        >>> net = MLP((2, 8, 1))
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"

    def __post_init__(self) -> None:
        """Check the activation's name."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got '{self.activation}'")

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        params: Params = {}
        for layer, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            bound = math.sqrt(6.0 / (inputs + outputs))
            params[f"{layer}.weight"] = (torch.rand(inputs, outputs, generator=generator) * 2 - 1) * bound
            params[f"{layer}.bias"] = torch.zeros(outputs)
        return params

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, in) to outputs (M, N, out)."""
        activate = ACTIVATIONS[self.activation]
        x = inputs
        last = len(self.sizes) - 2
        for layer in range(last + 1):
            x = torch.baddbmm(params[f"{layer}.bias"].unsqueeze(1), x, params[f"{layer}.weight"])
            if layer < last:
                x = activate(x)
        return x
