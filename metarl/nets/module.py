"""Any ``torch.nn.Module`` as a network batched over tasks."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.params import Params


@dataclass(frozen=True)
class ModuleNet:
    """A module called once per task with that task's parameters; see :func:`from_module`."""

    module: nn.Module
    vectorize: bool = True
    _local: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def init(self, generator: torch.Generator) -> Params:
        """Return the module's own present values: how they were drawn is its maker's choice."""
        del generator
        return {name: value.detach().clone() for name, value in self.module.named_parameters()}

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, ...) with parameters (M, ...) to outputs (M, N, ...)."""
        if self.vectorize and not self._state().looped:
            try:
                return torch.func.vmap(self._call)(params, inputs)
            except RuntimeError:
                # no batching rule (fused recurrent layers, layers that write their buffers); the loop raises what is real
                self._state().looped = True
        rows = ({name: value[i] for name, value in params.items()} for i in range(len(inputs)))
        return torch.stack([self._call(row, x) for row, x in zip(rows, inputs, strict=True)])

    def _call(self, params: Params, inputs: Tensor) -> Tensor:
        module = self._state().module
        buffers = {name: value.to(inputs.device).clone() for name, value in module.named_buffers()}
        output = functional_call(module, {**params, **buffers}, (inputs,))
        return output[0] if isinstance(output, tuple) else output  # recurrent modules return (output, state)

    def _state(self) -> _ThreadState:
        """This thread's own copy: ``functional_call`` swaps parameters in and out, which two threads must not do at once."""
        try:
            state: _ThreadState = self._local.state
        except AttributeError:
            state = self._local.state = _ThreadState(copy.deepcopy(self.module))
        return state


@dataclass
class _ThreadState:
    module: nn.Module
    looped: bool = False


def from_module(module: nn.Module, vectorize: bool = True) -> ModuleNet:
    """Make any module a :class:`~metarl.nets.net.Net`; its buffers stay shared and constant.

    Args:
        module: maps (N, ...) to (N, ...), or to a tuple whose first entry is that. It is called, never changed.
        vectorize: batch over tasks with ``torch.func.vmap`` where it can (a module it cannot batch, such as a fused
            recurrent layer, is looped over by itself); False always loops.

    Example:
        >>> net = from_module(torch.nn.Linear(2, 1))
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """
    return ModuleNet(module, vectorize)
