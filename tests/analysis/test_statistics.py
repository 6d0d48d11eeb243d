"""Statistics against scipy's, against sums over all cases, and intervals against what they claim, by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from metarl.analysis import statistics
from metarl.analysis.statistics import estimate, improvement, steps_to


def drawn(seeds, tasks, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, (seeds, tasks))


@pytest.mark.parametrize("shape", [(1, 4), (3, 10), (5, 7), (1, 1), (2, 1)])
def test_the_interquartile_mean_is_scipys(shape):
    """A quartile too many or too few, a median, or a mean of each seed's own middle half."""
    values = drawn(*shape)
    assert estimate(values).value == pytest.approx(stats.trim_mean(values.ravel(), 0.25), rel=1e-12)
    middle = np.sort(values.ravel())[int(values.size * 0.25) : values.size - int(values.size * 0.25)]
    assert estimate(values).value == pytest.approx(middle.mean(), rel=1e-12)
    assert estimate(values, statistics.mean).value == pytest.approx(values.mean(), rel=1e-12)


def test_one_seed_agrees_with_scipys_bootstrap_and_student():
    """Percentiles of another level, a stretch the wrong way, a draw of single numbers: all change the width by a tenth."""
    values = drawn(1, 60)
    ours = estimate(values, statistics.mean, draws=20_000)
    theirs = stats.bootstrap((values[0],), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    stretch = stats.t.ppf(0.975, 59) / stats.norm.ppf(0.975) * math.sqrt(60 / 59)  # one less is drawn
    wanted = [values.mean() + stretch * (end - values.mean()) for end in theirs]
    np.testing.assert_allclose(ours[1:], wanted, atol=0.02 * (ours.high - ours.low))
    student = stats.t.interval(0.95, 59, loc=values.mean(), scale=stats.sem(values[0]))
    np.testing.assert_allclose(ours[1:], student, atol=0.03 * (ours.high - ours.low))


def test_strata_agree_with_scipys_bootstrap_of_many_samples():
    """Runs that change their task, or that are drawn together although each task had runs of its own."""
    values = drawn(20, 4) + 10 * np.arange(4)
    ours = estimate(values, statistics.mean, "stratified", draws=20_000)

    def overall(*tasks, axis):
        return sum(task.mean(axis) for task in tasks) / 4

    theirs = stats.bootstrap(tuple(values.T), overall, n_resamples=20_000, method="percentile", rng=0)
    stretch = stats.t.ppf(0.975, 4 * 19) / stats.norm.ppf(0.975) * math.sqrt(20 / 19)
    wanted = [values.mean() + stretch * (end - values.mean()) for end in theirs.confidence_interval]
    np.testing.assert_allclose(ours[1:], wanted, atol=0.02 * (ours.high - ours.low))


@pytest.mark.parametrize(("design", "parts"), [("crossed", 2), ("seeds", 1)])
def test_the_variance_of_a_mean_is_that_of_seeds_and_tasks(design, parts):
    """Seeds drawn for each task by itself, which loses what they have in common; a factor (S - 1) / S of too few draws.

    Of values a_s + b_m the mean of S - 1 and M - 1 draws has variance var(a) / S + var(b) / M exactly.
    """
    a, b = np.array([0.0, 1.0, 5.0]), np.array([0.0, 3.0, 4.0, 9.0])
    values = a[:, None] + b
    rng = np.random.default_rng(0)
    means = statistics._resampled(values, design, 200_000, rng).mean(1)
    wanted = sum([a.var(ddof=1) / 3, b.var(ddof=1) / 4][:parts])
    assert means.var() == pytest.approx(wanted, rel=0.02)


def _covered(shape, scales, statistic=statistics.iqm, design="crossed", samples=250):
    """Fraction of samples a_s + b_m + noise whose interval holds the true value, that of all seeds (and tasks)."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(samples):
        a, b = rng.normal(0, scales[0], (shape[0], 1)), rng.normal(0, scales[1], (1, shape[1]))
        values = a + b + rng.normal(0, scales[2], shape)
        true = float(statistic(b.ravel())) if design == "seeds" else 0.0
        found = estimate(values, statistic, design, draws=300, seed=0)
        hits += found.low <= true <= found.high
    return hits / samples


@pytest.mark.parametrize(
    ("shape", "scales", "least"),
    [
        ((1, 40), (0, 1, 0.3), 0.92),
        ((3, 30), (0.2, 1, 0.3), 0.92),
        ((3, 30), (1, 1, 0.3), 0.87),  # three seeds say little of how much seeds differ
        ((10, 20), (1, 1, 0.5), 0.92),
    ],
)
@pytest.mark.parametrize("statistic", [statistics.iqm, statistics.mean])
def test_intervals_cover_what_they_claim(shape, scales, least, statistic):
    """95 % that is not: in the third case draws for every task by itself cover 0.23 of means, and no stretching 0.84."""
    assert least <= _covered(shape, scales, statistic) <= 0.985


def test_intervals_of_fixed_tasks_cover_what_they_claim():
    """Of a family with two tasks nothing is left to be held out: only seeds vary."""
    assert 0.91 <= _covered((6, 2), (1, 3, 0.0), statistics.mean, "seeds") <= 0.985


def test_noise_alone_is_covered_generously():
    """Rows and columns each carry the noise: such an interval is too wide, and must not be too narrow."""
    assert _covered((3, 20), (0, 0, 1), samples=60) > 0.95


def test_edges_have_no_width():
    """Division by zero where there is one of something, or where nothing varies."""
    assert estimate(np.array([[2.0]])) == (2.0, 2.0, 2.0)
    assert estimate(np.full((3, 5), 7.0)) == (7.0, 7.0, 7.0)
    assert estimate(np.array([[1.0, 5.0]]), design="seeds")[1:] == (3.0, 3.0)
    for values in (np.zeros(3), np.zeros((0, 3)), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="finite numbers of shape"):
            estimate(values)


def test_memory_is_bounded(monkeypatch):
    """All draws at once; the same numbers in parts of any size would need the same draws, so the ends agree roughly."""
    values = drawn(2, 50)
    whole = estimate(values, draws=4000)
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)
    parts = estimate(values, draws=4000)
    np.testing.assert_allclose(parts, whole, atol=0.05 * (whole.high - whole.low))


def test_probability_of_improvement_is_mann_whitneys():
    """The share of tasks instead of pairs, ties that count for one side, or the other side's probability."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 6, (4, 5)).astype(float), rng.integers(0, 5, (3, 5)).astype(float)
    each = [stats.mannwhitneyu(x, y).statistic / 12 for x, y in zip(ours.T, theirs.T, strict=True)]
    found = improvement(ours, theirs)
    assert found.value == pytest.approx(np.mean(each), rel=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1
    assert improvement(theirs, ours).value == pytest.approx(1 - found.value)
    assert improvement(ours + 10, theirs) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="5 and 4 tasks"):
        improvement(ours, theirs[:, :4])


def test_the_interval_of_an_improvement_covers():
    """Draws that let a seed meet only one opponent, or that leave the tasks alone. True value by integration."""
    rng, shift, hits = np.random.default_rng(0), 0.8, 0
    true = stats.norm.cdf(shift / math.sqrt(2 * (0.5**2 + 1)))
    for _ in range(200):
        a, a2 = rng.normal(0, 0.5, (8, 1)), rng.normal(0, 0.5, (8, 1))
        found = improvement(shift + a + rng.normal(size=(8, 25)), a2 + rng.normal(size=(8, 25)), draws=300)
        hits += found.low <= true <= found.high
    assert 0.9 <= hits / 200 <= 1.0


def test_steps_to_a_level():
    """The nearest point instead of the crossing, the last crossing instead of the first, a sign where lower is better."""
    assert steps_to(5.0, [0, 10, 20, 30], [0.0, 4.0, 6.0, 2.0]) == 15.0
    assert steps_to(0.0, [5, 10], [1.0, 2.0]) == 5.0
    assert steps_to(9.0, [0, 10], [1.0, 2.0]) is None
    assert steps_to(1.0, [0, 10], [3.0, 0.0], higher_is_better=False) == pytest.approx(20 / 3)
    assert steps_to(1.0, [0, 10], [-math.inf, 2.0]) == 10.0
    assert steps_to(1.0, [], []) is None
    rng = np.random.default_rng(0)
    for _ in range(20):  # a fine grid of the polygon, walked from the left
        scores = rng.normal(size=6).tolist()
        grid = np.linspace(0, 5, 100_001)
        above = np.interp(grid, range(6), scores) >= 0.3
        wanted = grid[above.argmax()] if above.any() else None
        found = steps_to(0.3, list(range(6)), scores)
        assert (found is None) == (wanted is None)
        assert found is None or found == pytest.approx(wanted, abs=1e-4)


def test_the_seed_decides():
    """A global generator, or draws that depend on what was drawn before."""
    values = drawn(3, 9)
    assert estimate(values) == estimate(values)
    assert len({estimate(values, seed=s).low for s in range(3)}) == 3
    assert all(
        math.isfinite(x) for x in itertools.chain(*(estimate(values, design=d) for d in ("seeds", "stratified")))
    )
