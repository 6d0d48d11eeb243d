"""``python -m metarl.diagnose``: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import metarl
import metarl.train
from metarl import diagnose
from metarl.analysis import diagnostics, restricted
from metarl.families import Tasks
from metarl.run.build import build_learner


@pytest.fixture(autouse=True)
def _threads():
    """The command sets torch's threads for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def diagnosed(runs, tmp_path, capsys):
    def run(name, *words):
        path = tmp_path / name
        shutil.copytree(runs[name], path, ignore=shutil.ignore_patterns("evaluation"))
        assert diagnose.main([str(path), "tasks=4", *words]) == 0
        return json.loads((path / "evaluation" / "diagnostics.json").read_text()), capsys.readouterr().out

    return run


def test_all_of_a_policy(diagnosed, runs):
    """A diagnostic that is missing, or of other tasks than are written beside it."""
    result, shown = diagnosed("maml", "far=2", "best=0")
    asked = [name for name in diagnose.READING if name != "left_out"]
    assert list(result["diagnostics"]) == asked == list(result["reading"])
    assert not [name for name, found in result["diagnostics"].items() if "not_applicable" in found]
    risk = result["diagnostics"]["risk"]
    assert risk["ratio"] == pytest.approx(np.mean(risk["held_out"]) / np.mean(risk["training"]))
    agent = metarl.load(runs["maml"])
    tasks = agent.learner.domain.sample_tasks(4, "test", (0, 2))
    assert tasks.to_json() == result["tasks"]["test"]
    losses = diagnostics.adapted_losses(agent.learner, agent.meta, tasks, (0, 2, 1, 0), 1, 0.0)
    np.testing.assert_allclose(risk["held_out"], losses)
    assert len(result["diagnostics"]["layers"]["mean"]) == 2
    assert list(result["diagnostics"]["rollouts"]) == ["1", "2", "3", "6", "12"]
    assert list(result["diagnostics"]["rates"]) == ["0.01", "0.03", "0.1", "0.3", "1"]
    for name in asked:
        assert f"\n{name}  " in f"\n{shown}"
        assert diagnose.READING[name] in shown
    assert result["command"].startswith("python -m metarl.diagnose ")


def _without_numbers(value):
    if isinstance(value, dict):
        return {key: _without_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_numbers(one) for one in value]
    return None if isinstance(value, float) else value


def test_what_is_no_number_can_be_read_from_its_file(diagnosed):
    """Similarities of representations that never vary are null in JSON, and ended the report of a bandit."""
    result, _ = diagnosed("maml", "far=2", "best=0")
    for name, found in result["diagnostics"].items():
        assert "nan" in diagnose.TEXTS[name](_without_numbers(found)), name


def test_each_task_is_left_out_of_a_training_of_its_own(diagnosed, runs):
    """Trainings that begin with the run's own statistics, losses without them, one draw for many, a task that is there twice."""
    words = ("only=left_out", "among=2", "retrain=2", "best=0", "seed=5")
    result, shown = diagnosed("normalized", *words)
    found, agent = result["diagnostics"]["left_out"], metarl.load(runs["normalized"])
    domain = agent.learner.domain
    tasks = Tasks.from_json(found["tasks"])
    assert sorted(domain.sample_tasks(2, "train", (5, 0)).values.tolist()) == tasks.values.tolist()
    fresh, held, others = build_learner(agent.config), [], []
    for out in (0, 1):
        state = restricted.restricted(fresh, tasks.rows([1 - out])).init(5)
        for _ in range(2):
            state, _ = restricted.restricted(fresh, tasks.rows([1 - out])).iteration(state)
        assert float(state.statistics["count"]) == 2 * 2 * 3 * 3 * 10  # iterations, sets, tasks, episodes, steps
        each = diagnostics.adapted_losses(fresh.at(state), state.meta, tasks.repeat(2), (5, 2, 1, 2), 1, 0.0)
        each = each.reshape(2, 2).mean(1)
        held.append(each[out])
        others.append(each[1 - out])
    assert found["ratio"] == pytest.approx(np.mean(held) / np.mean(others))
    assert (found["iterations"], found["draws"]) == (2, 2)
    assert f"left_out  R = {found['ratio']:.2f} [" in shown
    assert "(2 trainings of 2 meta-updates)" in shown


def test_a_finite_set_of_tasks_is_found():
    """Two directions taken for many tasks, or many velocities for a few that are then left out one by one."""
    few, many = (metarl.build(f"halfcheetah-{name}", threads=1).domain for name in ("dir", "vel"))
    assert restricted.every(few, 20).values.tolist() == [[-1.0], [1.0]]
    assert restricted.every(few, 1) is None
    assert restricted.every(many, 20) is None


def test_leaving_out_is_asked_for(diagnosed, runs, capsys):
    """Hours of training by default, or a number that nothing obeys."""
    result, _ = diagnosed("sinusoid", "only=left_out")
    assert "more than 20 training tasks" in result["diagnostics"]["left_out"]["not_applicable"]
    assert diagnose.main([str(runs["maml"]), "only=risk", "retrain=3"]) == 2
    assert "retrain= has no effect here" in capsys.readouterr().err


def test_what_does_not_apply_is_said_and_not_computed(diagnosed):
    """One diagnostic that ends all others, or a number that means nothing."""
    result, shown = diagnosed("maml", "only=[risk,orders]")
    assert list(result["diagnostics"]) == ["risk", "orders"]
    assert "say with best=" in result["diagnostics"]["risk"]["not_applicable"]
    assert "risk  not applicable: " in shown
    assert 0 < result["diagnostics"]["orders"]["cosine"] <= 1
    result, _ = diagnosed("sinusoid", "only=rollouts")
    assert "labelled shots" in result["diagnostics"]["rollouts"]["not_applicable"]
    result, _ = diagnosed("oracle", "only=[orders]")
    assert "has none" in result["diagnostics"]["orders"]["not_applicable"]


def test_overfitting_is_called_so(diagnosed, monkeypatch):
    """A warning that is in the file alone."""
    found = diagnostics.risk_inflation(np.array([4.0, 5.0]), np.array([1.0, 1.5]))
    monkeypatch.setattr(diagnostics, "risk_inflation", lambda *_: found)
    result, shown = diagnosed("sinusoid", "only=risk")
    assert result["diagnostics"]["risk"]["overfits"] is True
    assert "R = 3.60" in shown
    assert "WARNING: it overfits its training tasks" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing"),
        (["nowhere"], "nowhere does not exist"),
        (["{maml}", "only=riks"], "Did you mean 'risk'?"),
        (["{maml}", "tasks=1"], "at least 2"),
        (["{maml}", "stpes=1"], "Did you mean 'steps'?"),
        (["{pretrained}", "checkpoint=best"], "no best checkpoint"),
    ],
)
def test_what_is_wrong_is_one_line(runs, capsys, words, said):
    """A traceback, or a message that does not name the culprit."""
    assert diagnose.main([word.format(**runs) for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert said in line


def test_a_policy_with_a_memory_is_refused(tmp_path, capsys):
    """Zeros for a run that has no inner updates."""
    words = [
        "env=bandit-bernoulli",
        "algo=rl2",
        "iterations=1",
        "meta_batch_size=2",
        "episodes_per_task=2",
        "threads=1",
    ]
    assert metarl.train.main([*words, f"run_dir={tmp_path / 'x'}"]) == 0
    capsys.readouterr()
    assert diagnose.main([str(tmp_path / "x")]) == 2
    assert "learns by memory" in capsys.readouterr().err


def test_help(capsys):
    """A setting that nobody can find."""
    assert diagnose.main(["--help"]) == 0
    assert "\n  best=" in capsys.readouterr().out
