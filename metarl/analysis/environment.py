"""Rollouts in a Gymnasium environment of the user's own, as a run's family gives them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from metarl.core.params import Params
from metarl.families import FamilyError, RLSpec, stream
from metarl.rl.domain import RLDomain
from metarl.rl.rollouts import Rollouts, actor, to_device
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
    wanted = {
        "observations": (env.observation_space, spec.observation_size),
        "actions": (env.action_space, spec.action_size),
    }
    for what, (space, size) in wanted.items():
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (size,):
            raise SettingsError(f"the environment has {what} {space}; this run needs a Box of shape ({size},)")


def rollouts(env: gymnasium.Env[Any, Any], domain: RLDomain, params: Params, seed: tuple[int, ...]) -> Rollouts:
    """Run episodes one after another in a Gymnasium environment, up to the family's horizon.

    Seeds of resets and actions are those of a batch's first task: where the environment is one of the family's tasks, these
    are the rollouts that the family gives.
    """
    spec, device, episodes = domain.family.spec, params["log_std"].device, domain.episodes
    out = Rollouts.empty(1, spec.horizon, episodes, (spec.observation_size, spec.action_size), device)
    out.behaviour.log_std.copy_(domain.policy.clamped(params["log_std"]))
    resets, actions = stream(seed, 0).spawn(2)
    seeds = resets.generate_state(episodes)
    shape = (spec.horizon, episodes, spec.action_size)
    noise = to_device(np.random.default_rng(actions).standard_normal(shape, dtype=np.float32), device)
    with torch.no_grad():
        act = actor(domain.policy, params)
        for e in range(episodes):
            observation = _finite(env.reset(seed=int(seeds[e]))[0], "observation")
            for t in range(spec.horizon):
                seen = to_device(observation, device).view(1, 1, -1)
                action, mean = act(seen, noise[t, e].view(1, 1, -1))
                command = np.clip(action[0, 0].cpu().numpy(), spec.action_low, spec.action_high)
                value, reward, terminated, truncated, _ = env.step(command)
                observation = _finite(value, "observation")
                out.observations[0, t, e], out.actions[0, t, e] = seen[0, 0], action[0, 0]
                out.behaviour.mean[0, t, e] = mean[0, 0]
                out.rewards[0, t, e], out.mask[0, t, e] = float(_finite(reward, "reward")), 1.0
                out.terminated[0, t, e] = bool(terminated)
                out.truncated[0, t, e] = not terminated and (bool(truncated) or t + 1 == spec.horizon)
                if terminated or truncated:
                    break
            out.final_observations[0, e] = to_device(observation, device)
    return out


def _finite(value: Any, what: str) -> np.ndarray:
    array = np.asarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise FamilyError(f"the environment's {what} is not finite")
    return array
