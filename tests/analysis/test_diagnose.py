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
from metarl.analysis import diagnostics


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
    assert list(result["diagnostics"]) == list(diagnose.READING) == list(result["reading"])
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
    for name, sentence in diagnose.READING.items():
        assert f"\n{name}  " in f"\n{shown}"
        assert sentence in shown
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
