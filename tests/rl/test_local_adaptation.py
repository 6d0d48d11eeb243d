"""Agents of a team that adapt each for itself, beside slow references: one agent at a time, and finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from metarl.core import GradientStep
from metarl.core.adapt import Objective
from metarl.core.parallel import Workers
from metarl.core.params import expand, ravel, unravel
from metarl.families import SPLITS, Agents, RLSpec, Step, TaskParameter, Tasks
from metarl.nets import MLP, Shared
from metarl.rl import CategoricalPolicy, GaussianPolicy, PolicyLoss, PolicyQuery, RLDomain
from metarl.rl.losses import Batch, Credit, TeamBatch
from metarl.testing import check_family

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
    ordered = dataclasses.replace(team, horizon=3).samples(
        torch.tensor([0, 1])
    )  # one whole episode of two: steps 0, 2, 4
    assert torch.equal(ordered.each.advantages, team.each.advantages[:, [0, 2, 4]])
    assert torch.equal(ordered.actions, team.actions[:, [0, 2, 4]])


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


class Ending:
    """A team of two whose episodes end at different steps, by themselves or cut off; rewards and states are the actions' echo."""

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        place = (TaskParameter("shift", 0.0, 1.0, ""),)
        return dataclasses.replace(RLSpec(place, 4, 2, -5.0, 5.0, 6, 0.0), agents=Agents(2, credited=True))

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(
            ("shift",), np.array([[np.random.default_rng((SPLITS.index(split), i)).random()] for i in range(num_tasks)])
        )

    def batch(self, num_envs, threads):
        return EndingBatch(num_envs)


class EndingBatch:
    def __init__(self, count):
        self._count = count

    def reset(self, tasks, seeds):
        self._shift, self._time, self._ends = tasks["shift"], 0, 2 + 2 * (seeds % 3)
        self._cut = seeds % 2 == 0
        return self._seen(np.zeros((self._count, 2), dtype=np.float32))

    def step(self, actions):
        self._time, actions = self._time + 1, np.clip(actions, -5, 5)
        self._last = actions * np.array([1.0, 3.0], dtype=np.float32) + self._shift[:, None].astype(np.float32)
        over = self._time >= self._ends
        return Step(self._seen(actions), self._last.mean(1).astype(np.float32), over & ~self._cut, over & self._cut)

    def agent_rewards(self):
        return self._last.astype(np.float32)

    def _seen(self, actions):
        return np.stack([actions[:, 0], self._shift, actions[:, 1], self._shift], 1).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_agents_are_judged_up_to_the_end_of_their_episodes(threads):
    """Rewards of another task, episode or agent; steps after an end that count; a thread's part in another's place."""
    family, episodes = Ending(), 7
    policy = GaussianPolicy(Shared(MLP((2, 3, 1)), ((0, 1), (2, 3))), 2, agents=2)
    domain = RLDomain(family, policy, episodes=episodes, bootstrap=True, workers=Workers(threads)).localising()
    tasks, params = family.sample_tasks(5, "train", 0), expand(policy.init(torch.Generator().manual_seed(0)), 5)
    rollouts, aside = domain.rollout(params, tasks, (0,), local=True)
    lengths = rollouts.mask.sum(1)
    assert len(lengths.unique()) > 1
    assert rollouts.terminated.any()
    shift = torch.tensor(tasks.values, dtype=torch.float32)[:, 0, None, None, None]
    echo = (rollouts.actions.clamp(-5, 5) * torch.tensor([1.0, 3.0]) + shift) * rollouts.mask.unsqueeze(-1)
    torch.testing.assert_close(aside.agent_rewards, echo)
    batch = domain.judge(rollouts, agent_rewards=aside.agent_rewards)
    one = dataclasses.replace(domain, policy=GaussianPolicy(MLP((2, 3, 1)), 1), _local=False)
    for r in range(2):
        own = dataclasses.replace(
            rollouts,
            observations=rollouts.observations[..., 2 * r : 2 * r + 2],
            final_observations=rollouts.final_observations[..., 2 * r : 2 * r + 2],
            actions=rollouts.actions[..., r : r + 1],
            rewards=aside.agent_rewards[..., r],
            behaviour=tuple(x[..., r : r + 1] for x in rollouts.behaviour),
        )
        expected, counted = one.judge(own), batch.weights > 0
        torch.testing.assert_close(batch.each.advantages[..., r][counted], expected.advantages[counted])
        torch.testing.assert_close(batch.each.log_probs[..., r], expected.log_probs)


def test_the_kit_knows_teams_that_tell_what_each_agent_answers_for():
    check_family(Ending(), disjoint=False)

    class Silent(Ending):
        def batch(self, num_envs, threads):
            return Quiet(num_envs)

    class Random(EndingBatch):
        def agent_rewards(self):
            return np.random.default_rng().random((self._count, 2), dtype=np.float32)

    class Dice(Ending):
        def batch(self, num_envs, threads):
            return Random(num_envs)

    class Modest(Ending):
        @property
        def spec(self):
            return dataclasses.replace(super().spec, agents=Agents(2))

    Quiet = type("Quiet", (), {n: v for n, v in vars(EndingBatch).items() if n != "agent_rewards"})
    for family, rule in ((Silent(), "agents.credited"), (Modest(), "agents.credited"), (Dice(), "breaks a rule")):
        with pytest.raises(AssertionError, match=rule):
            check_family(family, disjoint=False)
