"""Labelled shots as data of the meta-core. Shapes: M tasks, N examples of each."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metarl import families
from metarl.core.adapt import Once, Path
from metarl.core.parallel import Workers, chunks
from metarl.core.params import Params, rows
from metarl.domain import Role, Sample, Seed, Statistics
from metarl.families import FamilyError, ShotFamily, Shots, ShotSpec, Split, Tasks
from metarl.fewshot.losses import LOSSES, Judgement, ShotBatch, ShotLoss, features_of
from metarl.nets.net import Net, Normalized
from metarl.pooled import LEVELS, Picks, Pooled
from metarl.settings import SettingsError


@dataclass(frozen=True)
class ShotDomain:
    """A supervised family and a network.

    Attributes:
        family: where tasks and examples come from; the array of a :class:`~metarl.pooled.Pooled` one stays on the device.
        net: who predicts.
        workers: threads and device.
        chunk_tasks: tasks judged at once; None chooses by the number of examples.
    """

    family: ShotFamily
    net: Net
    workers: Workers = field(default_factory=Workers)
    chunk_tasks: int | None = None
    _pools: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def metric(self) -> str:
        """The family's metric."""
        return self.family.spec.metric

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return self.family.spec.unit

    @property
    def protocol(self) -> str:
        """Where the statistics come from that normalise a query, which decides what a score can be compared with."""
        return f"{self.net.normalization} normalisation" if isinstance(self.net, Normalized) else ""

    @property
    def higher_is_better(self) -> bool:
        """An accuracy is, an error is not."""
        return self.query.higher_is_better

    @property
    def query(self) -> ShotLoss:
        """The outer loss, by the family's spec."""
        return LOSSES[self.family.spec.loss](self.net)

    def inner_loss(self, params: Params, support: ShotBatch) -> Tensor:
        """Mean loss over a task's examples, (M,)."""
        return self.query.loss(params, support)

    @property
    def remembers(self) -> bool:
        """A network of shots has no memory."""
        return False

    def exploration(self, coefficient: float) -> Path | None:
        """Nobody acts."""
        del coefficient
        return None

    def once(self, adapting: Collection[str]) -> Once | None:
        """Return what evaluates the network's body once, where the last layer alone adapts."""
        return features_of(self.net, adapting)

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh meta-parameters."""
        return {name: value.to(self.workers.device) for name, value in self.net.init(generator).items()}

    def sample_tasks(self, num_tasks: int, split: Split, seed: Seed) -> Tasks:
        """Draw tasks of a split."""
        return families.drawn(self.family, num_tasks, split, seed)

    def collect(self, params: Params, tasks: Tasks, seed: Seed, role: Role) -> Sample:
        """Return the support or the query set; the scores are the parameters' on the query set.

        A task has one support set however many inner steps look at it, so the last word of ``seed``, the inner step,
        plays no part.
        """
        started = time.perf_counter()
        support, query = self.draw(tasks, self.seeds(seed[:-1], len(tasks)))
        scores, predicted = self.judge(params, query)
        query = ShotBatch(query.inputs, query.targets, query.reference, predicted)
        data = support if role == "support" else query
        return Sample(
            data, scores.cpu(), data.num_tasks * data.num_samples, {"seconds_sampling": time.perf_counter() - started}
        )

    def fixed(self, params: Params, tasks: Tasks, seed: Seed) -> tuple[Sample, Sample]:
        """Return the support and the query set that :meth:`collect` draws at every step; the scores of both are ``params``'."""
        started = time.perf_counter()
        support, query = self.draw(tasks, self.seeds(seed, len(tasks)))
        scores = self.judge(params, query).scores.cpu()
        count = [data.num_tasks * data.num_samples for data in (support, query)]
        spent = {"seconds_sampling": time.perf_counter() - started}
        return Sample(support, scores, count[0], {"seconds_sampling": 0.0}), Sample(query, scores, count[1], spent)

    def seeds(self, seed: Seed, num_tasks: int) -> np.ndarray:
        """Return what the examples of each task are drawn with, uint32 (M,): a function of ``seed`` and the task's place."""
        return np.array([families.stream(seed, task).generate_state(1)[0] for task in range(num_tasks)])

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[ShotBatch, ShotBatch]:
        """Draw support and query examples, on the device; row i is a function of ``tasks`` row i and ``seeds[i]``.

        Raises:
            FamilyError: what the family raises or returns amiss, as one line that names it.
        """
        pool = self.pool()
        name, spec = type(self.family).__name__, self.family.spec
        try:
            both: Sequence[tuple[np.ndarray, np.ndarray]]
            both = self.family.pick(tasks, seeds) if isinstance(self.family, Pooled) else self.family.draw(tasks, seeds)
            sets = {"support": Shots(*both[0]), "query": Shots(*both[1])}
        except Exception as error:  # a family is foreign code and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise FamilyError(f"Family {name} failed drawing examples of {len(tasks)} tasks: {reason}") from error
        for role, shots in sets.items():
            fault = _fault(shots, spec, tasks, None if pool is None else len(pool))
            if fault:
                raise FamilyError(f"Family {name}: {role} {fault}")
        support, query = (self._batch(shots, pool) for shots in sets.values())
        return support, self.referring(query, support)

    def referring(self, query: ShotBatch, support: ShotBatch) -> ShotBatch:
        """Return a query set with its support set's inputs, where the network normalises queries with their help."""
        refers = isinstance(self.net, Normalized) and self.net.refers
        return ShotBatch(query.inputs, query.targets, support.inputs if refers else None)

    def pool(self) -> Tensor | None:
        """Return all examples of a pooled family, uint8 (P, ...) on the device, loaded once; None of another family.

        Raises:
            SettingsError: if there are no data, or damaged ones.
            FamilyError: if they are no array of the spec's shape.
        """
        if isinstance(self.family, Pooled) and "pool" not in self._pools:
            name, shape = type(self.family).__name__, self.family.spec.input_shape
            try:
                array = self.family.pool()
            except (SettingsError, MemoryError):
                raise
            except Exception as error:  # a family is foreign code and may raise anything
                raise FamilyError(f"Family {name} failed loading examples: {type(error).__name__}: {error}") from error
            if not (
                isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.shape[1:] == shape and len(array)
            ):
                raise FamilyError(f"Family {name}: its pool is not a uint8 array of shape {('P', *shape)}")
            self._pools["pool"] = torch.from_numpy(array).to(self.workers.device)  # on the CPU it is shared, not copied
        return self._pools.get("pool")

    def given(self, statistics: Statistics) -> ShotDomain:
        """Return itself: it keeps no statistics."""
        del statistics
        return self

    def learned(self, samples: Sequence[Sample]) -> Statistics:
        """Return no statistics."""
        del samples
        return {}

    def judge(self, params: Params, query: ShotBatch) -> Judgement:
        """Judge chunk by chunk, without a graph: the feature maps of hundreds of tasks at once would fill the memory."""
        loss = self.query

        def part(cut: slice) -> Judgement:
            with torch.no_grad():  # which holds for one thread only
                return loss.judge(rows(params, cut), query.rows(cut))

        cuts = chunks(query.num_tasks, query.num_samples, self.workers.device, self.chunk_tasks)
        parts = self.workers.map(part, cuts)
        predicted = [one.predicted for one in parts if one.predicted is not None]
        return Judgement(torch.cat([one.scores for one in parts]), torch.cat(predicted) if predicted else None)

    def _batch(self, shots: Shots, pool: Tensor | None) -> ShotBatch:
        device = self.workers.device
        dtype = torch.int64 if self.family.spec.loss == "cross_entropy" else torch.float32
        targets = torch.tensor(shots.targets, dtype=dtype, device=device)
        if pool is None:
            return ShotBatch(torch.tensor(shots.inputs, dtype=torch.float32, device=device), targets)
        index = torch.tensor(shots.inputs, dtype=torch.int64, device=device)
        return ShotBatch(pool[index].to(torch.float32) / LEVELS, targets)


def _fault(shots: Shots | Picks, spec: ShotSpec, tasks: Tasks, pool: int | None) -> str:
    """Say what is wrong with a set of M tasks' examples; empty where nothing is.

    Args:
        shots: inputs, or rows of the pool, with their targets.
        spec: what they should be.
        tasks: M tasks.
        pool: rows of the pool; None where there is none.
    """
    classes = spec.loss == "cross_entropy"
    shapes = {
        "inputs" if pool is None else "rows": spec.input_shape if pool is None else (),
        "targets": () if classes else (spec.target_size,),
    }
    for (what, shape), array in zip(shapes.items(), shots, strict=True):
        got = np.shape(array)
        if len(got) < 2 or got[0] != len(tasks) or got[1] == 0 or got[2:] != shape or got[1] != np.shape(shots[0])[1]:
            return f"{what} have shape {got}, not {(len(tasks), 'N', *shape)}"
        limit = {"rows": pool, "targets": spec.target_size if classes else None}.get(what)
        if limit is None:
            wrong, reason = ~np.isfinite(array), "are not finite"
        elif not np.issubdtype(np.asarray(array).dtype, np.integer):
            return f"{what} are {np.asarray(array).dtype}, not whole numbers"
        else:
            wrong, reason = (array < 0) | (array >= limit), f"are not all within 0 to {limit - 1}"
        broken = np.flatnonzero(wrong.reshape(len(tasks), -1).any(axis=1))
        if len(broken):
            return f"{what} of task {tasks.rows([int(broken[0])]).to_json()[0]} {reason}"
    return ""
