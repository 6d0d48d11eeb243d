"""The lights: no green too short, no yellow left out, no crossing traffic, by watching colours alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from metarl.envs.traffic.network import PHASES, Grid

RED, YELLOW, GREEN = range(3)


def _groups(shown):
    """Colours (2, 2) of one intersection by phase: the lights of no phase but one may show anything but red."""
    return [int(shown[0 if phase % 2 else 1, phase // 2]) for phase in range(len(PHASES))]


@pytest.mark.parametrize(("yellow", "all_red", "min_green"), [(3, 0, 7), (4, 2, 5), (0, 0, 0), (0, 2, 3)])
def test_colours_follow_each_other_as_they_must(yellow, all_red, min_green, scenes):
    """Random legal requests at every second. Catches greens that are cut short, clearances that are, and two greens at once."""
    grid = Grid(rows=1, columns=2, yellow=yellow, all_red=all_red, min_green=min_green)
    sim = scenes.make(grid, count=2)
    seconds = []
    for _ in range(600):
        legal, phase, age = sim.signals.legal(), sim.signals.phase, sim.signals.age
        assert legal.gather(0, phase[None]).all()  # going on is legal
        ready = age >= yellow + all_red + min_green
        assert torch.equal(legal.all(0), ready | (legal.sum(0) == 4))
        sim.signals.request(scenes.random_requests(sim, [3, 4]))
        seconds.append(sim.signals.shown().clone())
        sim.tick()
    for column, row in itertools.product(range(2), range(2)):
        colours = [_groups(shown[:, :, 0, column, row]) for shown in seconds]
        colours = colours[: 1 + max(second for second, state in enumerate(colours) if GREEN in state)]
        assert all(colour.count(RED) >= 3 for colour in colours)
        runs = [(state, len(list(run))) for state, run in itertools.groupby(map(tuple, colours))]
        greens = [(state.index(GREEN), length) for state, length in runs if GREEN in state]
        assert len(greens) > 20
        assert all(length >= min_green for _, length in greens[1:-1])
        between = [
            [(max(state), length) for state, length in list(gap)]
            for is_green, gap in itertools.groupby(runs, key=lambda run: GREEN in run[0])
            if not is_green
        ]
        expected = [(YELLOW, yellow)] * (yellow > 0) + [(RED, all_red)] * (all_red > 0)
        assert between == [expected] * len(between) if expected else not between
        # yellow is shown to those who had green
        for (before, _), (after, _) in itertools.pairwise(runs):
            assert YELLOW not in after or after.index(YELLOW) == before.index(GREEN)


def test_nothing_crosses_but_on_green_and_after_what_start_up_loses(scenes):
    """Each movement of each approach against the colours shown; start-up losses of 0, 0.25, 2 and 4 s."""
    grid = Grid(rows=2, columns=2, yellow=3, all_red=1)
    lost = torch.tensor([0.0, 0.25, 2.0, 4.0], dtype=torch.float64)
    sim = scenes.make(grid, count=4, demand=1500, lost=lost)
    since = torch.full((2, 2, 2, 2, 4), 100.0)
    seen = 0
    for _ in range(400):
        sim.signals.request(scenes.random_requests(sim, [1, 2, 3, 4]))
        green = sim.signals.shown() == GREEN
        pace = sim._pace if sim.clock else None
        before = sim.queues.clone(), sim.mixed.clone(), sim.reached.clone()
        sim.tick()
        gone = before[0].sum(0) + before[1] + sim.reached - before[2] - sim.mixed - sim.queues.sum(0)
        group = green.any(0)[[0, 1, 0, 1]]  # by heading: whether any movement of the approach has green
        assert (gone[~group] == 0).all()
        since = torch.where(green, since + 1, torch.zeros(()))
        early = (since <= lost.floor()).all(0)[[0, 1, 0, 1]]
        assert (gone[early] == 0).all()
        # the second in which a loss ends passes its part
        part = group & ~early & ((since - lost < 1) & (since > lost)).any(0)[[0, 1, 0, 1]]
        if pace is not None:
            assert (gone[part] <= (1 - lost % 1).expand_as(gone)[part] * 1.0 + 1e-9).all()
        seen += int((gone > 0.4).sum())
    assert seen > 500


def test_left_turns_go_in_phases_of_their_own(scenes):
    """Which movements cross in which phase: catches an axis or a side taken for the other."""
    sim = scenes.make(Grid(rows=1, columns=1), demand=1200, shares=(0.4, 0.3, 0.3))
    crossed = np.zeros((4, 3, 4))
    for second in range(1200):
        phase = second // 20 % 4
        scenes.hold(sim, phase)
        before, mixed, reached = sim.queues.clone(), sim.mixed.clone(), sim.reached.clone()
        sim.tick()
        amount = torch.minimum(mixed + sim.reached - reached - sim.mixed, torch.tensor(9.0).double())
        fed = sim.conditions.shares * amount
        crossed[phase] += (before + fed - sim.queues)[..., 0, 0, 0].clamp(min=1e-6).numpy().round(5)
    rows = [set(zip(*np.nonzero(crossed[phase] > 1.0), strict=True)) for phase in range(4)]
    assert rows == [
        {(1, 0), (2, 0), (1, 2), (2, 2)},
        {(0, 0), (0, 2)},
        {(1, 1), (2, 1), (1, 3), (2, 3)},
        {(0, 1), (0, 3)},
    ]


def test_an_illegal_request_is_refused_and_changes_nothing(scenes):
    sim = scenes.make(Grid(rows=2, columns=2), count=2)
    wanted = torch.zeros_like(sim.signals.phase)
    wanted[1, 0, 1] = 2
    sim.signals.request(wanted)
    for _ in range(9):
        sim.tick()
    assert sim.signals.legal()[:, 1, 0, 1].tolist() == [False, False, True, False]
    assert sim.signals.legal()[:, 0, 0, 0].tolist() == [True] * 4
    before = sim.signals.phase.clone(), sim.signals.age.clone()
    other = wanted.clone()
    other[1, 0, 1], other[0, 0, 0] = 3, 1
    with pytest.raises(ValueError, match="phase 3 is illegal at row 1, column 0 of grid 1"):
        sim.signals.request(other)
    assert torch.equal(sim.signals.phase, before[0])
    assert torch.equal(sim.signals.age, before[1])
    sim.tick()  # ten seconds: three of yellow, seven of green
    sim.signals.request(other)
    for bad in (wanted + 4, wanted - 1):
        with pytest.raises(ValueError, match="is illegal"):
            sim.signals.request(bad)
    with pytest.raises(ValueError, match=r"must be int64 \(2, 2, 2\)"):
        sim.signals.request(wanted[:1])
