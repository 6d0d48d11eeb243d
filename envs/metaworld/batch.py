"""Simulations of Meta-World's tasks, each an environment of the package's own; they are Python and step one after another."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from metarl.envs.locomotion.engine import silence_mujoco
from metarl.envs.metaworld.benchmarks import Benchmark
from metarl.envs.metaworld.names import ENVIRONMENTS
from metarl.families import EnvFault, Step, Tasks
from metarl.settings import SettingsError

OBSERVATION = 39
_GOAL = slice(36, 39)  # of an observation: where the package puts the goal, and zeros where it hides it
_FATAL = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC", "CTRL")]


@dataclass(frozen=True)
class Options:
    """How environments are made and stepped.

    Attributes:
        horizon: control steps of an episode, at most the package's own 500.
        reward: version of the rewards, ``"v2"`` or ``"v1"``.
        show_goal: whether observations hold the goal, as those of the package's multi-task benchmarks do.
    """

    horizon: int
    reward: str
    show_goal: bool


class MetaWorldBatch:
    """B simulations, each of any class of tasks; about 20 MB and a tenth of a second to make each.

    An environment goes on to the next task of its class. What it did before changes no bit of an episode.

    Args:
        benchmark: environment classes and goals.
        options: how they are stepped.
        num_envs: simulations B.
    """

    def __init__(self, benchmark: Benchmark, options: Options, num_envs: int) -> None:
        silence_mujoco()
        self._benchmark, self._options = benchmark, options
        self._envs: list[Any] = [None] * num_envs
        self._names = [""] * num_envs
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._observations = np.zeros((num_envs, OBSERVATION), dtype=np.float32)
        self._success = np.zeros(num_envs, dtype=bool)
        self._renderer: tuple[int, mujoco.Renderer] | None = None

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start every episode; nothing in it is random but the task."""
        return self.restart(np.arange(len(self._envs)), tasks, seeds)

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start some episodes; return their observations (k, O)."""
        del seeds
        names, goals = self._looked_up(tasks)
        self._seat(envs, names)
        for row, goal in zip(envs, goals, strict=True):
            self._assign(self._envs[row], goal)
            self._observe(row, self._envs[row].reset()[0])
        self._elapsed[envs], self._success[envs] = 0, False
        return self._observations[envs]

    def step(self, actions: np.ndarray) -> Step:
        """Step the environments whose episodes have not ended; the others stand still."""
        rewards = np.zeros(len(self._envs), dtype=np.float32)
        legal = np.clip(actions, np.float32(-1.0), np.float32(1.0))
        for row in np.flatnonzero(self._elapsed < self._options.horizon):
            env = self._envs[row]
            observation, rewards[row], _, _, info = env.step(legal[row])
            self._observe(row, observation)
            self._success[row] = info["success"] > 0
            if env.data.warning.number[_FATAL].any():
                raise EnvFault(
                    "MuJoCo's state became infinite or not a number, and it reset the simulation", np.array([row])
                )
        self._elapsed += 1
        truncated = self._elapsed >= self._options.horizon
        return Step(self._observations.copy(), rewards, np.zeros_like(truncated), truncated)

    def success(self) -> np.ndarray:
        """Return whether the package calls each simulation's task solved after its last step, bool (B,)."""
        return self._success.copy()

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one simulation, uint8 (height, width, 3)."""
        if self._renderer is None or self._renderer[0] != env:
            if self._renderer is not None:
                self._renderer[1].close()
            self._renderer = (env, mujoco.Renderer(self._envs[env].model, height, width))
        self._renderer[1].update_scene(self._envs[env].data, camera="corner2")
        return self._renderer[1].render()[::-1, ::-1].copy()  # this camera stands on its head

    def _looked_up(self, tasks: Tasks) -> tuple[list[str], list[Any]]:
        """Return each task's class and the package's object for it.

        Raises:
            SettingsError: for a task that the benchmark has not.
        """
        goals = self._benchmark.goals
        classes = [ENVIRONMENTS.index(name) for name in goals]
        found = []
        for task in tasks.to_json():
            environment, goal = task.get("environment", classes[0]), task["goal"]
            if environment not in classes:
                known = ", ".join(str(index) for index in sorted(classes))
                raise SettingsError(f"no environment {environment:g} is in this benchmark; it has {known}")
            name = ENVIRONMENTS[int(environment)]
            if goal not in range(len(goals[name])):
                raise SettingsError(f"{name} has no goal {goal:g}: goals are whole numbers below {len(goals[name])}")
            found.append((name, goals[name][int(goal)]))
        return [name for name, _ in found], [goal for _, goal in found]

    def _seat(self, rows: np.ndarray, names: Sequence[str]) -> None:
        """Give each of these simulations an environment of its class, and close those that nobody needs any more."""
        spare: dict[str, list[Any]] = collections.defaultdict(list)
        for row in rows:
            if self._envs[row] is not None:
                spare[self._names[row]].append(self._envs[row])
        for row, name in zip(rows, names, strict=True):
            self._names[row] = name
            self._envs[row] = spare[name].pop() if spare[name] else None
        self._renderer = None
        for left in spare.values():
            for env in left:
                env.close()
        for row in rows:
            if self._envs[row] is None:
                make = self._benchmark.classes[self._names[row]]
                self._envs[row] = make(reward_function_version=self._options.reward)

    def _assign(self, env: Any, goal: Any) -> None:
        """Set a task, which also says that the goal is hidden; show it where it is asked for."""
        env._partially_observable = (
            True  # as it says: set_task then leaves alone the cached bounds that it may not have
        )
        env.set_task(goal)
        env._partially_observable = not self._options.show_goal
        env.__dict__.pop("sawyer_observation_space", None)  # cached bounds, to which observations are clipped

    def _observe(self, row: np.intp, observation: np.ndarray) -> None:
        if not self._options.show_goal and observation[_GOAL].any():
            raise EnvFault("the installed metaworld shows the goal in the observation", np.array([row]))
        self._observations[row] = observation
