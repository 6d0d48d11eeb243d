"""Adaptation curves: how well a task is solved after k inner updates, or after k rollouts, always on fresh data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from metarl.core.inner import GradientStep
from metarl.core.params import Params, detach, expand
from metarl.domain import Sample, Seed
from metarl.families import FamilyError, Tasks
from metarl.learner import MetaLearner
from metarl.rl.domain import RLDomain
from metarl.rl.trials import Trial
from metarl.settings import SettingsError


@dataclass(frozen=True)
class Curve:
    """Scores of M tasks at several points.

    Attributes:
        updates: inner updates before each point.
        rollouts: episodes that each task has learned from before each point; in few-shot learning its support examples,
            which all updates share.
        values: float64 (points, M).
        success: fraction of the episodes that were a success, float64 (points, M); None where the family does not judge.
    """

    updates: tuple[int, ...]
    rollouts: tuple[int, ...]
    values: np.ndarray
    success: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean over tasks, (points,)."""
        return self.values.mean(axis=1)

    @property
    def ci95(self) -> np.ndarray:
        """95 % confidence interval of the mean over tasks, (points, 2)."""
        return interval(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        whole = {"updates": list(self.updates), "rollouts": list(self.rollouts), **_summary(self.values)}
        if self.success is not None:
            summary = _summary(self.success)
            whole["success"] = {**summary, "ci95": np.clip(summary["ci95"], 0.0, 1.0).tolist()}  # it is a fraction
        return whole


class Score(NamedTuple):
    """How M tasks did at one point: scores float64 (M,), and the fraction of episodes that were a success, (M,) or None."""

    values: np.ndarray
    success: np.ndarray | None

    @staticmethod
    def of(sample: Sample) -> Score:
        """Keep the scores of a sample."""
        success = None if sample.success is None else sample.success.double().numpy()
        return Score(sample.scores.double().numpy(), success)


def _curve(updates: Sequence[int], rollouts: Sequence[int], scores: Sequence[Score]) -> Curve:
    solved = [score.success for score in scores if score.success is not None]
    values = np.stack([score.values for score in scores])
    return Curve(tuple(updates), tuple(rollouts), values, np.stack(solved) if solved else None)


def _summary(values: np.ndarray) -> dict[str, Any]:
    """Return mean and interval over tasks of every point (points, M), and the values themselves."""
    return {"mean": values.mean(axis=1).tolist(), "ci95": interval(values).tolist(), "values": values.tolist()}


def interval(values: np.ndarray) -> np.ndarray:
    """Student's 95 % interval of the mean over the last axis, (..., 2); a single value has no width."""
    count = values.shape[-1]
    mean = values.mean(axis=-1)
    half = np.zeros_like(mean)
    if count > 1:
        half = stats.t.ppf(0.975, count - 1) * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return np.stack([mean - half, mean + half], axis=-1)


def with_rate(learner: MetaLearner, lr: float) -> MetaLearner:
    """Return the same learner with another inner step size.

    Raises:
        SettingsError: if the inner rule has no single step size.
    """
    if not isinstance(learner.inner, GradientStep):  # a solver's step size changes how it gets there, not where
        raise SettingsError(
            f"the inner rule {type(learner.inner).__name__} has no step size to choose; leave inner_lr= and tune= out"
        )
    return dataclasses.replace(learner, inner=dataclasses.replace(learner.inner, lr=lr))


def with_episodes(learner: MetaLearner, episodes: int) -> MetaLearner:
    """Return the same learner with another number of episodes in a support or query set (RL only)."""
    if not isinstance(learner.domain, RLDomain):
        raise SettingsError("episodes and rollouts belong to reinforcement learning; this family has labelled shots")
    return dataclasses.replace(learner, domain=dataclasses.replace(learner.domain, episodes=episodes))


def with_rates(learner: MetaLearner, steps: int, rates: Sequence[float]) -> list[MetaLearner]:
    """Return the learner of each of ``steps`` updates: the last rate holds for all that follow, none keeps the learner's."""
    return [with_rate(learner, rates[min(step, len(rates) - 1)]) if rates else learner for step in range(steps)]


def parts(rollouts: int, episodes: int) -> list[int]:
    """Return the episodes of each update that ``rollouts`` make: as many as in training, the rest in a last one.

    >>> parts(45, 20)
    [20, 20, 5]
    """
    return [episodes] * (rollouts // episodes) + [rollouts % episodes] * (rollouts % episodes > 0)


def adapt(updates: Sequence[MetaLearner], meta: Params, tasks: Tasks, seed: Seed) -> tuple[Params, list[Score]]:
    """Adapt to M tasks, one update a learner, on fresh data each.

    Args:
        updates: the learner of each update; they may differ in step size and episodes.
        meta: meta-parameters.
        tasks: M tasks.
        seed: all randomness is a function of it.

    Returns:
        Parameters (M, ...), and the scores before each update.
    """
    params, scores = expand(detach(meta), len(tasks)), []
    for step, learner in enumerate(updates):
        sample = learner.domain.collect(params, tasks, (*seed, step), "support")
        scores.append(Score.of(sample))
        params = learner.adapt(params, sample.data, step)
    return params, scores


def update_curve(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, rates: Sequence[float] = ()
) -> Curve:
    """Score every task after k = 0..steps inner updates.

    Args:
        learner: brings domain and inner rule.
        meta: meta-parameters.
        tasks: M tasks.
        seed: all randomness is a function of it.
        steps: most updates K.
        rates: step size of each update, the last one for all that follow; empty keeps the learner's.
    """
    params, scores = adapt(with_rates(learner, steps, rates), meta, tasks, seed)
    last = learner.domain.collect(params, tasks, (*seed, steps), "query")
    if isinstance(learner.domain, RLDomain):
        seen = [k * learner.domain.episodes for k in range(steps + 1)]
    else:  # every update sees the same support set
        shots = learner.domain.collect(params, tasks, (*seed, steps), "support").data.num_samples
        seen = [min(k, 1) * shots for k in range(steps + 1)]
    return _curve(range(steps + 1), seen, [*scores, Score.of(last)])


def rollout_curve(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, rollouts: Sequence[int], rates: Sequence[float] = ()
) -> Curve:
    """Score every task after it has learned from k rollouts.

    One update uses up to ``episodes`` rollouts, the number of training; more rollouts make more updates (:func:`parts`).
    The score is that of ``episodes`` fresh rollouts, which do not count.
    """
    if not isinstance(learner.domain, RLDomain):
        raise SettingsError("rollouts belong to reinforcement learning; this family has labelled shots")
    updates, scores = [], []
    for count in rollouts:
        sizes = parts(count, learner.domain.episodes)
        rated = with_rates(learner, len(sizes), rates)
        sized = [with_episodes(each, size) for each, size in zip(rated, sizes, strict=True)]
        params, _ = adapt(sized, meta, tasks, seed)
        updates.append(len(sizes))
        scores.append(Score.of(learner.domain.collect(params, tasks, (*seed, len(sizes)), "query")))
    return _curve(updates, rollouts, scores)


def trial_curve(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, episodes: Sequence[int] = ()) -> Curve:
    """Score every task after a policy with a memory has seen k = 0, 1, ... episodes of it, in trials of its own.

    Args:
        learner: its domain's family is a :class:`~metarl.rl.trials.Trial`.
        meta: meta-parameters.
        tasks: M tasks.
        seed: all randomness is a function of it.
        episodes: the numbers k; empty takes all of training's trial. Beyond that, a trial is as long as it must be.
    """
    domain = learner.domain
    if not (isinstance(domain, RLDomain) and isinstance(domain.family, Trial)):
        raise SettingsError("episodes of a trial belong to a run that learns by memory (algo=rl2)")
    usual, params = domain.family, expand(detach(meta), len(tasks))
    counts = sorted(set(episodes)) or list(range(usual.episodes))

    def played(last: int) -> Score:
        trial = dataclasses.replace(usual, episodes=last + 1)
        rollouts, aside = dataclasses.replace(domain, family=trial).rollout(params, tasks, seed)
        course = trial.returns(rollouts).mean(2).double().cpu().numpy()
        return Score(course.T, None if aside.success is None else aside.success.double().numpy())

    whole = played(counts[-1])
    if whole.success is None:
        return _curve((0,) * len(counts), counts, [Score(whole.values[k], None) for k in counts])
    # a trial is judged by its last episode; shorter trials of the same seed begin alike
    judged = [*(played(k).success for k in counts[:-1]), whole.success]
    return _curve((0,) * len(counts), counts, [Score(whole.values[k], s) for k, s in zip(counts, judged, strict=True)])


def tune_rates(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, base: float
) -> tuple[float, ...]:
    """Choose adaptation rates on (validation) tasks: the first update's, then the factor of all later ones.

    The first rate is the best of ``base`` times 0.03, 0.1, 0.3, 1 and 3 after one update, the later factor the best of 1,
    0.5, 0.25 and 0.1 after ``steps``. (Finn et al. use 1 and 0.5, chosen by hand.) A rate with which adaptation diverges
    is none of the best.

    Raises:
        SettingsError: if adaptation diverges with every rate, or the inner rule has no step size.
    """
    firsts = [(base * factor,) for factor in (0.03, 0.1, 0.3, 1.0, 3.0)]
    best = _best(learner, meta, tasks, seed, 1, firsts)
    if steps < 2:
        return best
    return _best(learner, meta, tasks, seed, steps, [(*best, best[0] * factor) for factor in (1.0, 0.5, 0.25, 0.1)])


def _best(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, candidates: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """Return the candidate rates with the best mean score after ``steps`` updates; among equals the first."""
    sign = 1.0 if learner.domain.higher_is_better else -1.0
    scores: dict[tuple[float, ...], float] = {}
    for rates in candidates:
        with_rates(learner, steps, rates)  # refused here if the rule has no step size: that is no divergence
        try:
            score = sign * float(update_curve(learner, meta, tasks, seed, steps, rates).mean[-1])
        except (FamilyError, SettingsError):  # the policy's actions, and so perhaps the simulation, became infinite
            continue
        if math.isfinite(score):
            scores[rates] = score
    if not scores:
        tried = ", ".join(f"{rates[-1]:.3g}" for rates in candidates)
        raise SettingsError(f"tune=true: adaptation fails with each step size tried ({tried}); give inner_lr=")
    return max(scores, key=lambda rates: scores[rates])
