"""Linear feature baseline, fitted to each task's own episodes. Shapes: M tasks, T steps, E episodes, O observation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Finn et al. start at 1e-5 and raise it tenfold while the solution is not finite; in float64 one value serves.
_RIDGE = 1e-5


def features(observations: Tensor, time: Tensor) -> Tensor:
    r"""Features (..., 2O + 4) of observations (..., O) at times (...): $s, s^2, \tau, \tau^2, \tau^3, 1$, $\tau = t / 100$.

    Observations are clipped to +-10; t counts the steps within the episode.

    Reference: Duan et al. (2016), arXiv:1604.06778, appendix.
    """
    clipped = observations.clamp(-10.0, 10.0)
    tau = (time / 100.0).to(observations.dtype)
    powers = torch.stack([tau, tau**2, tau**3, torch.ones_like(tau)], -1)
    return torch.cat([clipped, clipped.square(), powers.expand(*observations.shape[:-1], 4)], -1)


class Beyond(NamedTuple):
    """What lies behind the time limit, where it is to be valued instead of ending the world.

    Attributes:
        final: the states after the last step, (M, E, O).
        discount: gamma to the power of the steps from t to the end of a truncated episode, 0 in others, (M, T, E).
    """

    final: Tensor
    discount: Tensor


def fit(observations: Tensor, returns: Tensor, mask: Tensor, beyond: Beyond | None = None) -> Tensor:
    r"""Fit $V(s_t) = w^T \phi$ to each task's returns by ridge least squares; return w, (M, 2O + 4, 1).

    $$ w = (\Phi^T \Phi + \lambda I)^{-1} \Phi^T R $$

    With ``beyond`` the value does not depend on the time, and the return goes on behind a truncation with the value of
    the state there, $V(s_t) = R_t + d_t V(s_T)$: the same least squares on the features $\phi(s_t) - d_t \phi(s_T)$.

    Args:
        observations: (M, T, E, O).
        returns: targets, (M, T, E).
        mask: 1 where a step counts, (M, T, E).
        beyond: how to go on behind the time limit; None ends there, and the time is a feature.
    """
    # float64: a float32 sum over thousands of states rounds more than the ridge adds
    if beyond is None:
        phi = features(observations, _times(observations)).flatten(1, 2).double()
    else:
        last = _timeless(beyond.final).unsqueeze(1)
        phi = (_timeless(observations) - beyond.discount.unsqueeze(-1) * last).flatten(1, 2)
    weighted = (phi * mask.flatten(1, 2).unsqueeze(-1)).transpose(1, 2)
    gram = torch.bmm(weighted, phi)
    moment = torch.bmm(weighted, returns.flatten(1, 2).unsqueeze(-1).double())
    ridge = _RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, moment)


def predict(weights: Tensor, observations: Tensor) -> Tensor:
    """Value every state, (M, T, E), of observations (M, T, E, O)."""
    phi = features(observations, _times(observations)).flatten(1, 2).double()
    return torch.bmm(phi, weights).view(observations.shape[:-1]).to(observations.dtype)


def predict_timeless(weights: Tensor, observations: Tensor) -> Tensor:
    """Value every state, (M, ...), of observations (M, ..., O), with weights fitted with ``beyond``."""
    phi = _timeless(observations).flatten(1, -2)
    return torch.bmm(phi, weights).view(observations.shape[:-1]).to(observations.dtype)


def _timeless(observations: Tensor) -> Tensor:
    """Features at time 0 everywhere: the ridge gives those of the time no weight."""
    return features(observations, torch.zeros_like(observations[..., 0])).double()


def _times(observations: Tensor) -> Tensor:
    horizon, episodes = observations.shape[1:3]
    return torch.arange(horizon, device=observations.device)[:, None].expand(horizon, episodes)
