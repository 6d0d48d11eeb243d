"""``python -m metarl.references``: equal steps, evaluate's tasks and episodes, cells that are kept, and what the report says."""

from __future__ import annotations

import csv
import html
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

import metarl
from metarl import evaluate, references, report, train
from metarl.analysis.references import Cells, ladder, sentences, summarise
from metarl.gym.environment import Opened
from metarl.integrations import comparison
from metarl.integrations import references as libraries
from metarl.integrations.sb3 import FamilyVecEnv
from metarl.rl.groups import randomness, reset_seeds
from metarl.run.config import algorithm_of, resolve
from metarl.run.directory import write_config

HORIZON, EPISODES = 5, 4
# nobody gets there: every episode has all of its steps
OWN = {"horizon": HORIZON, "goal_radius": 0.0}
SMALL = {"tasks": 2, "seeds": 2, "steps": 2, "multiples": 2, "pretrain": 64, "methods": "[ppo,oracle]"}


@pytest.fixture(autouse=True)
def _threads():
    """The commands set torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def compare(run, **changes):
    """Call the command; it must go well."""
    assert references.main([str(run), *(f"{key}={value}" for key, value in (SMALL | changes).items())]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run of a moment, with references of a moment."""
    path = tmp_path_factory.mktemp("references") / "x"
    words = ["env=navigation-2d", "meta_batch_size=2", f"episodes_per_task={EPISODES}", "iterations=1", "threads=1"]
    words += [f"env.{name}={value}" for name, value in OWN.items()]
    assert train.main([*words, "hidden_sizes=[8]", "eval_every=0", f"run_dir={path}"]) == 0
    compare(path)
    return path


def _result(run):
    return json.loads((run / "evaluation" / "references.json").read_text())


CASES = [
    ("ppo", "navigation-2d", OWN, (0, 20, 40, 80)),
    ("ppo", "bandit-bernoulli", {"arms": 3}, (0, 7, 14)),
    ("sac", "navigation-2d", OWN, (0, 20, 40)),
    ("finetuned", "navigation-2d", OWN, (0, 20, 40)),
    ("recurrent-ppo", "navigation-2d", OWN, (0, 20, 40)),
    pytest.param("ppo", "traffic-demand", {"horizon": 3}, (0, 12, 24), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "family", "settings", "steps"), CASES)
def test_steps_are_those_that_were_asked_for(method, family, settings, steps, monkeypatch):
    """A reference that is given whole updates more, or steps of its scores as well, or that is scored before it learned."""
    if method == "recurrent-ppo" or "traffic" in family:
        pytest.importorskip("sb3_contrib", reason="needs the extra contrib")
    taken, found, told = [0], [], []
    stepped, played = FamilyVecEnv.step_wait, libraries.play

    def step_wait(env):
        taken[0] += env.num_envs
        return stepped(env)

    def play(model, *others):
        found.append((taken[0], torch.cat([p.detach().ravel() for p in model.policy.parameters()])))
        return played(model, *others)

    monkeypatch.setattr(FamilyVecEnv, "step_wait", step_wait)
    monkeypatch.setattr(libraries, "play", play)
    tasks = metarl.make(family, **settings).sample_tasks(2, "test", 0)
    problem = libraries.Problem(family, settings, tasks, EPISODES)
    weights = None
    if method in ("finetuned", "recurrent-ppo"):
        trained = libraries.pretrain(problem, method, 48, 3, told.append)
        assert (taken, sum(told)) == ([48], 48)
        weights, taken[0] = trained.weights, 0
        told.clear()
    scores = [libraries.Score(count, (0, 2, 1, 0)) for count in steps]
    learned = libraries.learn(problem, method, 1, scores, 5, weights, told.append)
    assert [count for count, _ in found] == list(steps)
    assert sum(told) == steps[-1]
    assert all(not torch.equal(a, b) for (_, a), (_, b) in itertools.pairwise(found))
    assert len(learned.values) == len(steps)
    if weights is not None:
        names = [name for name, _ in trained.weights.items()]
        first = torch.cat([trained.weights[name].ravel() for name in names])
        assert torch.equal(first.sort().values, found[0][1].sort().values), (
            "it starts where training on all tasks ended"
        )


def test_rungs_are_the_meta_learners_steps(run):
    """Updates counted as rollouts, a horizon left out, multiples of another number, or a K that is one short."""
    result = _result(run)
    assert result["meta_learner"]["steps"] == [0, EPISODES * HORIZON, 2 * EPISODES * HORIZON]
    assert result["references"]["ppo"]["steps"] == [0, 20, 40, 80]
    assert result["references"]["oracle"]["steps"] == [0]
    # each rung in the episodes of the meta-learner's score at as many steps
    assert [rung.point for rung in ladder([0, 20, 40], [2])] == [0, 1, 2, 2]


def test_tasks_and_scores_are_evaluates(run, monkeypatch):
    """Other tasks than those of the run's evaluation, another curve of the meta-learner, or other episodes."""
    evaluation = run / "evaluation"
    assert evaluate.main([f"run={run}", "tasks=2", "steps=2"]) == 0
    curve = json.loads((evaluation / "curve.json").read_text())
    result = _result(run)
    assert result["tasks"] == curve["tasks"]
    for key in ("values", "mean", "ci95", "rollouts", "updates"):
        assert result["meta_learner"][key] == curve["runs"]["x"][key]
    seeds, seen = [], []
    played = libraries.play

    def play(model, opened, task, seeds_E):
        seeds.append(seeds_E)
        seen.append(task.to_json()[0])
        return played(model, opened, task, seeds_E)

    monkeypatch.setattr(libraries, "play", play)
    compare(run, methods="ppo", seed=1, tasks=3)
    compare(run)  # as it was
    domain = metarl.load(run).learner.domain
    tasks = domain.sample_tasks(3, "test", (1, 2))
    assert seen == [task for _ in range(2) for task in tasks.to_json() for _ in range(4)]
    for point in range(3):
        _, own = randomness(slice(0, 3), (1, 2, 1, point), (HORIZON, EPISODES), domain.policy)
        np.testing.assert_array_equal(seeds[4 * 2 + point], own[2 * EPISODES :])
        np.testing.assert_array_equal(reset_seeds((1, 2, 1, point), 2, EPISODES), own[2 * EPISODES :])


def test_a_score_is_the_undiscounted_return_of_sampled_actions():
    """Rewards that are discounted, averaged over steps, or of the likeliest actions; an oracle that is told nothing."""

    class Model:
        def predict(self, seen, state, episode_start, deterministic):
            told.append((seen, episode_start.all(), deterministic))
            return np.tile([1.0, 0.0], (len(seen), 1)).astype(np.float32), state

    told = []
    opened = Opened.of("navigation-2d", {**OWN, "oracle": True})
    task = opened.family.sample_tasks(1, "test", 0)
    value, success = libraries.play(Model(), opened, task, np.arange(3, dtype=np.uint32))
    goal = task.values[0]
    wanted = -sum(np.hypot(0.1 * step - goal[0], goal[1]) for step in range(1, HORIZON + 1))
    assert value == pytest.approx(wanted, rel=1e-6)
    assert success is None
    assert [first for _, first, _ in told] == [True] + [False] * (HORIZON - 1)
    assert not any(deterministic for *_, deterministic in told)
    np.testing.assert_allclose(told[0][0][:, 2:], np.tile(2 * goal, (3, 1)), rtol=1e-6)  # -0.5 to 0.5 scaled to -1 to 1


def test_what_was_cut_is_done_again_and_nothing_else(run, tmp_path, monkeypatch):
    """Half a line that is taken for a cell or ends everything, cells that are done twice, and numbers that depend on either."""
    path = tmp_path / "x"
    shutil.copytree(run, path)
    compare(path)  # the command names the run, and so does what is written
    out = path / "evaluation"
    files = ("references.json", "references.csv", "references.jsonl")
    before = [(out / name).read_bytes() for name in files]
    lines = before[2].splitlines(keepends=True)
    (out / files[2]).write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (out / files[0]).unlink()
    done = []
    learn, pretrain = comparison.learn, comparison.pretrain

    def counted(problem, method, task, *others):
        done.append((method, task))
        return learn(problem, method, task, *others)

    monkeypatch.setattr(comparison, "learn", counted)
    monkeypatch.setattr(comparison, "pretrain", lambda *given: done.append("pretrain") or pretrain(*given))
    torch.rand(3)
    compare(path)
    assert done == [(cell["method"], cell["task"]) for cell in map(json.loads, lines[5:8])]
    after = [(out / name).read_bytes() for name in files]
    assert after[:2] == before[:2]
    assert after[2] == b"".join(lines[:8])  # those of another test's seed were behind the cut
    done.clear()
    for kept in (out / "references").glob("oracle-s1-*"):
        kept.write_bytes(b"cut")
    with (out / files[2]).open("ab") as file:
        file.write(b'{"key": 3}')
    compare(path, methods="oracle", tasks=3)
    assert done == [("oracle", 2), "pretrain", ("oracle", 2)]
    result = _result(path)
    values = np.array(result["references"]["oracle"]["values"])[:, :, :2]
    np.testing.assert_array_equal(values, json.loads(before[0])["references"]["oracle"]["values"])


def test_numbers_are_taken_together_rightly(run):
    """Seeds and tasks that change places, a level of another point, steps between two scores, a sentence without its number."""
    result = _result(run)
    with (run / "evaluation" / "references.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = [json.loads(line) for line in (run / "evaluation" / "references.jsonl").read_text().splitlines()[:8]]
    for cell in cells:
        own = [
            r
            for r in rows
            if (r["method"], r["seed"], r["task"]) == (cell["method"], *map(str, (cell["seed"], cell["task"])))
        ]
        assert [float(row["return"]) for row in own] == cell["values"]
        assert float(own[0]["goal_x"]) == result["tasks"][cell["task"]]["goal_x"]
    assert len(rows) == 2 * 2 * (4 + 1) + 2 * 3
    made = [
        [{"values": [-6.0 - task, -4.0 - task, -1.0 - task], "success": None} for task in (-1, 1)] for _ in range(3)
    ]
    one = summarise(made, [0, 100, 1000], -2.0)
    assert one["mean"] == [-6.0, -4.0, -1.0]
    assert one["reaches_the_adapted_policy_after"] == pytest.approx(700)  # two thirds of the way from -4 to -1
    assert np.shape(one["values"]) == (3, 3, 2)
    low, high = one["ci95"][0]
    assert low < -6.5 < -5.5 < high
    late = summarise(made, [0, 100, 1000], -0.5)
    told = sentences(
        {
            "metric": "return",
            "meta_learner": {"mean": [-5.0, -2.0], "reaches_the_adapted_policy_after": 4000},
            "references": {"ppo": one, "sac": late, "oracle": {**one, "mean": [-0.25]}},
        }
    )
    assert "ppo reaches the adapted policy's return of -2 after 700 environment steps" in told[0]
    assert "the meta-learner needs 4,000" in told[0]
    assert "sac does not reach the adapted policy's return of -2 within 1,000" in told[1]
    assert "oracle, which observes the task, has a return of -0.25" in told[2]


def test_hyperparameters_are_said(run):
    """Numbers that nobody can repeat."""
    ppo = _result(run)["references"]["ppo"]["hyperparameters"]
    assert ppo["class"] == "stable_baselines3.PPO"
    assert ppo["n_steps"] * ppo["simulations"] == EPISODES * HORIZON
    assert (ppo["learning_rate"], ppo["gamma"], ppo["clip_range"]) == (3e-4, 0.99, 0.2)
    oracle = _result(run)["references"]["oracle"]
    assert oracle["pretraining"]["env_steps"] == 64
    assert "hyperparameters" not in oracle


def test_the_report_shows_them(run, tmp_path, capsys):
    """A section that is missing, or that promises what is not there; a command that nobody is told."""
    page = tmp_path / "r.html"
    assert report.main([str(run), f"to={page}"]) == 0
    text, result = html.unescape(page.read_text(encoding="utf-8")), _result(run)
    assert '<img alt="References from libraries"' in text
    assert "where a curve crosses it, that reference has caught up" in text
    assert f"{result['references']['ppo']['mean'][-1]:.4g} [" in text
    assert result["command"] in text
    for sentence in sentences(result):
        assert sentence in text
    assert "no references" not in capsys.readouterr().out
    bare = tmp_path / "y"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("evaluation"))
    assert report.main([str(bare), f"to={page}"]) == 0
    made = f"python -m metarl.references run={bare}"
    assert f"Not made yet. This command does it: {made}<" in page.read_text(encoding="utf-8")
    assert made in capsys.readouterr().out


@pytest.fixture(scope="module")
def others(run, tmp_path_factory):
    """Runs that can have no references, or not all: nothing but their configurations is looked at."""
    parent = tmp_path_factory.mktemp("others")
    runs = {
        "sinusoid": resolve("sinusoid", algorithm_of("sinusoid", None)),
        "oracle": resolve("navigation-2d", "maml-trpo", env_settings={"oracle": True}, settings={"inner_steps": 0}),
        "bandit": resolve("bandit-bernoulli", "maml-trpo"),
        "traffic": resolve("traffic-demand", "maml-trpo"),
        "rl2": resolve("navigation-2d", "rl2"),
    }
    for name, config in runs.items():
        (parent / name).mkdir()
        write_config(parent / name, config)
    return {"run": run, **{name: parent / name for name in runs}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing"),
        (["nowhere"], "nowhere does not exist"),
        (["{run}", "methods=pppo"], "Did you mean 'ppo'?"),
        (["{run}", "multiples=[1]"], "at least 2"),
        (["{run}", "sedes=1"], "Did you mean 'seeds'?"),
        (["{run}", "tune=true", "inner_lr=0.1"], "inner_lr= has no effect"),
        (["{sinusoid}"], "labelled shots"),
        (["{oracle}"], "does not adapt"),
        (
            ["{bandit}", "methods=[ppo,sac]"],
            "methods=sac does not fit bandit-bernoulli: SAC needs actions that are numbers",
        ),
        (["{traffic}"], "no reference fits traffic-demand: action masks needs sb3-contrib"),
        (["{run}", "methods=recurrent-ppo"], "needs sb3-contrib: pip install"),
        (["{rl2}", "steps=2", "methods=ppo"], "learns by memory"),
    ],
)
def test_what_is_wrong_is_one_line(others, words, said, capsys, monkeypatch):
    """A traceback, or an error after hours. (Without the extra, to see what is said of it.)"""
    monkeypatch.setattr(references.importlib.util, "find_spec", lambda name: None)
    capsys.readouterr()
    assert references.main([word.format(**others) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_file_of_cells_survives_anything(tmp_path):
    """A line that is none, or one without an end, that ends the command or is kept."""
    file = tmp_path / "cells.jsonl"
    good = b'{"key": "a", "values": [1.0]}\n'
    file.write_bytes(good + b"\xff\n" + b"[]\n" + b'{"key": "b", "values": [2.0]}')
    cells = Cells(file)
    assert file.read_bytes() == good
    assert cells.get("b") is None
    cells.add("b", {"values": [2.0]})
    assert Cells(file).get("b")["values"] == [2.0]
    assert Cells(file).get("a")["values"] == [1.0]
