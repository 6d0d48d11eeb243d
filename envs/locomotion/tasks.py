"""What locomotion families share: how tasks are drawn, and settings that work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.families import Split, TaskParameter, Tasks, split_uniform
from metarl.settings import SettingsError

TURN = 2 * math.pi
FORWARD_BACKWARD = (TaskParameter("direction", -1.0, 1.0, "-1 backward, +1 forward"),)

# Hyper-parameters of the MAML paper's code, but for the network.
PLANAR: Mapping[str, Any] = {
    "algo": "maml-trpo",
    "algo.max_kl": 0.01,
    "iterations": 500,
    "meta_batch_size": 40,
    "episodes_per_task": 20,
    "inner_steps": 1,
    "inner_lr": 0.1,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "hidden_sizes": (64, 64),
}
# Ant and humanoid cost more physics: fewer tasks and episodes.
SPATIAL: Mapping[str, Any] = {**PLANAR, "meta_batch_size": 20, "episodes_per_task": 10}
# The same with the network of the MAML paper's code.
PAPER: Mapping[str, Any] = {**PLANAR, "hidden_sizes": (100, 100), "activation": "relu"}


def ordered(name: str, low: float, high: float) -> None:
    """Refuse an empty range of a setting that comes as ``<name>_low`` and ``<name>_high``."""
    if low >= high:
        raise SettingsError(f"env.{name}_low={low} must be smaller than env.{name}_high={high}")


def uniform(name: str, low: float, high: float, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
    """Draw one parameter uniformly."""
    return Tasks((name,), low + (high - low) * split_uniform(num_tasks, split, seed))


def forward_backward(num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
    """Draw -1 or +1. There are two tasks only, so every split has both: nothing is held out."""
    return Tasks(("direction",), np.where(split_uniform(num_tasks, split, seed) < 0.5, -1.0, 1.0))


def along(angle: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Return the component of velocities (B, 2) along directions given in rad, (B,)."""
    return np.cos(angle) * velocity[:, 0] + np.sin(angle) * velocity[:, 1]
