"""Policies beside controllers: the experiment in miniature, and its figures by hand."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import metarl
from experiments import recording, traffic, traffic_pictures, traffic_report, traffic_training
from metarl import families, train
from metarl.envs.traffic import headroom, picture
from metarl.envs.traffic.network import Grid
from metarl.run import arguments
from metarl.run.compose import compose
from metarl.settings import SettingsError


def test_train_judge_and_table_in_miniature(tmp_path, monkeypatch):
    """A training of hours must not end in an error; everybody is judged on the same tasks, on two grids."""
    monkeypatch.chdir(tmp_path)
    root = pathlib.Path(traffic.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    threads = torch.get_num_threads()
    try:
        assert traffic.main(["train", "tiny=true", "beyond=false"]) == 0
    finally:
        torch.set_num_threads(threads)
    results = tmp_path / "runs" / "tiny" / "traffic-grid-policies" / "results"
    summary = json.loads((results / "summary.json").read_text())
    assert [found["grid"] for found in summary["grids"].values()] == ["2x2", "3x3"]
    for found in summary["grids"].values():
        assert len(found["controllers"]) == 8
        shapes = {label: np.shape(times) for label, times in found["times"].items()}
        everybody = {"oracle-s0": (1, 2, 2)}
        everybody |= dict.fromkeys(("maml-s0", "local-s0", "pretrained-s0", "pretrained-local-s0"), (2, 2, 2))
        alone = dict.fromkeys(("specialist-s0", "specialist-local-s0"), (1, 2, 2))
        assert shapes == everybody | (alone if found["grid"] == "2x2" else {})
        assert np.min(list(found["controllers"].values())) > 1.0
    text = (results / "summary.md").read_text()
    words = (
        "max-pressure",
        "Webster",
        "own best controller",
        "maml after 1 over pretrained after 0",
        "local after 1 over itself before",
        "pretrained-local after 1 over pretrained after 0",
        "trained on the task alone, each intersection for itself",
        "| local-s0 | 1 |",
        "oracle",
        "| maml-s0 | 1 |",
        "| start-s0 | 1 |",
        "init_from=runs/tiny/traffic-grid-policies/start-s0",
    )
    for word in (*words, "$ python -m"[2:], "Hardware: ", "experiments.traffic train tiny=true beyond=false"):
        assert word in text
    assert {"curve.png", "learning.png", "film.png"} <= {path.name for path in results.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    with pytest.raises(SettingsError, match=r"Unknown setting 'env\.row'"):
        metarl.load(results / "maml-s0", env_settings={"row": 3})
    for slow in ("chosen_rates", "_course", "_locally_alone", "specialist"):  # all of it is known
        monkeypatch.setattr(traffic_training, slow, lambda *_: pytest.fail("a judgement is made again"))
    try:
        assert traffic.main(["train", "tiny=true", "beyond=false", "train=false"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert json.loads((results / "summary.json").read_text())["grids"] == summary["grids"]


def _found():
    """Two tasks, two arrivals, two seeds of MAML, one of the policy that never adapts, one that sees the task."""
    flat = [[100.0, 100.0], [90.0, 90.0]]
    return {
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


def test_figures_by_hand():
    """maml 80 and 90 after 1, pretrained 100 and 90, oracle 70: gains 20 % and 0 %, gap 10 of 25."""
    lines = "\n".join(traffic_report._comparisons(_found()))
    # seeds by tasks: 25 %, 5.56 %; 15 %, -5.56 %
    assert "maml after 1 over pretrained after 0: 10.00 [" in lines
    assert "better on 50% of tasks (each seed: 15.3, 4.7)" in lines
    assert "closed by maml after 1: 0.40 [" in lines  # (95 - 85) / (95 - 70)
    assert "(each seed: 0.60, 0.20)" in lines  # (95 - 80) / 25, (95 - 90) / 25
    assert "own over best common controller, on arrivals that had no say: 5.00 [" in lines  # 1 - 90/100, 1 - 80/80
    # of the second arrivals alone: from 95 to 90 of the way to 85; each seed 85 and 95
    assert "of the gap to each task's own best controller, closed by maml after 1: 0.50 [" in lines
    assert "(each seed: 1.00, 0.00)" in lines
    table = traffic_report._table(_found())
    assert table[0] == "| | no update | 1 update |"
    assert any(
        line.startswith("| **maml** (MAML, intersections adapt together) | 95.0 [") and "| 85.0 [" in line
        for line in table
    )
    assert any(line.startswith("| maml-s1 | 95.0 [") and "| 90.0 [" in line for line in table)


def test_an_oracle_that_is_worse_leaves_no_gap():
    """A fraction of nothing, or of a negative gap, which would look like a success."""
    found = _found()
    found["times"]["oracle-s0"] = [[[96.0, 96.0], [94.0, 94.0]]]
    lines = traffic_report._comparisons(found)
    (line,) = [line for line in lines if "policy that sees the task" in line]
    assert line.endswith("it gains nothing, so that there is no gap to close")
    del found["times"]["oracle-s0"]
    assert not any("policy that sees the task" in line for line in traffic_report._comparisons(found))
    del found["times"]["pretrained-s0"]
    assert traffic_report._comparisons(found)[-1].startswith("- maml and pretrained are not both there")


def test_a_curve_is_drawn_task_by_task(tmp_path, monkeypatch):
    """Of maml after 1, means 75 and 85, and 85 and 95, where the common controller takes 75 and 65."""
    drawn = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda self, x, y, *a, **k: (drawn.append(y), errorbar(self, x, y, *a, **k))[1]
    )
    traffic_report.draw({"grids": {"trained on": _found()}}, tmp_path / "curve.png")
    assert drawn[0][1] == pytest.approx(100 * np.mean([1 - 80 / 75, 1 - 90 / 65]))
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_seeds_are_compared_with_their_like():
    """Pairs of the same seeds, in their order; where seeds differ, everybody with the mean."""
    one, two = np.full((1, 2, 2), 1.0), np.full((1, 2, 2), 2.0)
    adapted, start = traffic_report._paired({"0": one, "1": two}, {"1": two, "0": one})
    assert (adapted[:, 0] == start).all()
    _, start = traffic_report._paired({"0": one, "2": two}, {"0": one, "1": two})
    assert (start == 1.5).all()


@pytest.mark.parametrize(("env", "count"), [("traffic-grid", 5), ("traffic-capacity", 3)])
def test_places_beyond_training_are_others(env, count):
    """A place that is another only in name, or settings that the family does not have."""
    places = traffic_training._places(traffic_training.Settings(env=env))
    assert places["trained on"] == {}
    made = [metarl.make(env, **changes) for changes in places.values()]
    assert len(set(made)) == len(made) == count
    few = traffic_training._places(traffic_training.Settings(env=env, beyond=False))
    assert list(few) == list(places)[:2]


def test_what_is_not_there_is_said():
    """A result of less than was planned that looks like all of it."""
    run = {"iterations": 90, "env_steps": 9e6, "hours": 0.5}
    summary = {
        "runs": {"maml-s0": run, "oracle-s0": run | {"iterations": 300, "env_steps": 1.5e7}},
        "rates": {"maml-s0": [0.1, 0.025]},
        "planned": {"maml-s0": 150, "maml-s1": 150, "oracle-s0": 300},
    }
    lines = traffic_report._made(summary)
    assert "| maml-s0 | 90 of 150 | 9.00 M | 0.50 | 0.1, 0.025 |" in lines
    assert "| oracle-s0 | 300 | 15.00 M | 0.50 | not adapted |" in lines
    assert "Not run yet, and so not shown: maml-s1." in lines
    assert any("as many samples" in line for line in lines)
    summary["runs"]["start-s0"] = run | {"env_steps": 6e6}
    summary["planned"]["start-s0"] = 90
    lines = traffic_report._made(summary)
    assert not any("as many samples" in line for line in lines), "9 M and the 6 M that MAML starts from are 15 M"


def test_commands_train_what_is_judged(capsys):
    """Lanes that train under another name or with other settings than the evaluation looks for."""
    assert traffic.main(["train", "commands=true", "seeds=2", "iterations=7"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 9
    assert commands[3] == (
        "python -m metarl.train env=traffic-grid seed=1 threads=1 meta_batch_size=20 episodes_per_task=20 inner_lr=0.03"
        " local_adaptation=false iterations=7 init_from=runs/traffic-grid-policies/start-s1"
        " run_dir=runs/traffic-grid-policies/maml-s1 resume=auto"
    )
    # 7 x 20 tasks x 20 episodes, before and after adapting, are 28 times 20 x 10
    assert "inner_steps=0 inner_lr=0.1 local_adaptation=false env.oracle=true iterations=628" in commands[-1]
    for command in commands:
        arguments.check(shlex.split(command)[3:])
        config = compose(shlex.split(command)[3:])
        assert config.run.local_adaptation == ("/local-s" in command), "who adapts together, and who each for itself"
    for env in ("traffic-plan", "sinusoid"):
        assert traffic.main(["train", f"env={env}", "commands=true"]) == 2
        assert f"error: env={env}: controllers set phases" in capsys.readouterr().err


def test_a_table_goes_where_there_is_a_place_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "README", tmp_path / "README.md")
    recording.README.write_text("a <!-- x agree -->\n<!-- x agree --> b")
    traffic_report.insert("x", "agree", "table")
    assert recording.README.read_text() == "a <!-- x agree -->\n\ntable\n<!-- x agree --> b"
    traffic_report.insert("x", "", "other")
    assert "has no two marks <!-- x -->" in capsys.readouterr().out
    assert "other" not in recording.README.read_text()


def test_a_film_strip_of_a_run(tmp_path, capsys):
    """The command, as many pictures as were asked for; runs that have none are refused in one line."""
    path, threads = tmp_path / "run", torch.get_num_threads()
    words = [
        "env=traffic-grid",
        "env.horizon=4",
        "env.warmup=20",
        "env.rows=1",
        "meta_batch_size=2",
        "episodes_per_task=2",
    ]
    try:
        assert train.main([*words, "iterations=1", "eval_every=0", "threads=1", f"run_dir={path}"]) == 0
        drawn, draw = [], picture.draw
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(picture, "draw", lambda sim, *rest: (drawn.append(sim.clock), draw(sim, *rest)))
            assert traffic.main(["film", f"run={path}", "task=1", "moments=3", "updates=1"]) == 0
        assert drawn == [20, 40, 50, 20, 40, 50]  # decisions 0, 2 and 3 of four, each 10 s after the warm-up
        with Image.open(path / "evaluation" / "film_task1.png") as image:
            assert image.size[0] > 500
        shown = capsys.readouterr().out
        assert re.search(r"before adapting: [\d.]+ s a trip\nafter 1 update: [\d.]+ s a trip", shown)
        bandit = tmp_path / "bandit"
        assert train.main(["env=bandit-bernoulli", "iterations=1", "meta_batch_size=2", f"run_dir={bandit}"]) == 0
        assert traffic.main(["film", f"run={bandit}"]) == 2
        assert "needs a policy for traffic signals" in capsys.readouterr().err
        assert traffic.main(["film"]) == 2
    finally:
        torch.set_num_threads(threads)


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
