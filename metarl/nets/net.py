"""What a network is to this library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Normalized(Net, Protocol):
    """A :class:`Net` whose predictions for one example may depend on others, which is printed beside its scores."""

    @property
    def normalization(self) -> str:
        """Where the statistics come from that normalise a query."""
        ...

    @property
    def refers(self) -> bool:
        """Whether predictions for queries depend on the support set; then :meth:`relative` makes them."""
        ...

    def relative(self, params: Params, inputs: Tensor, reference: Tensor) -> Tensor:
        """Map queries (M, N, ...) to outputs (M, N, ...), given the support set's inputs ``reference`` (M, S, ...)."""
        ...


@runtime_checkable
class Split(Net, Protocol):
    """A :class:`Net` whose last layer can be evaluated by itself, on features that the layers before it, its body, compute once.

    Then ``net(params, inputs)`` is ``last(params, body(params, inputs, None))``, and ``relative`` the same with a reference.
    """

    @property
    def adaptable(self) -> tuple[str, ...]:
        """Names of the last layer's parameters: as long as only these change, features stay what they are."""
        ...

    def body(self, params: Params, inputs: Tensor, reference: Tensor | None) -> Tensor:
        """Map inputs (M, N, ...) to features (M, N, ...), with parameters (M, ...), or (1, ...) where all tasks share them.

        ``reference`` is that of :meth:`Normalized.relative`, None where there is none.
        """
        ...

    def last(self, params: Params, features: Tensor) -> Tensor:
        """Map features (M, N, ...) to outputs (M, N, ...)."""
        ...


@dataclass(frozen=True)
class Flat:
    """A network of vectors that is given arrays: inputs (M, N, ...) are flattened to (M, N, in).

    Attributes:
        net: takes the vectors.
    """

    net: Net

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        return self.net.init(generator)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, ...) to outputs (M, N, out)."""
        return self.net(params, inputs.flatten(2))
