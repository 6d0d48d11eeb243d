"""Bands of tasks beyond training's: how they are named, what is evaluated there, and what is left alone."""

from __future__ import annotations

import csv
import json
import shutil
import types

import numpy as np
import pytest
import torch

import metarl
from metarl import evaluate
from metarl.analysis import bands, groups, report, shifted
from metarl.families import Tasks
from metarl.run.config import resolve
from metarl.settings import SettingsError


@pytest.mark.parametrize(
    ("env", "word", "wanted"),
    [
        ("traffic-grid", "heavy", {"band": "heavy"}),
        ("halfcheetah-vel", "velocity=2..3", {"velocity_low": 2.0, "velocity_high": 3.0}),
        ("halfcheetah-vel", " env.velocity=-1..2   reset_noise=0.2", {"velocity_low": -1.0, "reset_noise": 0.2}),
        ("navigation-2d", "goal_range=1", {"goal_range": 1.0}),
    ],
)
def test_bands_are_settings(env, word, wanted):
    """The wrong end of a range, text for a number, and a setting that is not another one after all."""
    (band,) = bands.read([word], resolve(env))
    assert (band.name, band.settings) == (" ".join(word.split()), wanted)
    assert {key: type(value) for key, value in band.settings.items()} == {k: type(v) for k, v in wanted.items()}


@pytest.mark.parametrize(
    ("env", "words", "said"),
    [
        ("traffic-grid", ["hevay"], "band=hevay is not one of usual, heavy, tidal. Did you mean 'heavy'?"),
        ("traffic-grid", ["usual"], "band=usual is what the run was trained on"),
        ("halfcheetah-vel", ["heavy"], "has no bands by name; give a range, band=velocity=LOW..HIGH"),
        ("navigation-2d", ["far"], "override a setting of it, band=horizon=VALUE"),
        ("halfcheetah-vel", ["velocty=2..3"], "has no range 'velocty'. Did you mean 'velocity'?"),
        ("halfcheetah-vel", ["velocity_hihg=3"], "Did you mean 'env.velocity_high'?"),
        ("halfcheetah-vel", ["velocity=2.."], "env.velocity_high= has the wrong type"),
        ("halfcheetah-vel", ["velocity=3..2"], "must be smaller than"),
        ("halfcheetah-vel", ["velocity=0..2"], "is what the run was trained on"),
        ("halfcheetah-vel", ["velocity=2..3", "velocity=2..3 "], "is named twice"),
    ],
)
def test_what_is_no_band_is_one_line(env, words, said):
    """A band that nobody asked for, or a message without the nearest one."""
    with pytest.raises(SettingsError) as refusal:
        bands.read(words, resolve(env))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_oracle_is_told_tasks_as_in_training(runs):
    """2.5 m/s shown as the middle of the band, 0, to a policy that has learned that 0 is 1 m/s: of [0, 2] it is 1.5."""
    agent = metarl.load(runs["oracle"])
    (band,) = bands.read(["velocity=2..3"], agent.config)
    domain = shifted.shifted(agent, band).learner.domain
    tasks = Tasks.from_json([{"velocity": 2.5}])
    assert domain.told(torch.zeros(1, 1, 17), tasks)[0, 0, -1] == 1.5
    drawn = domain.sample_tasks(50, "test", (0,))["velocity"]
    assert drawn.min() >= 2.0
    assert drawn.max() < 3.0
    assert (
        drawn.tolist()
        == metarl.make("halfcheetah-vel", velocity_low=2.0, velocity_high=3.0)
        .sample_tasks(50, "test", (0,))["velocity"]
        .tolist()
    )


def test_simulations_are_the_bands():
    """A tide of demand, or a lighter robot, that is drawn and never simulated."""
    trained, other = (types.SimpleNamespace(spec=name, batch=lambda *sizes, name=name: (name, sizes)) for name in "ab")
    both = shifted.Shifted(trained, other)
    assert (both.spec, both.batch(3, 2)) == ("a", ("b", (3, 2)))


def test_a_band_changes_tasks_alone(runs):
    """Returns of episodes of another length in one table."""
    agent = metarl.load(runs["maml"])
    (band,) = bands.read(["horizon=20"], agent.config)
    with pytest.raises(SettingsError, match="a band may change the range of tasks only"):
        shifted.shifted(agent, band)


def test_bands_stand_beside_the_usual_tasks(runs, tmp_path, capsys):
    """Usual tasks taken for the band's, step sizes chosen on the band, another result overwritten, a row without its band."""
    run, out = tmp_path / "maml", tmp_path / "maml" / "evaluation"
    shutil.copytree(runs["maml"], run, ignore=shutil.ignore_patterns("evaluation"))
    assert evaluate.main([f"run={run}", "tasks=3", "steps=1"]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    alone = json.loads(before["curve.json"])
    assert evaluate.main([f"run={run}", "tasks=3", "steps=1", "band=[velocity=2..3,velocity=3..4]"]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    result = json.loads((out / "bands.json").read_text())
    assert list(result["bands"]) == [bands.USUAL, "velocity=2..3", "velocity=3..4"]
    usual, near, far = result["bands"].values()
    assert usual["runs"] == alone["runs"]
    assert far["settings"] == {"velocity_low": 3.0, "velocity_high": 4.0}
    assert [place["along"]["parameter"] for place in (usual, near, far)] == ["velocity"] * 3
    # by hand: the policy as it is, among tasks that the family draws in that range
    agent = metarl.load(run)
    tasks = metarl.make("halfcheetah-vel", horizon=10, velocity_low=2.0, velocity_high=3.0).sample_tasks(
        3, "test", (0, 2)
    )
    assert near["tasks"] == tasks.to_json()
    params = {name: value.expand(3, *value.shape).clone() for name, value in agent.meta.items()}
    rollouts, _ = agent.learner.domain.rollout(params, tasks, (0, 2, 1, 0))
    np.testing.assert_allclose(near["runs"]["maml"]["values"][0], rollouts.rewards.sum(1).mean(1), rtol=1e-5)
    with (out / "bands.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    shown = capsys.readouterr().out
    for row in table:
        group = result["bands"][row["band"]]["groups"][row["group"]]
        point = group["updates"].index(int(row["updates"]))
        assert [group[row["statistic"]][point], *group[f"{row['statistic']}_ci95"][point]] == [
            float(row[key]) for key in ("value", "low", "high")
        ]
    assert len(table) == 3 * 2 * 2
    assert f"velocity=3..4  maml  mean return after updates  0: {far['groups']['maml']['mean'][0]:.4g} [" in shown
    with (out / "bands-tasks.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 3
    assert (out / "bands.png").stat().st_size > 10_000
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [*before, "bands.csv", "bands.json", "bands.png", "bands-tasks.csv"]
    )


def test_means_along_the_parameter_are_those_of_its_parts():
    """A task in its neighbour's part, parts of the drawn tasks instead of the range, a part of no task."""
    tasks = [{"v": v} for v in (0.1, 0.4, 0.6, 1.9, 2.0)]
    result = {"tasks": tasks, "task_ranges": {"v": [0.0, 2.0]}, "runs": {}}
    for name, shift in (("a-s0", 0.0), ("a-s1", 1.0), ("b", 10.0)):
        result["runs"][name] = {"values": [[0] * 5, [shift + k for k in range(5)]]}
    found = groups.along(result, {"a-s0": "a", "a-s1": "a", "b": "b"})
    assert (found["parameter"], found["tasks"]) == ("v", [2, 1, 2])
    assert found["ranges"] == [[0.0, 0.5], [0.5, 1.0], [1.5, 2.0]]
    assert found["groups"]["a"]["mean"] == pytest.approx([1.0, 2.5, 4.0])
    assert found["groups"]["b"]["mean"] == pytest.approx([10.5, 12.0, 13.5])
    assert all(low <= mean <= high for mean, (low, high) in zip(*found["groups"]["a"].values(), strict=True))
    few = {**result, "tasks": [{"v": v} for v in (-1, 1, 1, -1, 1)]}
    found = groups.along(few, {"b": "b"})
    assert (found["ranges"], found["tasks"]) == ([[-1, -1], [1, 1]], [2, 3])
    assert found["groups"]["b"]["mean"] == pytest.approx([11.5, 37 / 3])
    assert groups.along({**result, "tasks": [{"x": 0, "y": 1}] * 5}, {"b": "b"}) is None


def test_another_simulator_has_files_of_its_own(runs, evaluated, tmp_path):
    """The run's own result, and the report that shows it, replaced by one from SUMO."""
    config = resolve("traffic-grid")
    assert [bands.suffix_of(name, config) for name in (None, "own", "sumo")] == ["", "", "-sumo"]
    result = evaluated(runs["pretrained"], "tasks=2", "steps=0", "episodes=1")
    own = ["curve.csv", "curve.json", "curve.png", "groups.csv"]
    report.write(result, tmp_path, "updates")
    report.write({**result, "settings": "other"}, tmp_path, "updates", "-sumo")
    assert json.loads((tmp_path / "curve.json").read_text()) == result
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [*own, "curve-sumo.csv", "curve-sumo.json", "curve-sumo.png", "groups-sumo.csv"]
    )
    report.write(result, tmp_path, "updates", "-sumo")
    assert json.loads((tmp_path / "curve-sumo-1.json").read_text())["settings"] == "other"
