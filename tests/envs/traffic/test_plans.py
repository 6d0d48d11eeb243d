"""Open-loop plans: green times by hand, and the same simulator as everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl import families
from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.plans import greens
from metarl.settings import SettingsError
from metarl.testing import check_family

GRID = Grid(rows=1, columns=2)


def test_greens_by_hand_fill_the_cycle():
    """80 s less four times 3 + 7 leave 40 s: equal parts for equal numbers; e^4 to 1 for 1 and -1; rounding loses nothing."""
    actions = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0], [9.0, 9.0, -9.0, -9.0, 0.3, 0.1, -0.7, 0.9]])
    found = greens(GRID, actions, 80)
    assert found[:, 0, 0, 0].tolist() == [17, 17, 17, 17]
    assert found[:, 0, 1, 0].tolist() == [27, 7, 27, 7]  # 40 * e^4 / (2 e^4 + 2) = 19.6, 0.4
    assert found[:, 0, 0, 1].tolist() == [27, 26, 8, 7]  # 19.6, 39.3, 39.6 and 40 so far: 20, 39, 40, 40
    assert (found.sum(0) == 68).all()
    assert (found >= 7).all()


def _served(family, action):
    env = family.batch(1, 1)
    tasks = family.sample_tasks(1, "train", 0)
    env.reset(tasks, np.zeros(1, dtype=np.uint32))
    shown = []
    tick = env.simulator.tick

    def watched():
        shown.append(env.simulator.signals.shown()[:, :, 0, 0, 0].clone())
        tick()

    env.simulator.tick = watched
    step = env.step(np.array([action], dtype=np.float32))
    return torch.stack(shown), step, env


def test_a_cycle_shows_every_phase_for_its_time():
    """Second by second: greens of the plan, 3 s of yellow between; catches a clearance counted twice, or a phase left out."""
    family = families.make("traffic-plan", rows=1, columns=1, horizon=2, warm_cycles=1)
    shown, step, _ = _served(family, [1.0, -1.0, 1.0, -1.0])
    green = (shown == 2).sum(0)  # left or not, then axis
    assert green.tolist() == [[7, 7], [27, 27]]
    assert (shown == 1).sum().item() == 12
    assert not step.truncated.any()


def test_rewards_add_up_to_the_time_spent():
    """The warm-up included, or a cycle left out, would be no time spent."""
    family = families.make("traffic-plan", horizon=3, warm_cycles=1)
    env, tasks = family.batch(2, 1), family.sample_tasks(2, "test", 0)
    env.reset(tasks, np.arange(2, dtype=np.uint32))
    before, total = env.simulator.time_spent.clone(), np.zeros(2)
    for _ in range(3):
        step = env.step(np.zeros((2, 16), dtype=np.float32))
        total += step.rewards
    assert step.truncated.all()
    spent = (env.simulator.time_spent - before).numpy()
    np.testing.assert_allclose(total * -100 * 4, spent, rtol=1e-6)
    assert env.simulator.clock == 4 * 80


def test_a_plan_that_fits_the_demand_is_better_than_one_that_does_not():
    """Else there would be nothing to learn, as with phases that are mixed up: all demand north and south bound."""
    family = families.make("traffic-plan", rows=1, columns=1, horizon=6)
    tasks = family.sample_tasks(1, "train", 0)
    values = tasks.values.copy()
    for heading, demand in (("north", 900.0), ("east", 100.0), ("south", 900.0), ("west", 100.0)):
        values[0, tasks.names.index(f"demand_{heading}_0")] = demand
    returns = []
    for action in ([1.0, -0.5, -1.0, -1.0], [-1.0, -1.0, 1.0, -0.5]):
        env = family.batch(1, 1)
        env.reset(families.Tasks(tasks.names, values), np.zeros(1, dtype=np.uint32))
        returns.append(sum(env.step(np.array([action], dtype=np.float32)).rewards[0] for _ in range(6)))
    assert 1.2 * returns[0] > returns[1]  # both are negative


def test_the_family_keeps_the_rules():
    check_family(families.make("traffic-plan", rows=1, columns=2, horizon=3))
    with pytest.raises(SettingsError, match="demand_low=900 must be smaller than demand_high=300"):
        families.make("traffic-plan", demand_low=900.0, demand_high=300.0)
