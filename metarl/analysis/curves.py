"""Adaptation curves: how well a task is solved after k inner updates, or after k rollouts, always on fresh data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from metarl.core.inner import GradientStep
from metarl.core.params import Params, expand
from metarl.domain import Seed
from metarl.families import Tasks
from metarl.learner import MetaLearner
from metarl.rl.domain import RLDomain
from metarl.settings import SettingsError


@dataclass(frozen=True)
class Curve:
    """Scores of M tasks at several points.

    Attributes:
        updates: inner updates before each point.
        rollouts: episodes (shots, in few-shot learning) that each task has learned from before each point.
        values: float64 (points, M).
    """

    updates: tuple[int, ...]
    rollouts: tuple[int, ...]
    values: np.ndarray

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
        return {
            "updates": list(self.updates),
            "rollouts": list(self.rollouts),
            "mean": self.mean.tolist(),
            "ci95": self.ci95.tolist(),
            "values": self.values.tolist(),
        }


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
    if not isinstance(learner.inner, GradientStep):
        raise SettingsError(f"inner_lr does not apply to the inner rule {type(learner.inner).__name__}")
    return dataclasses.replace(learner, inner=dataclasses.replace(learner.inner, lr=lr))


def with_episodes(learner: MetaLearner, episodes: int) -> MetaLearner:
    """Return the same learner with another number of episodes in a support or query set (RL only)."""
    if not isinstance(learner.domain, RLDomain):
        raise SettingsError("episodes and rollouts belong to reinforcement learning; this family has labelled shots")
    return dataclasses.replace(learner, domain=dataclasses.replace(learner.domain, episodes=episodes))


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
    params = expand(meta, len(tasks))
    points = []
    for step in range(steps):
        sample = learner.domain.collect(params, tasks, (*seed, step), "support")
        points.append(sample)
        rule = with_rate(learner, rates[min(step, len(rates) - 1)]) if rates else learner
        params = rule.adapt(params, sample.data)
    points.append(learner.domain.collect(params, tasks, (*seed, steps), "query"))
    each = _support_size(learner, points[0].data.num_samples)
    values = np.stack([sample.scores.double().numpy() for sample in points])
    return Curve(tuple(range(steps + 1)), tuple(k * each for k in range(steps + 1)), values)


def rollout_curve(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, rollouts: Sequence[int], rates: Sequence[float] = ()
) -> Curve:
    """Score every task after it has learned from k rollouts.

    One update uses up to ``episodes`` rollouts, the number of training; more rollouts make more updates. The score is that
    of ``episodes`` fresh rollouts, which do not count.
    """
    if not isinstance(learner.domain, RLDomain):
        raise SettingsError("rollouts belong to reinforcement learning; this family has labelled shots")
    episodes = learner.domain.episodes
    updates, values = [], []
    for count in rollouts:
        parts = [episodes] * (count // episodes) + ([count % episodes] if count % episodes else [])
        params = expand(meta, len(tasks))
        for step, part in enumerate(parts):
            rule = with_episodes(learner, part)
            sample = rule.domain.collect(params, tasks, (*seed, step), "support")
            rule = with_rate(rule, rates[min(step, len(rates) - 1)]) if rates else rule
            params = rule.adapt(params, sample.data)
        final = learner.domain.collect(params, tasks, (*seed, len(parts)), "query")
        updates.append(len(parts))
        values.append(final.scores.double().numpy())
    return Curve(tuple(updates), tuple(rollouts), np.stack(values))


def tune_rates(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, base: float
) -> tuple[float, ...]:
    """Choose adaptation rates on (validation) tasks: the first update's, then the factor of all later ones.

    The first rate is the best of ``base`` times 0.03, 0.1, 0.3, 1 and 3 after one update, the later factor the best of 1,
    0.5, 0.25 and 0.1 after ``steps``. (Finn et al. use 1 and 0.5, chosen by hand.)
    """
    better = max if learner.domain.higher_is_better else min
    scores = {}
    for factor in (0.03, 0.1, 0.3, 1.0, 3.0):
        curve = update_curve(learner, meta, tasks, seed, 1, (base * factor,))
        scores[base * factor] = float(curve.mean[-1])
    first = better(scores, key=lambda rate: scores[rate])
    if steps < 2:
        return (first,)
    later = {}
    for factor in (1.0, 0.5, 0.25, 0.1):
        curve = update_curve(learner, meta, tasks, seed, steps, (first, first * factor))
        later[first * factor] = float(curve.mean[-1])
    return first, better(later, key=lambda rate: later[rate])


def _support_size(learner: MetaLearner, samples: int) -> int:
    return learner.domain.episodes if isinstance(learner.domain, RLDomain) else samples
