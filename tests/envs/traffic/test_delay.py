"""Delay at an isolated signal against Webster's formulas, and the stability regions of two controllers."""

from __future__ import annotations

import pytest
import torch

from metarl.envs.traffic.controllers import FixedTime, MaxPressure
from metarl.envs.traffic.detectors import Readings
from metarl.envs.traffic.network import Grid

STRAIGHT_ON = (0.0, 1.0, 0.0)
CYCLE = 60


def _plan(sim, greens):
    """Fixed greens of the four phases, s, after three seconds of yellow each; 0 leaves a phase out."""
    grid = sim.grid
    durations = torch.tensor([green + grid.clearance if green else 0.0 for green in greens], dtype=torch.float64)
    shape = sim.signals.phase.shape
    offsets = torch.zeros(shape, dtype=torch.float64)
    return FixedTime(durations.reshape(4, 1, 1, 1).repeat(1, *shape), offsets)


def _run(sim, controller, seconds, every=1):
    """Simulate; return vehicles present by heading, entries included, summed over the seconds, (H, B)."""
    present = torch.zeros(4, sim.queues.shape[-1], dtype=torch.float64)
    for _ in range(seconds):
        if sim.clock % every == 0:
            sim.signals.request(controller(sim, Readings.exact(sim)))
        sim.tick()
        present += (sim.on_links + sim.origins).sum((1, 2))
    return present


@pytest.mark.parametrize("green", [17, 27, 37])
def test_uniform_delay_is_websters_first_term(green, scenes):
    r"""d = C (1 - g/C)^2 / (2 (1 - g/C x)) for flowing arrivals, four degrees of saturation each; to 0.05 s.

    The mean number of vehicles on the approach is the flow times (free travel time + d), by Little's law.
    """
    grid = Grid(rows=1, columns=1)
    degrees = torch.tensor([0.16, 0.5, 0.8, 0.98], dtype=torch.float64)
    flows = degrees * green / CYCLE  # of the two lanes' 1 veh/s
    demand = torch.zeros(4, 4, dtype=torch.float64)
    demand[0] = flows
    sim = scenes.make(grid, count=4, shares=STRAIGHT_ON, demand=demand)
    plan = _plan(sim, [green, 0, CYCLE - green - 6, 0])
    _run(sim, plan, 5 * CYCLE)
    present = _run(sim, plan, 2 * CYCLE)[0] / (2 * CYCLE)
    share = green / CYCLE
    expected = CYCLE * (1 - share) ** 2 / (2 * (1 - share * degrees))
    assert (present / flows - grid.free_time).tolist() == pytest.approx(expected.tolist(), abs=0.05)


def test_random_delay_is_websters_formula(scenes):
    """Poisson arrivals; four degrees of saturation on the four approaches, 27 s of green in 60 s, within 5 %."""
    grid, count = Grid(rows=1, columns=1), 256
    share = 27 / CYCLE
    degrees = torch.tensor([0.44, 0.67, 0.80, 0.89], dtype=torch.float64)
    flows = degrees * share
    sim = scenes.make(grid, count, poisson=True, shares=STRAIGHT_ON, demand=flows[:, None].repeat(1, count))
    plan = _plan(sim, [27, 0, 27, 0])
    _run(sim, plan, 10 * CYCLE)
    arrived = sim.reached.clone()
    present = _run(sim, plan, 40 * CYCLE)
    passed = (sim.reached - arrived).sum((1, 2, 3))
    delay = present.sum(1) / passed - grid.free_time
    first = CYCLE * (1 - share) ** 2 / (2 * (1 - share * degrees))
    second = degrees**2 / (2 * flows * (1 - degrees))
    third = 0.65 * (CYCLE / flows**2) ** (1 / 3) * degrees ** (2 + 5 * share)
    assert delay.tolist() == pytest.approx((first + second - third).tolist(), rel=0.05)


def _vehicles(loads, controller, scenes, grid, every=10, count=16):
    """Mean number of vehicles around 20, 40 and 60 minutes, for each load: two phases whose flow ratios sum to it."""
    demand = torch.tensor(loads, dtype=torch.float64).repeat_interleave(count) / 2
    sim = scenes.make(grid, len(demand), poisson=True, shares=STRAIGHT_ON, demand=demand.repeat(4, 1))
    chosen = controller(sim)
    means = []
    for _ in range(3):
        _run(sim, chosen, 1000, every)
        before = sim.time_spent.clone()
        _run(sim, chosen, 200, every)
        means.append((sim.time_spent - before).reshape(len(loads), count).mean(1) / 200)
    return torch.stack(means, 1).tolist()


def _max_pressure(sim):
    return MaxPressure(sim.conditions.shares)


def test_max_pressure_without_yellow_serves_any_demand_that_can_be_served(scenes):
    """Varaiya's theorem: below 1, the queues do not grow; above, they grow by the excess (0.1 of both axes' 2 veh/s)."""
    grid = Grid(rows=1, columns=1, yellow=0, min_green=0)
    low, high = _vehicles([0.95, 1.1], _max_pressure, scenes, grid, every=5)
    assert low[2] < low[0] + 8
    assert high[2] - high[0] == pytest.approx(2400 * 2 * 0.1, rel=0.25)


def test_yellow_takes_capacity_from_max_pressure_that_a_plan_keeps(scenes):
    """Three of ten seconds: max-pressure holds 0.6 but not 0.8; a cycle of 60 s (0.9 of green) holds 0.8 but not 0.95."""
    grid = Grid(rows=1, columns=1)
    held, lost = _vehicles([0.6, 0.8], _max_pressure, scenes, grid)
    assert held[2] < held[0] + 5
    assert lost[2] > lost[0] + 50
    held, lost = _vehicles([0.8, 0.95], lambda sim: _plan(sim, [27, 0, 27, 0]), scenes, grid)
    assert held[2] < held[0] + 5
    assert lost[2] > lost[0] + 50
