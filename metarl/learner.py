"""The meta-learner: one iteration, the same for reinforcement learning and few-shot learning."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.core.adapt import Objective, Once
from metarl.core.descent import Reptile
from metarl.core.inner import GradientStep, InnerRule, Unchanged
from metarl.core.outer import TRPO, OuterRule
from metarl.core.parallel import chunks
from metarl.core.params import Params, detach, expand, rows, stack_rows
from metarl.core.schedule import Schedule
from metarl.core.update import State
from metarl.domain import Domain, Sample, Seed, Statistics
from metarl.families import Tasks
from metarl.settings import SettingsError

# First word of a seed after the user's: streams that must never meet.
TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class MetaState:
    """All that an iteration changes. With the settings it determines everything that follows.

    Attributes:
        meta: meta-parameters.
        outer: the outer rule's state.
        iteration: outer updates done.
        env_steps: environment steps of support and query sets so far.
        seed: the user's seed; all randomness is a function of it, the iteration, the stage and the task.
        statistics: what the domain has kept of the data so far; empty for most.
    """

    meta: Params
    outer: State
    iteration: int
    env_steps: int
    seed: int
    statistics: Statistics = field(default_factory=dict)


class Trail(NamedTuple):
    """What adapting went through: the data before each inner step, the data after the last, and the final parameters."""

    supports: list[Sample]
    query: Sample
    params: Params
    seconds: float


@dataclass(frozen=True)
class MetaLearner:
    """Meta-learning on one domain with one inner and one outer rule.

    Attributes:
        domain: where data and losses come from: ``metarl.rl.RLDomain`` or ``metarl.fewshot.ShotDomain``.
        inner: how a task is learned.
        outer: how the meta-parameters are.
        inner_steps: inner updates in training; 0 trains without adapting (pretrained and oracle references).
        meta_batch_size: M, tasks of one iteration.
        chunk_tasks: tasks differentiated at once; None chooses by the number of samples.
        exploration: weight of E-MAML's term, which lets the policy learn what to try before it adapts; 0 leaves it out.
        schedule: what changes with the number of meta-updates (MAML++); by default nothing.

    Raises:
        SettingsError: where the outer rule needs a distribution and the domain predicts none, or likelihood ratios and the
            loss has none; where ``inner_steps`` is 0 and the rules learn from adapting alone (Reptile) or adapt from zero
            (CAVIA); where it is not 0 and the policy learns a task by remembering it (RL²), or where such a policy meets a
            rule that takes its sequences apart (TRPO); or where there is nothing to explore, or nobody who would (Reptile);
            where a schedule has nothing to change.

    Example:
        >>> import metarl
        >>> learner = metarl.build("sinusoid", meta_batch_size=4)
        >>> state = learner.init(seed=0)
        >>> state, metrics = learner.iteration(state)
        >>> state.iteration
        1
    """

    domain: Domain
    inner: InnerRule[Any]
    outer: OuterRule
    inner_steps: int = 1
    meta_batch_size: int = 40
    chunk_tasks: int | None = None
    exploration: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Refuse impossible pairings."""
        if self.outer.needs_geometry and self.domain.query.geometry is None:
            raise SettingsError(
                f"{type(self.outer).__name__} needs predictions that are a distribution, and this family's"
                f" {self.domain.metric} loss has none; choose algo=maml-adam"
            )
        if self.outer.needs_ratio and self.domain.query.ratio is None:
            raise SettingsError(
                f"{type(self.outer).__name__} clips likelihood ratios of actions, and this family's {self.domain.metric} loss"
                " has none; choose algo=maml-adam"
            )
        if self.exploration and self.domain.exploration(self.exploration) is None:
            raise SettingsError(
                f"exploration={self.exploration:g} needs actions whose choice it can reward, and this family has none; leave"
                " it out"
            )
        if self.exploration and isinstance(self.outer, Reptile):
            raise SettingsError(
                f"exploration={self.exploration:g} has no effect with Reptile, which takes no gradient of the objective; leave it"
                " out, or choose algo=maml-adam"
            )
        if isinstance(self.inner, Unchanged) or self.domain.remembers:
            self._refuse_with_memory()
        elif self.inner_steps == 0:
            self._refuse_never_adapting()
        self._refuse_idle_schedule()

    def _refuse_with_memory(self) -> None:
        if self.inner_steps:
            raise SettingsError(
                f"inner_steps={self.inner_steps} does not fit a policy with a memory: it learns a task by remembering it,"
                " and its parameters never adapt; use inner_steps=0"
            )
        if isinstance(self.outer, TRPO):  # its Fisher products look at some of the states
            raise SettingsError("TRPO does not fit a policy with a memory, which reads whole sequences; use algo=rl2")

    def _refuse_idle_schedule(self) -> None:
        losses, order, reason = self.schedule.multi_step, self.schedule.first_order, ""
        if losses and self.domain.query.ratio is not None:
            # its likelihood ratios are to the policy that sampled, which is the last one
            reason = "the query data of a policy are sampled after the last inner step, and say nothing of those before"
        elif losses and isinstance(self.outer, Reptile):
            reason = "Reptile takes no gradient of the query loss"
        elif losses and self.inner_steps < 2:
            reason = f"inner_steps={self.inner_steps} has no step before the last"
        if reason:
            raise SettingsError(f"multi_step={losses} does not fit: {reason}; leave it out")
        if order and not (isinstance(self.inner, GradientStep) and not self.inner.first_order and self.inner_steps):
            raise SettingsError(
                f"first_order_updates={order} has no effect: inner steps whose derivatives are of second order belong to it"
                " (algo=maml-adam, say, and inner_steps=1 or more); leave it out"
            )

    def _refuse_never_adapting(self) -> None:
        reason = ""
        if isinstance(self.outer, Reptile):
            reason = "Reptile learns from adapting alone, and would change nothing"
        elif isinstance(self.inner, GradientStep) and self.inner.from_zero:
            # each adaptation would begin elsewhere than where training ended
            reason = "a context that never starts from zero would be learned like a weight"
        if reason:
            raise SettingsError(
                f"inner_steps=0 does not fit this algorithm: {reason}; choose algo=maml-adam or maml-trpo"
            )

    def init(self, seed: int = 0) -> MetaState:
        """Return the state before the first iteration.

        Raises:
            SettingsError: if the inner rule does not fit the model.
        """
        meta = self.domain.init(torch.Generator().manual_seed(seed))
        try:
            meta = {**meta, **self.inner.init(meta)}
        except ValueError as error:
            raise SettingsError(f"{type(self.inner).__name__} does not fit the model: {error}") from error
        statistics = self.domain.learned([])
        return MetaState(meta, self.outer.init(meta), iteration=0, env_steps=0, seed=seed, statistics=statistics)

    def at(self, state: MetaState) -> MetaLearner:
        """Return the learner whose domain has the statistics of a state, and keeps them whatever it collects."""
        return dataclasses.replace(self, domain=self.domain.given(state.statistics))

    def iteration(self, state: MetaState) -> tuple[MetaState, Mapping[str, float]]:
        """One outer update: sample tasks, collect while adapting, differentiate through it all, step.

        Returns:
            The next state, and metrics (defined in :mod:`metarl.run.metrics`).
        """
        started = time.perf_counter()
        seed = (state.seed, TRAIN, state.iteration)
        tasks = self.domain.sample_tasks(self.meta_batch_size, "train", seed)
        present = self.at(state)
        trail, judged = present._data(state.meta, tasks, seed)
        objective = Objective(
            rule=self.inner,
            supports=[sample.data for sample in trail.supports],
            query=trail.query.data,
            loss=self.domain.query,
            workers=self.domain.workers,
            chunk_tasks=self.chunk_tasks,
            path=self.domain.exploration(self.exploration),
            once=self._once(state.meta),
        )
        objective = self.schedule.at(objective, state.iteration)
        meta, outer, metrics, scores = self.outer.step(state.meta, objective, state.outer)
        samples = [*trail.supports, trail.query]
        env_steps = state.env_steps + sum(sample.env_steps for sample in samples)
        metric = self.domain.metric
        before, after = _before_and_after(samples)
        if not judged:
            after = (
                torch.tensor(scores) if scores else self.explore(state.meta, tasks, seed, self.inner_steps).query.scores
            )
        metrics = {
            "iteration": state.iteration,
            "env_steps": env_steps,
            f"pre_{metric}": float(before.mean()),
            f"post_{metric}": float(after.mean()),
            **_successes({"pre_success": samples[0], "post_success": trail.query}),
            "gain_ci95": 1.96 * float((after - before).std()) / len(before) ** 0.5 if len(before) > 1 else 0.0,
            **metrics,
            **_merged(samples),
        }
        metrics["seconds_adaptation"] = trail.seconds + metrics.pop("seconds_judging", 0.0)
        metrics["seconds_iteration"] = time.perf_counter() - started
        statistics = present.domain.learned(samples)
        return MetaState(meta, outer, state.iteration + 1, env_steps, state.seed, statistics), metrics

    def _data(self, meta: Params, tasks: Tasks, seed: Seed) -> tuple[Trail, bool]:
        """Gather an iteration's data, and tell whether the query set's scores are those after adapting.

        Where data are the same whoever asks, nobody adapts to gather them: the outer rule does so anyway, and tells the scores.
        A rule that needs the predictions of the adapted parameters beside the data goes the long way.
        """
        fixed = None if self.outer.needs_geometry else self.domain.fixed(self.start(meta, len(tasks)), tasks, seed)
        if fixed is None:
            return self.explore(meta, tasks, seed, self.inner_steps), True
        return Trail([fixed[0]] * self.inner_steps, fixed[1], meta, 0.0), False

    def explore(self, meta: Params, tasks: Tasks, seed: Seed, steps: int) -> Trail:
        """Collect, adapt, collect, ...: fresh data of every task before each inner step and after the last.

        Training differentiates through this where data are rollouts, evaluation reads its scores.
        """
        params, adapt = self.start(meta, len(tasks)), self.adaptation(meta)
        supports: list[Sample] = []
        seconds = 0.0
        for step in range(steps):
            supports.append(self.domain.collect(params, tasks, (*seed, step), "support"))
            started = time.perf_counter()
            params = adapt(params, supports[-1].data, step)
            seconds += time.perf_counter() - started
        return Trail(supports, self.domain.collect(params, tasks, (*seed, steps), "query"), params, seconds)

    def start(self, meta: Params, num_tasks: int) -> Params:
        """Return every task's parameters before it adapts, (M, ...).

        Where the last layer alone adapts, tasks see the one body instead of copies, which take longer than adapting.
        """
        if self._once(meta) is None:
            return expand(detach(meta), num_tasks)
        return {name: value.expand(num_tasks, *value.shape) for name, value in detach(meta).items()}

    def adapt(self, params: Params, support: Any, step: int = 0) -> Params:
        """Apply the inner rule once to parameters (M, ...), chunk by chunk, without a graph; ``step`` counts from 0."""
        return self._chunked(support, lambda cut: self.inner(rows(params, cut), support.rows(cut), step))

    def adaptation(self, meta: Params) -> Callable[[Params, Any, int], Params]:
        """Return :meth:`adapt` for parameters that began as ``meta``, which computes once what its steps have in common."""
        theta, once, kept = detach(meta), self._once(meta), dict[int, Any]()
        if once is None or not isinstance(self.inner, GradientStep):
            return self.adapt
        names = self.inner.adapting(meta)

        def adapt(params: Params, support: Any, step: int) -> Params:
            def part(cut: slice) -> Params:
                seen = [kept[cut.start]] if cut.start in kept else []
                *_, kept[cut.start] = once(theta, [*seen, support.rows(cut)])
                adapted = self.inner(rows(params, cut), kept[cut.start], step)
                return {name: adapted[name] for name in names}

            return {**params, **self._chunked(support, part)}  # the body, most of all parameters, is not copied

        return adapt

    def _once(self, meta: Params) -> Once | None:
        return self.domain.once(self.inner.adapting(meta)) if isinstance(self.inner, GradientStep) else None

    def _chunked(self, support: Any, adapted: Callable[[slice], Params]) -> Params:
        """Put the adapted parameters of all chunks together, without their graphs."""
        workers = self.domain.workers
        cuts = chunks(support.num_tasks, support.num_samples, workers.device, self.chunk_tasks)
        return stack_rows(workers.map(lambda cut: detach(adapted(cut)), cuts))


def _before_and_after(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return the scores (M,) of the first and of the last sample; of trials those of their first and last episodes."""
    course = samples[-1].course
    return (samples[0].scores, samples[-1].scores) if course is None else (course[:, 0], course[:, -1])


def _successes(samples: Mapping[str, Sample]) -> dict[str, float]:
    """Return the mean success rate of each sample, where the family judges; a trial does not tell its first episode's."""
    known = {name: s for name, s in samples.items() if s.course is None or name == "post_success"}
    return {name: float(s.success.mean()) for name, s in known.items() if s.success is not None}


def _merged(samples: list[Sample]) -> dict[str, float]:
    """Add up seconds; of everything else keep the last sample's (after adaptation)."""
    merged = dict(samples[-1].metrics)
    for name in merged:
        if name.startswith("seconds_"):
            merged[name] = sum(sample.metrics[name] for sample in samples)
    return merged
