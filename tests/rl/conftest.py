"""A small family with every kind of ending, and how to break it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from metarl.families import EnvFault, RLSpec, Step, TaskParameter, Tasks, split_uniform

LIMIT = 0.8


@dataclasses.dataclass(frozen=True)
class PointMass:
    """A point on a line: x += 0.3 a, reward -|x - goal|; falls off (terminates) beyond +-0.8.

    Observation (2): x and the speed of the last step. Episodes whose seed is a multiple of 3 are truncated at step 4,
    all at the horizon. What a finished simulation returns is rubbish, as the contract allows.

    Attributes:
        horizon: control steps.
        oracle: append the task.
        rubbish: what finished simulations return.
        limit: whether the family itself flags its time limit.
        fault: ``(kind, step, simulation)``: how, when and where to misbehave.
        seeds: every array of seeds that a reset was given.
    """

    horizon: int = 7
    oracle: bool = False
    rubbish: float = 99.0
    limit: bool = True
    fault: tuple[str, int, int] | None = None
    seeds: list[np.ndarray] = dataclasses.field(default_factory=list)

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        parameters = (TaskParameter("goal", -0.5, 1.5, "m"), TaskParameter("push", 0.0, 0.2, "m"))
        return RLSpec(parameters, 2, 1, -2.0, 2.0, self.horizon, 0.0, self.oracle)

    def sample_tasks(self, num_tasks, split, seed):
        unit = split_uniform(num_tasks, split, seed, dimensions=2)
        return Tasks(("goal", "push"), np.array([-0.5, 0.0]) + unit * np.array([2.0, 0.2]))

    def batch(self, num_envs, threads):
        return PointBatch(self, num_envs)


def first_state(seed):
    """Initial position of the episode with this seed."""
    return np.random.default_rng(int(seed)).uniform(-0.2, 0.2)


def advance(x, action, push):
    """Next position; actions act clipped to +-2."""
    return x + 0.3 * np.clip(action, -2.0, 2.0) + push


class PointBatch:
    """PointMass as arrays."""

    def __init__(self, family, count):
        self.family, self.count = family, count

    def reset(self, tasks, seeds):
        assert len(tasks) == len(seeds) == self.count
        self.family.seeds.append(np.array(seeds))
        self.tasks, self.short = tasks, np.asarray(seeds) % 3 == 0
        self.x = np.array([first_state(seed) for seed in seeds])
        self.done, self.time = np.zeros(self.count, dtype=bool), 0
        return self._broken("reset", 0, np.stack([self.x, 0 * self.x], 1).astype(np.float32))

    def step(self, actions):
        assert actions.dtype == np.float32
        assert actions.shape == (self.count, 1)
        before, self.x = self.x, advance(self.x, actions[:, 0].astype(np.float64), self.tasks["push"])
        self.time += 1
        observations = np.stack([self.x, self.x - before], 1).astype(np.float32)
        rewards = -np.abs(self.x - self.tasks["goal"]).astype(np.float32)
        terminated = np.abs(self.x) > LIMIT
        over = self.family.limit and self.time >= self.family.horizon
        truncated = over | (self.short & (self.time >= 4))
        observations[self.done], rewards[self.done] = self.family.rubbish, self.family.rubbish
        self.done = self.done | terminated | truncated
        rewards = self._broken("reward", self.time, rewards)
        observations = self._broken("observation", self.time, observations)
        return Step(observations, rewards, terminated, truncated)

    def _broken(self, where, time, array):
        """Return ``array``, or what the fault makes of it."""
        kind, step, simulation = self.family.fault or ("", -1, 0)
        if step != time or not kind.startswith(where):
            return array
        if kind.endswith("raises"):
            raise ZeroDivisionError("the engine is out of oil")
        if kind.endswith("fault"):
            raise EnvFault("the engine is on fire", np.array([simulation]))
        if kind.endswith("shape"):
            return array[:-1]
        array[simulation] = float(kind.split()[-1])
        return array


@pytest.fixture
def point_mass():
    """The family's class."""
    return PointMass


@pytest.fixture
def point_physics():
    """First state, dynamics and limit, for plain loops."""
    return first_state, advance, LIMIT
