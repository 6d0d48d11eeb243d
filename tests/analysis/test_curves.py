"""Adaptation curves against slow loops, and the choice of adaptation rates against closed forms."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import metarl
from metarl.analysis import curves
from metarl.core import SGD, GradientStep, Workers
from metarl.core.adapt import Terms
from metarl.domain import Sample
from metarl.families import FamilyError, Tasks
from metarl.settings import SettingsError

# physics amplifies rounding: with some seeds a contact comes a step later, and the slow loop below takes another path
SEED = (6, 2, 1)


@pytest.fixture(scope="module")
def maml(runs):
    return metarl.load(runs["maml"])


@pytest.fixture(scope="module")
def sinusoid(runs):
    return metarl.load(runs["sinusoid"])


def repeated(meta, count):
    return {name: torch.stack([value] * count) for name, value in meta.items()}


def test_interval_is_scipys():
    """A normal instead of Student's distribution, ddof=0, or a standard deviation instead of an error of the mean."""
    values = np.random.default_rng(0).normal(3.0, 2.0, (4, 7))
    for row, (low, high) in zip(values, curves.interval(values), strict=True):
        expected = stats.t.interval(0.95, 6, loc=row.mean(), scale=stats.sem(row))
        np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    np.testing.assert_array_equal(curves.interval(values[:, :1]), np.repeat(values[:, :1], 2, axis=1))


@pytest.mark.parametrize("rates", [(), (0.4, 0.05)])
def test_update_curve_is_the_slow_loop(maml, by_hand, rates):
    """Shared parameters, stale data, a rate of another update, or the score of the wrong moment."""
    domain, tasks = maml.learner.domain, maml.learner.domain.sample_tasks(4, "test", (7,))
    curve = curves.update_curve(maml.learner, maml.meta, tasks, SEED, 3, rates)
    params, expected = repeated(maml.meta, 4), []
    for step, lr in enumerate([0.4, 0.05, 0.05] if rates else [0.1] * 3):
        rollouts, _ = domain.rollout(params, tasks, (*SEED, step))
        expected.append(rollouts.rewards.double().sum(1).mean(1).numpy())
        params = by_hand(domain, params, domain.judge(rollouts), lr)
    expected.append(domain.rollout(params, tasks, (*SEED, 3))[0].rewards.double().sum(1).mean(1).numpy())
    np.testing.assert_allclose(curve.values, expected, rtol=1e-4, atol=1e-4)
    assert curve.updates == (0, 1, 2, 3)
    assert curve.rollouts == (0, 3, 6, 9)
    assert np.ptp(curve.values, axis=0).min() > 1e-3  # or the tolerance above would hide an update that did nothing


def test_rollout_curve_is_the_slow_loop(maml, by_hand):
    """4 and 5 rollouts at three an update: one full update, then one from the last rollout, or from the last two."""
    domain, tasks = maml.learner.domain, maml.learner.domain.sample_tasks(3, "test", (7,))
    counts = (0, 1, 3, 4, 5)
    curve = curves.rollout_curve(maml.learner, maml.meta, tasks, SEED, counts, (0.4, 0.2))
    for count, values in zip(counts, curve.values, strict=True):
        params, left, step = repeated(maml.meta, 3), count, 0
        while left:
            part = dataclasses.replace(domain, episodes=min(left, 3))
            data = part.collect(params, tasks, (*SEED, step), "support").data
            assert data.num_samples == min(left, 3) * 10
            params = by_hand(part, params, data, 0.4 if step == 0 else 0.2)
            left, step = left - min(left, 3), step + 1
        expected = domain.rollout(params, tasks, (*SEED, step))[0].returns.mean(1)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    assert curve.updates == (0, 1, 1, 2, 2)
    assert curve.rollouts == counts


def test_rollout_curve_meets_update_curve(maml):
    """No rollouts are no update, and 3 and 6 rollouts at three an update are one and two: the same numbers, to the bit."""
    tasks = maml.learner.domain.sample_tasks(3, "test", (7,))
    by_rollouts = curves.rollout_curve(maml.learner, maml.meta, tasks, SEED, (0, 3, 6))
    by_updates = curves.update_curve(maml.learner, maml.meta, tasks, SEED, 2)
    np.testing.assert_array_equal(by_rollouts.values, by_updates.values)


@pytest.mark.parametrize(("rollouts", "episodes"), list(itertools.product((0, 1, 2, 3, 7, 40), (1, 3, 20))))
def test_parts_cover_the_rollouts(rollouts, episodes):
    """An empty last update, a lost remainder, or an update of more episodes than training has."""
    sizes = curves.parts(rollouts, episodes)
    assert sum(sizes) == rollouts
    assert len(sizes) == -(-rollouts // episodes)
    assert all(size == episodes for size in sizes[:-1])
    assert all(0 < size <= episodes for size in sizes)


def test_the_seed_decides_all(maml):
    """A generator that carries state between calls, or a seed that is not used."""
    tasks = maml.learner.domain.sample_tasks(3, "test", (7,))
    first, again, other = (
        curves.update_curve(maml.learner, maml.meta, tasks, seed, 1).values for seed in (SEED, SEED, (8, 2, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_shots_are_seen_once(sinusoid, by_hand):
    """Every update of a few-shot task looks at the same support set: counting it again would show shots nobody drew."""
    learner = sinusoid.learner
    tasks = learner.domain.sample_tasks(4, "test", (7,))
    curve = curves.update_curve(learner, sinusoid.meta, tasks, SEED, 2, (0.02, 0.01))
    assert curve.rollouts == (0, 10, 10)
    params = repeated(sinusoid.meta, 4)
    support = learner.domain.collect(params, tasks, (*SEED, 0), "support").data
    query = learner.domain.collect(params, tasks, (*SEED, 0), "query").data
    for lr, values in zip((0.02, 0.01, None), curve.values, strict=True):
        error = learner.domain.net(params, query.inputs) - query.targets
        np.testing.assert_allclose(values, error.square().mean((1, 2)), rtol=1e-5)
        params = by_hand(learner.domain, params, support, lr) if lr else params


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Loss (x - goal)^2 / 2, whose first support shows the goal and whose later ones a goal one too high.

    After rates a, b from x = 0: x = a goal, then x = a goal (1 - b) + b (goal + 1). Broken beyond |x| = ``wall``.
    """

    higher_is_better: bool
    wall: float = np.inf
    fails: str = "raise"
    asked: list[Tasks] = dataclasses.field(default_factory=list)
    metric, unit, workers, geometry, remembers = "score", "", Workers(), None, False

    @property
    def query(self):
        return self

    def __call__(self, params, data):
        return Terms(self.inner_loss(params, data), None)

    def inner_loss(self, params, data):
        return 0.5 * (params["x"] - data.targets).square()

    def collect(self, params, tasks, seed, role):
        self.asked.append(tasks)
        goals = torch.tensor(tasks["goal"], dtype=torch.float64)
        x = params["x"]
        bad = x.abs() > self.wall
        if bad.any() and self.fails == "raise":
            raise FamilyError("beyond the wall")
        scores = (x - goals).square() * (-1 if self.higher_is_better else 1)
        scores = torch.where(bad, torch.nan, scores)
        return Sample(Goals(goals + min(seed[-1], 1)), scores, len(tasks), {})


@dataclasses.dataclass(frozen=True)
class Goals:
    targets: torch.Tensor
    num_samples: int = 1

    @property
    def num_tasks(self):
        return len(self.targets)

    def rows(self, tasks):
        return Goals(self.targets[tasks])


def parabola(**options):
    domain = Parabola(**options)
    learner = metarl.MetaLearner(domain, GradientStep(domain.inner_loss, lr=0.1), SGD(0.1))
    return domain, learner, {"x": torch.zeros((), dtype=torch.float64)}


def closed_form(goals, first, later=0.0):
    x = first * goals
    return np.mean((x * (1 - later) + later * (goals + 1) - goals) ** 2)


GOALS = Tasks(("goal",), np.array([[1.0], [2.0]]))


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("base", [0.5, 1.0, 4.0])
def test_tune_rates_takes_the_best(higher_is_better, base):
    """The worst instead of the best where lower is better; tasks other than those given; a grid that is not searched."""
    domain, learner, meta = parabola(higher_is_better=higher_is_better)
    first, later = curves.tune_rates(learner, meta, GOALS, SEED, 2, base)
    goals = GOALS["goal"]
    grid = [base * factor for factor in (0.03, 0.1, 0.3, 1.0, 3.0)]
    assert first == min(grid, key=lambda rate: closed_form(goals, rate))
    assert later == min((first * f for f in (1, 0.5, 0.25, 0.1)), key=lambda rate: closed_form(goals, first, rate))
    assert all(tasks == GOALS for tasks in domain.asked)
    assert curves.tune_rates(learner, meta, GOALS, SEED, 1, base) == (first,)


@pytest.mark.parametrize("fails", ["raise", "nan"])
def test_a_rate_that_diverges_is_not_chosen(fails):
    """NaN compares false with everything, so it wins a naive max; a simulator that breaks would end the evaluation."""
    _, learner, meta = parabola(higher_is_better=True, wall=0.5, fails=fails)
    assert curves.tune_rates(learner, meta, GOALS, SEED, 1, 2.0) == (0.2,)  # 0.6 * 1 and all beyond are past the wall
    with pytest.raises(SettingsError, match="fails with each step size tried"):
        curves.tune_rates(learner, meta, GOALS, SEED, 1, 100.0)


def test_what_does_not_apply_is_refused(maml, sinusoid):
    """Settings of reinforcement learning on shots, and a step size for a rule that has none, must not pass silently."""
    tasks = sinusoid.learner.domain.sample_tasks(2, "test", (7,))
    with pytest.raises(SettingsError, match="labelled shots"):
        curves.rollout_curve(sinusoid.learner, sinusoid.meta, tasks, SEED, (1,))
    with pytest.raises(SettingsError, match="labelled shots"):
        curves.with_episodes(sinusoid.learner, 3)
    ruled = dataclasses.replace(maml.learner, inner=lambda params, support: params)
    with pytest.raises(SettingsError, match="has no step size to choose"):
        curves.tune_rates(ruled, maml.meta, tasks, SEED, 1, 0.1)
