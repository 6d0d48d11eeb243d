"""Runs taken together: who belongs to whom, and what a group's entry of ``curve.json`` and ``groups.csv`` holds."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from metarl import evaluate
from metarl.analysis import groups
from metarl.run.directory import read_config


@pytest.fixture(scope="module")
def seeds(runs, trained, tmp_path_factory):
    """The run of the other tests and one more seed of it."""
    parent = tmp_path_factory.mktemp("seeds")
    shutil.copytree(runs["maml"], parent / "maml-s1", ignore=shutil.ignore_patterns("evaluation"))
    trained("maml", parent / "maml-s2", "seed=2", "eval_every=0")
    return [parent / "maml-s1", parent / "maml-s2"]


def test_seeds_are_one_group_and_nothing_else_is(runs, seeds):
    """A pretrained run among the seeds of MAML because of its name, or seeds apart because of theirs."""
    names = {"maml-s1": seeds[0], "maml-s2": seeds[1], "maml-s3": runs["pretrained"], "oracle": runs["oracle"]}
    configs = {name: read_config(path) for name, path in names.items()}
    assert groups.grouped(configs) == {"maml-s1": "maml", "maml-s2": "maml", "maml-s3": "maml-s3", "oracle": "oracle"}
    other = {"a": configs["maml-s1"], "b": configs["maml-s2"]}
    assert groups.grouped(other) == {"a": "a", "b": "a"}
    assert groups.by_name(["maml-s0", "maml-s12", "oracle"]) == {
        "maml-s0": "maml",
        "maml-s12": "maml",
        "oracle": "oracle",
    }


def test_two_groups_of_one_name_are_told_apart(runs):
    """An entry that another overwrites."""
    config = read_config(runs["maml"])
    seeded = [
        dataclasses.replace(config, run=dataclasses.replace(config.run, seed=s, iterations=i))
        for s, i in ((0, 3), (1, 3), (0, 9), (1, 9))
    ]
    names = ["run-s0", "run-s1", "run-s2", "run-s3"]
    found = groups.grouped(dict(zip(names, seeded, strict=True)))
    assert found == {"run-s0": "run-s0", "run-s1": "run-s0", "run-s2": "run-s2", "run-s3": "run-s2"}


def test_each_seed_may_start_from_a_run_of_its_own(runs):
    """Three seeds of MAML told as three methods because they begin with three seeds of what was pretrained."""
    config = read_config(runs["maml"])

    def group(*starts):
        seeded = [
            dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed, init_from=start))
            for seed, start in starts
        ]
        return len(set(groups.grouped({f"run-{i}": one for i, one in enumerate(seeded)}).values()))

    assert group((0, "runs/start-s0"), (1, "runs/start-s1"), (12, "runs/start-s12/")) == 1
    assert group((0, "runs/start-s0"), (1, "runs/start-s0")) == 1
    assert group((0, "runs/start-s0"), (1, "runs/other-s1")) == 2
    assert group((0, "runs/start-s0"), (1, "runs/start-s2")) == 2
    assert group((0, "runs/start-s0"), (1, None)) == 2


def test_an_evaluation_says_what_its_runs_say_together(runs, seeds, evaluated, capsys):
    """Values of one seed, of another point, a probability of the wrong sign, or a table that says something else."""
    compared = f"compare=[{seeds[1]},{runs['oracle']}]"
    result = evaluated(seeds[0], compared, "tasks=6", "steps=1", "level=-1e6")
    shown = capsys.readouterr().out
    assert list(result["groups"]) == ["maml", "oracle"]
    group = result["groups"]["maml"]
    assert (group["runs"], group["updates"], group["rollouts"]) == (["maml-s1", "maml-s2"], [0, 1], [0, 3])
    values = np.array([result["runs"][name]["values"] for name in group["runs"]])
    for point in range(2):
        assert group["iqm"][point] == pytest.approx(stats.trim_mean(values[:, point].ravel(), 0.25))
        assert group["mean"][point] == pytest.approx(values[:, point].mean())
        for name in ("iqm", "mean"):
            low, high = group[f"{name}_ci95"][point]
            assert low < group[name][point] < high
    (pair,) = result["improvement"]
    wins = values[:, 1] > np.array(result["runs"]["oracle"]["values"][0])
    assert (pair["group"], pair["against"]) == ("maml", "oracle")
    assert pair["probability"] == pytest.approx(wins.mean())
    assert "maml, 2 seeds  interquartile mean of return after updates  0: " in shown
    assert "maml  is better than oracle on a task with probability" in shown
    with (seeds[0] / "evaluation" / "groups.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 + 1 * 2
    for row in rows:
        entry = result["groups"][row["group"]]
        point = entry["updates"].index(int(row["updates"]))
        assert float(row["value"]) == entry[row["statistic"]][point]
        assert [float(row["low"]), float(row["high"])] == entry[f"{row['statistic']}_ci95"][point]
        assert (int(row["runs"]), int(row["tasks"])) == (len(entry["runs"]), 6)


def test_efficiency_reads_the_validations(runs, evaluated, capsys):
    """Steps of another iteration or another number of updates; a run that was never validated taken for one that failed."""
    rows = [json.loads(line) for line in (runs["maml"] / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_return_1"] for row in rows]
    level = sorted(scores)[1]  # reached, but not by the worst
    result = evaluated(runs["maml"], f"compare={runs['pretrained']}", "tasks=2", "steps=0", f"level={level}")
    found = result["efficiency"]
    first = next(i for i, score in enumerate(scores) if score >= level)
    steps = [row["env_steps"] for row in rows]
    if first == 0 or scores[first] == level:
        assert found["env_steps"]["maml"] == pytest.approx(steps[first])
    else:
        assert steps[first - 1] < found["env_steps"]["maml"] < steps[first]
    assert found["env_steps"]["pretrained"] is None
    assert found["groups"]["maml"] == {"reached": 1, "of": 1, "median": found["env_steps"]["maml"]}
    assert found["groups"]["pretrained"] == {"reached": 0, "of": 1, "median": None}
    assert "pretrained  was never validated at return" in capsys.readouterr().out


def test_where_lower_is_better_the_sign_is_the_other(runs, trained, evaluated, tmp_path):
    """An error that is called better the larger it is."""
    worse = tmp_path / "worse"
    trained("sinusoid", worse, "seed=5", "iterations=1")
    result = evaluated(runs["sinusoid"], f"compare={worse}", "tasks=8", "steps=1")
    ours, theirs = (np.array(result["runs"][name]["values"][-1]) for name in ("sinusoid", "worse"))
    assert result["improvement"][0]["probability"] == pytest.approx((ours < theirs).mean())


def test_a_level_has_no_meaning_in_a_video(runs, capsys):
    """A setting that is silently not looked at."""
    assert evaluate.main([f"run={runs['maml']}", "video=true", "level=3"]) == 2
    assert "level= has no effect" in capsys.readouterr().err
