"""SUMO as the simulator of the same grids; skipped where the extra is missing. What is compared needs no SUMO."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
from scipy import stats

from experiments import traffic, traffic_speed, traffic_store, traffic_sumo
from metarl import evaluate, families, train
from metarl.envs.traffic import families as traffic_families
from metarl.envs.traffic import headroom, sumo_network, sumo_simulator, sumo_worker
from metarl.envs.traffic.controllers import FixedTime, LongestQueue
from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.sumo_simulator import SumoSim
from metarl.families import EnvFault
from metarl.settings import SettingsError

THERE = all(importlib.util.find_spec(name) for name in ("sumo", "libsumo"))
needs_sumo = pytest.mark.skipif(not THERE, reason="the extra sumo is not installed")
ONE = Grid(rows=1, columns=1)


@pytest.fixture
def sims(scenes):
    """Make simulations in SUMO."""

    def make(grid=ONE, count=1, seed=0, **conditions):
        return SumoSim(
            grid, scenes.conditions(grid, count, **conditions), np.arange(seed, seed + count, dtype=np.uint32)
        )

    return make


def _hold(sim, phase, seconds):
    for _ in range(seconds):
        wanted = torch.full_like(sim.signals.phase, phase)
        sim.signals.request(torch.where(sim.signals.free, wanted, sim.signals.phase))
        sim.tick()


def test_turns_and_neighbours_by_hand():
    """Who goes north in row 1 of two comes to row 0; a left turn of eastbound traffic goes north; borders lead out."""
    grid = Grid(rows=2, columns=2)
    assert [sumo_network.after(1, movement) for movement in range(3)] == [0, 1, 2]
    assert sumo_network.ahead(grid, (1, 1, 0), 0) == (0, 0, 0)
    assert sumo_network.ahead(grid, (1, 1, 1), 1) is None
    assert sumo_network.onto(grid, (1, 1, 0), 0) == "a_0_0_0"
    assert sumo_network.onto(grid, (1, 1, 0), 2) == "x_2_1_0"
    entries = sumo_simulator._entries(Grid(rows=1, columns=2))
    assert entries == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (2, 0, 0), (2, 0, 1), (3, 0, 1)]


@needs_sumo
def test_vehicles_are_the_own_simulators_and_none_is_lost(sims, scenes):
    """The same arrivals in the same seconds; all leave when they may; time is that of free travel and some waiting."""
    sim = sims(demand=400.0)
    own = scenes.make(ONE, poisson=True, demand=400.0)
    for _ in range(240):
        for each in (sim, own):
            phase = torch.full_like(each.signals.phase, (each.clock // 20) % 4)
            each.signals.request(torch.where(each.signals.free, phase, each.signals.phase))
            each.tick()
        assert torch.equal(sim.demanded, own.demanded)
        assert 0 <= float(sim.exited[0]) <= float(sim.demanded[0])
    inside = float((sim.on_links + sim.origins).sum())
    assert 0 <= float(sim.vehicles[0]) - inside <= 60  # the rest is on exits and between
    assert float(sim.exited[0]) > 0.5 * float(sim.demanded[0]) > 40
    # two links of 300 m, 43 s, are the least, and nobody waits longer than two cycles
    assert float(sim.time_spent[0]) == pytest.approx(float(own.time_spent[0]), rel=0.35)


@needs_sumo
@pytest.mark.parametrize(("phase", "served"), [(0, ((1, 0), (2, 0), (1, 2), (2, 2))), (3, ((0, 1), (0, 3)))])
def test_only_the_movements_of_a_phase_go(sims, phase, served):
    """Left for straight, or one axis for the other: everybody waits but the phase's movements (by movement and heading)."""
    sim = sims(demand=700.0, shares=(0.34, 0.33, 0.33))
    _hold(sim, phase, 130)
    queues = sim.queues[:, :, 0, 0, 0]
    for movement, heading in np.ndindex(3, 4):
        if (movement, heading) in served:
            assert queues[movement, heading] <= 4
    waiting = [queues[m, h] for m, h in np.ndindex(3, 4) if (m, h) not in served]
    assert float(sum(waiting)) > 40


@needs_sumo
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_saturation_flow_is_the_tasks(sims, factor):
    """40 s of green on two lanes that are full: 1800 veh/h a lane, times the task's factor; within 15 %."""
    saturation = torch.full((4, 1, 1, 1), factor, dtype=torch.float64)
    sim = sims(demand=[1900.0, 0.0, 1900.0, 0.0], shares=(0.0, 1.0, 0.0), saturation=saturation)
    _hold(sim, 2, 140)  # north and south bound traffic queues on the whole link
    _hold(sim, 0, 13)
    before, came = float(sim.on_links.sum() + sim.origins.sum()), float(sim.demanded[0])
    _hold(sim, 0, 40)
    gone = before - float(sim.on_links.sum() + sim.origins.sum()) + float(sim.demanded[0]) - came
    assert float(sim.on_links.sum()) > 40  # still queues
    assert gone / (2 * 2 * 40) * 3600 == pytest.approx(1800 * factor, rel=0.15)


@needs_sumo
def test_the_same_seed_is_the_same_episode_and_files_go(sims):
    """Also beside another simulation; and no directory is left behind."""
    before = {path.name for path in pathlib.Path(tempfile.gettempdir()).glob("metarl-sumo-*")}
    times = []
    for seeds in ((5, 1), (4, 2)):
        sim = sims(count=seeds[1], seed=seeds[0], demand=600.0)
        _hold(sim, 0, 60)
        times.append(float(sim.time_spent[-1]))
        del sim
        gc.collect()
    assert times[0] == times[1]
    assert {path.name for path in pathlib.Path(tempfile.gettempdir()).glob("metarl-sumo-*")} == before


@needs_sumo
def test_a_crash_and_a_stall_name_the_simulation_and_the_other_goes_on(sims, monkeypatch):
    sim = sims(count=3, demand=600.0)
    _hold(sim, 0, 5)
    sim._workers[1].process.kill()
    with pytest.raises(EnvFault, match="SUMO crashed") as caught:
        sim.tick()
    assert caught.value.envs.tolist() == [1]
    monkeypatch.setattr(sumo_simulator, "PATIENCE", 8.0)
    os.kill(sim._workers[0].process.pid, signal.SIGSTOP)
    with pytest.raises(EnvFault, match="not answered for 8 s") as caught:
        sim.tick()
    assert caught.value.envs.tolist() == [0]
    _hold(sim, 0, 3)
    assert sim.clock == 10


@needs_sumo
def test_a_process_runs_one_simulation_only(monkeypatch):
    """A second start would silently end the first."""
    monkeypatch.setattr(sumo_worker, "_started", True)
    with pytest.raises(RuntimeError, match="one SUMO simulation only"):
        sumo_worker.work(None, None)


def test_without_sumo_there_is_one_line(monkeypatch, scenes):
    monkeypatch.setitem(sys.modules, "sumo", None)
    with pytest.raises(SettingsError, match=r"pip install -c constraints.txt -e '.\[sumo\]'"):
        SumoSim(ONE, scenes.conditions(ONE, 1), np.zeros(1, dtype=np.uint32))
    with pytest.raises(SettingsError, match="at most 32"):
        SumoSim(ONE, scenes.conditions(ONE, 33), np.zeros(33, dtype=np.uint32))


def test_a_worker_whose_parent_has_gone_ends_without_a_word(monkeypatch):
    """Tracebacks of every process, whenever an evaluation is stopped; or processes that stay for ever."""
    monkeypatch.setattr(sumo_worker, "_started", False)
    monkeypatch.setattr(sumo_worker, "_Simulation", lambda setup: types.SimpleNamespace(tick=None, count=None))
    monkeypatch.setattr(sumo_worker.signal, "signal", lambda *_: None)  # of this process
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    sumo_worker.work(theirs, None)


@pytest.fixture
def run(tmp_path):
    """A run on one intersection, trained in the own simulator."""
    words = ["rows=1", "columns=1", "horizon=3", "warmup=20"]
    path, threads = tmp_path / "run", torch.get_num_threads()
    settings = ["meta_batch_size=2", "episodes_per_task=2", "iterations=1", "eval_every=0", "threads=1"]
    assert train.main(["env=traffic-grid", *(f"env.{word}" for word in words), *settings, f"run_dir={path}"]) == 0
    yield path
    torch.set_num_threads(threads)


@needs_sumo
def test_a_run_is_evaluated_in_sumo_whatever_runs_at_once(run, monkeypatch):
    """Scores of the own simulator under SUMO's name; numbers that depend on the waves; processes that stay."""
    found = []
    for most in (2, 1, None):
        monkeypatch.setattr(traffic_families, "MOST", most)
        traffic_families._spec.cache_clear()
        backend = ["backend=sumo"] if most else []
        assert evaluate.main([f"run={run}", "tasks=2", "episodes=1", "steps=1", *backend]) == 0
        assert not multiprocessing.active_children()
        # the run's own evaluation stays what it was
        found.append(json.loads((run / "evaluation" / f"curve{'-sumo' if most else ''}.json").read_text()))
    traffic_families._spec.cache_clear()
    there, again, here = (result["runs"]["run"]["values"] for result in found)
    np.testing.assert_allclose(there, again, rtol=1e-5)
    assert [result["notes"]["run"]["env"]["simulator"] for result in found] == ["sumo", "sumo", "own"]
    assert [result["notes"]["run"]["protocol"] for result in found] == ["sumo", "sumo", ""]
    assert found[0]["tasks"] == found[2]["tasks"]
    # the same arrivals before anything was learned: nearly the same scores
    np.testing.assert_allclose(there[0], here[0], rtol=0.5)
    assert there != here


def test_where_a_run_cannot_be_evaluated_in_sumo_there_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sumo", None)
    for words, said in (
        (["backend=sumo", "tasks=2"], f"error: {sumo_network.MISSING}"),
        (["backend=sumo", "video=true"], f"error: video=true: {sumo_network.MISSING}"),
        (["backend=summo"], "error: backend=summo is not one of own, sumo"),
    ):
        capsys.readouterr()
        assert evaluate.main([f"run={run}", *words]) == 2
        assert capsys.readouterr().err.splitlines() == [said]
        assert not (run / "evaluation").exists()
    assert evaluate.main([f"run={run}", "backend=own", "tasks=2", "steps=0"]) == 0


@needs_sumo
def test_speed_is_measured_beside_sumo(monkeypatch):
    """A process's own time is no more than what the clock says; and no process stays."""
    monkeypatch.setattr(traffic_speed, "GRIDS", ((1, 1),))
    monkeypatch.setattr(traffic_speed, "BESIDE", (1, 1))
    threads = torch.get_num_threads()
    try:
        settings = traffic_speed.Settings(horizon=3, batch=2, sumo=1, repeats=1)
        found = traffic_speed.measured(settings)
    finally:
        torch.set_num_threads(threads)
    (clock,), (process,) = found["sumo"].values()
    assert 0 < clock < 1.05 * process
    assert len(traffic_speed.described(settings, found)) == 4
    assert not multiprocessing.active_children()


@needs_sumo
def test_an_episode_that_is_over_holds_no_process():
    family = families.make("traffic-sensor", rows=1, columns=1, horizon=1, warmup=5, simulator="sumo")
    env = family.batch(1, 1)
    seen = env.reset(family.sample_tasks(1, "test", 0), np.zeros(1, dtype=np.uint32))
    assert len(multiprocessing.active_children()) == 1
    env.step(seen[:, -4:].argmax(1, keepdims=True))
    assert not multiprocessing.active_children()
    assert env.render(0, 60, 60).shape == (60, 60, 3)  # of the last second, as it was


@needs_sumo
def test_plans_run_in_sumo_too():
    """As many vehicles demanded; time of the same size; everything ends with the episode."""
    spent = []
    for simulator in ("own", "sumo"):
        family = families.make("traffic-plan", rows=1, columns=1, horizon=2, warm_cycles=1, simulator=simulator)
        env = family.batch(1, 1)
        env.reset(family.sample_tasks(1, "test", 0), np.array([3], dtype=np.uint32))
        rewards = [env.step(np.zeros((1, 4), dtype=np.float32)).rewards for _ in range(2)]
        spent.append((float(env.simulator.demanded[0]), float(np.sum(rewards))))
    assert not multiprocessing.active_children()
    assert spent[0][0] == spent[1][0]
    assert spent[1][1] == pytest.approx(spent[0][1], rel=0.5)


def test_agreement_by_hand():
    """Two tasks, three controllers: one ranked alike, one with its ends exchanged."""
    own = np.array([[10.0, 20, 30], [10, 20, 30]])
    sumo = np.array([[20.0, 40, 60], [60, 40, 20]])
    found, lines = traffic_sumo.agreement(np.stack([own, sumo], 1), ["a", "b", "c"])
    assert found["spearman"] == pytest.approx([1.0, -1.0])
    assert found["best_is_one_of_two"] == 0.5
    assert found["bias"] == pytest.approx((-0.5 - 0.5 - 0.5 - 5 / 6 - 0.5 + 0.5) / 6)
    assert traffic_sumo.agreement(np.ones((2, 2, 3)), ["a", "b", "c"])[0]["spearman"] == [0.0, 0.0]
    assert found["bias_seconds"] == pytest.approx(-20.0)
    assert "| b | 20.0 | 40.0 | -50% |" in lines
    assert any(line.endswith("median 0.00 [-1.00, 1.00], least -1.00") for line in lines)
    # drawn by tasks: both of the one, both of the other, or one of each
    assert found["ci95_over_tasks"]["best_is_one_of_two"] == [0.0, 1.0]


def test_transfer_by_hand():
    """Two tasks, two runs: on task 0 the signs agree, on task 1 they do not; rows of a task are drawn together."""
    own = np.array([[100.0, 90], [100, 105], [100, 80], [100, 110]])
    sumo = np.array([[200.0, 190], [200, 190], [200, 180], [200, 180]])
    found, lines = traffic_sumo.transferred(own, sumo, [0, 1, 0, 1], 3, 40)
    assert found["sign_agrees"] == 0.5
    assert found["ci95_over_tasks"]["sign_agrees"] == [0.0, 1.0]
    assert found["ci95_over_tasks"]["own"] == pytest.approx([-0.075, 0.15])
    assert found["correlation"] == pytest.approx(np.corrcoef([0.1, -0.05, 0.2, -0.1], [0.05, 0.05, 0.1, 0.1])[0, 1])
    assert "| gain in SUMO | 7.50% [7.50%, 7.50%] |" in lines
    assert "4 pairs of a run and one of 2 tasks" in lines[0]
    assert "| the sign agrees, tasks | 1 of 2, 50% [0%, 100%] |" in lines
    # a task's gain is the mean of its runs': half of the pairs agree, and the task
    found, _ = traffic_sumo.transferred(own[:2], np.array([[200.0, 190], [200, 190]]), [0, 0], 3, 40)
    assert (found["sign_agrees"], found["sign_agrees_of_tasks"]) == (0.5, 1.0)


def test_spearman_is_scipys():
    """With ties, where ranks are shared."""
    a, b = np.array([1.0, 2.0, 2.0, 5.0, 3.0]), np.array([2.0, 1.0, 3.0, 3.0, 9.0])
    assert traffic_sumo._spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_results_are_kept_and_faults_left_out(tmp_path, capsys):
    """A run of hours goes on where it was stopped, whatever the last line looks like; other settings are other results."""
    path, calls = tmp_path / "x" / "results.jsonl", []

    def measure(value):
        calls.append(value)
        return np.array([value])

    def fails():
        raise EnvFault("SUMO crashed (exit code -11)", np.zeros(1, dtype=int))

    store = traffic_store.Store(path, {"rows": 2})
    store("a", lambda: measure(1.0))
    store("b", fails)
    assert "b: SUMO crashed" in capsys.readouterr().out
    with path.open("a") as file:
        file.write('{"name": "c", "ti')
    again = traffic_store.Store(path, {"rows": 2})
    again("a", lambda: measure(2.0))
    again("b", lambda: measure(3.0))
    assert calls == [1.0, 3.0]
    assert traffic_store.Store(path, {"rows": 2}).times == {"a": [1.0], "b": [3.0]}
    assert traffic_store.Store(path, {"rows": 3}).times == {}


def test_tasks_play_together_and_after_a_fault_alone(tmp_path):
    """A crash that takes the tasks beside it with it, or a time that ends up at another task."""
    played = []

    def measure(simulator, rows):
        played.append((simulator, rows))
        if simulator == "sumo" and 6 in rows:
            raise EnvFault("SUMO crashed", np.zeros(1, dtype=int))
        return np.array([[10.0 * row, 10.0 * row + 2] for row in rows])

    settings = traffic_sumo.Settings(tasks=10, seeds=3)  # 15 simulations of SUMO at once
    store = traffic_store.Store(tmp_path / "results.jsonl", {})
    for simulator, missing in (("own", set()), ("sumo", {6})):
        times = traffic_sumo._together(store, simulator, settings, simulator, functools.partial(measure, simulator))
        assert times == {row: 10.0 * row + 1 for row in range(10) if row not in missing}
    several = [("sumo", [0, 1, 2, 3, 4]), ("sumo", [5, 6, 7, 8, 9])]
    assert played == [("own", list(range(10))), *several, *[("sumo", [row]) for row in range(5, 10)]]


@needs_sumo
def test_the_command_in_miniature(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    monkeypatch.setattr(headroom, "eight", lambda grid: {"a": lambda sim, seeds: LongestQueue(), "b": _fixed(grid)})
    try:
        assert traffic.main(["agree", "tiny=true"]) == 0
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((tmp_path / "runs/tiny/traffic-grid-agree/results/summary.json").read_text())
    assert np.shape(summary["sumo"]) == (2, 2)
    assert (tmp_path / "runs/tiny/traffic-grid-agree/results/both.png").stat().st_size > 5000
    spec = families.make("traffic-grid", simulator="sumo").spec
    assert dataclasses.replace(spec, at_once=None) == families.make("traffic-grid").spec


def _fixed(grid) -> headroom.Maker:
    def make(sim, seeds) -> FixedTime:
        return headroom.fixed(grid, 60)

    return make
