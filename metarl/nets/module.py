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
        """Return the module's own present values (how they were drawn is its maker's choice), without frozen ones."""
        del generator
        parameters = self.module.named_parameters()
        return {name: value.detach().clone() for name, value in parameters if value.requires_grad}

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, ...) with parameters (M, ...) to outputs (M, N, ...)."""
        params = {name: params[name] for name, value in self.module.named_parameters() if value.requires_grad}
        if len(inputs) == 1:  # batching rules would only be in the way: a third of a convolutional network's time
            return self._call({name: value[0] for name, value in params.items()}, inputs[0]).unsqueeze(0)
        if self.vectorize and not any(map(_has_no_batching_rule, self.module.modules())):
            return torch.func.vmap(self._call)(params, inputs)
        rows = ({name: value[i] for name, value in params.items()} for i in range(len(inputs)))
        return torch.stack([self._call(row, x) for row, x in zip(rows, inputs, strict=True)])

    def _call(self, params: Params, inputs: Tensor) -> Tensor:
        module = self._own().to(inputs.device)  # frozen parameters are not among params
        buffers = {name: value.to(inputs.device).clone() for name, value in module.named_buffers()}
        output = functional_call(module, {**params, **buffers}, (inputs,))
        return output[0] if isinstance(output, tuple) else output  # recurrent modules return (output, state)

    def _own(self) -> nn.Module:
        """This thread's own copy: ``functional_call`` swaps parameters in and out, which two threads must not do at once."""
        try:
            module: nn.Module = self._local.module
        except AttributeError:
            module = self._local.module = copy.deepcopy(self.module)
        return module


def _has_no_batching_rule(module: nn.Module) -> bool:
    """Fused recurrent layers, and normalisations that write their running statistics."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return bool(module.track_running_stats)
    return isinstance(module, nn.RNNBase)


def from_module(module: nn.Module, vectorize: bool = True) -> ModuleNet:
    """Make any module a :class:`~metarl.nets.net.Net`; its buffers stay shared and constant.

    Args:
        module: maps (N, ...) to (N, ...), or to a tuple whose first entry is that. It is called, never changed, and should
            be in the mode it is to act in (``module.eval()``). A policy's rows must be independent: a recurrent layer or
            batch statistics would act on other samples than they learn from, which :class:`~metarl.core.TRPO` refuses.
        vectorize: batch over tasks with ``torch.func.vmap`` where it can (a module it cannot batch, such as a fused
            recurrent layer, is looped over by itself); False always loops.

    Example:
        >>> net = from_module(torch.nn.Linear(2, 1))
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """
    return ModuleNet(module, vectorize)
