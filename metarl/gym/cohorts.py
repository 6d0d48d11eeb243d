"""Simulations of which some may start anew while others go on, from batches that start as one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from metarl.families import EnvBatch, Judging, RLFamily, Step, Tasks


@dataclass(eq=False)
class _Cohort:
    """Simulations that started together: ``rows[i]`` is who the batch's simulation i is, -1 for one that has left."""

    batch: EnvBatch
    rows: np.ndarray


class Cohorts:
    """B simulations in batches, one for those that started together; a batch whose simulations have all left is used again.

    Args:
        family: whose simulations they are.
        threads: that step a batch.
    """

    def __init__(self, family: RLFamily, threads: int) -> None:
        self._family, self._threads = family, threads
        self._cohorts: list[_Cohort] = []
        self._idle: dict[int, list[EnvBatch]] = defaultdict(list)

    def reset(self, rows: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in some simulations.

        Args:
            rows: which, int (k,), sorted.
            tasks: theirs, k rows.
            seeds: theirs, uint32 (k,).

        Returns:
            Their observations, float32 (k, O).
        """
        for cohort in self._cohorts:
            cohort.rows[np.isin(cohort.rows, rows)] = -1
            if (cohort.rows < 0).all():
                self._idle[len(cohort.rows)].append(cohort.batch)
        idle = self._idle[len(rows)]
        batch = idle.pop() if idle else self._family.batch(len(rows), self._threads)
        self._cohorts = [cohort for cohort in self._cohorts if (cohort.rows >= 0).any()]
        self._cohorts.append(_Cohort(batch, rows.copy()))
        return batch.reset(tasks, seeds)

    def step(self, actions: np.ndarray) -> Step:
        """Apply one action, (B, A), in every simulation."""
        if len(self._cohorts) == 1 and (self._cohorts[0].rows >= 0).all():
            return self._cohorts[0].batch.step(actions)
        parts = [cohort.batch.step(actions[cohort.rows]) for cohort in self._cohorts]  # who has left gets any action
        whole = [np.zeros((len(actions), *field.shape[1:]), field.dtype) for field in parts[0]]
        for cohort, part in zip(self._cohorts, parts, strict=True):
            here = cohort.rows >= 0
            for into, field in zip(whole, part, strict=True):
                into[cohort.rows[here]] = field[here]
        return Step(*whole)

    def success(self, count: int) -> np.ndarray | None:
        """Return whether the last step left each task solved, bool (B,); None where the batches do not judge."""
        solved = np.zeros(count, dtype=bool)
        for cohort in self._cohorts:
            if not isinstance(cohort.batch, Judging):
                return None
            here = cohort.rows >= 0
            solved[cohort.rows[here]] = cohort.batch.success()[here]
        return solved

    def where(self, row: int) -> tuple[EnvBatch, int]:
        """Return the batch in which a simulation is, and its index there."""
        cohort = next(cohort for cohort in self._cohorts if row in cohort.rows)
        return cohort.batch, int(np.flatnonzero(cohort.rows == row)[0])
