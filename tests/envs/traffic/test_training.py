"""Policies beside controllers: the experiment in miniature, and its figures by hand."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import metarl
from experiments import traffic, traffic_pictures, traffic_training
from metarl import families, train
from metarl.envs.traffic import headroom, picture
from metarl.envs.traffic.network import Grid
from metarl.settings import SettingsError


def test_train_judge_and_table_in_miniature(tmp_path, monkeypatch):
    """A training of hours must not end in an error; everybody is judged on the same tasks, on two grids."""
    monkeypatch.chdir(tmp_path)
    root = pathlib.Path(traffic.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    threads = torch.get_num_threads()
    try:
        assert traffic.main(["train", "tiny=true"]) == 0
    finally:
        torch.set_num_threads(threads)
    results = tmp_path / "runs" / "tiny" / "traffic-grid-policies" / "results"
    summary = json.loads((results / "summary.json").read_text())
    assert [found["grid"] for found in summary["grids"].values()] == ["2x2", "3x3"]
    for found in summary["grids"].values():
        assert len(found["controllers"]) == 8
        shapes = {label: np.shape(times) for label, times in found["times"].items()}
        assert shapes == {"maml-s0": (2, 2, 2), "pretrained-s0": (2, 2, 2), "oracle-s0": (1, 2, 2)}
        assert np.min(list(found["controllers"].values())) > 1.0
    text = (results / "summary.md").read_text()
    for word in ("max-pressure", "Webster", "own best controller", "maml after 1 over pretrained after 0", "oracle"):
        assert word in text
    with pytest.raises(SettingsError, match=r"Unknown setting 'env\.row'"):
        metarl.load(results / "maml-s0", env_settings={"row": 3})


def test_figures_by_hand():
    """Two tasks, two arrivals. maml 80 and 90 after 1, pretrained 100 and 90, oracle 70: gains 20 % and 0 %, gap 10 of 25."""
    flat = [[100.0, 100.0], [90.0, 90.0]]
    found = {
        "grid": "2x2",
        "controllers": {"random": flat},
        "common": {"name": "a", "times": [[50.0, 100.0], [50.0, 80.0]]},
        "own": {"names": ["a", "b"], "times": [[50.0, 90.0], [50.0, 80.0]]},
        "times": {
            "maml-s0": [flat, [[70.0, 80.0], [80.0, 90.0]]],
            "maml-s1": [flat, [[80.0, 90.0], [90.0, 100.0]]],
            "pretrained-s0": [flat, flat],
            "oracle-s0": [[[70.0, 70.0], [70.0, 70.0]]],
        },
    }
    lines = "\n".join(traffic_training._comparisons(found))
    assert "maml after 1 over pretrained after 0: 10.00 [" in lines  # mean of 1 - 80/100 and 1 - 90/90
    assert "better on 50% of tasks" in lines
    assert "closed after 1: 0.40 [" in lines  # (95 - 85) / (95 - 70)
    assert "own over best common controller, on arrivals that had no say: 5.00 [" in lines  # 1 - 90/100, 1 - 80/80
    table = traffic_training._table(found)
    assert table[0] == "| | no update | 1 update |"
    assert any(line.startswith("| maml | 95.0 [") and "| 85.0 [" in line for line in table)


def test_webster_knows_demand_and_not_the_roads():
    """A plan that looked at the hidden saturation flows would be no reference for policies that cannot."""
    family = families.make("traffic-grid", horizon=2, warmup=0)
    tasks = family.sample_tasks(2, "validation", 0)
    saturation = [i for i, name in enumerate(tasks.names) if name.startswith("saturation")]
    worse = tasks.values.copy()
    worse[:, saturation] = 0.45
    plans = []
    for values in (tasks.values, worse):
        env = family.batch(2, 1)
        env.reset(families.Tasks(tasks.names, values), np.arange(2, dtype=np.uint32))
        plans.append(headroom.eight(Grid(rows=2, columns=2))["Webster, demand known"](env.simulator, np.arange(2)))
    assert torch.equal(plans[0].durations, plans[1].durations)
    assert not torch.equal(plans[0].durations[..., 0], plans[0].durations[..., 1])


def test_the_same_seeds_bring_the_same_arrivals_to_policies_and_controllers():
    """Demand counted differently, or arrivals that depend on who plays, would make times no comparison."""
    family = families.make("traffic-demand", horizon=4, warmup=30)
    tasks, counts = family.sample_tasks(2, "test", 0), []

    def watching(player):
        def begin(env, seeds):
            act = player(env, seeds)
            counts.append(env)
            return act

        return begin

    still = watching(lambda env, seeds: lambda seen: seen[:, -16:].reshape(-1, 4, 4).argmax(-1))
    rule = watching(headroom.controlled(headroom.eight(Grid(rows=2, columns=2))["longest queue"]))
    for player in (still, rule):
        assert headroom.played(family, tasks, [3, 4], player).shape == (2, 2)
    assert torch.equal(counts[0].simulator.demanded, counts[1].simulator.demanded)
    assert train.main(["env=traffic-grid", "shared_policy=maybe"]) == 2


def test_a_street_is_drawn_where_it_is(tmp_path):
    """Loads of the first row's eastbound links, in the order of driving; lights of phase 2; and the command."""
    family = families.make("traffic-demand", rows=1, columns=3, horizon=5)
    history = traffic_pictures.History()

    def begin(env, seeds):
        def act(seen):
            free, legal = env.simulator.signals.free.all(), seen[:, -12:].reshape(1, 3, 4)
            return np.full((1, 3), 2) if free else legal.argmax(-1)

        return act

    headroom.played(family, family.sample_tasks(1, "test", 0), [0], history.watching(begin))
    assert np.shape(history.loads) == (5, 3)
    assert history.green[-1].all()
    figure = Figure()
    axes = figure.subplots()
    loads = np.zeros((4, 2))
    loads[3, 1] = 1.0
    picture.space_time(axes, loads, loads > 0, 10.0, 300.0)
    (image,) = axes.images
    assert image.get_array()[1, 3] == 1.0  # links upwards, time to the right
    assert tuple(image.get_extent()) == (0.0, 40.0, 0.0, 600.0)
    (line,) = axes.lines
    assert [*line.get_xdata(), line.get_ydata()[0]] == [30.0, 40.0, 588.0]
    assert traffic.main(["street", "columns=2", "horizon=3"], tmp_path) == 0
    assert (tmp_path / "traffic-demand_street.png").stat().st_size > 5000
