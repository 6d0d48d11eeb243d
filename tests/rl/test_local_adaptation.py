"""Agents of a team that adapt each for itself, beside slow references: one agent at a time, and finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import metarl
from metarl.analysis import diagnostics
from metarl.core import GradientStep
from metarl.core.adapt import Objective
from metarl.core.parallel import Workers
from metarl.core.params import expand, ravel, rows, unravel
from metarl.nets import MLP, Shared
from metarl.rl import CategoricalPolicy, GaussianPolicy, PolicyLoss, PolicyQuery
from metarl.rl.losses import Batch, Credit, TeamBatch
from metarl.run.config import resolve
from metarl.settings import SettingsError

M, N, R = 2, 6, 3
COLUMNS = ((0, 3), (1, 3), (2, 3))


def _policy(kind):
    if kind == "categorical":
        return CategoricalPolicy(Shared(MLP((2, 4, 2)), COLUMNS), (2,) * R)
    return GaussianPolicy(Shared(MLP((2, 4, 1)), COLUMNS), R, agents=R)


def _one(kind):
    return CategoricalPolicy(MLP((2, 4, 2)), (2,)) if kind == "categorical" else GaussianPolicy(MLP((2, 4, 1)), 1)


def _params(policy, generator):
    meta = {n: v.double() for n, v in policy.init(generator).items()}
    return {n: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in meta.items()}


def _data(policy, meta, generator):
    """States of a team, with actions and agents' advantages; and the same as one batch for every agent."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    seen, weights = normal(M, N, 4), torch.rand(M, N, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    if isinstance(policy, CategoricalPolicy):
        actions = torch.randint(2, (M, N, R), generator=generator)
    else:
        actions = normal(M, N, R)
    acted = policy.distribution(expand(meta, M), seen)
    each = Credit(normal(M, N, R), policy.log_probs(acted, actions, R))
    team = TeamBatch(seen, actions, normal(M, N), weights, policy.log_prob(acted, actions), acted, each=each)
    return team, [
        Batch(
            seen[..., list(COLUMNS[r])],
            actions[..., r : r + 1],
            each.advantages[..., r],
            weights,
            each.log_probs[..., r],
            acted,
        )
        for r in range(R)
    ]


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("surrogate", ["lvc", "logp", "dice"])
def test_an_agent_adapts_as_if_it_were_alone(kind, surrogate):
    """Another agent's actions, advantages or parameters in an agent's update; rows of tasks and agents mixed up."""
    generator = torch.Generator().manual_seed(0)
    policy, one = _policy(kind), _one(kind)
    meta = _params(policy, generator)
    team, alone = _data(policy, meta, generator)
    team, alone = (
        dataclasses.replace(team, horizon=3),
        [dataclasses.replace(batch, horizon=3) for batch in alone],
    )
    steps = GradientStep(PolicyLoss(policy, surrogate), 0.5, copies=R)
    params = steps(steps(expand(meta, M), team, 0), team, 1)
    for r, batch in enumerate(alone):
        rule = GradientStep(PolicyLoss(one, surrogate), 0.5)
        expected = rule(rule(expand(meta, M), batch, 0), batch, 1)
        for name, value in expected.items():
            torch.testing.assert_close(params[name][:, r], value, rtol=1e-10, atol=1e-12)
    together = policy.distribution(params, team.observations)[0]
    apart = [one.distribution({n: v[:, r] for n, v in params.items()}, b.observations)[0] for r, b in enumerate(alone)]
    torch.testing.assert_close(together, torch.cat(apart, -1))


def test_log_probs_of_agents_add_up():
    for kind in ("categorical", "gaussian"):
        generator = torch.Generator().manual_seed(1)
        policy = _policy(kind)
        team, _ = _data(policy, _params(policy, generator), generator)
        torch.testing.assert_close(team.each.log_probs.sum(-1), team.log_probs)


def test_parts_of_a_team_batch_are_parts_of_everything():
    generator = torch.Generator().manual_seed(2)
    policy = _policy("categorical")
    team, _ = _data(policy, _params(policy, generator), generator)
    part = team.rows(slice(1, 2)).samples(torch.tensor([0, 4]))
    assert isinstance(part, TeamBatch)
    assert torch.equal(part.each.advantages, team.each.advantages[1:2, [0, 4]])
    assert torch.equal(part.each.log_probs, team.each.log_probs[1:2, [0, 4]])


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_meta_gradient_through_local_adaptation_is_that_of_finite_differences(kind):
    """A copy that cuts the graph, or gradients of agents that are not added up."""
    generator = torch.Generator().manual_seed(3)
    policy = _policy(kind)
    meta = _params(policy, generator)
    (support, _), (query, _) = (_data(policy, meta, generator) for _ in range(2))
    rule = GradientStep(PolicyLoss(policy), 0.3, copies=R)
    workers = Workers(1)
    objective = Objective(rule, [support, support], query, PolicyQuery(policy), workers)

    def value(vector):
        return float(objective.value(unravel(vector, meta)).loss)

    found = ravel(objective.gradient(meta)[1])
    theta, size = ravel(meta), 1e-6
    for index in range(0, len(theta), 3):
        shift = torch.zeros_like(theta)
        shift[index] = size
        slope = (value(theta + shift) - value(theta - shift)) / (2 * size)
        assert slope == pytest.approx(float(found[index]), rel=2e-5, abs=1e-8)


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
