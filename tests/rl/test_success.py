"""Families that judge: success through rollouts, training, evaluation and Gymnasium."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import metarl
from metarl import evaluate, train
from metarl.core.params import expand
from metarl.families import FamilyError, RLSpec, Step, TaskParameter, Tasks, split_uniform
from metarl.nets import MLP
from metarl.rl import GaussianPolicy, RLDomain
from metarl.settings import setting
from metarl.testing import check_family

HORIZON = 6


@dataclasses.dataclass(frozen=True)
class Bell:
    """A point on a line, x += a; a bell rings while |x - goal| < 0.4, and the episode ends beyond |x| > 2.

    After its end a simulation's bell rings on, which nobody may hear.
    """

    horizon: int = setting(HORIZON, "steps", low=1)
    flaw: str = setting("", "how it misbehaves")

    recommended: ClassVar[Mapping[str, Any]] = {
        "meta_batch_size": 3,
        "episodes_per_task": 4,
        "iterations": 2,
        "hidden_sizes": (4,),
        "eval_every": 1,
        "eval_tasks": 2,
    }

    @property
    def spec(self):
        return RLSpec((TaskParameter("goal", -1.0, 1.0, ""),), 1, 1, -1.0, 1.0, self.horizon, 0.0)

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("goal",), 2 * split_uniform(num_tasks, split, seed) - 1)

    def batch(self, num_envs, threads):
        return BellBatch(self, num_envs)


class BellBatch:
    """Bell as arrays."""

    def __init__(self, family, count):
        self.family, self.count = family, count

    def reset(self, tasks, seeds):
        self.goals, self.time = tasks["goal"], 0
        self.x, self.ended = np.zeros(self.count), np.zeros(self.count, dtype=bool)
        return self.x[:, None].astype(np.float32)

    def step(self, actions):
        self.x, self.time = self.x + np.clip(actions[:, 0], -1, 1).astype(np.float64), self.time + 1
        self.rings = (np.abs(self.x - self.goals) < 0.4) | self.ended
        terminated, truncated = np.abs(self.x) > 2, np.full(self.count, self.time >= self.family.horizon)
        self.ended = self.ended | terminated | truncated
        rewards = -np.abs(self.x - self.goals).astype(np.float32)
        return Step(self.x[:, None].astype(np.float32), rewards, terminated, truncated)

    def success(self):
        if self.family.flaw == "shape":
            return self.rings[:-1]
        return self.rings.astype(float) if self.family.flaw == "dtype" else self.rings.copy()


@pytest.fixture(autouse=True)
def _registered():
    """Known in these tests only, so that no table of all families shows it."""
    from metarl import families

    metarl.register("bell")(Bell)
    yield
    del families._registered["bell"]
    gymnasium.registry.pop("metarl/bell-v0", None)


def _by_hand(actions, mask, goals):
    """Success rate of every task from its actions (M, T, E), one number at a time."""
    rates = []
    for task, goal in enumerate(goals):
        won = 0
        for episode in range(actions.shape[2]):
            x, rang = 0.0, False
            for t in range(actions.shape[1]):
                if mask[task, t, episode]:
                    x += float(np.clip(actions[task, t, episode], -1, 1))
                    rang = rang or abs(x - goal) < 0.4
            won += rang
        rates.append(won / actions.shape[2])
    return rates


@pytest.mark.parametrize("threads", [1, 2])
def test_an_episode_is_a_success_if_its_task_ever_was_solved(threads):
    """The last step alone, steps after the end, the mean over steps, tasks of two groups in the wrong order."""
    domain = metarl.build("bell", threads=threads, episodes_per_task=8).domain
    params = expand(domain.init(torch.Generator().manual_seed(0)), 5)
    tasks = domain.sample_tasks(5, "train", (0,))
    rollouts, aside = domain.rollout(params, tasks, (1, 2))
    expected = _by_hand(rollouts.actions[..., 0].numpy(), rollouts.mask.numpy(), tasks["goal"])
    assert 0 < np.mean(expected) < 1
    assert not rollouts.mask.bool().all(), "some episodes end early"
    assert aside.success.tolist() == pytest.approx(expected)
    assert domain.collect(params, tasks, (1, 2), "query").success.tolist() == pytest.approx(expected)


def test_who_does_not_judge_reports_nothing(point_mass):
    """A success rate of 0 for families that never spoke of success."""
    domain = RLDomain(point_mass(), GaussianPolicy(MLP((2, 4, 1)), action_size=1), episodes=2)
    params = expand(domain.init(torch.Generator().manual_seed(0)), 2)
    sample = domain.collect(params, domain.sample_tasks(2, "train", (0,)), (1,), "query")
    assert sample.success is None


def test_training_and_validation_log_it(tmp_path, capsys):
    """Metrics before and after adapting, by their own definition, and one line to watch."""
    from metarl.run import metrics

    run = tmp_path / "run"
    assert train.main(["env=bell", f"run_dir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = {"pre_success", "post_success", "validation_success_0", "validation_success_1"}
    for row in rows:
        assert wanted <= set(row)
        assert all(0 <= row[name] <= 1 for name in wanted)
        assert row["pre_return"] < 0
    assert {metrics.definition(name).unit for name in wanted} == {"fraction"}
    assert len({metrics.tag(name) for name in (*wanted, "pre_return", "post_return")}) == 6
    assert metrics.tag("validation_success_1") == "validation/success_1"
    line = capsys.readouterr().out.splitlines()[1]
    number = r"-?[\d.]+ -> -?[\d.]+"
    assert re.search(rf"return {number}  .*  success {number}  validation {number}  success {number}  0:", line), line


def test_evaluation_writes_and_prints_it(tmp_path, capsys):
    """Every task's rate at every point, in JSON and table; an interval beyond 0 or 1."""
    run = tmp_path / "run"
    assert train.main(["env=bell", f"run_dir={run}"]) == 0
    for by in ("steps=2", "rollouts=[0,4,6]"):
        capsys.readouterr()
        assert evaluate.main([f"run={run}", by, "tasks=3"]) == 0
        shown = [line for line in capsys.readouterr().out.splitlines() if "success rate after" in line]
        curve = json.loads((run / "evaluation" / "curve.json").read_text())["runs"]["run"]
        success = np.array(curve["success"]["values"])
        assert success.shape == (3, 3)
        assert np.isin(success * 4, range(5)).all(), "rates of four episodes"
        assert curve["success"]["mean"] == pytest.approx(success.mean(1))
        assert np.min(curve["success"]["ci95"]) >= 0
        assert np.max(curve["success"]["ci95"]) <= 1
        assert len(shown) == 1
        assert f"{success[2].mean():.4g}" in shown[0]
        with (run / "evaluation" / "curve.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["success"]) for row in rows] == success.ravel().tolist()
        assert [float(row["return"]) for row in rows] == np.ravel(curve["values"]).tolist()
    agent = metarl.load(run)
    tasks = agent.learner.domain.sample_tasks(3, "test", (0, 2))
    first = agent.learner.domain.collect(expand(agent.meta, 3), tasks, (0, 2, 1, 0), "support")
    assert first.success.tolist() == pytest.approx(success[0].tolist())


def test_a_gymnasium_environment_says_it():
    """After steps, not after a reset; a bool."""
    env = gymnasium.make("metarl/bell-v0", task={"goal": 0.75})
    assert "success" not in env.reset(seed=0)[1]
    found = [env.step(np.float32([0.25]))[4]["success"] for _ in range(6)]
    assert found == [False, True, True, True, False, False]  # x = 0.25, 0.5, 0.75, 1, 1.25, 1.5


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vectors_say_it_as_gymnasiums_do(mode):
    """Success of the episode that ended, and none of the one that begins, in every autoreset mode and when all end at once."""
    kind = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode(mode)}}
    ours = gymnasium.make_vec("metarl/bell-v0", num_envs=3, task={"goal": 0.75}, autoreset_mode=mode)
    theirs = gymnasium.make_vec("metarl/bell-v0", num_envs=3, task={"goal": 0.75}, **kind)
    random, ends = np.random.default_rng(0), 0
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(60):
        actions = random.uniform(-0.4, 1.0, (3, 1)).astype(np.float32)
        (*_, terminated, truncated, info), (*_, other) = (env.step(actions) for env in (ours, theirs))
        ended = terminated | truncated
        ends += 0 < ended.sum() < 3
        for mine, wanted in ((info, other), (info.get("final_info", {}), other.get("final_info", {}))):
            for key in ("success", "_success"):
                assert np.array_equal(mine.get(key), wanted.get(key)), key
                assert key not in wanted or mine[key].dtype == wanted[key].dtype
        if mode == "Disabled" and ended.any():
            for env in (ours, theirs):
                env.reset(options={"reset_mask": ended.copy()})
    assert ends > 5


def test_the_kit_checks_what_is_said():
    """A judge that is sound passes; one that gives numbers, or too few, is named."""
    check_family(Bell())
    with pytest.raises(AssertionError, match="success flags are bool; found float64"):
        check_family(Bell(flaw="dtype"))
    domain = dataclasses.replace(metarl.build("bell").domain, family=Bell(flaw="shape"))
    params = expand(domain.init(torch.Generator().manual_seed(0)), 2)
    with pytest.raises(FamilyError, match=r"success have shape \(3,\) instead of \(4,\)"):
        domain.rollout(params, domain.sample_tasks(2, "train", (0,)), (0,))
