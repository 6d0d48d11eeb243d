"""Few-shot families whose examples are rows of one array: a task picks rows, and a meta-batch is one look into the array.

A learner keeps the array on its device as bytes, so that drawing a meta-batch moves indices and no images.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from metarl.families import ShotFamily, Shots, Tasks

LEVELS = 255  # a byte of the pool stands for the number byte / LEVELS


class Picks(NamedTuple):
    """Labelled examples of M tasks by their rows in the pool: rows int64 (M, N), targets int64 (M, N)."""

    rows: np.ndarray
    targets: np.ndarray


@runtime_checkable
class Pooled(ShotFamily, Protocol):
    """A :class:`~metarl.families.ShotFamily` that :meth:`pick` describes as well as ``draw`` (which is :func:`shots` of it)."""

    def pool(self) -> np.ndarray:
        """Return all examples, uint8 (P, *input_shape), the same array at every call.

        Raises:
            SettingsError: where the data are missing or damaged, with one line that says what to put where.
        """
        ...

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query rows of every task; row i is a function of ``tasks`` row i and ``seeds[i]`` only."""
        ...


def shots(family: Pooled, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
    """Draw what a pooled family picks: inputs float32 (M, N, *input_shape) in [0, 1], classes int64 (M, N)."""
    support, query = family.pick(tasks, seeds)
    return _look(family.pool(), support), _look(family.pool(), query)


def _look(pool: np.ndarray, picks: Picks) -> Shots:
    return Shots(pool[picks.rows].astype(np.float32) / np.float32(LEVELS), picks.targets)
