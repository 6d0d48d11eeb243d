"""A policy with a memory in one environment: what it has seen there is how it has adapted."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from metarl.analysis.curves import Curve
from metarl.analysis.environment import command, finite
from metarl.core.params import Params
from metarl.families import stream
from metarl.rl.domain import RLDomain
from metarl.rl.rollouts import to_device
from metarl.rl.trials import bare, seen


class MemoryPolicy:
    """The policy of one task, which it goes on learning: it is told what every action paid.

    Args:
        domain: of a run that learns by memory.
        params: its parameters, with a leading task dimension of 1.
        context: what an oracle sees of its task beside the observation, float32 (D,); empty otherwise.
        seed: of the noise of :meth:`act`.
    """

    def __init__(self, domain: RLDomain, params: Params, context: np.ndarray, seed: int = 0) -> None:
        self._domain, self._spec, self._context = domain, bare(domain.family).spec, context
        self._random = np.random.default_rng(seed)
        self._others = domain.policy.buffers(params, (1, 1, 1))[1][1:]
        self._actor, self._device = domain.policy.actor(params), next(iter(params.values())).device
        self._last: np.ndarray | None = None
        self._reward, self._begins, self._told = 0.0, True, True

    def act(
        self, observation: np.ndarray, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Choose the next action; every observation of an episode is to be shown once, in order.

        Args:
            observation: (O,).
            deterministic: the likeliest action; otherwise a draw.
            rng: where draws come from; by default the policy's own generator.

        Returns:
            (A,): float32 clipped to the legal range, or int64 choices.

        Raises:
            ValueError: if the observation has another shape, or nobody has told what the last action paid.
        """
        value, spec = np.asarray(observation, dtype=np.float32), self._spec
        if value.shape != (spec.observation_size,):
            raise ValueError(f"an observation has shape ({spec.observation_size},); got {value.shape}")
        if not self._told:
            raise ValueError("say what the last action paid before the next: policy.saw(reward, ended)")
        last = None if self._last is None else self._last[None]
        told = seen(spec, value[None], last, np.array([self._reward]), np.array([self._begins]))[0]
        noise = np.empty((1, 1, spec.action_size), dtype=np.float32)
        policy = self._domain.policy
        policy.noise(rng or self._random, noise)
        with torch.no_grad():
            state = to_device(np.concatenate([told, self._context]), self._device).view(1, 1, -1)
            drawn, described = self._actor(self._domain.normalized(state), to_device(noise, self._device))
            actions = policy.mode((described, *self._others)) if deterministic else drawn
        action = actions[0, 0].cpu().numpy()
        self._last = np.clip(action, spec.action_low, spec.action_high).astype(action.dtype)
        self._told = False
        return self._last.copy()

    def saw(self, reward: float, ended: bool = False) -> None:
        """Be told what the last action paid, and whether its episode has ended (then a new one begins).

        Raises:
            ValueError: if there has been no action since the last time.
        """
        if self._told:
            raise ValueError("there has been no action since the last reward; call policy.act(observation) first")
        self._reward, self._begins, self._told = float(reward), bool(ended), True


def remember(
    policy: MemoryPolicy, env: gymnasium.Env[Any, Any], domain: RLDomain, episodes: int, seed: tuple[int, ...]
) -> Curve:
    """Let a policy see so many episodes, up to the family's horizon each; return the returns after 0, 1, ... of them."""
    resets, actions = stream(seed, 0).spawn(2)
    seeds, rng = resets.generate_state(episodes), np.random.default_rng(actions)
    spec, returns = bare(domain.family).spec, np.zeros((episodes, 1))
    for episode in range(episodes):
        observation = finite(env.reset(seed=int(seeds[episode]))[0], "observation")
        for time in range(spec.horizon):
            action = policy.act(observation, deterministic=False, rng=rng)
            value, reward, terminated, truncated, _ = env.step(command(action, spec, env.action_space))
            observation, paid = finite(value, "observation"), float(finite(reward, "reward"))
            returns[episode] += paid
            ended = bool(terminated or truncated or time + 1 == spec.horizon)
            policy.saw(paid, ended)
            if ended:
                break
    return Curve((0,) * episodes, tuple(range(episodes)), returns)
