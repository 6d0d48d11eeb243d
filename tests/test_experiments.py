"""The recorded experiments: their figures by hand, and each of them from training to table in miniature."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import torch

import metarl
from experiments import algorithms as compared
from experiments import bandits, memory, peak, recording, references, tabular, traffic_report
from metarl import evaluate, train
from metarl.analysis.agent import Agent
from metarl.analysis.curves import update_curve
from metarl.families import Tasks
from metarl.settings import SettingsError

ROOT = pathlib.Path(__file__).parents[1]


def test_gaps_by_hand():
    """Two seeds, one update, two tasks. Means: maml 4 and 6, pretrained 3, oracle 9: (4 - 3) / 6, (6 - 3) / 6."""
    maml = np.array([[[0, 0], [3, 5]], [[0, 0], [6, 6]]], dtype=float)
    gaps = recording._gaps(maml, np.array([[1, 1], [2, 4]], dtype=float), np.array([8, 10], dtype=float))
    assert gaps.keys() == {1}
    assert gaps[1]["each_seed"] == pytest.approx([1 / 6, 3 / 6])
    assert gaps[1]["mean"] == pytest.approx(2 / 6)
    # tasks by themselves: (5.5 - 4) / 6 and (4.5 - 2) / 6; an interval over seeds, or over one run's tasks, ends elsewhere
    assert gaps[1]["ci95_over_tasks"] == pytest.approx([1.5 / 6, 2.5 / 6])


def test_a_text_goes_between_its_marks_and_nowhere_else(tmp_path):
    """Catches a section that grows with every run, one that swallows the next, and marks that are not there."""
    file = tmp_path / "README.md"
    file.write_text("head\n<!-- a -->\nold\n<!-- a -->\nmiddle\n<!-- b -->\nb\n<!-- b -->\ntail\n")
    for text in ("first", "second"):
        recording.insert(file, "<!-- a -->", text)
    expected = "head\n<!-- a -->\n\nsecond\n<!-- a -->\nmiddle\n<!-- b -->\nb\n<!-- b -->\ntail\n"
    assert file.read_text() == expected
    with pytest.raises(ValueError, match="c"):
        recording.insert(file, "<!-- c -->", "x")
    assert file.read_text() == expected


@pytest.mark.parametrize(
    ("mark", "file"),
    [(bandits.MARK, recording.README), (tabular.MARK, recording.README)]
    + [(references.mark(env), recipe.readme) for env, recipe in references.RECIPES.items()]
    + [(traffic_report.mark("traffic-grid", what), recording.README) for what in ("", "agree", "transfer")],
)
def test_the_marks_are_there(mark, file):
    """A training of minutes or hours must not end in a refusal."""
    assert (ROOT / file).read_text(encoding="utf-8").count(mark) == 2


def _bandit(episodes, inner_lr):
    """An agent that pulls all arms alike until it has adapted."""
    learner = metarl.build("bandit-bernoulli", episodes_per_task=episodes, inner_lr=inner_lr, threads=1)
    return Agent(learner, {n: 0 * v for n, v in learner.init(seed=0).meta.items()}, None, 0)


def test_the_best_empirical_arm_is_of_the_pulls_that_were_fitted():
    """A sure arm among losing ones: found in 100 pulls, and in k pulls with probability 1 - (4/5)^k."""
    tasks = Tasks(tuple(f"p{k}" for k in range(5)), np.eye(5))
    scores, best = bandits.adapt(_bandit(100, 30.0), tasks, (0, 2, 1))
    assert best.tolist() == [[0.2] * 5] + [[1.0] * 5] * 3
    assert scores.shape == (4, 5)
    scores, best = bandits.adapt(_bandit(1, 1e-9), tasks.repeat(400), (0, 2, 1))
    np.testing.assert_array_equal(
        best[1], scores[0]
    )  # of one pull, the arm that was pulled: it pays for sure, or never
    assert best.mean(1) == pytest.approx([0.2, 0.2, 0.36, 0.488], abs=5 * 0.5 / np.sqrt(2000))


def test_bandits_are_adapted_to_as_the_evaluation_does():
    """Catches other pulls than those of ``metarl.evaluate``, and scores of pulls that were learned from."""
    agent = _bandit(20, 5.0)
    tasks = agent.learner.domain.sample_tasks(30, "test", (0, 2))
    curve = update_curve(agent.learner, agent.meta, tasks, (0, 2, 1), bandits.STEPS)
    np.testing.assert_array_equal(bandits.adapt(agent, tasks, (0, 2, 1))[0], curve.values)


def test_closed_parts_by_hand():
    """Unadapted 1 and 2, oracle 7 on average: 3 and 3 close 2/6 and 1/5, and the mean of the seeds (3 - 1.5) / 5.5."""
    values = np.array([[[1.0, 1.0], [3.0, 3.0]], [[2.0, 2.0], [3.0, 3.0]]])
    start, end = bandits._closed(values, values[:, 0], np.array([5.0, 9.0]))
    assert (start["mean"], start["each_seed"]) == (0.0, [0.0, 0.0])
    assert end["each_seed"] == pytest.approx([2 / 6, 1 / 5])
    assert end["mean"] == pytest.approx(1.5 / 5.5)
    assert end["ci95"] == pytest.approx([1.5 / 7.5, 1.5 / 3.5])  # one task or the other, twice


def test_the_part_of_the_optimum_is_of_means():
    """(3 + 5) / (4 + 12); the mean of 3/4 and 5/12 would be 0.58."""
    assert tabular.fraction(np.array([3.0, 5.0]), np.array([4.0, 12.0]))["mean"] == 0.5


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Commands run in this process, in an empty directory."""
    commands = {"metarl.train": train.main, "metarl.evaluate": evaluate.main}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recording, "python", lambda module, *words: commands[module](list(words)))
    threads = torch.get_num_threads()
    yield tmp_path / "runs" / "tiny"
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("module", "name", "words", "rows"),
    [
        (bandits, "bandit-bernoulli", ["seeds=1"], ["| 3 | ", "| gittins | ", "| maml | ", "| rl2 | "]),
        (references, "navigation-2d", ["env=navigation-2d", "seeds=2"], ["| maml-s1 | ", "| maml, mean of seeds | "]),
        (
            references,
            "halfcheetah-vel",
            ["seeds=1"],
            ["| oracle-s0 | ", "- gap closed after 3 updates: ", " m/s (1) | "],
        ),
        (references, "halfcheetah-dir", ["env=halfcheetah-dir"], ["| oracle-s0 | "]),
        (tabular, "tabular-mdp", [], ["| 3 | "]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_experiment_runs_from_training_to_table(small, monkeypatch, capsys, module, name, words, rows):
    """Twice: the second time finds its runs complete. Nothing is written beside them."""
    monkeypatch.setattr(sys, "argv", ["x", "tiny=true", *words])
    for _ in range(2):
        assert module.main() == 0
    results = small / name / "results"
    text = (results / "summary.md").read_text(encoding="utf-8")
    assert all(row in text for row in rows)
    assert text in capsys.readouterr().out
    summary = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    assert summary["runs"]["maml-s0"]["iterations"] == 2
    assert {"curve.png", "learning.png", "maml-s0"} <= {path.name for path in results.iterdir()}
    assert metarl.load(results / "maml-s0").iteration == 2
    assert [path.name for path in small.parents[1].iterdir()] == ["runs"]


def test_what_is_closed_starts_at_unadapted(small):
    """Catches another point of the curve in place of the unadapted one."""
    recording.train(
        "bandit-bernoulli", small, {"x": ["iterations=1", "meta_batch_size=2", "eval_every=0", "threads=1"]}
    )
    fitted = bandits.fit([small / "x"], 20)
    assert (fitted["pulls"], fitted["maml"]["closed"][0]["mean"]) == (100, 0.0)
    assert fitted["best_empirical_arm"]["closed"][3]["mean"] > 0.8


@pytest.mark.parametrize("module", [bandits, references, tabular])
def test_mistakes_end_with_one_line(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "tyni=true"])
    assert module.main() == 2
    assert capsys.readouterr().err == "error: Unknown setting 'tyni'. Did you mean 'tiny'?\n"


@pytest.mark.parametrize("module", [bandits, references, tabular])
def test_evaluating_nothing_ends_with_one_line(small, module, monkeypatch, capsys):
    """Catches a traceback where nothing has been trained yet."""
    monkeypatch.setattr(sys, "argv", ["x", "tiny=true", "train=false"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    err = capsys.readouterr().err
    assert err.startswith("error: runs/tiny/")
    assert err.endswith("has no run to evaluate; leave train=false out\n")


def test_a_command_that_fails_ends_the_experiment_with_its_status(capfd):
    """Catches a traceback behind the line in which the command has said what is wrong."""
    with pytest.raises(SystemExit, match="2"):
        recording.python("metarl.train", "env=nope")
    assert capfd.readouterr().err.count("\n") == 1


def test_memory_is_measured_in_processes_of_their_own(monkeypatch, capsys):
    """The whole experiment in small: a child that prints something else than its numbers, a table that loses a row."""
    monkeypatch.setattr(sys, "argv", ["x", "tiny=true"])
    assert memory.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "-adam |" in line]
    assert [row.split()[1] for row in rows] == list(memory.ALGORITHMS)
    assert all(row.count(" MiB, ") == 2 for row in rows)


def test_algorithms_are_compared_after_updates_or_episodes(small, monkeypatch, capsys):
    """From training to table: a policy with a memory is judged by the episodes of its trials, a peak of memory is kept."""
    monkeypatch.setattr(sys, "argv", ["x", "tiny=true", "seeds=1", "only=[maml-trpo,rl2]"])
    assert compared.main() == 0
    shown = capsys.readouterr().out
    rows = {
        line.split()[1]: line.split("|")[2:-1] for line in shown.splitlines() if line.startswith(("| maml", "| rl2"))
    }
    assert rows.keys() == {"maml-trpo", "rl2"}
    assert all("nan" not in cell for cells in rows.values() for cell in cells)
    assert "one seed, mean over tasks and its 95 % interval" in shown
    low, high = map(float, rows["maml-trpo"][0].split("[")[1].rstrip("] ").split(","))
    assert low < high  # of one seed there is no interval over seeds
    kept = small / "algorithms" / "navigation-2d" / "rl2-s0" / "memory.json"
    assert json.loads(kept.read_text())["peak_mib"] > 50


def test_the_peak_is_the_commands_own():
    """A child's peak as the kernel counts it is at least its parent's: small algorithms would all show the experiment itself."""
    held = np.ones(20_000_000)  # 153 MiB
    status, small = peak.run([sys.executable, "-c", "raise SystemExit(3)"])
    _, large = peak.run([sys.executable, "-c", f"b = bytearray({held.nbytes}); b[::4096] = b[::4096]"])
    assert status == 3
    assert small < 60
    assert 140 < large < 250


def test_unfinished_runs_are_in_no_table(tmp_path):
    """A run that was stopped has checkpoints, too; the table says that all have used up the same budget."""
    for name in ("whole", "half"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    with pytest.raises(SettingsError, match="has come to its end"):
        compared.finished(tmp_path, ["whole", "half"])
    (tmp_path / "whole" / "memory.json").write_text("{}")
    assert compared.finished(tmp_path, ["whole", "half"]) == {"whole"}


def test_a_row_of_fewer_seeds_says_so():
    """Beside others whose mean is over more of them."""
    row = {"mean": [1.0] * 3, "ci95": [[0.0, 2.0]] * 3, "iterations": 1, "env_steps": 2e6}
    row |= {
        "seconds_per_iteration": 1.0,
        "peak_mib": 1.0,
        "commits": ["c"],
        "metric": "return",
        "higher_is_better": True,
    }
    rows = {"some": row | {"each_seed": [[1.0] * 3] * 2}, "all": row | {"each_seed": [[1.0] * 3] * 3}}
    origin = {"cpu": "x", "cores": 1, "versions": {}}
    shown = compared.report({"env": "e", "tasks": 2, "budget": 1e6, "rows": rows, "command": "", "provenance": origin})
    assert "| some (seeds: 2) |" in shown
    assert "| all |" in shown


def test_what_diverges_is_said_and_written(tmp_path):
    """A score that is not a number stopped the experiment when it wrote its result."""
    row = {
        "mean": [1.0, 2.0, float("nan")],
        "ci95": [[0.0, 2.0]] * 2 + [[float("nan")] * 2],
        "iterations": 1,
    }
    row |= {"env_steps": 2e6, "seconds_per_iteration": 1.0, "peak_mib": 1.0, "commits": ["c"], "metric": "mse"}
    rows = {"a": row | {"each_seed": [row["mean"]], "higher_is_better": False}}
    origin = {"cpu": "x", "cores": 1, "versions": {}}
    result = {"env": "e", "tasks": 2, "budget": 1e6, "rows": rows, "command": "", "provenance": origin}
    assert "| 2.00 [0.00, 2.00] | diverged |" in compared.report(result)
    recording.write(tmp_path / "x.json", compared.null_for_nan(result))
    assert json.loads((tmp_path / "x.json").read_text())["rows"]["a"]["mean"] == [1.0, 2.0, None]
    compared.draw(result, tmp_path / "x.png")


def test_budgets_are_spent_alike(monkeypatch):
    """Five inner steps collect three times what one does, so that there are a third of the iterations."""
    counts = {}
    for name in ("maml-trpo", "reptile"):
        counts[name] = int(compared._plan("navigation-2d", name, tiny=False)[-1].removeprefix("iterations="))
    assert counts["maml-trpo"] == pytest.approx(3 * counts["reptile"], abs=2)
