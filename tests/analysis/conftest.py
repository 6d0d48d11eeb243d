"""Tiny runs, trained once for all tests of the evaluation side."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from metarl import evaluate, train

CHEETAH = (
    "env=halfcheetah-vel",
    "env.horizon=10",
    "normalize_observations=false",
    "gae_lambda=1",
    "inner_lr=0.1",
    "init_std=1",
    "meta_batch_size=3",
    "episodes_per_task=3",
    "hidden_sizes=[8]",
    "threads=1",
    "eval_tasks=2",
)
RUNS = {
    # validated at every iteration: the best is the second of three; the others never are
    "maml": (*CHEETAH, "iterations=3", "eval_every=1", "seed=1"),
    "pretrained": (*CHEETAH, "iterations=2", "inner_steps=0"),
    "oracle": (*CHEETAH, "iterations=2", "inner_steps=0", "env.oracle=true"),
    "normalized": (*CHEETAH, "iterations=2", "eval_every=1", "normalize_observations=true"),
    "longer": (*CHEETAH, "iterations=2", "env.horizon=11"),
    "sinusoid": ("env=sinusoid", "iterations=30", "hidden_sizes=[8]", "threads=1"),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Run directories by name; no test writes into them but below ``evaluation``."""
    parent = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        _train(name, parent / name)
    return {name: parent / name for name in RUNS}


def _train(name, path, *more):
    settings = dict(word.split("=", 1) for word in (*RUNS[name], *more))  # a later one wins
    words = [f"{key}={value}" for key, value in settings.items()]
    assert train.main([*words, f"run_dir={path}"]) == 0


@pytest.fixture(scope="session")
def trained():
    """Train one of them again, elsewhere and with other settings: ``trained("maml", path, "seed=2")``."""
    return _train


@pytest.fixture
def evaluated():
    """Evaluate in this process; return ``curve.json`` as it was read back."""

    def run(path, *words):
        assert evaluate.main([f"run={path}", *words]) == 0
        return json.loads((path / "evaluation" / "curve.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def refused(capsys):
    """Evaluate with something wrong: exit code 2 and one line, which is returned."""

    def run(*words):
        capsys.readouterr()
        assert evaluate.main(list(words)) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        (line,) = shown.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture
def by_hand():
    """One gradient step of every task by itself: ``by_hand(domain, params (M, ...), data, lr)``."""

    def step(domain, params, data, lr):
        stepped = []
        for task in range(data.num_tasks):
            own = {name: value[task : task + 1].clone().requires_grad_() for name, value in params.items()}
            (loss,) = domain.inner_loss(own, data.rows(slice(task, task + 1)))
            gradients = torch.autograd.grad(loss, list(own.values()))
            stepped.append([value.detach() - lr * g for value, g in zip(own.values(), gradients, strict=True)])
        return {name: torch.cat(values) for name, values in zip(params, zip(*stepped, strict=True), strict=True)}

    return step
