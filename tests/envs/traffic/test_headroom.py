"""What there is to adapt, on times that are known, and the commands that measure."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch

from experiments import traffic, traffic_speed
from metarl import families
from metarl.envs.traffic import headroom
from metarl.envs.traffic.network import Grid


def test_gains_by_hand():
    """Three controllers, three tasks; seeds that choose say other things than those that judge."""
    chosen = np.array([[100.0, 90, 100], [80, 120, 101], [150, 60, 200]])  # means 96.7, 100.3, 136.7
    judged = np.array([[100.0, 100, 100], [90, 110, 80], [100, 80, 100]])
    found = headroom.headroom(np.stack([chosen, judged], -1))
    assert found.common == 0
    assert found.own.tolist() == [1, 2, 0]
    assert found.gains.tolist() == pytest.approx([0.1, 0.2, 0.0])
    with pytest.raises(ValueError, match="two seeds"):
        headroom.headroom(chosen[..., None])


def test_times_are_those_of_the_same_arrivals():
    """A controller's time does not depend on the others or on the order, and differs from theirs."""
    family = families.make("traffic-sensor", horizon=12, warmup=0)
    grid = Grid(rows=2, columns=2)
    tasks, rules = family.sample_tasks(2, "validation", 0), headroom.candidates(grid)
    some = {name: rules[name] for name in ("max-pressure stay=0", "fixed 60 s")}
    both = headroom.mean_times(family, tasks, some, [4, 5])
    assert both.shape == (2, 2, 2)
    alone = headroom.mean_times(family, tasks.rows([1]), {"x": rules["fixed 60 s"]}, [5])
    assert alone[0, 0, 0] == both[1, 1, 1]
    assert (both[0] != both[1]).all()
    with pytest.raises(TypeError, match="no family of traffic signals"):
        headroom.mean_times(families.make("bandit-bernoulli"), tasks, some, [0])


@pytest.mark.parametrize(("cycle", "times"), [(60, [20, 10, 20, 10]), (100, [30, 20, 30, 20])])
def test_plans_are_whole_decisions(cycle, times):
    assert headroom.fixed(Grid(rows=1, columns=2), cycle).durations[:, 0, 1, 0].tolist() == times


def test_commands(tmp_path, capsys):
    """Catches a command that does not run, and a result that lacks how it came about."""
    words = ["tasks=2", "seeds=2", "horizon=3", "rows=1", "columns=1", "save=true", "env=traffic-capacity"]
    assert traffic.main(["headroom", *words], tmp_path) == 0
    record = json.loads((tmp_path / "traffic-capacity_headroom.json").read_text())
    assert len(record["gains"]) == 2
    assert {"command", "commit", "mean_times", "times", "versions"} <= set(record)
    threads = torch.get_num_threads()
    try:
        assert traffic.main(["speed", "batch=2", "horizon=2", "repeats=1", "sumo=0", "save=true"], tmp_path) == 0
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "traffic_speed.json").read_text())
    assert list(record["rates"]) == ["1x1", "2x2", "3x3", "4x4", "1x6"]
    assert record["sumo"] == {}
    shown = capsys.readouterr().out
    assert "3x3" in shown
    assert "SUMO: not measured" in shown


def test_speeds_by_hand():
    """Ratios are of the same turn: 300/3, 600/4 and 200/4, and not of other grids."""
    rates = {"1x1": [1.0, 1.0, 1.0], "3x3": [300.0, 600.0, 200.0]}
    found = {"rates": rates, "sumo": {"clock": [3.0, 4.0, 4.0], "process": [6.0, 6.0, 5.0]}, "load_at_start": 0.0}
    lines = traffic_speed.described(traffic_speed.Settings(), found)
    assert lines[2].split(None, 1) == ["3x3", "300 (200 to 600); 2700 of intersections"]
    assert lines[3].endswith("by the clock: 4 (3 to 4); ours is 100 (50 to 150) times")
    assert lines[4].endswith("own time: 6 (5 to 6); ours is 50 (40 to 100) times")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hedroom"], "Say what to measure, not 'hedroom'. Did you mean 'headroom'?"),
        (["headroom", "task=3"], "Unknown setting 'task'. Did you mean 'tasks'?"),
        (["headroom", "env=trafic-grid"], "Unknown task family 'trafic-grid'. Did you mean 'traffic-grid'?"),
    ],
)
def test_mistakes_end_with_one_line(words, message, capsys):
    assert traffic.main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_page_runs_as_it_is_written():
    """The snippet of the page, with fewer grids and decisions."""
    page = (pathlib.Path(__file__).parents[3] / "envs" / "traffic" / "README.md").read_text(encoding="utf-8")
    snippet = page.split("```python\n")[-1].split("```")[0]
    session = {}
    exec(snippet.replace("100", "2").replace("range(120)", "range(3)"), session)
    times = session["env"].simulator.time_spent / session["env"].simulator.demanded
    assert times.shape == (2,)
    assert (times > 20).all()
