"""The reference controllers against rules computed by hand, one intersection at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.envs.traffic import controllers, detectors
from metarl.envs.traffic.conditions import link_flows
from metarl.envs.traffic.controllers import Actuated, FixedTime, LongestQueue, MaxPressure, Random, SelfOrganizing
from metarl.envs.traffic.detectors import Readings
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.simulator import GridSim

# (movement, heading) of each phase's lights: 0 left, 1 straight, 2 right; 0 north, 1 east, 2 south, 3 west
LIGHTS = [
    [(1, 0), (2, 0), (1, 2), (2, 2)],
    [(0, 0), (0, 2)],
    [(1, 1), (2, 1), (1, 3), (2, 3)],
    [(0, 1), (0, 3)],
]
# where a movement leads: movement and heading to (heading out, rows down, columns right)
STEP = [(-1, 0), (0, 1), (1, 0), (0, -1)]


def _scene(scenes, seed=0):
    """A 2x3 grid with random readings; every intersection may change."""
    sim = scenes.make(Grid(rows=2, columns=3), count=3)
    rng = np.random.default_rng(seed)
    seen = Readings(torch.as_tensor(rng.uniform(0, 13, (3, 4, 2, 3, 3))), torch.zeros(4, 2, 3, 3).double())
    sim.signals.phase = torch.as_tensor(rng.integers(0, 4, (2, 3, 3)))
    return sim, seen


def _places():
    return [(r, c, b) for r in range(2) for c in range(3) for b in range(3)]


@pytest.mark.parametrize("stay", [0.0, 5.0])
def test_max_pressure_is_varaiyas_formula(stay, scenes):
    """Movement by movement in plain Python, downstream queues looked up on the map."""
    for seed in range(5):
        sim, seen = _scene(scenes, seed)
        shares = np.random.default_rng(seed).dirichlet([1, 1, 1], (4, 2, 3, 3))
        shares = torch.as_tensor(np.moveaxis(shares, -1, 0).copy())
        chosen = MaxPressure(shares, stay)(sim, seen)
        for r, c, b in _places():
            scores = []
            for phase, lights in enumerate(LIGHTS):
                score = stay * (phase == int(sim.signals.phase[r, c, b]))
                for movement, heading in lights:
                    out = (heading + movement - 1) % 4
                    row, column = r + STEP[out][0], c + STEP[out][1]
                    joined = 0.0
                    if 0 <= row < 2 and 0 <= column < 3:
                        joined = sum(
                            float(shares[p, out, row, column, b] * seen.queues[p, out, row, column, b])
                            for p in range(3)
                        )
                    score += (1 if movement == 0 else 2) * (float(seen.queues[movement, heading, r, c, b]) - joined)
                scores.append(score)
            assert int(chosen[r, c, b]) == int(np.argmax(scores)), (r, c, b, scores)


def test_the_longest_queue_goes_first_and_ties_go_to_the_lowest(scenes):
    sim, seen = _scene(scenes)
    chosen = LongestQueue()(sim, seen)
    for r, c, b in _places():
        scores = [sum(float(seen.queues[m, h, r, c, b]) for m, h in lights) for lights in LIGHTS]
        assert int(chosen[r, c, b]) == int(np.argmax(scores))
    nothing = Readings(torch.zeros_like(seen.queues), seen.upstream)
    assert (LongestQueue()(sim, nothing) == 0).all()
    assert torch.equal(LongestQueue(1.0)(sim, nothing), sim.signals.phase)


def test_nobody_asks_for_what_is_illegal(scenes):
    """Each controller at every second, when most changes are illegal; the simulator would raise."""
    grid = Grid(rows=2, columns=2, all_red=1)
    conditions, seeds = scenes.varied(grid, 4), np.arange(4, dtype=np.uint32)
    durations = torch.tensor([12.0, 0.0, 15.0, 11.0]).double().reshape(4, 1, 1, 1).repeat(1, 2, 2, 4)
    fixed = FixedTime(durations, torch.zeros(2, 2, 4).double())
    rules = [Random(seeds), fixed, controllers.webster(grid, conditions), MaxPressure(conditions.shares)]
    rules += [LongestQueue(), Actuated(), SelfOrganizing()]
    for rule in rules:
        sim, changes = GridSim(grid, conditions, seeds), 0
        for _ in range(120):
            before = sim.signals.phase
            sim.signals.request(rule(sim, Readings.exact(sim)))
            changes += int((before != sim.signals.phase).sum())
            sim.tick()
        assert changes > 16, rule  # and it does something


def test_a_fixed_plan_is_its_clock(scenes):
    """Phases 0, 2, 3 for 12, 15 and 11 s; the second intersection 9 s later."""
    sim = scenes.make(Grid(rows=1, columns=2))
    durations = torch.tensor([12.0, 0.0, 15.0, 11.0]).double().reshape(4, 1, 1, 1).repeat(1, 1, 2, 1)
    plan = FixedTime(durations, torch.tensor([[[0.0], [9.0]]]).double())
    expected = [0] * 12 + [2] * 15 + [3] * 11
    for second in range(100):
        sim.signals.request(plan(sim, Readings.exact(sim)))
        # before its offset the second one is at the end of a cycle
        assert (
            sim.signals.phase[0, :, 0].tolist() == [expected[(second - offset) % 38] for offset in (0, 9)]
            or second < 12
        )
        sim.tick()


def test_flows_on_links_are_what_a_walk_of_vehicles_gives(scenes):
    """Expected visits by following vehicles turn by turn in plain Python; and what goes in comes out."""
    grid = Grid(rows=2, columns=3)
    conditions = scenes.varied(grid, 2)
    flow = link_flows(conditions.demand, conditions.shares)
    entries = [(0, 1, c) for c in range(3)] + [(1, r, 0) for r in range(2)]
    entries += [(2, 0, c) for c in range(3)] + [(3, r, 2) for r in range(2)]
    visits = np.zeros((4, 2, 3))
    going = {place: float(conditions.demand[e, 1]) for e, place in enumerate(entries)}
    out = 0.0
    for _ in range(200):
        following: dict[tuple[int, int, int], float] = {}
        for (h, r, c), amount in going.items():
            visits[h, r, c] += amount
            for movement in range(3):
                heading = (h + movement - 1) % 4
                row, column = r + STEP[heading][0], c + STEP[heading][1]
                part = amount * float(conditions.shares[movement, h, r, c, 1])
                if 0 <= row < 2 and 0 <= column < 3:
                    following[heading, row, column] = following.get((heading, row, column), 0.0) + part
                else:
                    out += part
        going = following
    np.testing.assert_allclose(flow[..., 1].numpy(), visits, rtol=1e-6)
    assert out == pytest.approx(float(conditions.demand[:, 1].sum()), rel=1e-9)


def test_websters_plan_by_hand(scenes):
    """One intersection, y = 0.3, 0.1, 0.2, 0.05: L = 4 * (3 + 1) = 16 s, C = 29 / 0.35 = 82.9 s, greens (66.9 s) as y / Y."""
    flows = {(0, "through"): 0.3, (0, "left"): 0.1, (1, "through"): 0.2, (1, "left"): 0.05}
    north = 2 * flows[0, "through"] * 0.5 + flows[0, "left"] * 0.5  # veh/s: two lanes and one, of 0.5 veh/s each
    east = 2 * flows[1, "through"] * 0.5 + flows[1, "left"] * 0.5
    grid = Grid(rows=1, columns=1)
    shares = torch.zeros(3, 4, 1, 1, 1).double()
    for heading, total, left in ((0, north, 0.05), (1, east, 0.025), (2, north, 0.05), (3, east, 0.025)):
        shares[:, heading, 0, 0, 0] = torch.tensor([left, 0.5 * (total - left), 0.5 * (total - left)]) / total
    shares /= shares.sum(0)
    demand = np.array([north, east, 0.5 * north, 0.5 * east]) * 3600  # the busier approach counts
    one = torch.tensor([1.0]).double()
    conditions = scenes.conditions(grid, demand=demand, lost=one)
    conditions = type(conditions)(**{**vars(conditions), "shares": shares})
    greens = np.array([0.3, 0.1, 0.2, 0.05]) / 0.65 * ((1.5 * 16 + 5) / 0.35 - 16)
    expected = np.round(np.maximum(greens + 1, grid.min_green)) + 3
    plan = controllers.webster(grid, conditions)
    assert plan.durations[:, 0, 0, 0].tolist() == expected.tolist()
    assert expected.tolist() == [35.0, 14.0, 25.0, 10.0]
    heavy = type(conditions)(**{**vars(conditions), "demand": conditions.demand * 2})
    assert float(controllers.webster(grid, heavy).durations.sum()) == pytest.approx(160 + 0, abs=6)


def test_vehicles_that_never_leave_are_refused(scenes):
    """Entries go straight on into a ring of left turns, which has no end."""
    grid = Grid(rows=2, columns=2)
    shares = scenes.conditions(grid, shares=(0.0, 1.0, 0.0)).shares
    for heading, row, column in ((1, 1, 1), (0, 0, 1), (3, 0, 0), (2, 1, 0)):
        shares[:, heading, row, column, 0] = torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="for ever"):
        link_flows(scenes.conditions(grid, demand=100).demand, shares)


def test_an_actuated_green_ends_with_its_queue_or_its_time(scenes):
    """Four intersections: a queue goes on; it has gone; its time is over; nobody else waits."""
    grid = Grid(rows=1, columns=4)
    sim = scenes.make(grid)
    queues = torch.zeros(3, 4, 1, 4, 1).double()
    queues[1, 0, 0, 0] = queues[1, 0, 0, 2] = 5.0  # phase 0
    queues[0, 3, 0, :3] = 4.0  # phase 3
    queues[2, 1, 0, 2] = 2.0  # phase 2 comes before
    sim.signals.age[:] = torch.tensor([30.0, 30.0, 48.0, 100.0]).double().reshape(1, 4, 1)
    chosen = Actuated()(sim, Readings(queues, queues[0]))
    assert chosen[0, :, 0].tolist() == [0, 3, 2, 0]
    sim.signals.age[:] = 9.0  # six seconds of green are too short for a change
    assert Actuated()(sim, Readings(queues, queues[0]))[0, :, 0].tolist() == [0, 0, 0, 0]


def test_self_organizing_lights_by_their_thresholds(scenes):
    """3 go and 7 wait: change; 4 go: not; 3 go and 6 wait: not; nobody goes and one waits: change; nobody at all: not."""
    sim = scenes.make(Grid(rows=1, columns=5))
    queues = torch.zeros(3, 4, 1, 5, 1).double()
    queues[1, 2, 0] = torch.tensor([3.0, 4.0, 3.0, 0.0, 0.0])[:, None]
    queues[0, 1, 0] = torch.tensor([7.0, 7.0, 6.0, 1.0, 0.0])[:, None]
    chosen = SelfOrganizing()(sim, Readings(queues, queues[0]))
    assert chosen[0, :, 0].tolist() == [3, 0, 0, 3, 0]


def test_random_phases_are_even_and_a_grids_own(scenes):
    sim = scenes.make(Grid(), count=500)
    seeds = np.arange(500, dtype=np.uint32)
    chosen = Random(seeds)(sim, Readings.exact(sim))
    counts = torch.bincount(chosen.flatten(), minlength=len(PHASES))
    assert (abs(counts - 1125) < 5 * np.sqrt(1125 * 0.75)).all()
    few = scenes.make(Grid(), count=2)
    assert torch.equal(Random(seeds[[7, 3]])(few, Readings.exact(few)), chosen[..., [7, 3]])


def test_the_order_of_controllers_is_the_known_one(scenes):
    """Mean time of a trip on 3x3, 600 veh/h an entry: random is far worse than a plan, feedback is better than it."""
    grid, count = Grid(), 6
    conditions, seeds = scenes.conditions(grid, count, demand=600), np.arange(count, dtype=np.uint32)
    rules = {
        "random": Random(seeds),
        "webster": controllers.webster(grid, conditions),
        "actuated": Actuated(),
        "pressure": MaxPressure(conditions.shares),
    }
    times = {}
    for name, rule in rules.items():
        sim = GridSim(grid, conditions, seeds)
        for second in range(600):
            if second % 10 == 0:
                sim.signals.request(rule(sim, Readings.exact(sim)))
            sim.tick()
        times[name] = float(sim.time_spent.sum() / sim.demanded.sum())
    assert times["pressure"] < times["actuated"] < times["webster"] < 0.8 * times["random"]
    assert times["pressure"] > grid.free_time * 2


def test_detectors_fail_as_they_are_told(scenes):
    """Dead ones read 0, biased ones too much, noisy ones around the truth; a grid's noise is its own."""
    grid, count = Grid(rows=2, columns=2), 300
    sim = GridSim(grid, scenes.conditions(grid, count, demand=900), np.zeros(count, dtype=np.uint32))
    for _ in range(90):
        sim.tick()
    exact = Readings.exact(sim)
    seeds = np.arange(count, dtype=np.uint32)
    sound = detectors.sound(grid, seeds, torch.device("cpu"))
    assert torch.equal(sound.read(sim).queues, exact.queues)
    assert torch.equal(sound.read(sim).upstream, exact.upstream)
    noise, bias = torch.full((count,), 0.2).double(), torch.full((count,), -0.1).double()
    alive = sound.alive.clone()
    alive[2, 1, 0] = 0.0
    faulty = detectors.Detectors(alive, noise, bias, sound.keys)
    seen = faulty.read(sim)
    assert (seen.queues[:, 2, 1, 0] == 0).all()
    assert (seen.approaching[2, 1, 0] == 0).all()
    ratio = (seen.upstream / exact.upstream)[0, 1, 0]
    assert float(ratio.mean()) == pytest.approx(0.9, abs=4 * 0.18 / count**0.5)
    assert float(ratio.std()) == pytest.approx(0.18, rel=0.15)
    other = (seen.queues[1] / exact.queues[1])[1, 1, 0]
    assert abs(np.corrcoef(ratio.numpy(), other.numpy())[0, 1]) < 4 / count**0.5  # counts err apart
    assert torch.equal(seen.upstream, faulty.read(sim).upstream)
    sim.tick()
    later = (faulty.read(sim).upstream / Readings.exact(sim).upstream)[0, 1, 0]
    assert abs(np.corrcoef(ratio.numpy(), later.numpy())[0, 1]) < 4 / count**0.5  # and from second to second


def test_an_observation_says_what_its_table_says(scenes):
    """All 25 numbers of one intersection, looked up one by one."""
    grid = Grid(rows=2, columns=3)
    sim = GridSim(grid, scenes.varied(grid, 2), np.arange(2, dtype=np.uint32))
    for _ in range(200):
        sim.signals.request(scenes.random_requests(sim, [1, 2]))
        sim.tick()
    seen = Readings.exact(sim)
    table = detectors.observation(sim, seen)
    assert table.shape == (2, 6, detectors.FEATURES)
    for r, c in ((0, 0), (1, 1), (0, 2)):
        row = table[1, 3 * r + c].tolist()
        expected = [float(seen.queues[m, h, r, c, 1]) * 7.5 / 100 / (2 if m else 1) for m in range(3) for h in range(4)]
        expected += [float(seen.upstream[h, r, c, 1]) / 80 for h in range(4)]
        for h in range(4):
            row_, column = r + STEP[h][0], c + STEP[h][1]
            inside = 0 <= row_ < 2 and 0 <= column < 3
            expected.append(float(sim.on_links[h, row_, column, 1]) / 80 if inside else 0.0)
        expected += [float(sim.signals.phase[r, c, 1] == phase) for phase in range(4)]
        expected.append(min(float(sim.signals.age[r, c, 1]) / 60, 2.0))
        assert row == pytest.approx(expected, abs=1e-9)
