"""Rollouts of all tasks and episodes as one batch.

Shapes: M tasks, E episodes of each, T steps; B = M*E simulations, task-major.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metarl.rl.policy import Distribution


@dataclass(frozen=True)
class Rollouts:
    """Episodes as they were seen, one row a task.

    Attributes:
        observations: (M, T, E, O), the state each action was taken in, before a domain standardises it.
        actions: (M, T, E, A), as drawn: float32, which the family clips, or int64 choices.
        rewards: (M, T, E), zero after the end.
        terminated: bool (M, T, E), the task's own end.
        truncated: bool (M, T, E), the time limit.
        mask: (M, T, E), 1 up to and including an episode's last step, 0 after.
        final_observations: (M, E, O), the state after an episode's last step.
        behaviour: the distribution that acted: its first tensor (M, T, E, ...), the others (M, ...).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    final_observations: Tensor
    behaviour: Distribution

    @staticmethod
    def empty(observation_size: int, actions: Tensor, behaviour: Distribution) -> Rollouts:
        """Allocate buffers around a policy's (:meth:`metarl.rl.policy.Policy.buffers`)."""
        num_tasks, _, episodes = shape = actions.shape[:3]

        def zeros(*dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(dims, dtype=dtype, device=actions.device)

        return Rollouts(
            observations=zeros(*shape, observation_size),
            actions=actions,
            rewards=zeros(*shape),
            terminated=zeros(*shape, dtype=torch.bool),
            truncated=zeros(*shape, dtype=torch.bool),
            mask=zeros(*shape),
            final_observations=zeros(num_tasks, episodes, observation_size),
            behaviour=behaviour,
        )

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, (M, E)."""
        return self.rewards.sum(1)

    @property
    def steps(self) -> int:
        """Environment steps taken before the episodes' ends."""
        return int(self.mask.sum())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array of a family to where the policy lives.

    Always a copy: NumPy's memory is aligned by chance, and a matrix product's last bits may depend on alignment.
    """
    return torch.tensor(array, device=device)
