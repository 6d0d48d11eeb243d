"""MAML++'s annealings: weights by hand, gradients in closed form, and what they do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import metarl
from metarl.core import GradientStep, Objective, Schedule
from metarl.settings import SettingsError
from tests.core.test_meta_gradient import Columns, Plain

A, B, LR, STEPS = 0.7, 1.3, 0.4, 4  # curvatures of support and query loss


def test_weights_by_hand():
    """5 steps, 10 updates: all alike at first; 0.2 * 0.5 at half time; 0.03 / 5 at least; then the last alone."""
    at = lambda update: Schedule(multi_step=10).weights(5, update)  # noqa: E731
    assert at(0) == pytest.approx([0.2] * 5)
    assert at(5) == pytest.approx([0.1] * 4 + [0.6])
    assert Schedule(multi_step=1000).weights(5, 999) == pytest.approx([0.006] * 4 + [0.976])
    assert at(10) == at(11) == Schedule().weights(5, 0) == (0, 0, 0, 0, 1)
    assert all(sum(at(update)) == pytest.approx(1) for update in range(12))


def _objective():
    """Two tasks: support losses A/2 (theta - c)^2, query losses B/2 (theta - d)^2."""
    c, d = (torch.tensor(x, dtype=torch.float64).view(2, 1) for x in ([1.0, -2.0], [0.5, 3.0]))

    def loss(curvature):
        return lambda params, data: curvature / 2 * (params["theta"] - data.tensors[0][:, 0]).square()

    return Objective(GradientStep(loss(A), LR), [Columns((c,))] * STEPS, Columns((d,)), Plain(loss(B)), chunk_tasks=1)


@pytest.mark.parametrize("update", [0, 3, 7, 8])
@pytest.mark.parametrize("first_order", [0, 5])
def test_the_gradient_is_the_weighted_sum_in_closed_form(update, first_order):
    r"""theta_j = c + (1 - a A)^j (theta - c), and of first order the factor (1 - a A)^j of the derivative is 1.

    Catches weights that are off by a step, a last loss that keeps its whole weight, and an order that switches too early.
    """
    theta, schedule = 2.0, Schedule(multi_step=8, first_order=first_order)
    early = max(1 - update / 8, 0.03) / STEPS if update < 8 else 0.0
    weights = [early] * (STEPS - 1) + [1 - (STEPS - 1) * early]
    loss = slope = 0.0
    for c, d in ((1.0, 0.5), (-2.0, 3.0)):
        for j, weight in enumerate(weights, start=1):
            shrunk = (1 - LR * A) ** j
            adapted = c + shrunk * (theta - c)
            loss += weight * B / 2 * (adapted - d) ** 2 / 2
            slope += weight * B * (adapted - d) * (1 if update < first_order else shrunk) / 2
    objective = schedule.at(_objective(), update)
    outcome, gradient = objective.gradient({"theta": torch.tensor(theta, dtype=torch.float64)})
    assert outcome.loss == pytest.approx(loss, rel=1e-12)
    assert float(gradient["theta"]) == pytest.approx(slope, rel=1e-12)


def test_a_schedule_that_is_over_leaves_the_objective_as_it_was():
    objective = _objective()
    assert Schedule(3, 5).at(objective, 5) == objective
    assert Schedule(3, 5).at(objective, 4) == dataclasses.replace(
        objective, rule=dataclasses.replace(objective.rule, first_order=True)
    )


SIZES = {"hidden_sizes": (5,), "meta_batch_size": 3, "inner_steps": 3, "threads": 1}


def _updates(count, algo="maml-adam", state=None, **settings):
    learner = metarl.build("sinusoid", algo, **SIZES, **settings)
    state = state or learner.init(0)
    for _ in range(count):
        state, metrics = learner.iteration(state)
    return state, metrics


def _same(one, other):
    return all(torch.equal(one.meta[name], other.meta[name]) for name in one.meta)


def test_the_order_switches_at_its_update():
    """Two updates are first-order MAML's to the byte, the third is MAML's from there."""
    two, _ = _updates(2, first_order_updates=2)
    assert _same(two, _updates(2, "fomaml-adam")[0])
    third = _updates(1, state=two, first_order_updates=2)[0]
    assert _same(third, _updates(1, state=two)[0])
    assert not _same(third, _updates(1, "fomaml-adam", state=two)[0])


def test_the_loss_anneals_in_training():
    """The third update of a schedule of two is plain MAML's; the first is not. Where it is resumed makes no difference."""
    whole, _ = _updates(3, multi_step=2)
    begun, metrics = _updates(2, multi_step=2)
    assert _same(whole, _updates(1, state=begun)[0])
    assert _same(whole, _updates(1, state=begun, multi_step=2)[0])
    assert metrics["loss"] != _updates(2)[1]["loss"]


@pytest.mark.parametrize(
    ("env", "algo", "settings", "reason"),
    [
        ("navigation-2d", "maml-trpo", {"multi_step": 3, "inner_steps": 2}, "sampled after the last inner step"),
        ("sinusoid", "maml-adam", {"multi_step": 3, "inner_steps": 1}, "inner_steps=1 has no step before the last"),
        ("sinusoid", "reptile", {"multi_step": 3}, "Reptile takes no gradient"),
        ("sinusoid", "fomaml-adam", {"first_order_updates": 3}, "first_order_updates=3 has no effect"),
        ("sinusoid", "imaml-adam", {"first_order_updates": 3}, "first_order_updates=3 has no effect"),
        ("sinusoid", "maml-adam", {"first_order_updates": 3, "inner_steps": 0}, "first_order_updates=3 has no effect"),
    ],
)
def test_what_would_change_nothing_is_refused(env, algo, settings, reason):
    with pytest.raises(SettingsError, match=reason):
        metarl.build(env, algo, threads=1, **settings)


def test_reinforcement_learning_may_begin_with_first_order():
    learner = metarl.build("navigation-2d", "maml-trpo", threads=1, first_order_updates=3)
    assert learner.schedule == Schedule(0, 3)
