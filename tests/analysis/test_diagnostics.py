"""Diagnostics against closed forms on quadratic and linear tasks, and against a failure that is planted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import metarl
from metarl.analysis import diagnostics, restricted
from metarl.core import SGD, GradientStep, Workers
from metarl.core.adapt import Terms
from metarl.domain import Sample
from metarl.families import FamilyError, ShotSpec, TaskParameter, Tasks
from metarl.fewshot.domain import ShotDomain
from metarl.nets import MLP
from metarl.pooled import Picks, shots
from metarl.settings import SettingsError

CURVATURE = np.array([[2.0, 0.5], [0.5, 1.0]])
THETA = np.array([0.3, -0.2])
SEED = (0, 2, 1)


@dataclasses.dataclass(frozen=True)
class Centres:
    values: torch.Tensor
    num_samples: int = 1

    @property
    def num_tasks(self):
        return len(self.values)

    def rows(self, tasks):
        return Centres(self.values[tasks])


@dataclasses.dataclass(frozen=True)
class Bowl:
    """Loss (x - c)' A (x - c) / 2 of a task with centre c, which its score is the negative of. Broken beyond ``wall``."""

    wall: float = np.inf
    metric, unit, workers, geometry, ratio, remembers = "score", "", Workers(), None, None, False
    higher_is_better = True

    @property
    def query(self):
        return self

    def exploration(self, coefficient):
        return None

    def once(self, adapting):
        return None

    def __call__(self, params, data):
        return Terms(self.inner_loss(params, data), None)

    def inner_loss(self, params, data):
        gap = params["x"] - data.values
        return 0.5 * torch.einsum("mi,ij,mj->m", gap, torch.tensor(CURVATURE), gap)

    def collect(self, params, tasks, seed, role):
        if (params["x"].abs() > self.wall).any():
            raise FamilyError("beyond the wall")
        data = Centres(torch.tensor(tasks.values))
        return Sample(data, -self.inner_loss(params, data), len(tasks), {})


CENTRES = np.random.default_rng(0).normal(size=(6, 2))
TASKS = Tasks(("a", "b"), CENTRES)
META = {"x": torch.tensor(THETA)}


def bowl(lr, **options):
    domain = Bowl(**options)
    return metarl.MetaLearner(domain, GradientStep(domain.inner_loss, lr=lr), SGD(0.1))


def loss(x):
    gap = x - CENTRES
    return 0.5 * np.einsum("mi,ij,mj->m", gap, CURVATURE, gap)


@pytest.mark.parametrize("lr", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("steps", [1, 2])
def test_orders_are_the_closed_form(lr, steps):
    """The full gradient twice, a ratio upside down, a step of another number. With B = (I - lr A)^k the adapted gap is
    B (theta - c), the first-order gradient A of it, the full one B' A of it."""
    shrink = np.linalg.matrix_power(np.eye(2) - lr * CURVATURE, steps)
    gap = (THETA - CENTRES).mean(0)
    first, full = CURVATURE @ shrink @ gap, shrink.T @ CURVATURE @ shrink @ gap
    learner = dataclasses.replace(bowl(lr), inner_steps=steps)
    found = diagnostics.orders(learner, META, TASKS, SEED)
    assert found.cosine == pytest.approx(first @ full / np.linalg.norm(first) / np.linalg.norm(full), rel=1e-9)
    assert found.norm_ratio == pytest.approx(np.linalg.norm(first) / np.linalg.norm(full), rel=1e-9)
    assert found.norm_ratio > 1.05


def test_orders_without_gradient_steps_are_refused():
    """A comparison of a rule with itself that says that the second order is worth nothing."""
    with pytest.raises(SettingsError, match="of which this run has none"):
        diagnostics.orders(dataclasses.replace(bowl(0.1), inner=lambda p, s, step: p), META, TASKS, SEED)
    with pytest.raises(SettingsError, match="of which this run has none"):
        diagnostics.orders(dataclasses.replace(bowl(0.1), inner_steps=0), META, TASKS, SEED)


@pytest.mark.parametrize("steps", [2, 5, 200])
def test_alignment_is_the_closed_form(steps):
    """The gradient instead of the descent, the end of the first step, an improvement of all steps: after k steps the way is
    (I - (I - lr A)^k) (c - theta), which of many is that to the centre."""
    lr, way = 0.2, CENTRES - THETA
    down = way @ CURVATURE
    end = way @ (np.eye(2) - np.linalg.matrix_power(np.eye(2) - lr * CURVATURE, steps)).T
    wanted = (down * end).sum(1) / np.linalg.norm(down, axis=1) / np.linalg.norm(end, axis=1)
    found = diagnostics.alignment(bowl(lr), META, TASKS, SEED, steps)
    np.testing.assert_allclose(found.cosine, wanted, rtol=1e-9)
    np.testing.assert_allclose(found.improvement, loss(THETA) - loss(THETA + lr * down), rtol=1e-9)
    ranks = [np.argsort(np.argsort(x)) for x in (wanted, found.improvement)]
    assert found.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1])
    if steps == 200:
        np.testing.assert_allclose(end, way, atol=1e-6)


def test_alignment_of_one_update_is_perfect():
    """A cosine with data or parameters of another moment; a score of which more is worse with the wrong sign."""
    learner = dataclasses.replace(bowl(0.2), domain=(worse := Bowl()))
    found = diagnostics.alignment(learner, META, TASKS, SEED, 1)
    np.testing.assert_allclose(found.cosine, 1.0)
    assert (found.improvement > 0).all()
    assert worse.higher_is_better


def test_risk_inflation_is_a_ratio_of_means():
    """A mean of ratios, an interval of another quantity, a warning that never comes."""
    rng = np.random.default_rng(0)
    held, training = rng.gamma(4, 3, 50), rng.gamma(4, 1, 40)
    found = diagnostics.risk_inflation(held, training)
    assert found.ratio.value == pytest.approx(held.mean() / training.mean())
    assert found.overfits
    relative = np.sqrt(held.var() / 50 / held.mean() ** 2 + training.var() / 40 / training.mean() ** 2)  # delta method
    width = (found.ratio.high - found.ratio.low) / (2 * 1.96 * found.ratio.value)
    assert width == pytest.approx(relative, rel=0.12)
    assert not diagnostics.risk_inflation(training, training).overfits
    for wrong in (-held, np.full(3, np.nan)):
        with pytest.raises(SettingsError, match="losses of 0 or more"):
            diagnostics.risk_inflation(wrong, training)
    with pytest.raises(SettingsError, match="losses of 0 or more"):
        diagnostics.risk_inflation(held, np.zeros(3))


def test_leaving_one_out_is_the_closed_form():
    """The task that is left out among those trained on, or judged with another training's parameters.

    The best one point for some tasks is their mean centre; without adapting, held-out and training losses are quadratic.
    """

    def fit(tasks):
        return {"x": torch.tensor(tasks.values.mean(0))}

    def losses(meta, tasks):
        return diagnostics.adapted_losses(bowl(0.1), meta, tasks, SEED, 0)

    found = diagnostics.leave_one_out(fit, losses, TASKS)
    held, training = [], []
    for i in range(6):
        others = np.delete(CENTRES, i, 0)
        gaps = CENTRES - others.mean(0)
        each = 0.5 * np.einsum("mi,ij,mj->m", gaps, CURVATURE, gaps)
        held.append(each[i])
        training.append((each.sum() - each[i]) / 5)
    assert found.ratio.value == pytest.approx(np.mean(held) / np.mean(training), rel=1e-9)
    assert (found.held_out, found.training) == pytest.approx((np.mean(held), np.mean(training)))
    with pytest.raises(SettingsError, match="at least two"):
        diagnostics.leave_one_out(fit, losses, TASKS.rows([0]))


def test_a_learner_overfitted_to_three_tasks_is_found():
    """The planted failure: three sine waves are learned by heart, many are not; a diagnosis that sees no difference."""
    many = metarl.build(
        "sinusoid", meta_batch_size=6, hidden_sizes=(40, 40), threads=1, inner_lr=0.02, algo_settings={"lr": 0.01}
    )
    tasks, three = many.domain.sample_tasks(100, "test", (0,)), many.domain.sample_tasks(3, "train", (5,))
    few = restricted.restricted(many, three)
    # of three tasks many draws of data each: they are all that there are
    seen = {"few": (few, three.repeat(30)), "many": (many, many.domain.sample_tasks(100, "train", (1,)))}
    found = {}
    for name, (learner, trained) in seen.items():
        state = learner.init(0)
        for _ in range(150):
            state, _ = learner.iteration(state)
        held, own = (diagnostics.adapted_losses(many, state.meta, t, SEED, 1) for t in (tasks, trained))
        found[name] = diagnostics.risk_inflation(held, own)
    assert found["few"].overfits
    assert found["few"].ratio.low > 2
    assert not found["many"].overfits
    assert 0.7 < found["many"].ratio.value < 1.5


def test_leaving_one_task_out_of_training():
    """A training that sees the task it should not, or another seed's: two of three, by iterations that are written out."""
    learner = metarl.build("sinusoid", meta_batch_size=4, hidden_sizes=(8,), threads=1, algo_settings={"lr": 0.01})
    tasks = learner.domain.sample_tasks(3, "train", (3,))

    def losses(state, some):
        return diagnostics.adapted_losses(learner, state.meta, some, SEED, 1)

    found = diagnostics.leave_one_out(restricted.fit(learner, 3, seed=7), losses, tasks)
    held, training = [], []
    for out, kept in ((0, [1, 2]), (1, [0, 2]), (2, [0, 1])):
        own = restricted.restricted(learner, tasks.rows(kept))
        state = own.init(7)
        for _ in range(3):
            state, _ = own.iteration(state)
        held.append(losses(state, tasks)[out])
        training.append(losses(state, tasks)[kept].mean())
    assert found.ratio.value == pytest.approx(np.mean(held) / np.mean(training))


@dataclasses.dataclass(frozen=True)
class Levels:
    """Two classes of bytes, below and above the task's threshold, out of one array."""

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        return ShotSpec((TaskParameter("threshold", 0, 255, ""),), (1,), 2, "cross_entropy", "accuracy", "")

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("threshold",), np.random.default_rng(seed).uniform(50, 200, (num_tasks, 1)))

    def pool(self):
        return np.arange(256, dtype=np.uint8)[:, None]

    def pick(self, tasks, seeds):
        rows = np.stack([np.random.default_rng(int(seed)).integers(256, size=(2, 6)) for seed in seeds], 1)
        targets = (rows > tasks["threshold"][:, None]).astype(np.int64)
        return Picks(rows[0], targets[0]), Picks(rows[1], targets[1])

    def draw(self, tasks, seeds):
        return shots(self, tasks, seeds)


def _learner(name):
    if name != "pooled":
        return metarl.build(name, meta_batch_size=2, threads=1, hidden_sizes=(8,))
    domain = ShotDomain(Levels(), MLP((1, 4, 2)))
    return metarl.MetaLearner(domain, GradientStep(domain.inner_loss, lr=0.1), SGD(0.1), 1, 2)


@pytest.mark.parametrize("name", ["navigation-2d", "sinusoid", "pooled"])
def test_restricted_families_know_their_tasks_only(name):
    """A task of the whole family; a task that is drawn more often than another; a seed that decides nothing."""
    learner = _learner(name)
    tasks = learner.domain.sample_tasks(3, "train", (0,))
    few = restricted.restricted(learner, tasks).domain
    drawn = few.sample_tasks(7, "test", (1,))
    counts = [sum((drawn.values == row).all(1)) for row in tasks.values]
    assert sorted(counts) == [2, 2, 3]
    assert few.sample_tasks(7, "test", (1,)) == drawn != few.sample_tasks(7, "test", (2,))
    params = {n: v.expand(3, *v.shape) for n, v in learner.init(0).meta.items()}
    one, other = (d.collect(params, tasks, (4, 0), "query").scores for d in (few, learner.domain))
    assert torch.equal(one, other)


def test_returns_become_losses_by_what_none_exceeds():
    """A return taken for a loss, or the gap with the wrong sign."""
    learner = metarl.build("navigation-2d", env_settings={"horizon": 5}, episodes_per_task=2, threads=1)
    meta, tasks = learner.init(0).meta, learner.domain.sample_tasks(3, "test", (0,))
    with pytest.raises(SettingsError, match="best="):
        diagnostics.adapted_losses(learner, meta, tasks, SEED, 1)
    losses = diagnostics.adapted_losses(learner, meta, tasks, SEED, 1, best=2.0)
    scores = learner.explore(meta, tasks, SEED, 1).query.scores
    np.testing.assert_allclose(losses, 2.0 - scores.numpy())


def test_a_sweep_is_the_closed_form():
    """A curve of another rate; a rate with which adaptation diverges that ends all, or passes for the best."""
    rates = [0.1, 0.5, 20.0]
    found = diagnostics.sweep(bowl(0.3, wall=5.0), META, TASKS, SEED, 3, rates)
    assert list(found) == rates
    assert found[20.0] is None
    for rate in rates[:2]:
        gap = (THETA - CENTRES).T
        for k in range(4):
            each = 0.5 * np.einsum("im,ij,jm->m", gap, CURVATURE, gap)
            np.testing.assert_allclose(found[rate].values[k], -each, rtol=1e-9)
            gap = gap - rate * CURVATURE @ gap
    with pytest.raises(SettingsError, match="has no step size"):
        diagnostics.sweep(dataclasses.replace(bowl(0.1), inner=lambda p, s, step: p), META, TASKS, SEED, 1, rates)


def test_fewer_and_more_rollouts_are_the_slow_loop(runs, by_hand):
    """Scores of as few episodes as are learned from, or an update of training's number of them."""
    agent = metarl.load(runs["maml"])
    domain, tasks = agent.learner.domain, agent.learner.domain.sample_tasks(3, "test", (7,))
    found = diagnostics.by_episodes(agent.learner, agent.meta, tasks, SEED, 2, [1, 5])
    for count, curve in found.items():
        params = {name: torch.stack([value] * 3) for name, value in agent.meta.items()}
        for step in range(3):
            scores = domain.rollout(params, tasks, (*SEED, step, 1))[0].returns.mean(1)
            np.testing.assert_allclose(curve.values[step], scores, rtol=1e-4, atol=1e-4)
            fewer = dataclasses.replace(domain, episodes=count)
            data = fewer.collect(params, tasks, (*SEED, step), "support").data
            assert data.num_samples == count * 10
            params = by_hand(fewer, params, data, 0.1)
        assert curve.rollouts == (0, count, 2 * count)
