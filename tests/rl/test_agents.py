"""One policy for a team of equal agents: what each sees, and log-probabilities summed over all of them; float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from metarl.core import GradientStep, Objective, Workers, adapt
from metarl.core.params import expand, ravel, unravel
from metarl.families import Agents, Choices, RLSpec, TaskParameter
from metarl.nets import GRU, MLP, ContextNet, Shared, SharedRecurrent
from metarl.rl import CategoricalPolicy, GaussianPolicy, PolicyLoss, PolicyQuery, Trial, agents, baseline
from metarl.rl.losses import Batch
from metarl.rl.normalizer import Normalizer, moments, unseen

M, N, OWN, CHOICES = 3, 8, 2, 3


@dataclasses.dataclass(frozen=True)
class Team:
    """R agents that see two numbers each and choose one of three; nothing of it is ever stepped."""

    count: int = 4
    oracle: bool = False
    known: tuple[tuple[int, ...], ...] = ()
    masked: bool = True
    counts: tuple[int, ...] = ()

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        counts = self.counts or (CHOICES,) * self.count
        size = OWN * self.count + self.masked * sum(counts)
        parameters = tuple(TaskParameter(name, 0.0, 1.0, "") for name in "abc")
        choices, team = Choices(counts, self.masked), Agents(self.count, self.known)
        return RLSpec.discrete(parameters, size, choices, 5, 0.0, self.oracle, team)

    def sample_tasks(self, num_tasks, split, seed):
        raise NotImplementedError

    def batch(self, num_envs, threads):
        raise NotImplementedError


def test_every_agent_sees_its_own_numbers_its_mask_and_what_it_knows():
    """By hand, for two agents: 0 1 | 2 3 | mask 4 5 6 | 7 8 9 | task 10 11 12. Catches masks of another agent."""
    assert agents.columns(Team(2)) == ((0, 1, 4, 5, 6), (2, 3, 7, 8, 9))
    assert agents.columns(Team(2, oracle=True)) == ((0, 1, 4, 5, 6, 10, 11, 12), (2, 3, 7, 8, 9, 10, 11, 12))
    own = agents.columns(Team(2, oracle=True, known=((0, 2), (1, 2))))
    assert own == ((0, 1, 4, 5, 6, 10, 12), (2, 3, 7, 8, 9, 11, 12))
    assert agents.columns(Team(2, known=((0,), (1,)), masked=False)) == ((0, 1), (2, 3))
    assert agents.mask_of_agent(Team(2)) == slice(2, 5)


def test_in_a_trial_an_agent_sees_its_own_last_action_and_what_all_are_told():
    """By hand: last actions 0 1 2 | 3 4 5, reward 6, begins 7, then what it saw before, 8 later."""
    trial = Trial(Team(2, oracle=True, known=((0,), (1,))), 2)
    assert trial.spec.observation_size == 18
    assert agents.columns(trial) == ((0, 1, 2, 6, 7, 8, 9, 12, 13, 14, 18), (3, 4, 5, 6, 7, 10, 11, 15, 16, 17, 19))
    assert agents.mask_of_agent(trial) == slice(7, 10)


@pytest.mark.parametrize(
    ("team", "reason"),
    [
        (Team(0, counts=(3,)), "agents.count=0 is no positive"),
        (Team(4, counts=(3, 3)), "does not divide"),
        (Team(2, counts=(3, 4)), "differ in their choices"),
        (Team(2, known=((0,),)), "not 2 rows"),
        (Team(2, known=((0,), (1, 2))), "not 2 rows"),
        (Team(2, known=((0,), (3,))), "beyond its 3"),
    ],
)
def test_a_team_that_is_none_is_refused(team, reason):
    """A policy built on these would see the wrong columns without a word."""
    assert reason in agents.fault(team.spec)
    assert agents.fault(Team(2).spec) == ""


def _policy(count, inner=None):
    """The shared policy of a team."""
    columns = agents.columns(Team(count))
    return CategoricalPolicy(
        Shared(inner or MLP((OWN + CHOICES, 4, CHOICES)), columns), (CHOICES,) * count, OWN * count
    )


def _meta(policy, seed=0):
    g = torch.Generator().manual_seed(seed)
    fresh = policy.init(g)
    return {n: v.double() + 0.5 * torch.randn(v.shape, generator=g, dtype=torch.double) for n, v in fresh.items()}


def _states(count, seed=0):
    """Observations with a legal choice for every agent, the masks (M, N, R, 3), and legal actions."""
    g = torch.Generator().manual_seed(seed)
    own = torch.randn(M, N, count, OWN, generator=g, dtype=torch.double)
    legal = torch.rand(M, N, count, CHOICES, generator=g) < 0.6
    legal.scatter_(-1, torch.randint(CHOICES, (M, N, count, 1), generator=g), True)
    actions = torch.multinomial(legal.double().flatten(0, 2), 1, generator=g).view(M, N, count)
    return torch.cat([own.flatten(2), legal.double().flatten(2)], -1), own, legal, actions


def _one_by_one(params, own, legal, task, agent):
    """Logits of one agent of one task by plain matrix products; illegal ones are minus infinity."""
    x = torch.cat([own[task, :, agent], legal[task, :, agent].double()], -1)
    hidden = torch.tanh(x @ params["0.weight"][task] + params["0.bias"][task])
    logits = hidden @ params["1.weight"][task] + params["1.bias"][task]
    return Categorical(logits=logits.masked_fill(~legal[task, :, agent], -torch.inf))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_log_prob_is_the_sum_over_agents_of_torchs(count):
    """Parameters of another task, rows of another agent, a mean instead of a sum. The same parameters for any number."""
    policy = _policy(count)
    meta = _meta(_policy(4))
    params = {n: v + 0.1 * torch.arange(M).view(-1, *[1] * v.ndim) for n, v in meta.items()}
    observations, own, legal, actions = _states(count)
    found = policy.log_prob(policy.distribution(params, observations), actions)
    for task in range(M):
        theirs = [_one_by_one(params, own, legal, task, agent) for agent in range(count)]
        expected = sum(d.log_prob(actions[task, :, agent]) for agent, d in enumerate(theirs))
        torch.testing.assert_close(found[task], expected, rtol=1e-12, atol=1e-12)


def test_agents_that_change_places_change_theirs_with_them():
    """Catches a network that sees more than its own agent, and outputs in another order."""
    policy, order = _policy(4), torch.tensor([2, 0, 3, 1])
    params = expand(_meta(policy), M)
    observations, own, legal, _ = _states(4)
    moved = torch.cat([own[:, :, order].flatten(2), legal[:, :, order].double().flatten(2)], -1)
    here = policy.distribution(params, observations)[0].view(M, N, 4, CHOICES)
    there = policy.distribution(params, moved)[0].view(M, N, 4, CHOICES)
    torch.testing.assert_close(there, here[:, :, order], rtol=0, atol=0)
    assert not torch.equal(here, here[:, :, order])


def _problem(policy, count, steps):
    batches, rule, meta = [], GradientStep(PolicyLoss(policy), 0.1), _meta(policy)
    for step in range(steps + 1):
        observations, _, _, actions = _states(count, seed=20 + step)
        params = expand({n: v + 0.1 * step for n, v in meta.items()}, M)
        if step == steps:
            params = adapt(rule, expand(meta, M), batches)
        g = torch.Generator().manual_seed(step)
        behaviour = tuple(x.detach() for x in policy.distribution(params, observations))
        weights = torch.rand(M, N, generator=g, dtype=torch.double)
        weights = weights / weights.sum(1, keepdim=True)
        advantages = torch.randn(M, N, generator=g, dtype=torch.double)
        log_probs = policy.log_prob(behaviour, actions)
        batches.append(Batch(observations, actions, advantages, weights, log_probs, behaviour))
    *supports, query = batches
    return meta, Objective(rule, supports, query, PolicyQuery(policy), Workers(1), 2)


@pytest.mark.parametrize("inner", [None, ContextNet(MLP((OWN + CHOICES + 2, 4, CHOICES)), 2)], ids=["mlp", "context"])
def test_meta_gradient_is_the_slope_of_the_objective(inner):
    """Central differences through the adaptation; agents whose gradients are dropped, or counted twice."""
    policy = _policy(3, inner)
    meta, objective = _problem(policy, 3, 1)
    _, gradient = objective.gradient(meta)
    flat, own = ravel(meta), ravel(gradient)

    def value(x):
        return objective.value(unravel(x, meta)).loss

    slope = torch.tensor([(value(flat + h) - value(flat - h)) / 2e-5 for h in 1e-5 * torch.eye(len(flat)).double()])
    assert (own - slope).norm() < 1e-6 * slope.norm()


def test_agents_share_the_standard_deviations_of_numbers():
    """Two agents of two numbers: torch's normal whose deviations repeat; a log-std of the whole would not move to three."""
    columns = ((0, 1), (2, 3))
    policy = GaussianPolicy(Shared(MLP((2, 2)), columns), 4, agents=2)
    meta = _meta(policy)
    assert meta["log_std"].shape == (2,)
    params, g = expand(meta, M), torch.Generator().manual_seed(1)
    states, actions = (torch.randn(M, N, 4, generator=g, dtype=torch.double) for _ in range(2))
    means = torch.cat([states[..., i : i + 2] @ meta["0.weight"] + meta["0.bias"] for i in (0, 2)], -1)
    theirs = Independent(Normal(means, meta["log_std"].exp().repeat(2)), 1)
    found = policy.log_prob(policy.distribution(params, states), actions)
    torch.testing.assert_close(found, theirs.log_prob(actions), rtol=1e-12, atol=1e-12)


def test_every_agent_remembers_what_it_has_seen_itself():
    """Against one agent alone, sequence by sequence; catches memories that agents share, and steps that take turns."""
    columns, steps, episodes = ((0, 1), (2, 3), (4, 5)), 4, 2
    inner = GRU(2, 3, (2,), steps)
    net, g = SharedRecurrent(inner, columns), torch.Generator().manual_seed(0)
    params = expand({n: v.double() for n, v in net.init(g).items()}, M)
    states = torch.randn(M, steps, episodes, 6, generator=g, dtype=torch.double)
    whole = net(params, states.flatten(1, 2)).view(M, steps, episodes, 3, 2)
    remembered = []
    for agent in range(3):
        own = states[..., 2 * agent : 2 * agent + 2].flatten(1, 2)
        alone = inner(params, own).view(M, steps, episodes, 2)
        torch.testing.assert_close(whole[..., agent, :], alone, rtol=1e-12, atol=1e-12)
        remembered.append(inner.memory(params, own))
    torch.testing.assert_close(net.memory(params, states.flatten(1, 2)), sum(remembered) / 3, rtol=1e-12, atol=1e-12)
    step = net.stepper(params)
    one_by_one = torch.stack([step(states[:, t]) for t in range(steps)], 1)
    torch.testing.assert_close(one_by_one.view(whole.shape), whole, rtol=1e-12, atol=1e-12)


def test_the_baseline_of_a_team_is_one_least_squares_problem_in_means_over_agents():
    """Solved by NumPy; catches features of one agent only, squares of means, and weights that grow with the team."""
    tasks, steps, episodes, columns = 2, 5, 12, ((0, 1), (2, 3), (4, 5))
    g = torch.Generator().manual_seed(0)
    seen = 4 * torch.randn(tasks, steps, episodes, 6, generator=g, dtype=torch.double)
    returns = torch.randn(tasks, steps, episodes, generator=g, dtype=torch.double)
    mask = torch.ones(tasks, steps, episodes, dtype=torch.double)
    apart = Shared(MLP((2, 2)), columns).apart
    fitted = baseline.fit(seen, returns, mask, apart=apart)
    assert fitted.shape == (tasks, 8, 1)
    values = baseline.predict(fitted, seen, apart)
    for task in range(tasks):
        x = seen[task].numpy().clip(-10, 10).reshape(steps, episodes, 3, 2)
        tau = np.broadcast_to(np.arange(steps)[:, None] / 100, (steps, episodes))
        powers = np.stack([tau, tau**2, tau**3, np.ones_like(tau)], -1)
        phi = np.concatenate([x.mean(2), (x**2).mean(2), powers], -1).reshape(-1, 8)
        whole = np.concatenate([phi, 1e-5**0.5 * np.eye(8)])
        w = np.linalg.lstsq(whole, np.concatenate([returns[task].flatten().numpy(), np.zeros(8)]), rcond=None)[0]
        np.testing.assert_allclose(values[task].flatten(), phi @ w, rtol=1e-6, atol=1e-6)


def test_statistics_of_a_team_are_those_of_its_agents_rows():
    """Against NumPy over all agents' rows; a mask stays as it is, and the statistics fit a larger team."""
    few, many = (agents.columns(Team(count)) for count in (2, 3))
    random = np.random.default_rng(0)
    states = torch.tensor(random.normal(3, 2, (1, 50, 10)))
    rows = Shared(MLP((5, 1)), few).apart(states).flatten(1, 2)
    statistics = {n: v[0] for n, v in moments(rows, torch.ones(1, 100)).items()}
    own = states[0, :, :4].numpy().reshape(-1, 2)
    np.testing.assert_allclose(statistics["mean"][:2], own.mean(0))
    kept = agents.mask_of_agent(Team(2))
    for columns, count in ((few, 2), (many, 3)):
        seen = Normalizer(statistics, kept, torch.device("cpu"), columns)
        x = torch.tensor(random.normal(3, 2, (4, 5 * count)), dtype=torch.float32)
        wanted = x.numpy().copy()
        wanted[:, : 2 * count] = (wanted[:, : 2 * count] - np.tile(own.mean(0), count)) / np.tile(own.std(0), count)
        np.testing.assert_allclose(seen(x), wanted, rtol=1e-4, atol=1e-5)
    assert len(unseen(len(few[0]))["mean"]) == 5
