"""Labelled shots as data of the meta-core. Shapes: M tasks, N examples of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metarl import families
from metarl.core.adapt import Geometry, Path, Ratio, Terms
from metarl.core.parallel import Workers
from metarl.core.params import Params
from metarl.domain import Role, Sample, Seed, Statistics
from metarl.families import FamilyError, ShotFamily, Shots, Split, Tasks
from metarl.nets.net import Net


@dataclass(frozen=True)
class ShotBatch:
    """Examples: inputs (M, N, ...), targets (M, N, ...)."""

    inputs: Tensor
    targets: Tensor

    @property
    def num_tasks(self) -> int:
        """M."""
        return self.inputs.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[1]

    def rows(self, tasks: slice) -> ShotBatch:
        """Return the examples of some tasks."""
        return ShotBatch(self.inputs[tasks], self.targets[tasks])

    def samples(self, index: Tensor) -> ShotBatch:
        """Return some of every task's examples."""
        index = index.to(self.inputs.device)
        return ShotBatch(self.inputs[:, index], self.targets[:, index])


@dataclass(frozen=True)
class ShotQuery:
    """Outer loss: the support loss on the query set; a regression predicts no distribution."""

    domain: ShotDomain
    geometry: Geometry | None = None
    ratio: Ratio | None = None

    def __call__(self, params: Params, query: ShotBatch) -> Terms:
        """Return losses (M,) and no KL."""
        return Terms(self.domain.inner_loss(params, query), None)


@dataclass(frozen=True)
class ShotDomain:
    """A supervised family and a network.

    Attributes:
        family: where tasks and examples come from.
        net: who predicts.
        workers: threads and device.
    """

    family: ShotFamily
    net: Net
    workers: Workers = field(default_factory=Workers)

    @property
    def metric(self) -> str:
        """The family's metric."""
        return self.family.spec.metric

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return self.family.spec.unit

    @property
    def higher_is_better(self) -> bool:
        """An error is not."""
        return False

    @property
    def query(self) -> ShotQuery:
        """The outer loss."""
        return ShotQuery(self)

    def inner_loss(self, params: Params, support: ShotBatch) -> Tensor:
        """Mean squared error over a task's examples, (M,)."""
        return (self.net(params, support.inputs) - support.targets).square().flatten(1).mean(1)

    def exploration(self, coefficient: float) -> Path | None:
        """Nobody acts."""
        del coefficient
        return None

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh meta-parameters."""
        return {name: value.to(self.workers.device) for name, value in self.net.init(generator).items()}

    def sample_tasks(self, num_tasks: int, split: Split, seed: Seed) -> Tasks:
        """Draw tasks of a split."""
        return families.drawn(self.family, num_tasks, split, seed)

    def collect(self, params: Params, tasks: Tasks, seed: Seed, role: Role) -> Sample:
        """Return the support or the query set; the scores are the parameters' losses on the query set.

        A task has one support set however many inner steps look at it, so the last word of ``seed``, the inner step,
        plays no part.
        """
        started = time.perf_counter()
        seeds = np.array([families.stream(seed[:-1], task).generate_state(1)[0] for task in range(len(tasks))])
        support, query = (self._on_device(shots) for shots in self._drawn(tasks, seeds))
        with torch.no_grad():
            scores = self.inner_loss(params, query).cpu()
        data = support if role == "support" else query
        return Sample(
            data, scores, data.num_tasks * data.num_samples, {"seconds_sampling": time.perf_counter() - started}
        )

    def given(self, statistics: Statistics) -> ShotDomain:
        """Return itself: it keeps no statistics."""
        del statistics
        return self

    def learned(self, samples: Sequence[Sample]) -> Statistics:
        """Return no statistics."""
        del samples
        return {}

    def _drawn(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw examples; what the family raises or returns amiss becomes one line that names it."""
        name, spec = type(self.family).__name__, self.family.spec
        try:
            both = self.family.draw(tasks, seeds)
            sets = {"support": Shots(*both[0]), "query": Shots(*both[1])}
        except Exception as error:  # a family is foreign code and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise FamilyError(f"Family {name} failed drawing examples of {len(tasks)} tasks: {reason}") from error
        shapes = {"inputs": spec.input_shape, "targets": (spec.target_size,)}
        for role, shots in sets.items():
            for (what, shape), array in zip(shapes.items(), shots, strict=True):
                got = np.shape(array)
                if len(got) < 2 or got[0] != len(tasks) or got[1] == 0 or got[2:] != shape:
                    raise FamilyError(f"Family {name}: {role} {what} have shape {got}, not {(len(tasks), 'N', *shape)}")
                finite = np.isfinite(array).reshape(len(tasks), -1).all(axis=1)
                if not finite.all():
                    task = tasks.rows([int(np.flatnonzero(~finite)[0])]).to_json()[0]
                    raise FamilyError(f"Family {name}: {role} {what} of task {task} are not finite")
        return sets["support"], sets["query"]

    def _on_device(self, shots: Shots) -> ShotBatch:
        return ShotBatch(*(torch.tensor(array, dtype=torch.float32, device=self.workers.device) for array in shots))
