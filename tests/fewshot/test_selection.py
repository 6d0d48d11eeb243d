"""The model that is kept as the best is the best on validation classes, and the one that ``checkpoint="best"`` loads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from metarl import evaluate, families, train
from metarl.analysis.agent import load
from metarl.analysis.shots import shot_curves
from metarl.families import SPLITS
from metarl.fewshot import protocols
from metarl.learner import TEST, VALIDATION
from tests.fewshot.conftest import COUNT

WORDS = (
    *("env=patterns", "env.ways=3", "env.shots=1", "seed=3", "threads=1", "filters=4", "meta_batch_size=2"),
    *("inner_lr=0.4", "iterations=8", "eval_every=2", "eval_tasks=6", "eval_steps=2", "algo.lr=0.05"),
)


@pytest.fixture
def run(patterns, monkeypatch, tmp_path):
    """A run of eight iterations, validated every second."""
    monkeypatch.setitem(families._registered, "patterns", patterns)
    assert train.main([*WORDS, f"run_dir={tmp_path / 'run'}"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return tmp_path / "run", [json.loads(line) for line in lines]


def _validation_accuracy(agent):
    """Accuracy after two updates on the tasks of validation, one task and one example at a time."""
    domain, seed = agent.learner.domain, (3, VALIDATION)
    tasks = agent.learner.domain.family.sample_tasks(6, "validation", seed)
    assert set(tasks.values.ravel().astype(int)) <= set(
        np.split(np.arange(COUNT), [40, 50])[SPLITS.index("validation")]
    )
    right = []
    for task in range(6):
        seeds = [families.stream(seed, place).generate_state(1)[0] for place in range(6)]
        support, query = domain.draw(tasks.rows([task]), np.array(seeds)[[task]])
        params = {name: value[None].clone() for name, value in agent.meta.items()}
        for _ in range(2):
            params = {name: value.requires_grad_() for name, value in params.items()}
            gradients = torch.autograd.grad(domain.query.loss(params, support).sum(), list(params.values()))
            params = {n: (v - 0.4 * g).detach() for (n, v), g in zip(params.items(), gradients, strict=True)}
        right.append((domain.net(params, query.inputs)[0].argmax(-1) == query.targets[0]).double().mean())
    return float(torch.stack(right).mean())


def test_the_best_is_chosen_on_validation_classes(run):
    """Catches a best that is judged on training or test classes, before adapting, after training's number of updates instead of
    ``eval_steps``, by the worst score, or that is the last."""
    path, rows = run
    scores = {row["iteration"] + 1: row["validation_accuracy_2"] for row in rows if "validation_accuracy_2" in row}
    assert list(scores) == [2, 4, 6, 8]
    best, last = load(path, "best"), load(path, "last")
    assert best.iteration == max(scores, key=lambda iteration: scores[iteration])
    assert best.iteration != last.iteration, "nothing to tell apart: choose other settings"
    for agent in (best, last):
        assert _validation_accuracy(agent) == pytest.approx(scores[agent.iteration], abs=1e-6)


def test_a_resumed_run_remembers_its_best(run, monkeypatch):
    """Catches a best that is forgotten by the resumption, so that the first validation after it wins."""
    path, _ = run
    before = load(path, "best")
    monkeypatch.setattr("metarl.run.trainer.validate", lambda *_: {"validation_accuracy_2": 0.0})
    words = [word for word in WORDS if not word.startswith("iterations")]
    assert train.main([*words, "iterations=10", f"run_dir={path}", "resume=auto"]) == 0
    assert load(path, "last").iteration == 10
    assert load(path, "best").iteration == before.iteration


def test_a_run_is_evaluated_by_other_protocols(run, monkeypatch, capsys):
    """Catches training's protocol under another's name, and a network that has none."""
    path, _ = run
    shown = {}
    for name in ("transductive", "support", "one-by-one"):
        assert evaluate.main([f"run={path}", f"normalization={name}", "tasks=9", "steps=2", "checkpoint=best"]) == 0
        assert f"accuracy ({name} normalisation) after updates" in capsys.readouterr().out
        curve = json.loads((path / "evaluation" / "curve.json").read_text())
        shown[name] = np.array(curve["runs"]["run"]["values"])
    agent = load(path, "best")
    tasks = agent.learner.domain.sample_tasks(9, "test", (0, TEST))
    nets = protocols(agent.learner.domain.net)
    wanted = shot_curves(agent.learner, agent.meta, tasks, (0, TEST, 1), (0, 1, 2), nets)
    assert shown.keys() == wanted.keys()
    for name, values in shown.items():
        np.testing.assert_allclose(values, wanted[name].values, atol=1e-6)
    words = [word for word in WORDS if not word.startswith("filters")]
    assert train.main([*words, "network=mlp", f"run_dir={path.parent / 'mlp'}"]) == 0
    capsys.readouterr()
    assert evaluate.main([f"run={path.parent / 'mlp'}", "normalization=support"]) == 2
    reason = "normalization=support does not fit the network of mlp: it has none; leave it out"
    assert capsys.readouterr().err == f"error: {reason}\n"
