"""Rollouts of all tasks and episodes as one batch.

Shapes: M tasks, E episodes of each, T steps; B = M*E simulations, task-major.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.rl.policy import Gaussian, GaussianPolicy


@dataclass(frozen=True)
class Rollouts:
    """Episodes as they were seen, one row a task.

    Attributes:
        observations: (M, T, E, O), the state each action was taken in.
        actions: (M, T, E, A), as drawn; the family clips them.
        rewards: (M, T, E), zero after the end.
        terminated: bool (M, T, E), the task's own end.
        truncated: bool (M, T, E), the time limit.
        mask: (M, T, E), 1 up to and including an episode's last step, 0 after.
        final_observations: (M, E, O), the state after an episode's last step.
        behaviour: the distribution that acted: means (M, T, E, A), log standard deviations (M, A).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    final_observations: Tensor
    behaviour: Gaussian

    @staticmethod
    def empty(num_tasks: int, horizon: int, episodes: int, sizes: tuple[int, int], device: torch.device) -> Rollouts:
        """Allocate buffers; sizes are (O, A)."""
        observation, action = sizes
        shape = (num_tasks, horizon, episodes)

        def zeros(*dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(dims, dtype=dtype, device=device)

        return Rollouts(
            observations=zeros(*shape, observation),
            actions=zeros(*shape, action),
            rewards=zeros(*shape),
            terminated=zeros(*shape, dtype=torch.bool),
            truncated=zeros(*shape, dtype=torch.bool),
            mask=zeros(*shape),
            final_observations=zeros(num_tasks, episodes, observation),
            behaviour=Gaussian(zeros(*shape, action), zeros(num_tasks, action)),
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


def actor(policy: GaussianPolicy, params: Params) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function of observations (M, E, O) and standard normal noise (M, E, A) to actions and means (M, E, A).

    What does not change from step to step is worked out once, because physics waits at every step.
    """
    weights = policy.weights(params)
    std = torch.exp(policy.clamped(params["log_std"])).unsqueeze(1)

    def act(observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean = policy.net(weights, observations)
        return torch.addcmul(mean, std, noise), mean

    return act
