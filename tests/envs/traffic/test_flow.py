"""What traffic flow theory says of links, queues, turning lanes and spillback, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.envs.traffic.network import LEFT, RIGHT, STRAIGHT, Grid

V, W, JAM, S = 13.89, 5.56, 2 / 7.5, 0.5  # m/s, m/s, veh/m on two lanes, veh/s of a lane
Q = V * W * JAM / (V + W)  # veh/s on two lanes, about 1.059

EASTWARDS = {"shares": (0.0, 1.0, 0.0)}


def test_the_fundamental_diagram():
    """1906 veh/h a lane, 80 vehicles on a full link, 21.6 s of free travel, 53.96 s of backward wave: by hand."""
    grid = Grid()
    assert 3600 * grid.lane_capacity == pytest.approx(1906, abs=0.5)
    assert grid.lanes * grid.lane_capacity == pytest.approx(Q)
    assert grid.storage == pytest.approx(80)
    assert (grid.free_time, grid.wave_time) == pytest.approx((21.598, 53.957), abs=1e-3)


@pytest.mark.parametrize("length", [13.89 * 20, 300.0, 401.3])
def test_a_free_vehicle_takes_length_over_speed_on_every_link(length, scenes):
    """One vehicle, all green: no stop, no step lost at an intersection, whole seconds or not (links are 20 s, 21.6 s, 28.9 s)."""
    sim = scenes.make(Grid(length=length), **EASTWARDS)
    scenes.settle(sim, 2)
    scenes.put(sim, (1, 1, 0), 1.0)
    for _ in range(150):
        sim.tick()
    assert float(sim.exited) == 1.0
    assert float(sim.time_spent) == pytest.approx(4 * length / V, abs=4 / 1024)


def test_a_green_wave_has_no_stops(scenes):
    """Offsets of a free travel time (20 s): a platoon of ten seconds of flow meets green at three lights, and only there."""
    grid = Grid(length=13.89 * 20, min_green=0)
    sim = scenes.make(grid, **EASTWARDS)
    scenes.settle(sim, 0)
    for second in range(120):
        if second < 10:
            scenes.put(sim, (1, 1, 0), 0.9)
        phases = torch.zeros_like(sim.signals.phase)
        for column in range(3):
            at = 20 * (column + 1)  # seconds from an entry to this line
            phases[:, column] = 2 if at - grid.clearance <= second < at + 10 else 0
        sim.signals.request(phases)
        sim.tick()
        assert float((sim.mixed + sim.queues.sum(0)).max()) < 1e-6, second
    assert float(sim.time_spent) == pytest.approx(9.0 * 4 * 20, abs=0.1)
    assert float(sim.vehicles) == pytest.approx(0.0, abs=1e-6)


# turn, heading, entry, the links in order as (heading, row, column)
TURNS = [
    ((1.0, 0.0, 0.0), [(0, 2, 0)]),  # northwards, left: out in the west
    ((1.0, 0.0, 0.0), [(0, 2, 2), (3, 2, 1)]),  # left, left again: out in the south
    ((0.0, 0.0, 1.0), [(0, 2, 0), (1, 2, 1)]),  # right, right again: out in the south
    ((0.0, 0.0, 1.0), [(1, 0, 0), (2, 1, 0)]),
    ((1.0, 0.0, 0.0), [(2, 0, 0), (1, 0, 1)]),
    ((0.0, 0.0, 1.0), [(2, 0, 2), (3, 0, 1)]),
    ((1.0, 0.0, 0.0), [(3, 0, 2), (2, 1, 2)]),
    ((0.0, 1.0, 0.0), [(3, 1, 2), (3, 1, 1), (3, 1, 0)]),
    ((0.0, 1.0, 0.0), [(2, 0, 1), (2, 1, 1), (2, 2, 1)]),
]


@pytest.mark.parametrize(("shares", "route"), TURNS)
def test_vehicles_turn_to_where_the_map_says(shares, route, scenes):
    """Catches left for right, rows that count northwards, and a boundary taken for an inner link."""
    sim = scenes.make(Grid(), shares=shares)
    # vehicles would turn in circles for ever: the second right turn of those that enter at a corner leaves the grid
    scenes.put(sim, route[0], 1.0)
    for second in range(300):
        scenes.hold(sim, second // 12 % 4)
        sim.tick()
    passed = {tuple(place[:3]) for place in (sim.entered > 0.999).nonzero().tolist()}
    assert passed == set(route)
    assert float(sim.exited) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("shares", "phase", "rate"), [((1.0, 0.0, 0.0), 1, S), ((0.0, 1.0, 0.0), 0, 2 * S), ((0.0, 0.7, 0.3), 0, 2 * S)]
)
@pytest.mark.parametrize("lost", [0.0, 1.5])
def test_a_queue_discharges_at_saturation_flow(shares, phase, rate, lost, scenes):
    """From the first second of green (after what start-up loses) until the queue is gone: s, lanes times s, shared by turns."""
    sim = scenes.make(Grid(rows=1, columns=1), shares=shares, lost=torch.tensor([lost], dtype=torch.float64))
    scenes.settle(sim, 2)
    scenes.put(sim, (0, 0, 0), 12.0)
    for _ in range(60):
        sim.tick()
    assert float(sim.queues.sum()) == pytest.approx(12.0, abs=1e-6)
    crossed = []
    for _ in range(3 + 40):
        scenes.hold(sim, phase)
        sim.tick()
        crossed.append(float(sim.left[0, 0, 0]))
    seconds = np.arange(1, 44)
    expected = np.clip((seconds - 3 - lost) * rate, 0, 12)
    np.testing.assert_allclose(crossed, expected, atol=1e-5)


def test_straight_on_and_right_share_lanes_in_proportion_to_their_queues(scenes):
    sim = scenes.make(Grid(rows=1, columns=1), shares=(0.0, 0.7, 0.3))
    scenes.settle(sim, 2)
    scenes.put(sim, (0, 0, 0), 20.0)
    for _ in range(60):
        sim.tick()
    before = sim.queues.clone()
    for _ in range(3 + 10):
        scenes.hold(sim, 0)
        sim.tick()
    gone = (before - sim.queues)[:, 0, 0, 0, 0]
    assert gone.tolist() == pytest.approx([0.0, 7.0, 3.0], abs=1e-5)


def test_demand_above_capacity_grows_at_the_difference(scenes):
    """x > 1: the queues, wherever they stand, grow by q - s g / C. Here g = 27 of C = 60 s, q = 0.6, lanes' s = 1 veh/s."""
    sim = scenes.make(Grid(rows=1, columns=1), demand=[2160, 0, 0, 0], shares=(0.0, 1.0, 0.0))
    present = []
    for second in range(60 * 30):
        scenes.hold(sim, 0 if second % 60 < 30 else 2)  # 3 s of yellow each
        sim.tick()
        present.append(float(sim.vehicles))
    growth = (present[-1] - present[60 * 10 - 1]) / (60 * 20)
    assert growth == pytest.approx(0.6 - 27 / 60, abs=1e-6)
    assert float(sim.origins.max()) > 0


@pytest.mark.parametrize("flow", [0.2, 0.5, 0.9])
def test_a_jam_grows_with_the_speed_of_its_shock(flow, scenes):
    """Rankine and Hugoniot: behind a closed line the shock runs at q / (k_j - q / v) and reaches the entry after L / v + L / u."""
    sim = scenes.make(Grid(rows=1, columns=1, pocket=300), demand=[3600 * flow, 0, 0, 0], shares=(0.0, 1.0, 0.0))
    sim.signals.request(torch.full_like(sim.signals.phase, 2))
    shock = flow / (JAM - flow / V)
    while float(sim.origins.max()) <= 1e-6:
        sim.tick()
    assert 0 <= sim.clock - (300 / V + 300 / shock) < 1.01  # the end of the second in which it happens
    assert float(sim.on_links.max()) == pytest.approx(80, abs=1e-6)


@pytest.mark.parametrize("factor", [0.3, 0.6])
def test_behind_a_bottleneck_stands_the_density_of_the_congested_branch(factor, scenes):
    """A lasting bottleneck c < q: the jam's tail runs at (q - c) / (k(q) - k_j + c / w), and k_j - c / w is left on the link.

    Catches a backward wave that is lost, at once, or of another speed: then the link would hold 80 vehicles, or others.
    """
    flow, passes = 0.8, factor * 1.0
    grid = Grid(rows=1, columns=1, pocket=300)
    saturation = torch.full((4, 1, 1, 1), factor, dtype=torch.float64)
    sim = scenes.make(grid, demand=[3600 * flow, 0, 0, 0], shares=(0.0, 1.0, 0.0), saturation=saturation)
    dense = JAM - passes / W
    shock = (flow - passes) / (dense - flow / V)
    refused = None
    for _ in range(900):
        sim.tick()
        if refused is None and float(sim.origins.max()) > 1e-6:
            refused = sim.clock
    assert refused == pytest.approx(300 / V + 300 / shock, abs=2.0)  # a wave that is lost would be half a minute off
    assert float(sim.on_links[0, 0, 0]) == pytest.approx(300 * dense, abs=0.01)
    before = sim.entered[0, 0, 0].clone()
    for _ in range(100):
        sim.tick()
    assert float(sim.entered[0, 0, 0] - before) == pytest.approx(100 * passes, abs=1e-3)


def test_a_full_link_blocks_the_one_before_and_wakes_after_the_backward_wave(scenes):
    """Spillback: 80 vehicles and not one more; the light before it is green and nothing goes; then L / w until it does."""
    grid = Grid(rows=1, columns=2)
    blocked = torch.ones(4, 1, 2, 1, dtype=torch.float64)
    blocked[1, 0, 1] = 0.0
    changes = {"incident": blocked, "begin": torch.zeros(1).double(), "end": torch.full((1,), 700.0).double()}
    demand = np.zeros(grid.entries)
    demand[grid.entry(1, 0)] = 1800
    sim = scenes.make(grid, demand=demand, shares=(0.0, 1.0, 0.0), **changes)
    entered, left = [], []
    for _ in range(900):
        scenes.hold(sim, 2)
        sim.tick()
        entered.append(float(sim.entered[1, 0, 1]))
        left.append(float(sim.left[1, 0, 1]))
    assert entered[650] == entered[699] == 80.0
    assert float(sim.signals.shown()[0, 1, 0, 0, 0]) == 0  # no left turn,
    assert float(sim.signals.shown()[1, 1, 0, 0, 0]) == 2  # straight on is green
    opened = next(second for second, value in enumerate(left) if value > 0)
    woken = next(second for second, value in enumerate(entered) if value > 80)
    assert opened == 700
    # the wave of a vehicle that crosses in the second from 700 arrives within that from 700 + 53.957
    assert woken == 700 + int(300 / W)
    # from then on the jam takes in what it lets out, one vehicle a second
    assert entered[woken + 30] - entered[woken + 10] == pytest.approx(20.0, abs=1e-5)


def test_a_full_left_pocket_blocks_everybody(scenes):
    """First in, first out: with 0.3 left and no green for it, straight on gets as many as fit before the pocket is full.

    That is 13.33 / 0.3 vehicles of all turns. Catches lanes that bypass a blocked one, and a pocket without an end.
    """
    grid = Grid(rows=1, columns=1)
    sim = scenes.make(grid, demand=[1440, 0, 0, 0], shares=(0.3, 0.6, 0.1))
    pocket = 100 / 7.5
    for _ in range(400):
        sim.tick()  # phase 0: green but for left turns
    queues = sim.queues[:, 0, 0, 0, 0]
    assert float(queues[LEFT]) == pytest.approx(pocket, abs=1e-6)
    assert float(queues[STRAIGHT] + queues[RIGHT]) == pytest.approx(0, abs=1e-6)
    assert float(sim.left[0, 0, 0]) == pytest.approx(pocket / 0.3 * 0.7, abs=1e-5)
    assert float(sim.mixed[0, 0, 0]) > 10
    # the pocket opens: 0.5 veh/s leave it, and every one that does lets 0.7 / 0.3 others through
    before = None
    for second in range(3 + 12):
        scenes.hold(sim, 1)
        sim.tick()
        if second == 4:
            before = sim.queues[:, 0, 0, 0, 0].clone()
    fed = sim.queues[:, 0, 0, 0, 0] - before
    assert float(fed[STRAIGHT] + fed[RIGHT]) == pytest.approx(10 * min(0.5 * 0.7 / 0.3, Q * 0.7), rel=0.02)


def test_a_blocked_right_turn_fills_its_lanes_and_blocks_straight_on(scenes):
    """Right turns into a full link take up the lanes that straight traffic needs; that has room until they are full."""
    grid = Grid(rows=1, columns=2)
    blocked = torch.ones(4, 1, 2, 1, dtype=torch.float64)
    blocked[1, 0, 1] = 0.0  # the link eastwards between both never empties
    demand = np.zeros(grid.entries)
    demand[grid.entry(0, 0)] = 1440
    sim = scenes.make(grid, demand=demand, shares=(0.0, 0.5, 0.5), saturation=blocked)
    for _ in range(900):
        sim.tick()
    assert float(sim.on_links[1, 0, 1]) == 80.0
    queues = sim.queues[:, 0, 0, 0, 0]
    # the last gaps close slowly: blocked vehicles take their part of the lanes' green, too
    assert float(queues[RIGHT]) == pytest.approx(200 / 7.5, abs=0.02)
    assert float(queues[STRAIGHT]) == pytest.approx(0.0, abs=0.02)
    before = sim.left[0, 0, 0].clone()
    for _ in range(50):
        sim.tick()
    assert float(sim.left[0, 0, 0] - before) < 0.02


def test_an_incident_lasts_from_its_first_second_to_before_its_last(scenes):
    """Discharge second by second: 1 veh/s, 0.4 in [40, 50), 1 again; other approaches do not notice."""
    grid = Grid(rows=1, columns=1)
    hit = torch.ones(4, 1, 1, 1, dtype=torch.float64)
    hit[0] = 0.4
    changes = {"incident": hit, "begin": torch.full((1,), 40.0).double(), "end": torch.full((1,), 50.0).double()}
    sim = scenes.make(grid, demand=[3600, 0, 3600, 0], shares=(0.0, 1.0, 0.0), **changes)
    crossed = []
    for _ in range(60):
        sim.tick()
        crossed.append(sim.left[:, 0, 0, 0].clone())
    rates = torch.stack(crossed).diff(dim=0)
    assert rates[30:39, 0].tolist() == pytest.approx([1.0] * 9, abs=1e-5)
    assert rates[39:49, 0].tolist() == pytest.approx([0.4] * 10, abs=1e-5)
    assert rates[49:, 0].tolist() == pytest.approx([1.0] * 10, abs=1e-5)
    assert rates[30:, 2].tolist() == pytest.approx([1.0] * 29, abs=1e-5)
