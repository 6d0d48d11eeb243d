r"""Statistics over seeds and tasks: interquartile means, bootstrap intervals, probability of improvement, steps to a level.

Shapes: S seeds (runs of one thing), M tasks, values (S, M); B bootstrap draws.

Seeds and tasks are both samples of what could have been: another seed would have trained another learner, and held-out tasks
stand for all others. A run's seed affects all of its tasks, so rows and columns are resampled as wholes; to resample the runs
of each task by itself would take S M values for independent ones, and promise too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

# Which of the values are drawn again: seeds and tasks; seeds alone, where the tasks are all that there are; or the runs of
# each task by itself (strata), where every task was trained for by runs of its own.
Design = Literal["crossed", "seeds", "stratified"]
Statistic = Callable[[np.ndarray], np.ndarray]

_LEVEL = 0.95
_DRAWS = 2000
_AT_ONCE = 1 << 22  # numbers of resampled values in memory


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean of the middle half, ``scipy.stats.trim_mean(values, 0.25)``.

    Reference: Agarwal et al. (2021), arXiv:2108.13264, section 4.3.
    """
    middle: np.ndarray = stats.trim_mean(values, 0.25, axis=-1)
    return middle


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    average: np.ndarray = values.mean(axis=-1)
    return average


def estimate(
    values: np.ndarray, statistic: Statistic = iqm, design: Design = "crossed", draws: int = _DRAWS, seed: int = 0
) -> Estimate:
    r"""Return a statistic of all values and its bootstrap interval.

    Percentiles of the statistic over B draws of S - 1 seeds and M - 1 tasks with replacement (one less than there are, which
    makes the variance of a mean unbiased), stretched around the statistic by $t_\nu / z$: few seeds say little of how much
    they differ. $\nu$ is Satterthwaite's, from the variances of the S row means and of the M column means.

    $$ \nu = \frac{(V_S + V_M)^2}{V_S^2 / (S-1) + V_M^2 / (M-1)}, \quad
       V_S = \operatorname{var}_s(\bar y_{s\cdot}) / S, \; V_M = \operatorname{var}_m(\bar y_{\cdot m}) / M $$

    What there is only one of is not drawn: of one seed the interval is over tasks alone, and a single value has no width.
    Simulated coverage: 0.92 to 0.97 of 200 samples of 10 seeds, or 3 that differ little, or one, times 20 to 40 tasks; 0.90 where
    3 seeds differ as much as tasks do; near 1 where neither seeds nor tasks differ and all is noise.

    Args:
        values: (S, M).
        statistic: maps (..., N) to (...).
        design: what is drawn.
        draws: B.
        seed: of the draws.

    Reference: Owen (2007), "The pigeonhole bootstrap", doi:10.1214/07-AOAS122, for rows and columns; Hesterberg (2014), "What
    teachers should know about the bootstrap", arXiv:1411.5279, for what is too narrow about percentiles of small samples.
    """
    values = _checked(values)
    point = float(statistic(values.reshape(-1)))
    if values.size == 1:
        return Estimate(point, point, point)
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // values.size)
    parts = [
        statistic(_resampled(values, design, min(at_once, draws - done), rng)) for done in range(0, draws, at_once)
    ]
    return _stretched(point, np.concatenate(parts), _freedom(values, design))


def improvement(ours: np.ndarray, theirs: np.ndarray, draws: int = _DRAWS, seed: int = 0) -> Estimate:
    r"""Return the probability that a run of ours scores higher than one of theirs on a task, with its interval.

    $$ \frac1M \sum_m \frac1{S S'} \sum_{s, s'} \bigl[x_{sm} > y_{s'm}\bigr] + \tfrac12 \bigl[x_{sm} = y_{s'm}\bigr] $$

    Args:
        ours: (S, M).
        theirs: (S', M), on the same tasks.
        draws: B, of both sides' seeds and of the tasks.
        seed: of the draws.

    Reference: Agarwal et al. (2021), arXiv:2108.13264, section 4.3; each task's term is Mann and Whitney's U over S S'.
    """
    ours, theirs = _checked(ours), _checked(theirs)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"{ours.shape[1]} and {theirs.shape[1]} tasks: compare scores on the same ones")
    wins = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])
    rng = np.random.default_rng(seed)
    mine, yours, tasks = (_weights(count, draws, rng) for count in wins.shape)
    drawn = np.einsum("bi,bj,bm,ijm->b", mine, yours, tasks, wins, optimize=True)
    marginal = [wins.mean((1, 2)), wins.mean((0, 2)), wins.mean((0, 1))]
    point, low, high = _stretched(float(wins.mean()), drawn, _satterthwaite(marginal))
    return Estimate(point, max(low, 0.0), min(high, 1.0))


def steps_to(
    level: float, steps: Sequence[float], scores: Sequence[float], higher_is_better: bool = True
) -> float | None:
    """Return how many steps it took until the score first reached a level, between two points on the line through them.

    Args:
        level: the score.
        steps: steps behind each score, ascending.
        scores: as many.
        higher_is_better: whether the level is reached from below.

    Returns:
        Steps, or None where it was never reached.

    >>> steps_to(5.0, [0, 100, 200], [0.0, 4.0, 8.0])
    125.0
    """
    sign = 1.0 if higher_is_better else -1.0
    gaps = [sign * (score - level) for score in scores]
    for index, gap in enumerate(gaps):
        if gap >= 0:
            if index == 0 or not math.isfinite(gaps[index - 1]):
                return float(steps[index])
            share = gaps[index - 1] / (gaps[index - 1] - gap)
            return float(steps[index - 1] + share * (steps[index] - steps[index - 1]))
    return None


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers of shape (seeds, tasks), got {values.shape}")
    return values


def _resampled(values: np.ndarray, design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return draws of the values, (B, N)."""
    seeds, tasks = values.shape
    every = np.arange(tasks)
    if design == "stratified":
        rows = rng.integers(seeds, size=(draws, max(1, seeds - 1), tasks))
        return values[rows, every].reshape(draws, -1)
    rows = rng.integers(seeds, size=(draws, max(1, seeds - 1), 1))
    columns = rng.integers(tasks, size=(draws, 1, max(1, tasks - 1))) if design == "crossed" else every
    return values[rows, columns].reshape(draws, -1)


def _weights(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of ``count`` is among one less of them drawn with replacement, as fractions (B, count)."""
    drawn = max(1, count - 1)
    return rng.multinomial(drawn, np.full(count, 1 / count), size=draws) / drawn


def _freedom(values: np.ndarray, design: Design) -> float:
    seeds, tasks = values.shape
    if design == "stratified":
        return float(tasks * (seeds - 1))
    rows, columns = values.mean(1), values.mean(0)
    return _satterthwaite([rows, columns] if design == "crossed" else [rows])


def _satterthwaite(samples: Sequence[np.ndarray]) -> float:
    """Return the degrees of freedom of a sum of variances of means."""
    several = [sample for sample in samples if len(sample) > 1]
    variances = [sample.var(ddof=1) / len(sample) for sample in several]
    below = sum(v**2 / (len(sample) - 1) for v, sample in zip(variances, several, strict=True))
    return float(sum(variances) ** 2 / below) if below > 0 else math.inf


def _stretched(point: float, drawn: np.ndarray, freedom: float) -> Estimate:
    tail = (1 + _LEVEL) / 2
    stretch = float(stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)) if freedom > 0 else 1.0
    low, high = np.quantile(drawn, [1 - tail, tail])
    return Estimate(point, float(point - stretch * (point - low)), float(point + stretch * (high - point)))
