"""One network for all agents of a team of equals, whose parameters do not depend on how many there are.

Shapes: M tasks, N states, R agents, O numbers of a state, I of them that an agent sees, K outputs for an agent.

Parameters (M, ...) serve all agents of a task; where the agents have adapted each for itself, they are (M, R, ...)
(:attr:`metarl.core.inner.GradientStep.copies`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets.net import Net
from metarl.nets.recurrent import Recurrent

Columns = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shared:
    """A network that looks at the states of R agents one by one: agent r's K outputs are a function of its own columns.

    Parameters are those of ``net``. If the agents change places, so do their outputs.

    Attributes:
        net: of one agent, from I inputs to K outputs.
        columns: what every agent sees of a state, R rows of I column numbers.

    Example:
        >>> from metarl.nets.mlp import MLP
        >>> net = Shared(MLP((2, 3)), ((0, 4), (1, 4), (2, 4), (3, 4)))
        >>> params = {k: v.expand(6, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(6, 7, 5)).shape
        torch.Size([6, 7, 12])
    """

    net: Net
    columns: Columns

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        return self.net.init(generator)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map states (M, N, O) to the outputs of all agents, one agent behind the other, (M, N, R * K)."""
        seen = self.apart(inputs)
        if not self._each(params):
            return together(self.net(params, seen.flatten(-3, -2)), len(self.columns))
        own = self.net(
            {name: value.flatten(0, 1) for name, value in params.items()}, seen.transpose(1, 2).flatten(0, 1)
        )
        return own.view(len(inputs), len(self.columns), *own.shape[1:]).transpose(1, 2).flatten(-2)

    def apart(self, inputs: Tensor) -> Tensor:
        """Return what every agent sees of states (..., O): (..., R, I)."""
        seen = inputs.index_select(-1, self._index.to(inputs.device))
        return seen.view(*inputs.shape[:-1], len(self.columns), -1)

    def _each(self, params: Params) -> bool:
        """Tell whether every agent has parameters of its own."""
        name, dimensions = self._known
        return params[name].dim() == dimensions + 2

    @functools.cached_property
    def _known(self) -> tuple[str, int]:
        """The name of one of the network's parameters, and the dimensions that it has of its own."""
        name, value = next(iter(self.net.init(torch.Generator()).items()))
        return name, value.dim()

    @functools.cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self.columns, dtype=torch.int64).flatten()


@dataclass(frozen=True)
class SharedRecurrent:
    """A :class:`Shared` network with a memory: every agent remembers what it has seen itself.

    Attributes:
        net: of one agent.
        columns: what every agent sees of a state, R rows of I column numbers.
    """

    net: Recurrent
    columns: Columns

    @property
    def shared(self) -> Shared:
        """The same network, as one that is not known to remember."""
        return Shared(self.net, self.columns)

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        return self.net.init(generator)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map states (M, N, O) of whole sequences to the outputs of all agents, (M, N, R * K)."""
        return self.shared(params, inputs)  # agents are next to each other in N: they make sequences of their own

    def stepper(self, params: Params) -> Callable[[Tensor], Tensor]:
        """Return a function that begins E sequences: called T times on (M, E, O), it returns (M, E, R * K) each time."""
        step, shared = self.net.stepper(params), self.shared
        return lambda inputs: together(step(shared.apart(inputs).flatten(-3, -2)), len(self.columns))

    def memory(self, params: Params, inputs: Tensor) -> Tensor:
        """Return the mean of what the agents remember behind every state (M, N, O): (M, N, H)."""
        own = self.net.memory(params, self.shared.apart(inputs).flatten(-3, -2))
        return own.reshape(len(own), -1, len(self.columns), own.shape[-1]).mean(2)


def together(outputs: Tensor, agents: int) -> Tensor:
    """Put the outputs of agents that follow each other, (M, N * R, K), side by side, (M, N, R * K)."""
    return outputs.reshape(len(outputs), -1, agents * outputs.shape[-1])
