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


def normalise(values: Tensor, weights: Tensor) -> Tensor:
    """Shift and scale each task's values (M, N) to mean 0 and standard deviation 1 under weights (M, N) that sum to 1."""
    # In float64, so that the rounding of a large mean is not taken for a difference and blown up to 1.
    values_d, weights_d = values.double(), weights.double()
    total = weights_d.sum(1, keepdim=True)
    centred = values_d - (weights_d * values_d).sum(1, keepdim=True) / total
    std = ((weights_d * centred.square()).sum(1, keepdim=True) / total).sqrt()
    # 1e-8: a task whose episodes are all equal has nothing to prefer; its advantages become 0, not infinite
    return (centred / (std + 1e-8)).to(values.dtype)
