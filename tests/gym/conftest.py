"""Families of Gymnasium's own environments, registered for this folder's tests."""

from __future__ import annotations

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


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Known by name while a module of this folder runs, and to no other test."""
    for name, family in FAMILIES.items():
        metarl.register(name)(family)
    yield
    for name in FAMILIES:
        del families._registered[name]
