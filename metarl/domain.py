"""What reinforcement learning and few-shot learning differ in: where the data come from, and what the loss is.

:class:`metarl.learner.MetaLearner` talks to this protocol alone, so both run the same ``iteration()``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.core.adapt import Data, Once, Path, Query
from metarl.core.parallel import Workers
from metarl.core.params import Params
from metarl.families import Split, Tasks

Seed = Sequence[int]
Role = Literal["support", "query"]
Statistics = Mapping[str, Tensor]  # what a domain keeps of the data of all tasks, beside the parameters


class Sample(NamedTuple):
    """Data of M tasks and how well the parameters that saw them do.

    Attributes:
        data: support or query set for the meta-core.
        scores: the domain's metric of every task, float32 (M,), on the CPU.
        env_steps: environment steps that it took (examples, for supervised tasks).
        metrics: what else is worth logging.
        statistics: of the data, where the domain keeps any.
        success: fraction of every task's episodes that were a success, float32 (M,), on the CPU; None where nobody judges.
        course: where a sample is of trials of K episodes, the metric after 0, 1, ... episodes of the task, float32 (M, K),
            on the CPU; its mean is the score, and success is that of the last episodes. None elsewhere.
    """

    data: Data
    scores: Tensor
    env_steps: int
    metrics: dict[str, float]
    statistics: Statistics = MappingProxyType({})
    success: Tensor | None = None
    course: Tensor | None = None


class Domain(Protocol):
    """A source of data with its losses."""

    @property
    def metric(self) -> str:
        """Name of the score: ``"return"``, ``"mse"``, ``"accuracy"``."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the score."""
        ...

    @property
    def protocol(self) -> str:
        """How the score was taken, printed beside it where that decides what it can be compared with; empty elsewhere."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is better."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether a task is learned by remembering it, from whole sequences, instead of by inner updates."""
        ...

    @property
    def workers(self) -> Workers:
        """Threads and device."""
        ...

    @property
    def query(self) -> Query:
        """The outer loss."""
        ...

    def inner_loss(self, params: Params, support: Any) -> Tensor:
        """Return the support loss of every task, (M,)."""
        ...

    def exploration(self, coefficient: float) -> Path | None:
        """Return the term that rewards what was sampled for what adapting to it led to; None at 0, or where nobody acts."""
        ...

    def once(self, adapting: Collection[str]) -> Once | None:
        """Return what computes once what inner steps have in common that change these parameters alone; None for nothing."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh meta-parameters on the domain's device."""
        ...

    def sample_tasks(self, num_tasks: int, split: Split, seed: Seed) -> Tasks:
        """Draw tasks of a split."""
        ...

    def collect(self, params: Params, tasks: Tasks, seed: Seed, role: Role) -> Sample:
        """Gather data of every task with its own parameters (M, ...).

        All randomness of task i is a function of ``seed`` and i.
        """
        ...

    def fixed(self, params: Params, tasks: Tasks, seed: Seed) -> tuple[Sample, Sample] | None:
        """Gather the support set of all inner steps and the query set, with the scores of ``params`` (M, ...) on the latter.

        None where what is gathered depends on who asks, as rollouts do.
        """
        ...

    def given(self, statistics: Statistics) -> Domain:
        """Return the same domain with these statistics, which it uses and never changes."""
        ...

    def learned(self, samples: Sequence[Sample]) -> Statistics:
        """Return its statistics with those of the samples merged in; of no samples, its own. Empty where it keeps none."""
        ...
