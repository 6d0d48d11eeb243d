"""Linear feature baselines. Shapes: M tasks, T steps, E episodes, O observation, H memory of a policy, F = 2H + O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Finn et al. start at 1e-5 and raise it tenfold while the solution is not finite; in float64 one value serves.
_RIDGE = 1e-5


# What the states of a team of agents become, (..., O) to (..., R, I); None where there is no team.
Apart = Callable[[Tensor], Tensor] | None


def features(observations: Tensor, time: Tensor, apart: Apart = None) -> Tensor:
    r"""Features (..., 2O + 4) of observations (..., O) at times (...): $s, s^2, \tau, \tau^2, \tau^3, 1$, $\tau = t / 100$.

    Observations are clipped to +-10; t counts the steps within the episode. Of a team of R equal agents $s$ and $s^2$ are means
    over what the agents see, so that V is a sum of their values, and there are no more features for more agents.

    Reference: Duan et al. (2016), arXiv:1604.06778, appendix.
    """
    clipped = observations.clamp(-10.0, 10.0)
    tau = (time / 100.0).to(observations.dtype)
    powers = torch.stack([tau, tau**2, tau**3, torch.ones_like(tau)], -1)
    powers = powers.expand(*observations.shape[:-1], 4)
    if apart is None:
        return torch.cat([clipped, clipped.square(), powers], -1)
    own = apart(clipped)
    return torch.cat([own.mean(-2), own.square().mean(-2), powers], -1)


class Beyond(NamedTuple):
    """What lies behind the time limit, where it is to be valued instead of ending the world.

    Attributes:
        final: the states after the last step, (M, E, O).
        discount: gamma to the power of the steps from t to the end of a truncated episode, 0 in others, (M, T, E).
    """

    final: Tensor
    discount: Tensor


def fit(
    observations: Tensor, returns: Tensor, mask: Tensor, beyond: Beyond | None = None, apart: Apart = None
) -> Tensor:
    r"""Fit $V(s_t) = w^T \phi$ to each task's returns by ridge least squares; return w, (M, 2O + 4, 1).

    $$ w = (\Phi^T \Phi + \lambda I)^{-1} \Phi^T R $$

    With ``beyond`` the value does not depend on the time, and the return goes on behind a truncation with the value of
    the state there, $V(s_t) = R_t + d_t V(s_T)$: the same least squares on the features $\phi(s_t) - d_t \phi(s_T)$.

    Args:
        observations: (M, T, E, O).
        returns: targets, (M, T, E).
        mask: 1 where a step counts, (M, T, E).
        beyond: how to go on behind the time limit; None ends there, and the time is a feature.
        apart: of a team (:meth:`metarl.nets.shared.Shared.apart`); w then is (M, 2I + 4, 1).
    """
    # float64: a float32 sum over thousands of states rounds more than the ridge adds
    if beyond is None:
        phi = features(observations, _times(observations), apart).flatten(1, 2).double()
    else:
        last = _timeless(beyond.final, apart).unsqueeze(1)
        phi = (_timeless(observations, apart) - beyond.discount.unsqueeze(-1) * last).flatten(1, 2)
    weighted = (phi * mask.flatten(1, 2).unsqueeze(-1)).transpose(1, 2)
    gram = torch.bmm(weighted, phi)
    moment = torch.bmm(weighted, returns.flatten(1, 2).unsqueeze(-1).double())
    ridge = _RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, moment)


def predict(weights: Tensor, observations: Tensor, apart: Apart = None) -> Tensor:
    """Value every state, (M, T, E), of observations (M, T, E, O)."""
    phi = features(observations, _times(observations), apart).flatten(1, 2).double()
    return torch.bmm(phi, weights).view(observations.shape[:-1]).to(observations.dtype)


def predict_timeless(weights: Tensor, observations: Tensor, apart: Apart = None) -> Tensor:
    """Value every state, (M, ...), of observations (M, ..., O), with weights fitted with ``beyond``."""
    phi = _timeless(observations, apart).flatten(1, -2)
    return torch.bmm(phi, weights).view(observations.shape[:-1]).to(observations.dtype)


def _timeless(observations: Tensor, apart: Apart) -> Tensor:
    """Features at time 0 everywhere: the ridge gives those of the time no weight."""
    return features(observations, torch.zeros_like(observations[..., 0]), apart).double()


def _times(observations: Tensor) -> Tensor:
    horizon, episodes = observations.shape[1:3]
    return torch.arange(horizon, device=observations.device)[:, None].expand(horizon, episodes)


class Moments(NamedTuple):
    """Sums over samples, of features with each other and with returns.

    Attributes:
        shared: of the features of memories, (F, F), and with returns, (F, 1), added over tasks.
        cross: of the features of time with those of memories, (M, 4, F).
        own: of the features of time, (M, 4, 4), and with returns, (M, 4, 1).
    """

    shared: tuple[Tensor, Tensor]
    cross: Tensor
    own: tuple[Tensor, Tensor]


def moments(memory: Tensor, observations: Tensor, returns: Tensor, mask: Tensor) -> Moments:
    """Sum over the samples of some tasks: memories (M, T, E, H), observations (M, T, E, O), returns and mask (M, T, E)."""
    phi, psi = _remembered(memory, observations), _powers(returns)
    target, counted = returns.flatten(1, 2).unsqueeze(-1).double(), mask.flatten(1, 2).unsqueeze(-1).double()
    weighted, times = (phi * counted).flatten(0, 1), (psi * counted).transpose(1, 2)
    shared = (weighted.T @ phi.flatten(0, 1), weighted.T @ target.flatten(0, 1))
    return Moments(shared, torch.bmm(times, phi), (torch.bmm(times, psi.expand(len(phi), -1, -1)), times @ target))


def fit_remembered(parts: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    r"""Fit a value that looks at what a policy remembers; return w, (F, 1), and every task's own u, (M, 4, 1).

    $$ V_i(s_t) = w^T \phi(h_t, s_t, \tau) + u_i^T \psi(\tau), \quad
       \phi = (h, \tau h, s), \quad \psi = (1, \tau, \tau^2, \tau^3), \quad \tau = t / T $$

    by ridge least squares on the returns of all tasks together. w is one for all tasks, because a memory tells one trial
    from another: fitted to the few trials of one task it would know how they end. What all trials of a task share is left
    to u, which knows the task as no memory does. (u is eliminated: w solves the normal equations of what it leaves over.)

    Args:
        parts: of all tasks, in their order.
    """
    gram, moment = (torch.stack(sums).sum(0) for sums in zip(*(part.shared for part in parts), strict=True))
    cross = torch.cat([part.cross for part in parts])
    own, own_moment = (torch.cat(sums) for sums in zip(*(part.own for part in parts), strict=True))
    own = own + _RIDGE * torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
    without = torch.linalg.solve(own, torch.cat([cross, own_moment], -1))
    ridge = _RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    left = gram + ridge - torch.bmm(cross.transpose(1, 2), without[..., :-1]).sum(0)
    w = torch.linalg.solve(left, moment - torch.bmm(cross.transpose(1, 2), without[..., -1:]).sum(0))
    return w, without[..., -1:] - without[..., :-1] @ w


def predict_remembered(fitted: tuple[Tensor, Tensor], memory: Tensor, observations: Tensor) -> Tensor:
    """Value every state, (M, T, E), of some tasks, whose own u, (M, 4, 1), stand beside the w of all."""
    shared, own = fitted
    value = _remembered(memory, observations) @ shared + _powers(observations[..., 0]) @ own
    return value.view(observations.shape[:-1]).to(observations.dtype)


def _remembered(memory: Tensor, observations: Tensor) -> Tensor:
    """Features (M, T*E, F) of memories and observations; returns to come shrink with the time that is left."""
    tau = (_times(observations) / observations.shape[1]).to(memory.dtype).unsqueeze(-1)
    return torch.cat([memory, tau * memory, observations.clamp(-10.0, 10.0)], -1).flatten(1, 2).double()


def _powers(like: Tensor) -> Tensor:
    """Features (1, T*E, 4) of the time of samples (M, T, E)."""
    tau = (_times(like.unsqueeze(-1)) / like.shape[1]).double().flatten()
    return torch.stack([torch.ones_like(tau), tau, tau**2, tau**3], -1).unsqueeze(0)
