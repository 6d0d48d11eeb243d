"""Simulations of which some may start anew while others go on, from batches that start as one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from metarl.families import Choices, EnvBatch, EnvFault, Judging, RLFamily, Step, Tasks


@runtime_checkable
class Restartable(Protocol):
    """An :class:`~metarl.families.EnvBatch` of which some simulations can start anew while the others go on."""

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in every simulation."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Step all simulations."""
        ...

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in some simulations, as :meth:`reset` would; the others keep every bit of theirs.

        Args:
            envs: which, int (k,), sorted; all have been reset before.
            tasks: theirs, k rows.
            seeds: theirs, uint32 (k,).

        Returns:
            Their observations, float32 (k, O).
        """
        ...


@dataclass(eq=False)
class _Cohort:
    """Simulations that started together: ``rows[i]`` is who the batch's simulation i is, -1 for one that has left.

    ``observations`` are the last ones, float32 (b, O).
    """

    batch: EnvBatch
    rows: np.ndarray
    observations: np.ndarray

    def step(self, actions: np.ndarray, choices: Choices | None) -> Step:
        """Apply the actions of all B simulations; who has left gets any, but a legal one.

        Raises:
            EnvFault: the batch's own, which names its simulations as they are called among all B.
        """
        own, left = actions[self.rows], self.rows < 0
        if choices is not None and choices.masked and left.any():
            masks = self.observations[left, -sum(choices.counts) :]
            parts = np.split(masks, np.cumsum(choices.counts)[:-1], axis=1)
            own[left] = np.stack([part.argmax(axis=1) for part in parts], axis=1)
        try:
            step = self.batch.step(own)
        except EnvFault as fault:
            named = self.rows[np.asarray(fault.envs, dtype=np.int64)]
            raise EnvFault(fault.reason, named[named >= 0]) from fault
        self.observations = step[0]
        return step


class Cohorts:
    """B simulations in batches, one for those that started together; a batch whose simulations have all left is used again.

    Where batches are :class:`Restartable`, simulations start anew within theirs, so that one for all remains one.

    Args:
        family: whose simulations they are.
        threads: that step a batch.
    """

    def __init__(self, family: RLFamily, threads: int) -> None:
        self._family, self._threads, self._choices = family, threads, family.spec.choices
        self._cohorts: list[_Cohort] = []
        self._idle: dict[int, list[EnvBatch]] = defaultdict(list)

    def prepare(self, count: int) -> EnvBatch:
        """Make a batch of so many simulations, which the first that start together will use; return it."""
        self._idle[count].append(self._family.batch(count, self._threads))
        return self._idle[count][-1]

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
            there = np.isin(cohort.rows, rows)
            if isinstance(cohort.batch, Restartable) and there.sum() == len(rows) < len(there):
                return cohort.batch.restart(np.flatnonzero(there), tasks, seeds)
            cohort.rows[there] = -1
            if (cohort.rows < 0).all():
                self._idle[len(cohort.rows)].append(cohort.batch)
        idle = self._idle[len(rows)]
        batch = idle.pop() if idle else self._family.batch(len(rows), self._threads)
        self._cohorts = [cohort for cohort in self._cohorts if (cohort.rows >= 0).any()]
        first = batch.reset(tasks, seeds)
        self._cohorts.append(_Cohort(batch, rows.copy(), first))
        return first

    def step(self, actions: np.ndarray) -> Step:
        """Apply one action, (B, A), in every simulation."""
        parts = [cohort.step(actions, self._choices) for cohort in self._cohorts]
        if len(parts) == 1 and (self._cohorts[0].rows >= 0).all():
            return parts[0]
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
