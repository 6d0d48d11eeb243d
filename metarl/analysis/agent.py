"""A trained run in a notebook: load it, adapt it to a task or to an environment of your own, act."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

from metarl.analysis.curves import Curve, with_episodes
from metarl.core.params import Params, expand
from metarl.families import Tasks
from metarl.learner import TEST, MetaLearner
from metarl.rl.domain import RLDomain
from metarl.rl.policy import GaussianPolicy
from metarl.rl.rollouts import Rollouts, act
from metarl.run.build import build_learner
from metarl.run.checkpoint import CheckpointStore
from metarl.run.config import RunConfig
from metarl.run.directory import CHECKPOINTS, read_config
from metarl.run.trainer import restored
from metarl.settings import SettingsError


@dataclass(frozen=True)
class AdaptedPolicy:
    """The policy of one task.

    Attributes:
        policy: the network's form.
        params: parameters with a leading task dimension of 1.
        low: smallest action.
        high: largest action.
        seed: of the noise of :meth:`act`.
    """

    policy: GaussianPolicy
    params: Params
    low: float
    high: float
    seed: int = 0

    def act(self, observation: np.ndarray, deterministic: bool = True) -> np.ndarray:
        """Choose an action.

        Args:
            observation: (O,) or (B, O).
            deterministic: the mean; otherwise a draw, from a generator that every call starts anew from the seed and the
                observation, so that equal calls give equal actions.

        Returns:
            float32 (A,) or (B, A), clipped to the legal range.
        """
        value = np.asarray(observation, dtype=np.float32)
        device = self.params["log_std"].device
        with torch.no_grad():
            mean, log_std = self.policy.distribution(
                self.params, torch.tensor(np.atleast_2d(value), device=device)[None]
            )
        action = mean[0].cpu().numpy()
        if not deterministic:
            words = np.frombuffer(value.tobytes(), dtype=np.uint32)
            rng = np.random.default_rng([self.seed, *words.tolist()])
            action = action + np.exp(log_std[0].cpu().numpy()) * rng.standard_normal(action.shape, dtype=np.float32)
        action = np.clip(action, self.low, self.high)
        return action[0] if value.ndim == 1 else action


@dataclass(frozen=True)
class Agent:
    """A meta-trained run.

    Attributes:
        learner: its learner.
        meta: its meta-parameters.
        config: its settings.
        iteration: meta-updates behind it.
    """

    learner: MetaLearner
    meta: Params
    config: RunConfig
    iteration: int

    def adapt(
        self, task: Mapping[str, float] | Tasks | gymnasium.Env[Any, Any], rollouts: int = 20, seed: int = 0
    ) -> tuple[AdaptedPolicy, Curve]:
        """Adapt to one task from a few rollouts.

        Args:
            task: a task of the run's family, ``{"velocity": 1.5}`` or one row of :class:`~metarl.families.Tasks`, or any
                Gymnasium environment with the same observations and actions.
            rollouts: episodes to learn from; one update for every ``episodes_per_task`` of them, at least one.
            seed: of resets and actions.

        Returns:
            The adapted policy, and the returns before each update and after the last (on fresh rollouts).
        """
        domain = self.learner.domain
        if not isinstance(domain, RLDomain):
            raise SettingsError("adapt() needs a reinforcement-learning run; this one learns from labelled shots")
        if rollouts < 1:
            raise SettingsError(f"rollouts={rollouts} is too small: it must be at least 1")
        parts = [domain.episodes] * (rollouts // domain.episodes)
        parts += [rollouts % domain.episodes] if rollouts % domain.episodes else []
        params = expand(self.meta, 1)
        scores, seen = [], []
        for step, episodes in enumerate([*parts, domain.episodes]):
            batch, score = self._collect(task, params, episodes, (seed, TEST, step))
            scores.append(score)
            seen.append(sum(parts[:step]))
            if step < len(parts):
                params = self.learner.adapt(params, batch)
        spec = domain.family.spec
        policy = AdaptedPolicy(domain.policy, params, spec.action_low, spec.action_high, seed)
        return policy, Curve(tuple(range(len(scores))), tuple(seen), np.array(scores)[:, None])

    def _collect(
        self,
        task: Mapping[str, float] | Tasks | gymnasium.Env[Any, Any],
        params: Params,
        episodes: int,
        seed: tuple[int, ...],
    ) -> tuple[Any, float]:
        learner = with_episodes(self.learner, episodes)
        domain = learner.domain
        assert isinstance(domain, RLDomain)
        if isinstance(task, gymnasium.Env):
            rollouts = _gym_rollouts(task, domain, params, episodes, seed)
            return domain.judge(rollouts), float(rollouts.returns.mean())
        tasks = task if isinstance(task, Tasks) else Tasks.from_json([task])
        names = tuple(parameter.name for parameter in domain.family.spec.parameters)
        if tasks.names != names or len(tasks) != 1:
            raise SettingsError(f"a task of {self.config.env} is one row of {', '.join(names)}; got {tasks.to_json()}")
        sample = domain.collect(params, tasks, seed, "support")
        return sample.data, float(sample.scores[0])


def load(run: str | os.PathLike[str], checkpoint: str = "last", device: str = "auto") -> Agent:
    """Load a run directory: ``agent = metarl.load("runs/x")``.

    Args:
        run: a directory made by ``python -m metarl.train``.
        checkpoint: ``"last"``, or ``"best"`` on the validation tasks.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """
    path = pathlib.Path(run)
    config = read_config(path)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, device=device))
    learner = build_learner(config)
    store = CheckpointStore(path / CHECKPOINTS)
    found = store.best() if checkpoint == "best" else store.latest()
    if found is None:
        remedy = "use checkpoint=last" if checkpoint == "best" else "wait for the first iteration"
        raise SettingsError(f"{path} has no {checkpoint} checkpoint; {remedy}")
    state, _ = restored(found, learner)
    return Agent(learner, state.meta, config, state.iteration)


def _gym_rollouts(
    env: gymnasium.Env[Any, Any], domain: RLDomain, params: Params, episodes: int, seed: tuple[int, ...]
) -> Rollouts:
    """Run episodes one after another in a Gymnasium environment, up to the family's horizon."""
    spec, device = domain.family.spec, params["log_std"].device
    spaces = (env.observation_space.shape, env.action_space.shape)
    if spaces != ((spec.observation_size,), (spec.action_size,)):
        raise SettingsError(
            f"the environment has observations and actions of shapes {spaces[0]} and {spaces[1]}; this run needs"
            f" ({spec.observation_size},) and ({spec.action_size},)"
        )
    out = Rollouts.empty(1, spec.horizon, episodes, (spec.observation_size, spec.action_size), device)
    out.behaviour.log_std.copy_(domain.policy.clamped(params["log_std"]))
    sequence = np.random.SeedSequence(list(seed))
    noise = torch.tensor(
        np.random.default_rng(sequence).standard_normal((spec.horizon, episodes, spec.action_size), dtype=np.float32),
        device=device,
    )
    resets = sequence.generate_state(episodes)
    with torch.no_grad():
        for e in range(episodes):
            observation, _ = env.reset(seed=int(resets[e]))
            for t in range(spec.horizon):
                seen = torch.tensor(np.asarray(observation, dtype=np.float32), device=device).view(1, 1, -1)
                action, distribution = act(domain.policy, params, seen, noise[t, e].view(1, 1, -1))
                command = np.clip(action[0, 0].cpu().numpy(), spec.action_low, spec.action_high)
                observation, reward, terminated, truncated, _ = env.step(command)
                out.observations[0, t, e], out.actions[0, t, e] = seen[0, 0], action[0, 0]
                out.behaviour.mean[0, t, e] = distribution.mean[0, 0]
                out.rewards[0, t, e], out.mask[0, t, e] = float(reward), 1.0
                out.terminated[0, t, e] = bool(terminated)
                out.truncated[0, t, e] = not terminated and (bool(truncated) or t + 1 == spec.horizon)
                if terminated or truncated:
                    break
            out.final_observations[0, e] = torch.tensor(np.asarray(observation, dtype=np.float32), device=device)
    return out
