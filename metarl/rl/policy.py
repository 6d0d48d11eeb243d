"""What a policy is to this library: Gaussian, categorical or of the user's own.

Shapes: M tasks, N states, O observation, A action, D numbers that describe the distribution of one state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from metarl.core.params import Params

# A tuple of tensors: the first has a row for every state, (M, N, D), the others have one for every task, (M, ...).
Distribution = tuple[Tensor, ...]
# Observations (M, E, O) and noise (M, E, A) to actions (M, E, A) and the distribution's first tensor (M, E, D).
Actor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Policy(Protocol):
    """A distribution over actions for every state, and its geometry. All methods work on M tasks at once."""

    @property
    def action_size(self) -> int:
        """A."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters (no task dimension)."""
        ...

    def distribution(self, params: Params, observations: Tensor) -> Distribution:
        """Return the action distribution at observations (M, N, O), differentiable in ``params``."""
        ...

    def buffers(self, params: Params, steps: tuple[int, int, int]) -> tuple[Tensor, Distribution]:
        """Return zeros for the actions of (M, T, E) steps, and the distribution that acts with zeros for its first tensor."""
        ...

    def noise(self, generator: np.random.Generator, out: np.ndarray) -> None:
        """Fill ``out``, float32 (..., A), with the noise that :meth:`actor` turns into actions."""
        ...

    def actor(self, params: Params) -> Actor:
        """Return a function that draws actions, step after step of new episodes, with a memory where the policy has one.

        What does not change from step to step is worked out once.
        """
        ...

    def mode(self, distribution: Distribution) -> Tensor:
        """Return the likeliest actions, (M, N, A)."""
        ...

    def log_prob(self, distribution: Distribution, actions: Tensor) -> Tensor:
        """Log-probability or log-density of actions (M, N, A): (M, N), nats."""
        ...

    def entropy(self, distribution: Distribution, weights: Tensor) -> Tensor:
        """Mean entropy of every task under weights (M, N) that sum to 1: (M,), nats."""
        ...

    def kl(self, old: Distribution, new: Distribution) -> Tensor:
        """KL(old||new) at every state, (M, N), nats."""
        ...

    def fisher(self, at: Distribution, tangent: Distribution, weights: Tensor) -> Distribution:
        """Multiply a tangent by the Fisher matrix of every state, weighted by (M, N)."""
        ...


@runtime_checkable
class TeamPolicy(Policy, Protocol):
    """A :class:`Policy` that tells the actions of a team's R agents apart."""

    def log_probs(self, distribution: Distribution, actions: Tensor, agents: int) -> Tensor:
        """Log-probability or log-density of every agent's part of actions (M, N, A): (M, N, R), nats."""
        ...
