"""What a network is to this library."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metarl.core.params import Params


class Net(Protocol):
    """A function of parameters and inputs, both leading with the task dimension."""

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters in a module's shapes (no task dimension)."""
        ...

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, ...) with parameters (M, ...) to outputs (M, N, ...); row i uses row i."""
        ...
