"""Any ``torch.nn.Module`` as a network batched over tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.params import Params


@dataclass(frozen=True)
class ModuleNet:
    """A module called once per task with that task's parameters; see :func:`from_module`."""

    module: nn.Module
    vectorize: bool = True

    def init(self, generator: torch.Generator) -> Params:
        """Return the module's own present values: how they were drawn is its maker's choice."""
        del generator
        return {name: value.detach().clone() for name, value in self.module.named_parameters()}

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, ...) with parameters (M, ...) to outputs (M, N, ...)."""
        if self.vectorize:
            return torch.func.vmap(self._call)(params, inputs)
        rows = ({name: value[i] for name, value in params.items()} for i in range(len(inputs)))
        return torch.stack([self._call(row, x) for row, x in zip(rows, inputs, strict=True)])

    def _call(self, params: Params, inputs: Tensor) -> Tensor:
        output = functional_call(self.module, params, (inputs,))
        return output[0] if isinstance(output, tuple) else output  # recurrent modules return (output, state)


def from_module(module: nn.Module, vectorize: bool = True) -> ModuleNet:
    """Make any module a :class:`~metarl.nets.net.Net`; its buffers stay shared and constant.

    Args:
        module: maps (N, ...) to (N, ...), or to a tuple whose first entry is that. It is called, never changed.
        vectorize: batch over tasks with ``torch.func.vmap``; False loops over tasks, for modules vmap cannot batch
            (fused recurrent layers).

    Example:
        >>> net = from_module(torch.nn.Linear(2, 1))
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """
    return ModuleNet(module, vectorize)
