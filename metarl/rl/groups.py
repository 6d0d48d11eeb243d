"""How rollouts are cut into groups of simulations, and the random numbers of a group."""

from __future__ import annotations

import itertools
import math

import numpy as np

from metarl import families
from metarl.core.parallel import Workers
from metarl.domain import Seed
from metarl.rl.policy import Policy


def groups(num_tasks: int, workers: Workers, most: int | None = None) -> tuple[list[slice], int]:
    """Cut M tasks into groups, and say how many physics threads each gets.

    On the CPU the cut minimises the slowest group's time, with policy inference at about 5 % of physics (measured) and not
    shared between threads; on a GPU two groups take turns with all the threads. Where only ``most`` tasks may run at once,
    groups of so many have all the threads, one group after the other.
    """
    threads = workers.threads
    if most is not None:
        starts = range(0, num_tasks, most)
        return [slice(start, min(start + most, num_tasks)) for start in starts], threads
    if workers.device.type != "cpu":
        count, each = min(2, num_tasks), threads
    else:
        options = range(1, min(threads, num_tasks) + 1)
        count = min(options, key=lambda n: (math.ceil(num_tasks / n) * (1 / (threads // n) + 0.05), -n))
        each = threads // count
    edges = [round(i * num_tasks / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)], each


def randomness(cut: slice, seed: Seed, steps: tuple[int, int], policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Action noise float32 (m, T, E, A) and reset seeds uint32 (m*E,), each task's a function of ``seed`` and its index."""
    noise = np.empty((cut.stop - cut.start, *steps, policy.action_size), dtype=np.float32)
    seeds = []
    for row, task in enumerate(range(cut.start, cut.stop)):
        resets, actions = _streams(seed, task)
        seeds.append(resets.generate_state(steps[1]))
        policy.noise(np.random.Generator(np.random.PCG64(actions)), noise[row])
    return noise, np.concatenate(seeds)


def reset_seeds(seed: Seed, task: int, episodes: int) -> np.ndarray:
    """Return the seeds at which a task's episodes start, uint32 (E,): those of :func:`randomness`, without the noise."""
    return _streams(seed, task)[0].generate_state(episodes)


def _streams(seed: Seed, task: int) -> list[np.random.SeedSequence]:
    """Return the randomness of a task's resets, and that of its actions."""
    return families.stream(seed, task).spawn(2)
