"""Intersections that adapt each for itself, by what waits before their own stop lines."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl import algorithms, train
from metarl.analysis import diagnostics
from metarl.core.params import expand, rows
from metarl.families import Tasks
from metarl.gym.environment import FamilyEnv
from metarl.rl import CategoricalPolicy
from metarl.rl.losses import TeamBatch
from metarl.rules import GradientInner, PlainInner, ReptileOuter, TrpoOuter
from metarl.run.config import resolve
from metarl.settings import SettingsError

SIZES = {"rows": 2, "columns": 2, "horizon": 5, "warmup": 30}
TINY = {"meta_batch_size": 2, "episodes_per_task": 3, "threads": 1, "hidden_sizes": (8,)}


def test_an_intersections_advantages_are_those_of_its_own_rewards():
    """Judged one by one: a batch of the agent's own states and rewards, of the rollouts of a team."""
    learner = metarl.build("traffic-grid", env_settings=SIZES, local_adaptation=True, bootstrap=True, **TINY)
    domain = learner.domain
    tasks = domain.sample_tasks(2, "train", (0,))
    params = expand(learner.init(0).meta, 2)
    support = domain.collect(params, tasks, (0,), "support").data
    assert isinstance(support, TeamBatch)
    assert not isinstance(domain.collect(params, tasks, (0,), "query").data, TeamBatch), "the outer loss is the team's"
    rollouts, aside = domain.rollout(params, tasks, (0,), local=True)
    assert torch.equal(domain.judge(rollouts).advantages, support.advantages)
    judge_alone = dataclasses.replace(domain, policy=CategoricalPolicy(domain.team.net, (4,)))
    for r, columns in enumerate(domain.team.columns):
        own = dataclasses.replace(
            rollouts,
            observations=rollouts.observations[..., list(columns)],
            final_observations=rollouts.final_observations[..., list(columns)],
            actions=rollouts.actions[..., r : r + 1],
            rewards=aside.agent_rewards[..., r],
            behaviour=(rollouts.behaviour[0][..., 4 * r : 4 * r + 4],),
        )
        expected = judge_alone.judge(own)
        torch.testing.assert_close(support.each.advantages[..., r], expected.advantages)
        torch.testing.assert_close(support.each.log_probs[..., r], expected.log_probs)


@pytest.mark.parametrize("reward", ["vehicles", "queues", "pressure"])
def test_what_intersections_answer_for_is_the_teams_reward(reward):
    """Costs that are nobody's, or counted twice; only vehicles on exits are nobody's."""
    family = metarl.make("traffic-grid", **SIZES, reward=reward)
    env = family.batch(3, 1)
    env.reset(family.sample_tasks(3, "train", 0), np.arange(3, dtype=np.uint32))
    differ = False
    for _ in range(4):
        step = env.step(np.zeros((3, 4), dtype=np.int64) + env.simulator.signals.phase.flatten(0, 1).T.numpy())
        own = env.agent_rewards()
        assert own.shape == (3, 4)
        assert own.dtype == np.float32
        differ |= bool((own.std(1) > 1e-3).all())
        if reward == "vehicles":
            assert (own.mean(1) >= step.rewards - 1e-6).all(), "exits cost, too"
            assert (own.mean(1) - step.rewards < 0.5 * np.abs(step.rewards)).all()
        else:
            np.testing.assert_allclose(own.mean(1), step.rewards, rtol=1e-5)
    assert differ


def test_weights_of_headings_count_in_what_an_intersection_answers_for():
    family = metarl.make("traffic-objective", **SIZES)
    tasks = family.sample_tasks(2, "train", 0)
    env = family.batch(2, 1)
    env.reset(tasks, np.zeros(2, dtype=np.uint32))
    env.step(env.simulator.signals.phase.flatten(0, 1).T.numpy())
    weighted = env.agent_rewards()
    plain = metarl.make("traffic-objective", **SIZES).batch(2, 1)
    ones = dataclasses.replace(tasks, values=np.ones_like(tasks.values))
    plain.reset(ones, np.zeros(2, dtype=np.uint32))
    plain.step(plain.simulator.signals.phase.flatten(0, 1).T.numpy())
    assert not np.allclose(weighted, plain.agent_rewards())


def test_a_run_learns_and_its_evaluation_adapts_on_other_grids(tmp_path):
    """End to end: shapes of parameters before and after the first update, TRPO, learned rates, and a grid of another size."""
    for settings in ({}, {"algo_settings": {"rates": "weight"}}, {"algo": "promp"}):
        learner = metarl.build(
            "traffic-grid", env_settings=SIZES, local_adaptation=True, inner_steps=2, **TINY, **settings
        )
        state = learner.init(0)
        following, metrics = learner.iteration(state)
        assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float))
        assert any(not torch.equal(following.meta[n], state.meta[n]) for n in state.meta)
    larger = metarl.build(
        "traffic-grid", env_settings={**SIZES, "rows": 1, "columns": 3}, local_adaptation=True, **TINY
    )
    trail = larger.explore(state.meta, larger.domain.sample_tasks(2, "test", (0,)), (0,), 2)
    assert trail.params["0.bias"].shape == (2, 3, 8)
    assert rows(trail.params, slice(0, 1))["0.bias"].shape == (1, 3, 8)
    apart = trail.params["0.weight"]
    assert not torch.equal(apart[:, 0], apart[:, 1]), "intersections that adapt for themselves differ"


def test_diagnostics_compare_every_intersections_own_parameters():
    """One step goes down the gradient: its cosine with where it ends is 1, which shapes that are added up wrongly would spoil."""
    learner = metarl.build("traffic-grid", env_settings=SIZES, local_adaptation=True, **TINY)
    tasks = learner.domain.sample_tasks(3, "test", (0,))
    found = diagnostics.alignment(learner, learner.init(0).meta, tasks, (0,), 1)
    np.testing.assert_allclose(found.cosine, 1.0, rtol=1e-5)
    assert diagnostics.alignment(learner, learner.init(0).meta, tasks, (0,), 2).cosine.max() < 1.0


def test_local_adaptation_is_refused_where_it_means_nothing():
    for words, reason in (
        ({"shared_policy": False}, "shared_policy=false"),
        ({"algo": "rl2"}, "algo=rl2"),
        ({"algo": "imaml-trpo"}, "algo=imaml-trpo"),
    ):
        with pytest.raises(SettingsError, match=f"local_adaptation=true does not fit {reason}"):
            metarl.build("traffic-grid", local_adaptation=True, **words)
    with pytest.raises(SettingsError, match="local_adaptation=true has no meaning for env=navigation-2d"):
        metarl.build("navigation-2d", local_adaptation=True)


def test_the_traffic_families_recommend_it_and_give_way():
    """A recommendation that would keep another setting of the user's from working."""
    assert metarl.build("traffic-grid").inner.copies == 4
    together = metarl.build("traffic-grid", local_adaptation=False)
    assert together.inner.copies == 1
    assert not together.domain.local
    assert not metarl.build("traffic-grid", shared_policy=False).domain.local
    assert not resolve("traffic-grid", "reptile").run.local_adaptation
    assert not resolve("traffic-grid", "rl2").run.local_adaptation


@pytest.mark.parametrize("reward", ["vehicles", "queues"])
def test_an_intersection_answers_for_its_own_place(reward):
    """The reward of another intersection, where the grid is not a square; entries left out."""
    family = metarl.make("traffic-grid", rows=2, columns=3, horizon=3, warmup=400, interval=1, reward=reward)
    env, tasks = family.batch(2, 1), family.sample_tasks(2, "train", 0)
    values = tasks.values.copy()
    values[:, [name.startswith("demand") for name in tasks.names]] = 3600.0  # more than roads take in
    values[:, tasks.names.index("peak_height")] = 0.0
    env.reset(Tasks(tasks.names, values), np.arange(2, dtype=np.uint32))
    env.step(env.simulator.signals.phase.flatten(0, 1).T.numpy())
    sim, own = env.simulator, env.agent_rewards()
    if reward == "vehicles":
        present = (sim.on_links + sim.origins).sum(0)
        assert float(sim.origins.sum()) > 0
    else:
        present = (sim.queues.sum(0) + sim.mixed + sim.origins).sum(0)
    for r in range(6):
        np.testing.assert_allclose(own[:, r], -present[r // 3, r % 3].numpy() / 100.0, rtol=1e-6)


def test_a_gymnasium_environment_tells_what_intersections_answer_for(tmp_path):
    """One task of the family adapts alike as a task and as an environment; one that is silent is named."""
    words = [f"env.{name}={value}" for name, value in SIZES.items()]
    tiny = ["meta_batch_size=2", "episodes_per_task=3", "threads=1", "hidden_sizes=[8]", "iterations=1", "eval_every=0"]
    assert train.main(["env=traffic-grid", *words, *tiny, f"run_dir={tmp_path / 'run'}"]) == 0
    agent = metarl.load(tmp_path / "run")
    task = agent.learner.domain.sample_tasks(1, "test", (0,))
    env = FamilyEnv("traffic-grid", task.to_json()[0], **SIZES)
    one, other = agent.adapt(task, 3)[0], agent.adapt(env, 3)[0]
    for name, value in one.params.items():
        torch.testing.assert_close(other.params[name], value)

    class Silent(gymnasium.Wrapper):
        def step(self, action):
            *rest, info = self.env.step(action)
            return (*rest, {"task": info["task"]})

    with pytest.warns(RuntimeWarning, match="agent_rewards"):
        agent.adapt(Silent(env), 3)


def test_a_rule_of_ones_own_that_takes_no_gradient_step_is_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Wrapped(GradientInner):
        def rule(self, inner_loss, inner_lr, names):
            step = super().rule(inner_loss, inner_lr, names)
            return type("Wrapper", (), {"init": staticmethod(step.init), "__call__": lambda _, *a: step(*a)})()

    for name, inner, outer in (("wrapped", Wrapped, TrpoOuter), ("my-reptile", PlainInner, ReptileOuter)):
        monkeypatch.setitem(algorithms.ALGORITHMS, name, algorithms.preset(inner, outer, "One.", "Nobody"))
        with pytest.raises(SettingsError, match=f"local_adaptation=true does not fit algo={name}"):
            metarl.build("traffic-grid", name)
        assert metarl.build("traffic-grid", name, local_adaptation=False).inner_steps == 1
