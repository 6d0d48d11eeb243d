"""Families that are not MuJoCo: environment steps a second, with the randomness that goes with them.

Timed are the noise that a policy turns into actions, drawn as the learner draws it, the turning into actions, the reset at the
start of every episode, and ``env.step`` with the simulation's own randomness. No network is evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from metarl import families
from metarl.core.parallel import Workers
from metarl.families import Choices
from metarl.rl.groups import groups

# What is measured, and its settings: bandits in trials of a hundred pulls, and in episodes of one as they are by default.
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bandit-bernoulli horizon=100": ("bandit-bernoulli", {"horizon": 100}),
    "bandit-bernoulli": ("bandit-bernoulli", {}),
    "bandit-gaussian horizon=100": ("bandit-gaussian", {"horizon": 100}),
    "bandit-gaussian": ("bandit-gaussian", {}),
    "navigation-2d": ("navigation-2d", {}),
    "navigation-2d-sparse": ("navigation-2d-sparse", {}),
    "tabular-mdp": ("tabular-mdp", {}),
}


class Throughput:
    """One row: B simulations in groups, one a thread, as the learner drives them.

    Args:
        row: one of :data:`ROWS`.
        count: simulations B, each a task of its own.
        steps: environment steps of every simulation in a measurement, in whole episodes.
        threads: threads.
    """

    def __init__(self, row: str, count: int, steps: int, threads: int) -> None:
        name, settings = ROWS[row]
        family = families.make(name, **settings)
        self._spec = family.spec
        self._episodes = max(1, steps // self._spec.horizon)
        self._cuts, each = groups(count, Workers(threads))
        self._pool = Workers(len(self._cuts))
        tasks = family.sample_tasks(count, "train", 0)
        self._tasks = [tasks.rows(cut) for cut in self._cuts]
        self._batches = [family.batch(cut.stop - cut.start, each) for cut in self._cuts]
        self._seeds = np.arange(count, dtype=np.uint32)
        self.env_steps = count * self._episodes * self._spec.horizon

    def run(self) -> float:
        """Return the seconds that :attr:`env_steps` take."""
        started = time.perf_counter()
        self._pool.map(self._play, range(len(self._cuts)))
        return time.perf_counter() - started

    def _play(self, group: int) -> None:
        tasks, batch, seeds = self._tasks[group], self._batches[group], self._seeds[self._cuts[group]]
        generator = np.random.Generator(np.random.PCG64(group))
        noise = np.empty((self._spec.horizon, len(tasks), self._spec.action_size), dtype=np.float32)
        for _ in range(self._episodes):
            batch.reset(tasks, seeds)
            for action in _actions(generator, noise, self._spec.choices):
                batch.step(action)


def _actions(generator: np.random.Generator, noise: np.ndarray, choices: Choices | None) -> np.ndarray:
    """Draw the actions of an untrained policy into ``noise`` (T, B, A): standard normal, or uniform over the choices."""
    if choices is None:
        return generator.standard_normal(out=noise, dtype=np.float32)
    generator.random(out=noise, dtype=np.float32)
    return (noise * np.array(choices.counts, dtype=np.float32)).astype(np.int64)
