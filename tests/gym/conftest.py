"""Families of Gymnasium's own environments, registered for this folder's tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

import metarl
from metarl import families
from metarl.families import TaskParameter


def dynamics(env, task):
    """Another gravity and another mass of Pendulum."""
    env.g, env.m = task["gravity"], task["mass"]


def pole(env, task):
    """A longer or shorter pole of CartPole; Gymnasium's length is half the pole's, and a product is kept beside it."""
    env.length = task["length"]
    env.polemass_length = env.masspole * env.length


FAMILIES = {
    "pendulum-dynamics": metarl.gym_family(
        "Pendulum-v1",
        [TaskParameter("gravity", 5.0, 15.0, "m/s^2"), TaskParameter("mass", 0.5, 2.0, "kg")],
        dynamics,
        control_step=0.05,
    ),
    "cartpole-length": metarl.gym_family(
        "CartPole-v1", [TaskParameter("length", 0.25, 2.0, "m")], pole, horizon=100, control_step=0.02
    ),
}


@dataclasses.dataclass(frozen=True)
class Whole:
    """The same poles in batches that can only start as a whole, as a minimal family's do."""

    horizon: int = metarl.setting(100, "control steps in an episode", low=1)

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        return self._poles.spec

    @property
    def _poles(self):
        return FAMILIES["cartpole-length"](horizon=self.horizon)

    def sample_tasks(self, num_tasks, split, seed):
        return self._poles.sample_tasks(num_tasks, split, seed)

    def batch(self, num_envs, threads):
        return WholeBatch(self._poles.batch(num_envs, threads))


class WholeBatch:
    """Simulations without a restart of some."""

    def __init__(self, poles):
        self.reset, self.step = poles.reset, poles.step


FAMILIES["cartpole-whole"] = Whole


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Known by name while a module of this folder runs, and to no other test."""
    for name, family in FAMILIES.items():
        metarl.register(name)(family)
    yield
    for name in FAMILIES:
        del families._registered[name]
