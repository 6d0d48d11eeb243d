"""Families with a few tasks only: what leaving one out, and overfitting on purpose, need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.domain import Domain
from metarl.families import EnvBatch, RLFamily, RLSpec, ShotFamily, Shots, ShotSpec, Split, Tasks
from metarl.fewshot.domain import ShotDomain
from metarl.learner import TRAIN, MetaLearner, MetaState
from metarl.pooled import Picks, Pooled
from metarl.rl.domain import RLDomain
from metarl.rl.trials import Trial, bare
from metarl.settings import SettingsError


def _chosen(tasks: Tasks, count: int, seed: int | Sequence[int]) -> Tasks:
    """Return so many of the tasks, every one as often as any other but for the rest, in an order that the seed decides."""
    whole, rest = divmod(count, len(tasks))
    rng = np.random.default_rng(seed)
    rows = np.concatenate([np.tile(np.arange(len(tasks)), whole), rng.permutation(len(tasks))[:rest]])
    return tasks.rows(rng.permutation(rows))


@dataclasses.dataclass(frozen=True)
class FewTasks:
    """A reinforcement-learning family all of whose splits are the same few tasks."""

    family: RLFamily
    tasks: Tasks
    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self) -> RLSpec:
        """The family's."""
        return self.family.spec

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw of the few."""
        del split
        return _chosen(self.tasks, num_tasks, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make the family's simulations."""
        return self.family.batch(num_envs, threads)


@dataclasses.dataclass(frozen=True)
class FewShotTasks:
    """A family of labelled shots all of whose splits are the same few tasks."""

    family: ShotFamily
    tasks: Tasks
    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self) -> ShotSpec:
        """The family's."""
        return self.family.spec

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw of the few."""
        del split
        return _chosen(self.tasks, num_tasks, seed)

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw the family's examples."""
        return self.family.draw(tasks, seeds)


@dataclasses.dataclass(frozen=True)
class FewPooledTasks:
    """The same of a family whose examples are rows of one array."""

    family: Pooled
    tasks: Tasks
    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self) -> ShotSpec:
        """The family's."""
        return self.family.spec

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw of the few."""
        del split
        return _chosen(self.tasks, num_tasks, seed)

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw the family's examples."""
        return self.family.draw(tasks, seeds)

    def pool(self) -> np.ndarray:
        """Return the family's array."""
        return self.family.pool()

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose the family's rows."""
        return self.family.pick(tasks, seeds)


def restricted(learner: MetaLearner, tasks: Tasks) -> MetaLearner:
    """Return the learner that knows these tasks only.

    Raises:
        SettingsError: if its domain is of the user's own.
    """
    domain = learner.domain
    if isinstance(domain, RLDomain):
        family, few = domain.family, FewTasks(bare(domain.family), tasks)
        whole = dataclasses.replace(family, family=few) if isinstance(family, Trial) else few
        return dataclasses.replace(learner, domain=dataclasses.replace(domain, family=whole))
    if isinstance(domain, ShotDomain):
        own = domain.family
        shots = FewPooledTasks(own, tasks) if isinstance(own, Pooled) else FewShotTasks(own, tasks)
        return dataclasses.replace(learner, domain=dataclasses.replace(domain, family=shots))
    raise SettingsError(f"{type(domain).__name__} has no family whose tasks could be restricted")


def every(domain: Domain, most: int, seed: int = 0) -> Tasks | None:
    """Return all training tasks of a family that has a few only; None where there are more.

    A family does not say how many it has, so they are counted among draws: of ``most`` equally likely tasks one is missed with
    a probability below ``most`` e^-16.

    Args:
        domain: whose tasks.
        most: that count as a few.
        seed: of the draws.
    """
    some = domain.sample_tasks(most + 1, "train", (seed, TRAIN)).values
    if len(np.unique(some, axis=0)) > most:
        return None
    drawn = distinct(domain.sample_tasks(16 * most, "train", (seed, TRAIN, 1)))
    return drawn if len(drawn) <= most else None


def distinct(tasks: Tasks) -> Tasks:
    """Return every task once, in ascending order."""
    return Tasks(tasks.names, np.unique(tasks.values, axis=0))


def fit(learner: MetaLearner, iterations: int, seed: int = 0) -> Callable[[Tasks], MetaState]:
    """Return the function that trains anew on given tasks, for :func:`metarl.analysis.diagnostics.leave_one_out`.

    Nothing of an earlier training is taken over: statistics of observations, which a loaded learner has, begin anew. What comes
    back is the whole state, because parameters are nothing without these: ``learner.at(state)`` uses them.

    Args:
        learner: what is trained, on any tasks.
        iterations: meta-updates.
        seed: of parameters and data.
    """

    def train(tasks: Tasks) -> MetaState:
        own = _unseen(restricted(learner, tasks))
        state = own.init(seed)
        for _ in range(iterations):
            state, _ = own.iteration(state)
        return state

    return train


def _unseen(learner: MetaLearner) -> MetaLearner:
    """Return the learner whose domain has seen nothing."""
    domain = learner.domain
    if not isinstance(domain, RLDomain) or domain.normalizer is None:
        return learner
    return dataclasses.replace(learner, domain=domain.normalizing())
