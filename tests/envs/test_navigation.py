"""Navigation in the plane, re-computed step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarl import families
from metarl.families import Tasks


def _run(family, tasks, actions):
    env = family.batch(len(tasks), 1)
    first = env.reset(tasks, np.arange(len(tasks), dtype=np.uint32))
    return first, [env.step(a) for a in actions.astype(np.float32)]


def test_points_move_by_clipped_steps_and_pay_their_distance():
    family = families.make("navigation-2d")
    tasks = family.sample_tasks(3, "train", 0)
    actions = np.random.default_rng(0).normal(0, 1.5, (100, 3, 2))
    first, steps = _run(family, tasks, actions)
    assert (first == 0).all()
    for b, goal in enumerate(tasks.values):
        x = np.zeros(2)
        for t, step in enumerate(steps):
            x = x + 0.1 * np.clip(actions[t, b], -1, 1)
            np.testing.assert_allclose(step.observations[b], x, atol=1e-5)
            assert step.rewards[b] == pytest.approx(-math.dist(x, goal), abs=1e-5)
            assert step.truncated[b] == (t == 99)


def test_the_episode_ends_at_the_goal_and_only_there():
    """Both coordinates must be within 0.01 m, and the last step still pays."""
    tasks = Tasks(("goal_x", "goal_y"), np.array([[0.2, -0.1], [0.2, -0.1]]))
    actions = np.array([[[1, -1], [1, -1]], [[0.93, 0.0], [0.5, 0.0]], [[0, 0], [0, 0]]])
    _, steps = _run(families.make("navigation-2d"), tasks, actions)
    assert [step.terminated.tolist() for step in steps[:2]] == [[False, False], [True, False]]
    assert steps[1].rewards[0] == pytest.approx(-0.007, abs=1e-6)


def test_goals_cover_the_square_and_the_half_circle():
    goals = families.make("navigation-2d").sample_tasks(2000, "train", 0).values
    assert np.abs(goals).max() <= 0.5
    assert goals.std(0) == pytest.approx([1 / math.sqrt(12)] * 2, rel=0.05)
    angles = families.make("navigation-2d-sparse").sample_tasks(2000, "train", 0)["angle"]
    assert 0 <= angles.min() < 0.05
    assert math.pi - 0.05 < angles.max() <= math.pi


def test_the_sparse_reward_is_paid_near_the_goal_only():
    """1 - distance within 0.2 m of the point on the half circle, else nothing; no end but the horizon."""
    tasks = Tasks(("angle",), np.array([[0.0], [math.pi / 2], [math.pi]]))
    straight = np.array([[1.0, 0.0], [0.0, 1.0], [-0.5, 0.0]])
    _, steps = _run(families.make("navigation-2d-sparse"), tasks, np.tile(straight, (20, 1, 1)))
    for t, step in enumerate(steps):
        walked = 0.1 * (t + 1)
        for b, way in enumerate((walked, walked, walked / 2)):
            away = abs(1 - way)
            if abs(away - 0.2) > 1e-3:  # on the edge rounding decides
                assert step.rewards[b] == pytest.approx(1 - away if away < 0.2 else 0.0, abs=1e-5)
        assert not step.terminated.any()
        assert step.truncated.all() == (t == 19)
