"""What holds at every second, whatever the traffic: nothing appears or vanishes, bounds, independence, symmetry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.simulator import Conditions, GridSim

SHAPES = [(1, 1), (2, 3), (3, 3), (1, 6)]


def _chosen(conditions, rows):
    values = {f.name: getattr(conditions, f.name)[..., rows] for f in dataclasses.fields(conditions)}
    return Conditions(**values)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_no_vehicle_appears_or_vanishes_and_no_bound_is_broken(rows, columns, scenes):
    """Exactly, with ==, at every second of an overloaded grid: catches rounding, and a flow taken here and not put there."""
    grid = Grid(rows=rows, columns=columns)
    count, spilled, blocked = 4, 0, 0
    sim = GridSim(grid, scenes.varied(grid, count), np.arange(count, dtype=np.uint32))
    capacity = grid.lanes * grid.lane_capacity
    before = scenes.state(sim)
    for _ in range(500):
        sim.signals.request(scenes.random_requests(sim, range(count)))
        sim.tick()
        after = {name: value.clone() for name, value in scenes.state(sim).items()}
        everywhere = [after[name].sum((0, 1, 2)) for name in ("origins", "on_links")]
        assert torch.equal(sim.demanded, sum(everywhere) + sim.on_exits + sim.exited)
        assert torch.equal(after["on_links"], after["in_transit"] + after["mixed"] + after["queues"].sum(0))
        assert all((value >= 0).all() for value in after.values())
        amounts = [after[name] for name in ("mixed", "queues", "origins", "entered", "left")]
        assert all(((value * 2**30) % 1 == 0).all() for value in amounts)  # or sums would depend on their order
        assert (after["on_links"] <= grid.storage).all()
        assert (after["queues"][0] <= grid.pocket_storage).all()
        assert (after["queues"][1] + after["queues"][2] <= grid.pocket_storage * grid.lanes).all()
        entered, left = (after[name] - before[name] for name in ("entered", "left"))
        assert ((entered >= 0) & (entered <= capacity)).all()
        assert (left >= 0).all()
        assert torch.equal(after["time_spent"], before["time_spent"] + sim.vehicles)
        spilled += int((after["on_links"] > grid.storage - 1e-6).sum())
        blocked += int((after["mixed"] > 1).sum())
        before = after
    assert blocked > 0
    assert spilled > 0  # or the bounds above were never reached
    assert (sim.exited > 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 3)])
def test_a_grid_does_not_depend_on_the_others(rows, columns, scenes):
    """Bit for bit, alone, in a few and in many, in another order: catches one stream for all, and sums in another order."""
    grid = Grid(rows=rows, columns=columns)
    whole, seeds = scenes.varied(grid, 33), np.arange(100, 133, dtype=np.uint32)
    selections = [list(range(33)), [5], [32, 5], [7, 5, 1], list(range(5, 22))]
    last = []
    for selection in selections:
        sim = GridSim(grid, _chosen(whole, selection), seeds[selection])
        for _ in range(150):
            sim.signals.request(scenes.random_requests(sim, seeds[selection]))
            sim.tick()
        at = selection.index(5)
        last.append({name: value[..., at].clone() for name, value in scenes.state(sim).items()})
    for other in last[1:]:
        for name, value in last[0].items():
            assert torch.equal(value, other[name]), name
    assert last[0]["exited"] > 0


def test_the_same_seed_is_the_same_episode_and_another_is_another(scenes):
    grid = Grid(rows=2, columns=2)

    def play(first_seed):
        sim = GridSim(grid, scenes.varied(grid, 3), np.arange(first_seed, first_seed + 3, dtype=np.uint32))
        for _ in range(100):
            scenes.hold(sim, 0)
            sim.tick()
        return sim

    one, two, other = play(1), play(1), play(50)
    assert all(torch.equal(value, scenes.state(two)[name]) for name, value in scenes.state(one).items())
    assert (one.demanded != other.demanded).all()


def test_turning_the_town_turns_everything(scenes):
    """A quarter turn clockwise: (r, c) goes to (c, R - 1 - r), heading h to h + 1. Catches a slip in one heading or turn."""
    size, count = 3, 2
    grid = Grid(rows=size, columns=size)

    def spun(links):  # (..., H, R, C, B)
        return links.transpose(-3, -2).flip(-2).roll(1, -4)

    given = scenes.varied(grid, count)
    north, east, south, west = given.demand.split(size)
    # from the south by column becomes from the west by row, ..., from the west by row becomes from the north, mirrored
    demand = torch.cat([west.flip(0), north, east.flip(0), south])
    turned = dataclasses.replace(
        given,
        demand=demand,
        shares=spun(given.shares).contiguous(),
        saturation=spun(given.saturation).contiguous(),
        incident=spun(given.incident).contiguous(),
    )
    seeds = np.arange(count, dtype=np.uint32)
    first, second = (GridSim(grid, c, seeds, poisson=False) for c in (given, turned))
    # both begin with phase 0, which turns into phase 2: let that be over first
    for sim, phase in ((first, 0), (second, 2)):
        scenes.hold(sim, phase)
        sim.signals.age[:] = 60.0
    for _ in range(400):
        phases = scenes.random_requests(first, seeds)
        first.signals.request(phases)
        second.signals.request(((phases + 2) % 4).transpose(0, 1).flip(1).contiguous())
        first.tick()
        second.tick()
    for name in ("mixed", "queues", "origins", "entered", "left"):
        assert torch.equal(spun(scenes.state(first)[name]), scenes.state(second)[name]), name
    for name in ("demanded", "exited", "time_spent"):
        assert torch.equal(scenes.state(first)[name], scenes.state(second)[name]), name
    assert (first.on_links > grid.storage - 1).any()


def test_the_time_spent_is_the_area_between_arrivals_and_exits(scenes):
    """Trips' mean time from the two cumulative curves, each vehicle by itself, against the sum over seconds."""
    grid = Grid(rows=2, columns=2)
    sim = GridSim(grid, scenes.varied(grid, 1), np.zeros(1, dtype=np.uint32))
    curves = []
    for second in range(600):
        scenes.hold(sim, second // 20 % 4)
        sim.tick()
        curves.append((float(sim.demanded), float(sim.exited)))
    demanded, exited = np.array(curves).T
    # vehicle n (in thousandths) comes in the first second that has counted it, and is gone in the first that has seen it go
    number = np.arange(0.0005, demanded[-1], 0.001)
    came = np.searchsorted(demanded, number)
    gone = np.searchsorted(exited, number)  # 600 where it has not left: unfinished trips count, too
    assert float(sim.time_spent) == pytest.approx(0.001 * (gone - came).sum(), rel=1e-3)


def test_conditions_that_make_no_sense_are_refused(scenes):
    """Shares above 1 would make vehicles from nothing, a demand beyond the arrivals' reach would be cut off in silence."""
    grid = Grid(rows=1, columns=1)
    good = scenes.conditions(grid, 2)
    for change, message in [
        ({"shares": good.shares * 1.1}, "sum to 1"),
        ({"demand": good.demand - 1.0}, "demand must be finite"),
        ({"demand": good.demand + 1.3}, "4320 veh/h"),
        ({"saturation": good.saturation * float("nan")}, "saturation must be finite"),
        ({"course": good.course * 0.0}, "width of a peak"),
        ({"course": good.course + 1.1}, "a tide at most 1"),
        ({"lost": good.lost.float()}, "float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change)
    with pytest.raises(ValueError, match=r"demand must have shape \(4, 3\), got \(4, 2\)"):
        GridSim(grid, good, np.zeros(3, dtype=np.uint32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_computes_the_same_bits(scenes):
    grid = Grid()
    given, seeds = scenes.varied(grid, 5), np.arange(5, dtype=np.uint32)
    moved = Conditions(**{f.name: getattr(given, f.name).cuda() for f in dataclasses.fields(given)})
    here, there = GridSim(grid, given, seeds), GridSim(grid, moved, seeds)
    for _ in range(300):
        phases = scenes.random_requests(here, seeds)
        here.signals.request(phases)
        there.signals.request(phases.cuda())
        here.tick()
        there.tick()
    for name, value in scenes.state(here).items():
        assert torch.equal(value, scenes.state(there)[name].cpu()), name
