"""Tasks as objects, as JSON and as tables; families' distributions; episodes and what they pay."""

from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch

from metarl import families
from metarl.envs.traffic import conditions, detectors
from metarl.envs.traffic.batch import REWARD_SCALE, TrafficBatch
from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.task import TrafficTask, grid_of, table
from metarl.families import EnvFault, Tasks
from metarl.settings import SettingsError

NAMES = ["traffic-grid", "traffic-demand", "traffic-capacity", "traffic-sensor", "traffic-objective"]


def _task(**changes):
    values = {
        "rows": 1,
        "columns": 2,
        "demand": (100.0, 200.0, 300.0, 400.0, 500.0, 600.0),
        "left": (0.1, 0.2, 0.3, 0.4),
        "saturation": tuple(0.5 + 0.05 * i for i in range(8)),
        "incident_approach": 5,
        "incident_factor": 0.25,
        "incident_start": 60.0,
        "incident_duration": 100.0,
        "detector": (1.0, 0, 1, 1, 1, 1, 1, 0),
        "weight": (1.0, 2.0, 1.0, 1.0),
    }
    return TrafficTask(**(values | changes))


def test_a_task_survives_json_and_tables():
    """Every field, by way of text and of a table's row; equal tasks are one key of a dictionary."""
    task = _task(lost_time=1.5, noise=0.1, bias=-0.1, peak_height=0.5, peak_time=300.0, peak_width=60.0)
    assert TrafficTask.from_json(json.loads(json.dumps(task.to_json()))) == task
    row = task.to_tasks()
    assert row["demand_east_0"][0] == 300.0
    assert row["saturation_east_0_1"][0] == 0.5 + 0.05 * 3
    back = TrafficTask.from_tasks(row, 0, TrafficTask(rows=1, columns=2))
    assert back == dataclasses.replace(task, right=(0.25,) * 4)
    assert {task: 1}[_task(**{k: getattr(task, k) for k in ("lost_time", "noise", "bias")} | _peak(task))] == 1
    partial = TrafficTask.from_tasks(Tasks(("noise",), np.array([[0.0], [0.3]])), 1, task)
    assert partial.noise == 0.3
    assert partial.demand == task.demand


def _peak(task):
    return {name: getattr(task, name) for name in ("peak_height", "peak_time", "peak_width")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demand": (-5.0,)}, "demand=-5.0 is too small"),
        ({"demand": (1.0, 2.0)}, "demand has 2 values: a 1x2 grid takes 1 or 6"),
        ({"demand": (3000.0,), "peak_height": 0.5}, "demand_north_0 exceeds 4320 veh/h in its peak"),
        ({"right": (0.7,)}, "left and right turns of heading west exceed 1"),
        ({"saturation": (0.5,) * 7}, "saturation has 7 values"),
        ({"incident_approach": 8}, "incident_approach=8 must be a whole number up to 7"),
        ({"rows": 0}, "rows=0 is too small"),
        ({"noise": float("nan")}, "noise=nan must be a finite number"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        _task(**changes)
    with pytest.raises(SettingsError, match=r"Unknown setting 'satuation'. Did you mean 'saturation'\?"):
        TrafficTask.from_json({"satuation": [1.0]})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("demand_north_0", -1.0, "task 1: demand_north_0=-1 must be between 0 and 4320"),
        ("detector_west_1_1", 2.0, "task 1: detector_west_1_1=2 must be between 0 and 1"),
        ("incident_approach", 3.5, "task 1: incident_approach=3.5 must be a whole number"),
        ("left_south", 0.99, "task 1: shares of left and right turns of heading south exceed 1"),
        ("peak_height", float("nan"), "task 1: peak_height=nan must be"),
    ],
)
def test_bad_rows_of_a_table_are_refused_and_other_batches_go_on(column, value, message):
    family = families.make("traffic-grid", warmup=0)
    tasks, seeds = family.sample_tasks(2, "train", 0), np.arange(2, dtype=np.uint32)
    good, bad = family.batch(2, 1), family.batch(2, 1)
    before = good.reset(tasks, seeds)
    values = tasks.values.copy()
    values[1, tasks.names.index(column)] = value
    with pytest.raises(SettingsError, match=message):
        bad.reset(Tasks(tasks.names, values), seeds)
    with pytest.raises(SettingsError, match="a task of a 2x2 grid has no 'demnd'"):
        bad.reset(Tasks(("demnd",), values[:, :1]), seeds)
    after = good.step(np.zeros((2, 4), np.int64)).observations
    assert not np.array_equal(before, after)


def test_tables_become_the_conditions_they_say():
    task = _task()
    values = table(task.to_tasks(), task)
    grid = grid_of(task)
    given = conditions.conditions(values, grid)
    assert (grid.rows, grid.columns) == (1, 2)
    assert (given.demand[:, 0] * 3600).tolist() == pytest.approx([100, 200, 300, 400, 500, 600])
    assert given.shares[:, 1, 0, 1, 0].tolist() == pytest.approx([0.2, 0.55, 0.25])
    assert given.saturation[1, 0, 1, 0] == 0.5 + 0.05 * 3
    expected = torch.ones(4, 1, 2)
    expected[2, 0, 1] = 0.25  # heading south is approaches 4 and 5
    assert torch.equal(given.incident[..., 0].float(), expected)
    assert (float(given.begin), float(given.end)) == (60.0, 160.0)
    dead = conditions.detectors(values, grid, np.zeros(1, np.uint32)).alive[..., 0] == 0
    assert dead.nonzero().tolist() == [[0, 0, 1], [3, 0, 1]]


def test_loads_by_hand():
    """One intersection, 360 veh/h from everywhere: 0.085 / 1 straight and right, 0.015 / 0.5 left, of both axes; one at half."""
    usual = TrafficTask(rows=1, columns=1, demand=(360.0,))
    worse = dataclasses.replace(usual, saturation=(1.0, 1.0, 0.5, 1.0))
    for task, factor in ((usual, 2.0), (worse, 3.0)):
        load = conditions.loads(table(task.to_tasks(), task), Grid(rows=1, columns=1))
        assert load[0] == pytest.approx(factor * (0.085 + 0.03))


@pytest.mark.parametrize("rows", [2, 3])
def test_demand_can_be_served(rows):
    """Loads in the mean of the peak stay at 0.95, many are below, and none is scaled more than needed."""
    family = families.make("traffic-grid", rows=rows, columns=rows)
    tasks = family.sample_tasks(100, "train", 3)
    values = table(tasks, TrafficTask(rows=rows, columns=rows))
    seconds = 120 + 1200
    mean = 1 + values["peak_height"][0] * values["peak_width"][0] * np.sqrt(2 * np.pi) / seconds
    loads = conditions.loads(values, Grid(rows=rows, columns=rows)) * mean
    assert loads.max() <= 0.95 + 1e-9
    assert 0.05 < (loads > 0.95 - 1e-6).mean() < 0.9
    assert (values["demand"] * (1 + values["peak_height"])).max() <= 3600 + 1e-6


def test_families_draw_what_they_say():
    """Means, ends and frequencies of a thousand tasks' columns."""
    count = 1000
    tasks = families.make("traffic-demand").sample_tasks(count, "train", 0)
    values = table(tasks, TrafficTask())
    turns = np.stack([values["left"], 1 - values["left"] - values["right"], values["right"]]).mean((1, 2))
    assert turns.tolist() == pytest.approx([0.15, 0.6, 0.25], abs=0.01)
    # a Dirichlet of concentration 20: variance p (1 - p) / 21
    assert values["left"].var() == pytest.approx(0.15 * 0.85 / 21, rel=0.1)
    light = values["demand"][0] / values["demand"][2]  # two sides' factors: log-normal of sqrt(2) * 0.45
    assert np.log(light).std() == pytest.approx(0.45 * np.sqrt(2), rel=0.1)
    assert np.array_equal(values["demand"][0], values["demand"][1])  # a side's entries are alike
    assert values["peak_time"].min() > 0.2 * 1320
    assert values["peak_time"].max() < 0.8 * 1320
    values = table(families.make("traffic-capacity").sample_tasks(count, "train", 0), TrafficTask())
    assert values["saturation"].mean((1,)).tolist() == pytest.approx([0.725] * 16, abs=0.03)
    assert np.bincount(values["incident_approach"][0].astype(int), minlength=16).min() > 30
    assert (values["demand"] == 500).all()
    values = table(families.make("traffic-sensor").sample_tasks(count, "train", 0), TrafficTask())
    assert values["detector"].mean() == pytest.approx(0.7, abs=0.02)
    assert set(np.unique(values["detector"])) == {0.0, 1.0}
    weights = table(families.make("traffic-objective").sample_tasks(count, "train", 0), TrafficTask())["weight"]
    assert weights.mean(0).tolist() == pytest.approx([1.0] * count)
    ratios = np.log(weights[:, None] / weights)[
        np.triu_indices(4, 1)
    ]  # of two: log-normal of sqrt(2) * 0.9, hardly cut
    assert ratios.std(1).tolist() == pytest.approx([0.9 * np.sqrt(2)] * 6, rel=0.1)
    names = {name: families.make(name).sample_tasks(1, "train", 0).names for name in NAMES}
    parts = {name for family in NAMES[1:4] for name in names[family]}
    assert set(names["traffic-grid"]) == parts


@pytest.mark.parametrize("name", NAMES)
def test_families_say_what_is_wrong(name):
    for changes in ({"rows": 0}, {"interval": 0}):
        with pytest.raises(SettingsError):
            families.make(name, **changes)
    if name in ("traffic-grid", "traffic-demand"):
        with pytest.raises(SettingsError, match="demand_low=900 must be smaller than demand_high=800"):
            families.make(name, demand_low=900, demand_high=800)


@pytest.mark.parametrize("interval", [10, 4])
def test_rewards_sum_to_the_time_spent(interval):
    """-100 N times the return is the vehicle-seconds after the warm-up; over the demand, it is the mean time of trips."""
    family = families.make("traffic-grid", horizon=15, interval=interval, warmup=30)
    tasks, seeds = family.sample_tasks(3, "train", 0), np.arange(3, dtype=np.uint32)
    env = family.batch(3, 1)
    env.reset(tasks, seeds)
    assert env.simulator.clock == 30
    start = env.simulator.time_spent.clone()
    total, ends = np.zeros(3), []
    for step in range(15):
        legal = env.simulator.signals.free.all(0).all(0).numpy()
        actions = np.where(legal[:, None], step % 4, env.simulator.signals.phase.flatten(0, 1).T.numpy())
        result = env.step(actions.astype(np.int64))
        total += result.rewards
        ends.append(result.truncated.all())
    spent = (env.simulator.time_spent - start).numpy()
    np.testing.assert_allclose(-total * REWARD_SCALE * 4, spent, rtol=1e-5)
    assert ends == [False] * 14 + [True]
    assert env.simulator.clock == 30 + 15 * interval
    last = env.step(np.full((3, 4), 9))  # it is over: stepped on and ignored
    assert (last.rewards == 0).all()
    assert env.simulator.clock == 30 + 15 * interval


def test_weights_of_headings_change_the_objective():
    """Northbound vehicles count three times, on approaches and at entries; those on exits once."""
    task = TrafficTask(rows=1, columns=1, demand=(900.0,), weight=(3.0, 1.0, 1.0, 0.0))
    env = TrafficBatch(task, 5, 10, 0)
    env.reset(Tasks(("noise",), np.zeros((1, 1))), np.zeros(1, np.uint32))
    twin = TrafficBatch(dataclasses.replace(task, weight=(1.0,)), 5, 10, 0)
    twin.reset(Tasks(("noise",), np.zeros((1, 1))), np.zeros(1, np.uint32))
    sim, expected = twin.simulator, 0.0
    for _ in range(5):
        paid = env.step(np.zeros((1, 1), np.int64)).rewards[0]
        expected = 0.0
        for _ in range(10):
            sim.tick()
            by_heading = (sim.on_links + sim.origins)[:, 0, 0, 0]
            expected += float(sim.vehicles[0] + 2 * by_heading[0] - by_heading[3])
        assert paid == pytest.approx(-expected / 100, rel=1e-6)
    assert expected > 0


def test_observations_are_the_detectors_and_the_legal_phases():
    """Two seconds between decisions: too soon for another phase, and the mask says so; a forbidden one is a fault."""
    family = families.make("traffic-sensor", interval=2, warmup=60)
    tasks, seeds = family.sample_tasks(2, "train", 0), np.array([7, 8], dtype=np.uint32)
    env = family.batch(2, 1)
    first = env.reset(tasks, seeds)
    assert first.shape == (2, 4 * 25 + 16)
    values = table(tasks, TrafficTask())
    seen = conditions.detectors(values, Grid(rows=2, columns=2), seeds).read(env.simulator)
    expected = detectors.observation(env.simulator, seen).flatten(1)
    np.testing.assert_array_equal(first[:, :100], expected.numpy().astype(np.float32))
    assert (first[:, 100:] == 1).all()
    actions = np.zeros((2, 4), np.int64)
    now = env.simulator.signals.phase[0, 1].numpy()
    actions[:] = env.simulator.signals.phase.flatten(0, 1).T.numpy()
    actions[:, 1] = (now + 1) % 4
    observations = env.step(actions).observations
    mask = observations[:, 100:].reshape(2, 4, 4)
    assert (mask[:, 1].argmax(1) == actions[:, 1]).all()
    assert mask.sum(2).tolist() == [[4, 1, 4, 4]] * 2
    wrong = actions.copy()
    wrong[1, 1] = (wrong[1, 1] + 2) % 4
    with pytest.raises(EnvFault, match="illegal phase") as caught:
        env.step(wrong)
    assert caught.value.envs.tolist() == [1]
    env.step(actions)  # the others, and this one, go on


def test_the_oracle_sees_the_task_and_the_grid_grows():
    plain, oracle = (families.make("traffic-capacity", rows=1, columns=3, oracle=o).spec for o in (False, True))
    assert (plain.observation_size, plain.choices.counts, plain.choices.masked) == (29 * 3, (4, 4, 4), True)
    assert oracle.oracle
    assert len(plain.parameters) == 12 + 5
    assert plain.control_step == 10.0


def test_a_slow_control_step_still_makes_a_video():
    """A tenth of a picture a second is none: 10 s decisions are shown four a second, others in real time."""
    rates = {
        name: families.make(name).spec.frames_per_second
        for name in ("traffic-grid", "halfcheetah-vel", "navigation-2d")
    }
    assert rates == {"traffic-grid": 4, "halfcheetah-vel": 20, "navigation-2d": 20}
    env = gymnasium.make("metarl/traffic-sensor-v0", warmup=0, horizon=3, render_mode="rgb_array")
    env.reset(seed=0)
    steps = [env.step(np.zeros(4, np.int64)) for _ in range(3)]
    assert [step[3] for step in steps] == [False, False, True]
    assert env.render().ndim == 3


def test_a_grid_can_be_drawn():
    """Not blank, of the size asked for, and another picture when the lights change."""
    family = families.make("traffic-grid")
    env = family.batch(2, 1)
    env.reset(family.sample_tasks(2, "train", 0), np.arange(2, dtype=np.uint32))
    picture = env.render(1, 320, 240)
    assert (picture.shape, picture.dtype) == ((240, 320, 3), np.uint8)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    env.step(np.full((2, 4), 2))
    assert (env.render(1, 320, 240) != picture).any()
