"""The random tabular MDP: its distributions, its dynamics, and the exact optimum against other ways to find it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from metarl import families
from metarl.envs.tabular.families import tables
from metarl.envs.tabular.optimum import optimal_returns

S, A = 10, 5


def test_tasks_have_the_distributions_they_claim():
    """Dirichlet(1) rows (mean 1/S, variance (S-1)/(S^2 (S+1))) and normal means; columns where their names say."""
    tasks = families.make("tabular-mdp").sample_tasks(200, "train", 0)
    means, steps = tables(tasks, S)
    np.testing.assert_allclose(steps.sum(-1), 1.0, rtol=1e-12)
    assert (steps >= 0).all()
    count = means.size
    assert abs(means.mean() - 1) < 5 / np.sqrt(count)
    assert abs(means.std() - 1) < 5 / np.sqrt(2 * count)
    assert steps.var() == pytest.approx((S - 1) / (S**2 * (S + 1)), rel=0.03)
    assert abs(np.corrcoef(steps[..., 0].ravel(), steps[..., 1].ravel())[0, 1] + 1 / (S - 1)) < 5 / np.sqrt(count)
    task = tasks.to_json()[3]
    assert task["reward_4_2"] == means[3, 4, 2]
    assert task["to_4_2_7"] == steps[3, 4, 2, 7]


def test_simulations_follow_their_tables():
    """Frequencies of next states and the mean and spread of rewards, from two worlds at once."""
    family, each = families.make("tabular-mdp"), 20000
    tasks = family.sample_tasks(2, "train", 1)
    means, steps = tables(tasks, S)
    env = family.batch(2 * each, 1)
    start = env.reset(tasks.repeat(each), np.arange(2 * each, dtype=np.uint32))
    assert (start[:, 0] == 1).all()
    action = np.full((2 * each, 1), 3)
    first = env.step(action)
    second = env.step(action)
    for m in range(2):
        rows = slice(m * each, (m + 1) * each)
        expected = steps[m, 0, 3]
        error = 5 * np.sqrt(expected * (1 - expected) / each) + 1e-4
        assert (np.abs(first.observations[rows].mean(0) - expected) < error).all()
        assert abs(first.rewards[rows].mean() - means[m, 0, 3]) < 5 / np.sqrt(each)
        assert first.rewards[rows].std() == pytest.approx(1.0, rel=0.03)
        state = first.observations[rows].argmax(1)
        noise = second.rewards[rows] - means[m, state, 3]
        assert abs(noise.mean()) < 5 / np.sqrt(each)
        assert noise.std() == pytest.approx(1.0, rel=0.03)
        two = expected @ steps[m, :, 3]
        assert (np.abs(second.observations[rows].mean(0) - two) < 5 * np.sqrt(two * (1 - two) / each)).all()
    assert not second.truncated.any()


def test_the_optimum_is_the_best_of_all_plans():
    """Every deterministic plan of a tiny world (2 states, 2 actions, 3 steps), evaluated one by one."""
    family = families.make("tabular-mdp", states=2, actions=2)
    tasks = family.sample_tasks(4, "test", 0)
    means, steps = tables(tasks, 2)
    for m in range(4):
        best = -np.inf
        for plan in itertools.product(range(2), repeat=6):  # action in (time, state)
            where, total = np.array([1.0, 0.0]), 0.0
            for time in range(3):
                choice = plan[2 * time : 2 * time + 2]
                total += sum(where[s] * means[m, s, choice[s]] for s in range(2))
                where = sum(where[s] * steps[m, s, choice[s]] for s in range(2))
            best = max(best, total)
        assert optimal_returns(tasks.rows([m]), states=2, horizon=3)[0] == pytest.approx(best, rel=1e-12)


def test_an_optimal_player_earns_the_optimum():
    family, each = families.make("tabular-mdp"), 4000
    tasks = family.sample_tasks(3, "test", 5)
    means, steps = tables(tasks, S)
    plans, values = [], np.zeros((3, S))
    for _ in range(10):
        worth = means + np.einsum("msan,mn->msa", steps, values)
        plans.append(worth.argmax(-1))
        values = worth.max(-1)
    env = family.batch(3 * each, 1)
    state = env.reset(tasks.repeat(each), np.arange(3 * each, dtype=np.uint32)).argmax(1)
    total, world = np.zeros(3 * each), np.repeat(np.arange(3), each)
    for plan in reversed(plans):
        step = env.step(plan[world, state][:, None])
        total, state = total + step.rewards, step.observations.argmax(1)
    assert step.truncated.all()
    earned = total.reshape(3, each)
    assert (np.abs(earned.mean(1) - optimal_returns(tasks)) < 5 * earned.std(1) / np.sqrt(each)).all()
