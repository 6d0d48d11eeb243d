"""A third party's families that work until the environment variable BROKEN asks for a fault.

``BROKEN=step_raises:3`` raises in the steps of the third reset and of all later ones, ``BROKEN=reset_raises`` from the
first on. As a program, ``python tests/bad_input/broken.py env=broken ...`` is ``python -m metarl.train`` with the families
known.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from metarl.families import RLSpec, Shots, ShotSpec, Step, TaskParameter, Tasks, register, split_uniform
from metarl.settings import setting


@dataclasses.dataclass(frozen=True)
class Broken:
    """A point that an action moves; the task is where it should be."""

    horizon: int = setting(4, "control steps", low=1)

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        _raise_if("spec_raises")
        size = "1" if _fault() == "spec_of_text" else 1
        spec = RLSpec((TaskParameter("goal", 0.0, 1.0, "m"),), size, 1, -1.0, 1.0, self.horizon, 0.0)
        return None if _fault() == "no_spec" else spec

    def sample_tasks(self, num_tasks, split, seed):
        _raise_if("sample_tasks_raises", "interrupt")
        if _fault() == "validation_tasks_raise" and split == "validation":
            raise ValueError("no such tasks")
        tasks = Tasks(("goal",), split_uniform(num_tasks, split, seed))
        return {"too_few_tasks": tasks.rows(slice(1)), "tasks_of_lists": tasks.values.tolist()}.get(_fault(), tasks)

    def batch(self, num_envs, threads):
        _raise_if("batch_raises")
        return Points(num_envs)


class Points:
    """``num_envs`` of these points."""

    def __init__(self, num_envs):
        self.count, self.resets = num_envs, 0

    def reset(self, tasks, seeds):
        self.resets += 1
        self.fault = _fault(self.resets)
        if self.fault == "reset_raises":
            raise ValueError("the simulator says no\nand why, on a second line")
        self.goal = tasks["goal"]
        self.x = np.array([np.random.default_rng(int(seed)).uniform(-0.1, 0.1) for seed in seeds])
        return self._observations()

    def step(self, actions):
        self.x = self.x + 0.1 * actions[:, 0]
        rewards, none = -np.abs(self.x - self.goal).astype(np.float32), np.zeros(self.count, dtype=bool)
        if self.fault == "step_raises":
            raise OSError(28, "No space left on device")
        if self.fault == "step_stops":
            next(iter(()))
        if self.fault == "nan_reward":
            rewards[1] = np.nan
        if self.fault == "step_of_two":
            return self._observations(), rewards
        return Step(self._observations(), rewards, none, none)

    def _observations(self):
        observations = self.x[:, None].astype(np.float32)
        if self.fault == "nan_observation":
            observations[-1] = np.inf
        return observations[:-1] if self.fault == "wrong_shape" else observations


@dataclasses.dataclass(frozen=True)
class BrokenShots:
    """Straight lines through the origin; the task is the slope."""

    recommended: ClassVar[Mapping[str, Any]] = {"algo": "maml-adam"}

    @property
    def spec(self):
        return ShotSpec((TaskParameter("slope", 0.0, 1.0, ""),), (1,), 1, "mse", "mse", "")

    def sample_tasks(self, num_tasks, split, seed):
        _raise_if("sample_tasks_raises")
        return Tasks(("slope",), split_uniform(num_tasks, split, seed))

    def draw(self, tasks, seeds):
        _raise_if("draw_raises")
        inputs = np.stack([np.random.default_rng(int(seed)).standard_normal((6, 1)) for seed in seeds])
        targets = inputs * tasks["slope"][:, None, None]
        if _fault() == "nan_target":
            targets[1, 0] = np.nan
        if _fault() == "wrong_inputs":
            inputs = inputs[..., 0]
        inputs, targets = inputs.astype(np.float32), targets.astype(np.float32)
        both = Shots(inputs[:, :3], targets[:, :3]), Shots(inputs[:, 3:], targets[:, 3:])
        return both[0] if _fault() == "no_query" else both


def _fault(resets=sys.maxsize):
    name, _, first = os.environ.get("BROKEN", "").partition(":")
    return name if resets >= int(first or 1) else ""


def _raise_if(*names):
    if _fault() in names:
        raise KeyboardInterrupt if _fault() == "interrupt" else ZeroDivisionError("out of oil")


if __name__ == "__main__":
    from metarl.train import main

    register("broken")(Broken)
    register("broken-shots")(BrokenShots)
    sys.exit(main(sys.argv[1:]))
