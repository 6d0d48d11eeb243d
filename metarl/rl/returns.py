"""Returns and advantages. Shapes: M tasks, T steps, E episodes."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    r"""$R_t = \sum_{k \ge t} \gamma^{k-t} r_k$ within the episode, (M, T, E); zero after its end."""
    result = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = mask[:, t] * (rewards[:, t] + gamma * running)
        result[:, t] = running
    return result


def advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    r"""Generalised advantage estimates, (M, T, E).

    $$ \delta_t = r_t + \gamma (1 - \text{terminated}_t) V(s_{t+1}) - V(s_t), \qquad
       A_t = \delta_t + \gamma \lambda (1 - \text{ended}_t) A_{t+1} $$

    An episode ends by termination (the future is worth nothing) or by truncation (the future is worth
    ``next_values``: a bootstrap, or 0 for a finite horizon whose baseline knows the time).

    Args:
        rewards: r_t, (M, T, E).
        values: V(s_t), (M, T, E).
        next_values: V(s_{t+1}), (M, T, E).
        terminated: bool (M, T, E).
        truncated: bool (M, T, E).
        gamma: discount.
        gae_lambda: 0 for one-step, 1 for Monte-Carlo estimates.

    Reference: Schulman et al. (2016), arXiv:1506.02438, equation 16.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    carries = gamma * gae_lambda * ~(terminated | truncated)
    result = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = deltas[:, t] + carries[:, t] * running
        result[:, t] = running
    return result


def normalise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Shift and scale values (M, N) to mean 0 and standard deviation 1, given both as they are (:func:`moments`)."""
    # 1e-8: a task whose episodes are all equal has nothing to prefer; its advantages become 0, not infinite
    return ((values.double() - mean) / (std + 1e-8)).to(values.dtype)


def credit(targets: Tensor, mask: Tensor, std: Tensor) -> Tensor:
    """How much better than those of the other tasks each task's episodes were, in the unit of a normalised loss, (M,).

    The mean discounted return less the mean of the other tasks' (so that no task's own luck is in what it is compared
    with), over the scale of its advantages and the mean length of its episodes; 0 for one task alone.

    Args:
        targets: discounted returns (M, T, E).
        mask: (M, T, E).
        std: of the advantages before they are normalised, (M, 1).
    """
    if len(targets) == 1:
        return torch.zeros_like(targets[:, 0, 0])
    earned = targets[:, 0].double().mean(1)
    others = (earned.sum() - earned) / (len(earned) - 1)
    length = mask.double().sum((1, 2)) / mask.shape[2]
    return ((earned - others) / ((std.squeeze(1) + 1e-8) * length)).to(targets.dtype)


def moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each task's values (M, N) under weights (M, N), both float64 (M, 1)."""
    # In float64, so that the rounding of a large mean is not taken for a difference and blown up to 1.
    values_d, weights_d = values.double(), weights.double()
    total = weights_d.sum(1, keepdim=True)
    mean = (weights_d * values_d).sum(1, keepdim=True) / total
    return mean, ((weights_d * (values_d - mean).square()).sum(1, keepdim=True) / total).sqrt()
