"""``python -m metarl.evaluate``: what it writes, which tasks it takes, what it compares, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import metarl
from metarl import evaluate
from metarl.analysis import curves, plots
from metarl.families import split_of


def files(run):
    """What an evaluation has left behind, hidden files included."""
    return sorted(path.name for path in (run / "evaluation").iterdir()) if (run / "evaluation").exists() else []


def test_curve_json_has_the_specified_form(runs, evaluated):
    """Keys, shapes, and a mean and an interval that are not those of the values beside them."""
    result = evaluated(runs["maml"], "tasks=5", "steps=2")
    assert (result["metric"], result["split"]) == ("return", "test")
    assert result["unit"] == "reward per episode of 10 steps"
    assert [list(task) for task in result["tasks"]] == [["velocity"]] * 5
    (run,) = result["runs"].values()
    assert list(result["runs"]) == ["maml"]
    assert set(run) == {"updates", "rollouts", "mean", "ci95", "values"}
    assert (run["updates"], run["rollouts"]) == ([0, 1, 2], [0, 3, 6])
    values = np.array(run["values"])
    assert values.shape == (3, 5)
    np.testing.assert_allclose(run["mean"], [sum(row) / 5 for row in run["values"]], rtol=1e-12)
    expected = [stats.t.interval(0.95, 4, loc=row.mean(), scale=stats.sem(row)) for row in values]
    np.testing.assert_allclose(run["ci95"], expected, rtol=1e-9)


def test_numbers_are_those_of_a_rollout_by_hand(runs, evaluated):
    """A score of another checkpoint, another task or another policy than the run's: the first point, from the domain."""
    result = evaluated(runs["pretrained"], "tasks=4", "steps=0", "episodes=2", "seed=3")
    agent = metarl.load(runs["pretrained"])
    tasks = agent.learner.domain.sample_tasks(4, "test", (3, 2))
    assert tasks.to_json() == result["tasks"]
    learner = curves.with_episodes(agent.learner, 2)
    params = {name: value.expand(4, *value.shape).clone() for name, value in agent.meta.items()}
    rollouts, _ = learner.domain.rollout(params, tasks, (3, 2, 1, 0))
    assert rollouts.rewards.shape == (4, 10, 2)
    run = result["runs"]["pretrained"]
    np.testing.assert_allclose(run["values"], [rollouts.rewards.sum(1).mean(1)], rtol=1e-5)


def test_csv_and_picture_hold_the_same(runs, evaluated):
    """A column of another point or task; a picture that is empty or does not open."""
    out = runs["maml"] / "evaluation"
    shutil.rmtree(out, ignore_errors=True)
    result = evaluated(runs["maml"], f"compare=[{runs['pretrained']}]", "tasks=3", "steps=1")
    with (out / "curve.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        run, task = result["runs"][row["run"]], int(row["task"])
        point = run["updates"].index(int(row["updates"]))
        assert run["rollouts"][point] == int(row["rollouts"])
        assert run["values"][point][task] == float(row["return"])
        assert result["tasks"][task]["velocity"] == float(row["velocity"])
    assert len({(row["run"], row["updates"], row["task"]) for row in rows}) == len(rows)
    with Image.open(out / "curve.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 300_000
    assert 0.5 < np.mean(pixels == 255) < 0.99  # white with something on it
    drawn = set(map(tuple, pixels.tolist()))
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= drawn  # a colour of each run
    assert files(runs["maml"]) == ["curve.csv", "curve.json", "curve.png", "groups.csv"]


def test_a_result_of_other_settings_is_kept(runs, evaluated):
    """An hour's evaluation that a quick look with two tasks overwrites; the same command again does replace its own."""
    out = runs["pretrained"] / "evaluation"
    shutil.rmtree(out, ignore_errors=True)
    for words in (("tasks=3", "steps=1"), ("tasks=2", "rollouts=[0,1]"), ("tasks=2", "rollouts=[0,1]"), ("tasks=2",)):
        evaluated(runs["pretrained"], *words)
    kept = [json.loads((out / f"{name}.json").read_text())["settings"] for name in ("curve-1", "curve-2", "curve")]
    assert [(s["tasks"], s["rollouts"]) for s in kept] == [(3, []), (2, [0, 1]), (2, [])]
    stems = ("curve-1", "curve-2", "curve")
    assert files(runs["pretrained"]) == sorted(
        [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "json", "png")]
        + ["groups-1.csv", "groups-2.csv", "groups.csv"]
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tasks_are_of_their_split(runs, evaluated, split):
    """Test scores on tasks that training or validation has seen."""
    result = evaluated(runs["pretrained"], "tasks=12", "steps=0", "episodes=1", f"split={split}")
    assert result["split"] == split
    assert {split_of(task["velocity"] / 2.0) for task in result["tasks"]} == {split}


def test_tuning_sees_validation_tasks_only(runs, evaluated, monkeypatch):
    """Step sizes chosen on the tasks that are then reported."""
    seen = []

    def spy(learner, meta, tasks, seed, steps, base):
        seen.append((tasks, steps, base))
        return (0.3, 0.2)

    monkeypatch.setattr(curves, "tune_rates", spy)
    result = evaluated(runs["maml"], f"compare=[{runs['oracle']}]", "tasks=3", "steps=2", "tune=true")
    ((tasks, steps, base),) = seen  # an oracle does not adapt, so it has nothing to tune
    assert (len(tasks), steps, base) == (20, 2, 0.1)
    assert {split_of(value / 2.0) for value in tasks["velocity"]} == {"validation"}
    assert result["notes"]["maml"]["inner_lr"] == [0.3, 0.2]
    same = evaluated(runs["maml"], "tasks=3", "steps=2", "inner_lr=[0.3,0.2]")
    assert same["runs"]["maml"] == result["runs"]["maml"]


def test_one_picture_with_both_references(runs, evaluated):
    """An oracle that adapts, or a pretrained run that does not."""
    compared = f"compare=[{runs['pretrained']},{runs['oracle']}]"
    result = evaluated(runs["maml"], compared, "tasks=3", "steps=2")
    assert list(result["runs"]) == ["maml", "pretrained", "oracle"]
    assert [result["runs"][name]["updates"] for name in result["runs"]] == [[0, 1, 2], [0, 1, 2], [0]]
    assert [note["adapted"] for note in result["notes"].values()] == [True, True, False]
    values = np.array(result["runs"]["pretrained"]["values"])
    assert (values[0] != values[1]).all()
    alone = evaluated(runs["oracle"], "tasks=3", "steps=2")
    assert alone["runs"]["oracle"] == result["runs"]["oracle"]
    assert alone["tasks"] == result["tasks"]


def test_rollouts_axis(runs, evaluated):
    """Points in the order and number that the axis needs, and an oracle beside them."""
    result = evaluated(runs["maml"], f"compare={runs['oracle']}", "tasks=2", "rollouts=[4,0,3,3]")
    assert result["runs"]["maml"]["rollouts"] == [0, 3, 4]
    assert result["runs"]["maml"]["updates"] == [0, 1, 2]
    assert result["runs"]["oracle"]["rollouts"] == [0]
    assert np.shape(result["runs"]["maml"]["values"]) == (3, 2)
    one = evaluated(runs["maml"], "tasks=2", "rollouts=3", "inner_lr=0.1")  # one number needs no brackets
    assert one["runs"]["maml"]["values"] == [result["runs"]["maml"]["values"][1]]


def test_same_command_same_numbers(runs, evaluated):
    """A seed that is ignored, or one that is not enough."""
    first, again, other = (evaluated(runs["maml"], "tasks=3", "steps=1", f"seed={seed}") for seed in (4, 4, 5))
    assert first["runs"] == again["runs"]
    assert first["tasks"] == again["tasks"]
    assert not {task["velocity"] for task in first["tasks"]} & {task["velocity"] for task in other["tasks"]}
    assert first["runs"]["maml"]["mean"] != other["runs"]["maml"]["mean"]


def test_sinusoid_is_evaluated(runs, evaluated):
    """Labelled shots through the same door: their number is what ``rollouts`` counts, and two parameters have no scatter."""
    result = evaluated(runs["sinusoid"], "tasks=4", "tune=true")
    assert (result["metric"], result["unit"], result["higher_is_better"]) == ("mse", "", False)
    run = result["runs"]["sinusoid"]
    assert (run["updates"], run["rollouts"]) == ([0, 1, 2, 3], [0, 10, 10, 10])
    assert np.shape(run["values"]) == (4, 4)
    assert set(result["tasks"][0]) == {"amplitude", "phase"}


def test_best_and_last_are_different_parameters(runs, evaluated):
    """``checkpoint=best`` that loads the last: the best validation decides, as ``metrics.jsonl`` has it."""
    rows = [json.loads(line) for line in (runs["maml"] / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_return_1"] for row in rows]
    best = 1 + scores.index(max(scores))
    assert best < len(scores)  # or this test shows nothing
    agents = {which: metarl.load(runs["maml"], which) for which in ("best", "last")}
    assert (agents["best"].iteration, agents["last"].iteration) == (best, len(scores))
    assert any((agents["best"].meta[name] != value).any() for name, value in agents["last"].meta.items())
    results = [evaluated(runs["maml"], "tasks=2", "steps=0", f"checkpoint={which}") for which in agents]
    assert results[0]["runs"]["maml"]["values"] != results[1]["runs"]["maml"]["values"]
    assert [result["notes"]["maml"]["iteration"] for result in results] == [best, len(scores)]


def test_runs_of_one_name_are_told_apart(runs, evaluated, tmp_path):
    """Two runs under one key of ``runs``, of which one is lost."""
    paths = [runs["maml"], tmp_path / "a" / "maml", tmp_path / "b" / "maml", tmp_path / "b" / "other"]
    for path in paths[1:]:
        shutil.copytree(runs["pretrained"], path)
    compared = ",".join(map(str, paths[1:]))
    result = evaluated(runs["maml"], f"compare=[{compared}]", "tasks=2", "steps=0", "episodes=1")
    assert list(result["runs"]) == [f"{runs['maml'].parent.name}/maml", "a/maml", "b/maml", "other"]


def test_names_may_hold_anything(runs, evaluated, tmp_path, capsys):
    """Formulas ($...$) and leading underscores are matplotlib's, bytes that are no text are nobody's."""
    byte, shown = ("\udcff", "\\xff") if sys.platform == "linux" else ("", "")  # elsewhere, names are text
    odd = tmp_path / f"_a$x^$, [b]=c {byte}"
    shutil.copytree(runs["pretrained"], odd)
    result = evaluated(odd, "tasks=2", "steps=0", "episodes=1")
    assert list(result["runs"]) == [f"_a$x^$, [b]=c {shown}"]
    capsys.readouterr()[0].encode()
    picture = tmp_path / "curve.svg"
    with mpl.rc_context({"svg.fonttype": "none"}):
        plots.adaptation(result, picture)
    assert f"_a$x^$, [b]=c {shown}" in picture.read_text()


def test_picture_says_what_it_shows(runs, evaluated, tmp_path):
    """Axes without units, an oracle without its remark, a title without the split."""
    result = evaluated(runs["maml"], f"compare={runs['oracle']}", "tasks=2", "steps=1", "split=validation")
    with mpl.rc_context({"svg.fonttype": "none"}):
        plots.adaptation(result, tmp_path / "u.svg")
        plots.adaptation(result, tmp_path / "r.svg", "rollouts")
        plots.adaptation({**result, "higher_is_better": False}, tmp_path / "l.svg")
    by_updates, by_rollouts, lower = ((tmp_path / f"{name}.svg").read_text() for name in "url")
    for text in ("return (reward per episode of 10 steps)", "inner updates", "velocity (m/s)", "halfcheetah-vel"):
        assert text in by_updates
    for text in (">maml<", "oracle (not adapted)", "2 validation tasks", "95 % interval"):
        assert text in by_updates
    assert "rollouts that the task has learned from" in by_rollouts
    assert "lower is better" not in by_updates
    assert "lower is better" in lower


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "run is missing"),
        (("run=nowhere",), "nowhere does not exist"),
        (("run={maml}/checkpoints",), "not a run directory"),
        (("run={maml}", "compare=[{oracle},nowhere]"), "nowhere does not exist"),
        (("run={maml}", "compare={sinusoid}"), "sinusoid was trained on sinusoid, not on halfcheetah-vel"),
        (("run={maml}", "compare={longer}"), "longer has env.horizon=11"),
        (("run={maml}", "compare={maml}/../maml"), "named twice"),
        (("run={maml}", "taks=3"), "Did you mean 'tasks'?"),
        (("run={maml}", "task=3"), "tasks="),
        (("run={maml}", "split=tests"), "Did you mean 'test'?"),
        (("run={maml}", "tasks=0"), "at least 1"),
        (("run={maml}", "steps=-1"), "at least 0"),
        (("run={maml}", "rollouts=[-1]"), "at least 0"),
        (("run={maml}", "inner_lr=0"), "greater than 0"),
        (("run={maml}", "inner_lr=fast"), "inner_lr"),
        (("run={maml}", "tune=true", "inner_lr=0.1"), "inner_lr= has no effect"),
        (("run={maml}", "video=true", "tune=true"), "tune= has no effect"),
        (("run={maml}", "tune=true", "split=validation"), "judge them on split=test"),
        (("run={maml}", "checkpoint=first"), "last, best"),
        (("run={pretrained}", "checkpoint=best"), "no best checkpoint; use checkpoint=last"),
        (("run={sinusoid}", "rollouts=[1,2]"), "rollouts= belongs to reinforcement learning"),
        (("run={sinusoid}", "episodes=2"), "episodes= belongs to reinforcement learning"),
        (("run={sinusoid}", "video=true"), "video= belongs to reinforcement learning"),
        (("run={sinusoid}", "inner_lr=1e20"), "adaptation diverged; lower inner_lr"),
        (("run={maml}", "normalization=support"), "normalization= belongs to few-shot learning"),
        (("run={maml}", "backend=sumo"), "halfcheetah-vel has one"),
        (("run={maml}", "published=true"), "no source has numbers for halfcheetah-vel"),
        (("run={maml}", "band=velocty=2..3"), "Did you mean 'velocity'?"),
        (("run={maml}", "band=velocity=2..3", "level=1"), "level= has no effect"),
        (("run={maml}", "band=horizon=20"), "a band may change the range of tasks only"),
        (("run={maml}", "inner_lr=1e30"), "adaptation diverged; lower inner_lr"),
    ],
)
def test_what_is_wrong_is_one_line(runs, refused, words, said):
    """A traceback, a message that does not name the culprit, or files of an evaluation that did not happen."""
    for run in runs.values():
        shutil.rmtree(run / "evaluation", ignore_errors=True)
    assert said in refused(*(word.format(**runs) for word in words))
    assert not any((run / "evaluation").exists() for run in runs.values())


def test_an_unwritable_place_is_one_line(runs, refused, tmp_path):
    """A file where the directory should be; the same goes for a full disk."""
    run = tmp_path / "run"
    shutil.copytree(runs["pretrained"], run, ignore=shutil.ignore_patterns("evaluation"))
    (run / "evaluation").write_text("not a directory")
    assert "cannot be written" in refused(f"run={run}", "tasks=2", "steps=0", "episodes=1")


def test_an_earlier_result_stays_until_a_new_one_is_complete(runs, evaluated, refused, monkeypatch):
    """A new ``curve.json`` beside an old picture."""
    before = evaluated(runs["pretrained"], "tasks=2", "steps=0", "episodes=1")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "adaptation", full)
    assert "No space left" in refused(f"run={runs['pretrained']}", "tasks=3", "steps=0", "episodes=1")
    after = json.loads((runs["pretrained"] / "evaluation" / "curve.json").read_text())
    assert after == before
    assert files(runs["pretrained"]) == ["curve.csv", "curve.json", "curve.png", "groups.csv"]


def test_help_lists_every_setting(capsys):
    """A setting that nobody can find."""
    assert evaluate.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("run", "compare", "tasks", "steps", "episodes", "rollouts", "split", "inner_lr", "tune", "checkpoint"):
        assert f"\n  {name}=" in shown
