"""Rollouts in a Gymnasium environment of the user's own, as a run's family gives them."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch

from metarl.core.params import Params
from metarl.families import FamilyError, RLSpec, stream
from metarl.rl.domain import RLDomain
from metarl.rl.rollouts import Rollouts, to_device
from metarl.settings import SettingsError


def check_spaces(env: gymnasium.Env[Any, Any], spec: RLSpec) -> None:
    """Refuse an environment in which the run's policy cannot act.

    Raises:
        SettingsError: if observations or actions differ from the family's, or the policy observes the task.
    """
    if spec.oracle:
        raise SettingsError(
            "this run observes its task (env.oracle=true), which an environment of your own does not tell"
        )
    _check_box("observations", env.observation_space, spec.observation_size)
    space, choices = env.action_space, spec.choices
    if choices is None:
        _check_box("actions", space, spec.action_size)
        return
    counts: tuple[int, ...] = ()
    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        counts = (int(space.n),)
    elif isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        counts = tuple(int(n) for n in space.nvec)
    if counts != choices.counts:
        raise SettingsError(f"the environment has actions {space}; this run needs choices of {choices.counts}, from 0")


def _check_box(what: str, space: gymnasium.Space[Any], size: int) -> None:
    if not isinstance(space, gymnasium.spaces.Box) or space.shape != (size,):
        raise SettingsError(f"the environment has {what} {space}; this run needs a Box of shape ({size},)")


def rollouts(
    env: gymnasium.Env[Any, Any], domain: RLDomain, params: Params, seed: tuple[int, ...]
) -> tuple[Rollouts, torch.Tensor | None]:
    """Run episodes one after another in a Gymnasium environment, up to the family's horizon.

    Seeds of resets and actions are those of a batch's first task: where the environment is one of the family's tasks, these
    are the rollouts that the family gives.

    Returns:
        The rollouts, and (1, T, E, R) what each agent of a team answers for, where the domain's agents learn from that and the
        environment tells it in ``info["agent_rewards"]``.
    """
    spec, policy, episodes = domain.family.spec, domain.policy, domain.episodes
    out = Rollouts.empty(spec.observation_size, *policy.buffers(params, (1, spec.horizon, episodes)))
    device = out.actions.device
    resets, actions = stream(seed, 0).spawn(2)
    seeds = resets.generate_state(episodes)
    draws = np.empty((spec.horizon, episodes, policy.action_size), dtype=np.float32)
    policy.noise(np.random.default_rng(actions), draws)
    noise = to_device(draws, device)
    each = np.zeros((1, spec.horizon, episodes, domain.credited), dtype=np.float32)
    told = domain.local and domain.credited > 0
    with torch.no_grad():
        act = policy.actor(params)
        for e in range(episodes):
            observation = finite(env.reset(seed=int(seeds[e]))[0], "observation")
            for t in range(spec.horizon):
                seen = to_device(observation, device).view(1, 1, -1)
                action, state = act(domain.normalized(seen), noise[t, e].view(1, 1, -1))
                played = command(action[0, 0].cpu().numpy(), spec, env.action_space)
                value, reward, terminated, truncated, info = env.step(played)
                told = told and "agent_rewards" in info
                if told:
                    each[0, t, e] = finite(info["agent_rewards"], "agent_rewards")
                observation = finite(value, "observation")
                out.observations[0, t, e], out.actions[0, t, e] = seen[0, 0], action[0, 0]
                out.behaviour[0][0, t, e] = state[0, 0]
                out.rewards[0, t, e], out.mask[0, t, e] = float(finite(reward, "reward")), 1.0
                out.terminated[0, t, e] = bool(terminated)
                out.truncated[0, t, e] = not terminated and (bool(truncated) or t + 1 == spec.horizon)
                if terminated or truncated:
                    break
            out.final_observations[0, e] = to_device(observation, device)
    if domain.local and domain.credited and not told:
        reason = (
            "the environment tells no info['agent_rewards']: agents learn from the team's reward, not from their own"
        )
        warnings.warn(reason, RuntimeWarning, stacklevel=4)
    return out, to_device(each, device) if told else None


def command(action: np.ndarray, spec: RLSpec, space: gymnasium.Space[Any]) -> Any:
    """Return an action (A,) as the environment takes it."""
    if (action < 0).any() and spec.choices is not None:
        raise SettingsError("the policy's probabilities are not finite: adaptation diverged; lower inner_lr")
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(action[0])
    return np.clip(action, spec.action_low, spec.action_high).astype(action.dtype)


def finite(value: Any, what: str) -> np.ndarray:
    """Return what an environment gave as float32, and refuse what is not finite."""
    array = np.asarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise FamilyError(f"the environment's {what} is not finite")
    return array
