"""Trials against stepping their family by hand, and what is made of them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from metarl import families
from metarl.cohorts import Cohorts
from metarl.core import Workers
from metarl.core.params import expand
from metarl.families import FamilyError, Tasks
from metarl.nets import GRU
from metarl.rl import CategoricalPolicy, GaussianPolicy, RLDomain, Trial, baseline
from metarl.rl.trials import following
from metarl.settings import SettingsError
from metarl.testing import check_family

K, B = 3, 5


def _tasks(family, count=B):
    return family.sample_tasks(count, "train", 4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bandit-bernoulli", {"protocol": "trial", "horizon": 4}),
        ("bandit-gaussian", {}),
        ("tabular-mdp", {"states": 3, "actions": 2, "horizon": 3}),
        ("navigation-2d", {"horizon": 5}),
    ],
)
def test_a_trial_keeps_the_rules_of_families(name, settings):
    """Simulations restarted in the midst of others, actions beyond their bounds, arrays that are the caller's."""
    check_family(Trial(families.make(name, **settings), K))


def test_of_one_episode_it_is_the_family_with_more_to_see():
    """The same rewards and states, behind the last action, its reward and the beginning."""
    family = families.make("navigation-2d", horizon=6)
    tasks, seeds = _tasks(family), np.arange(B, dtype=np.uint32)
    low, high = family.spec.action_low, family.spec.action_high
    actions = np.random.default_rng(0).uniform(1.5 * low, 1.5 * high, (6, B, 2)).astype(np.float32)
    plain, trial = family.batch(B, 1), Trial(family, 1).batch(B, 1)
    first, whole = plain.reset(tasks, seeds), trial.reset(tasks, seeds)
    np.testing.assert_array_equal(whole, np.concatenate([np.zeros((B, 3)), np.ones((B, 1)), first], 1))
    for action in actions:
        own, step = plain.step(action), trial.step(action)
        np.testing.assert_array_equal(step.rewards, own.rewards)
        np.testing.assert_array_equal(step.observations[:, 4:], own.observations)
        scaled = 2 * (np.clip(action, low, high) - low) / (high - low) - 1
        np.testing.assert_allclose(step.observations[:, :2], scaled, rtol=1e-6)
        np.testing.assert_array_equal(step.observations[:, 2], own.rewards)
        assert not step.observations[:, 3].any()
    assert step.terminated.all()
    assert not step.truncated.any()


def _by_hand(family, tasks, seeds, actions, b):
    """One trial, its episodes one after another in simulations of their own: what each step is to return."""
    found, time = [], 0
    last, paid = np.zeros(family.spec.action_size), 0.0
    for k in range(K):
        env = family.batch(1, 1)
        seed = seeds[b : b + 1] if k == 0 else following(seeds[b : b + 1], np.array([k]))
        state, begins = env.reset(tasks.rows([b]), seed)[0], 1.0
        for t in range(family.spec.horizon):
            found.append(([*last, paid, begins, *state], None))
            step = env.step(actions[time, b : b + 1])
            last, paid, state, begins = np.clip(actions[time, b], -2, 2) / 2, step.rewards[0], step.observations[0], 0.0
            ended = bool(step.terminated[0] or step.truncated[0] or t + 1 == family.spec.horizon)
            found[-1] = (found[-1][0], (paid, ended and k + 1 == K))
            time += 1
            if ended:
                break
    return found


@pytest.mark.parametrize("limit", [True, False], ids=["family flags its horizon", "family does not"])
def test_a_trial_is_its_familys_episodes_one_behind_the_other(point_mass, limit):
    """Episodes of all lengths: catches ends at another step, neighbours restarted with them, other seeds, a reward or an
    action that the next episode does not see, and states that belong to another simulation.
    """
    family = point_mass(limit=limit)
    tasks, seeds = _tasks(family), np.arange(3, 3 + B, dtype=np.uint32)
    horizon = K * family.spec.horizon
    actions = np.random.default_rng(1).uniform(-2.5, 2.5, (horizon, B, 1)).astype(np.float32)
    batch = Trial(family, K).batch(B, 1)
    expected = [_by_hand(family, tasks, seeds, actions, b) for b in range(B)]
    assert len({len(trial) for trial in expected}) > 2, "the test needs trials of several lengths"
    for _ in range(2):  # the simulations are used again
        seen = batch.reset(tasks, seeds)
        for t in range(horizon):
            step = batch.step(actions[t])
            for b, trial in enumerate(expected):
                if t >= len(trial):
                    assert step.terminated[b]
                    continue
                np.testing.assert_allclose(seen[b], trial[t][0], rtol=1e-6, atol=1e-6)
                assert step.rewards[b] == pytest.approx(trial[t][1][0], rel=1e-6)
                assert (step.terminated[b], step.truncated[b]) == (trial[t][1][1], False)
            seen = step.observations


def test_seeds_of_later_episodes_do_not_meet():
    """The first episode's seed is the trial's; no two of 100 episodes of 1000 trials share one but by chance (1 in 2^32)."""
    seeds = np.repeat(np.arange(1000, dtype=np.uint32), 100)
    drawn = following(seeds, np.tile(np.arange(1, 101), 1000))
    assert drawn.dtype == np.uint32
    assert len(np.unique(drawn)) >= len(drawn) - 8  # 1.2 are expected to coincide
    words = np.unpackbits(drawn.view(np.uint8)).reshape(-1, 32)
    assert abs(words.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(drawn))


def test_choices_are_seen_one_hot_and_a_mask_stays_last():
    """Two components of 2 and 3 choices: 1 and 2 are columns 1 and 2 + 2."""

    @dataclasses.dataclass(frozen=True)
    class Masked:
        recommended = {}  # noqa: RUF012
        spec = families.RLSpec.discrete(
            (families.TaskParameter("p", 0, 1, ""),), 6, families.Choices((2, 3), masked=True), 2, 0.0
        )

        def batch(self, num_envs, threads):
            return self

        def reset(self, tasks, seeds):
            return np.tile(np.array([0.5, 1, 1, 0, 1, 1], np.float32), (len(tasks), 1))

        def step(self, actions):
            count = len(actions)
            flags = np.zeros(count, dtype=bool)
            return families.Step(self.reset(actions, None), np.full(count, 7, np.float32), flags, flags)

    batch = Trial(Masked(), 2).batch(1, 1)
    batch.reset(Tasks(("p",), np.zeros((1, 1))), np.zeros(1, np.uint32))
    seen = batch.step(np.array([[1, 2]])).observations[0]
    assert seen.tolist() == [0, 1, 0, 0, 1, 7, 0, 0.5, 1, 1, 0, 1, 1]
    assert Trial(Masked(), 2).spec.observation_size == len(seen)


def test_a_family_that_fails_is_named_and_not_its_trial(point_mass):
    """ "Family Trial failed" names nothing that a user wrote."""
    for fault, reason in [
        (("reward shape", 2, 0), "rewards have shape"),
        (("reward raises", 2, 0), "ZeroDivisionError"),
    ]:
        domain = _domain(point_mass(fault=fault))
        with pytest.raises(FamilyError, match=f"Family PointMass failed at step {fault[1] - 1}.*{reason}"):
            domain.collect(_params(domain, 2), domain.sample_tasks(2, "train", 0), (0,), "query")


def test_a_fault_names_the_simulation_that_has_it():
    """Simulation 2 of 3 started anew in a batch of its own, whose first it is: not simulation 0 of another task."""

    class Breaking:
        spec = families.RLSpec((families.TaskParameter("p", 0, 1, ""),), 1, 1, -1.0, 1.0, 5, 0.0)

        def __init__(self, count=0):
            self.count = count

        def batch(self, num_envs, threads):
            return Breaking(num_envs)

        def reset(self, tasks, seeds):
            return np.zeros((self.count, 1), np.float32)

        def step(self, actions):
            if self.count == 1:
                raise families.EnvFault("broken", np.array([0]))
            flags = np.zeros(self.count, dtype=bool)
            return families.Step(self.reset(None, None), np.zeros(self.count, np.float32), flags, flags)

    simulations, tasks = Cohorts(Breaking(), 1), Tasks(("p",), np.zeros((3, 1)))
    simulations.reset(np.arange(3), tasks, np.arange(3, dtype=np.uint32))
    simulations.reset(np.array([2]), tasks.rows([2]), np.array([9], np.uint32))
    with pytest.raises(families.EnvFault, match="broken") as raised:
        simulations.step(np.zeros((3, 1), np.float32))
    assert raised.value.envs.tolist() == [2]


def test_a_trial_has_an_episode():
    with pytest.raises(ValueError, match="at least 1 episode, not 0"):
        Trial(families.make("navigation-2d"), 0)


def _domain(family, episodes=4, **settings):
    trial = Trial(family, K)
    spec = trial.spec
    policy = GaussianPolicy(GRU(spec.observation_size, 6, (1,), spec.horizon), 1)
    return RLDomain(trial, policy, episodes=episodes, **settings)


def _params(domain, num_tasks, different=False):
    g = torch.Generator().manual_seed(3)
    meta = {name: value.double().float() for name, value in domain.init(g).items()}
    params = expand(meta, num_tasks)
    return {n: v + 0.2 * torch.randn(v.shape, generator=g) for n, v in params.items()} if different else params


@pytest.mark.parametrize("different", [True, False], ids=["every task its own", "all tasks alike"])
def test_reading_a_trial_again_gives_the_probabilities_that_acted(point_mass, different):
    """Catches sequences in another order, memories carried from one group of tasks or rollout to the next, and padding
    behind trials of different lengths that reaches back into them: KL and log-ratios would not be 0.
    """
    domain = _domain(point_mass(), workers=Workers(2))
    params, tasks = _params(domain, 5, different), domain.sample_tasks(5, "train", 1)
    for seed in ((0,), (1,)):
        batch = domain.collect(params, tasks, seed, "query").data
        assert (batch.weights == 0).any(), "the test needs padding"
        new = domain.policy.distribution(params, batch.observations)
        played = batch.weights > 0
        gap = (domain.policy.log_prob(new, batch.actions) - batch.log_probs)[played]
        assert gap.abs().max() < 1e-4
        assert domain.query(params, batch).kl.abs().max() < 1e-6


def test_no_gradient_comes_from_the_padding(point_mass):
    """Whatever stands behind a trial's end, its task's gradient is the same."""
    domain = _domain(point_mass())
    params, tasks = _params(domain, 3), domain.sample_tasks(3, "train", 1)
    batch = domain.collect(params, tasks, (0,), "query").data
    gradients = []
    for rubbish in (0.0, 9.0):
        observations = torch.where((batch.weights > 0).unsqueeze(-1), batch.observations, rubbish)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = domain.query(leaves, dataclasses.replace(batch, observations=observations)).loss.sum()
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_tasks_do_not_see_each_other(point_mass):
    """Another task beside it changes nothing of a task's trials: randomness, rewards and memories are its own."""
    domain = _domain(point_mass())
    tasks = domain.sample_tasks(3, "train", 1)
    other = tasks.replaced(np.array([2]), domain.sample_tasks(1, "test", 1))
    params = _params(domain, 3)
    first, second = (domain.rollout(params, rows, (0,))[0] for rows in (tasks, other))
    for name in ("observations", "actions", "rewards", "mask"):
        assert torch.equal(getattr(first, name)[:2], getattr(second, name)[:2]), name
    assert not torch.equal(first.rewards[2], second.rewards[2])


def test_returns_of_episodes_by_hand(point_mass):
    """Rewards are added from one beginning to the next; the course is their mean over trials, and the score its mean."""
    domain = _domain(point_mass())
    params, tasks = _params(domain, 2), domain.sample_tasks(2, "train", 1)
    rollouts, _ = domain.rollout(params, tasks, (5,))
    expected = np.zeros((2, K, 4))
    for m in range(2):
        for e in range(4):
            episode = -1
            for t in range(rollouts.rewards.shape[1]):
                episode += int(rollouts.observations[m, t, e, domain.family.begins_at] == 1)
                if rollouts.mask[m, t, e]:
                    expected[m, episode, e] += float(rollouts.rewards[m, t, e])
    assert (expected != 0).all()
    np.testing.assert_allclose(domain.family.returns(rollouts), expected, rtol=1e-5)
    sample = domain.collect(params, tasks, (5,), "query")
    np.testing.assert_allclose(sample.course, expected.mean(2), rtol=1e-5)
    np.testing.assert_allclose(sample.scores, expected.mean((1, 2)), rtol=1e-5)
    assert domain.unit == "reward per episode of 7 steps"


def test_what_lies_behind_the_time_is_refused(point_mass):
    with pytest.raises(SettingsError, match="bootstrap=true does not fit a policy with a memory"):
        _domain(point_mass(), bootstrap=True)


def test_a_masked_choice_is_never_drawn_by_a_memory():
    """The mask is read from this step's observation, not remembered."""
    policy = CategoricalPolicy(GRU(4, 3, (2,), 5), (2,), mask_at=2)
    params = {n: v.expand(1, *v.shape) for n, v in policy.init(torch.Generator()).items()}
    act, g = policy.actor(params), torch.Generator().manual_seed(0)
    for t in range(5):
        legal = torch.tensor([1.0, 0.0]) if t % 2 else torch.tensor([0.0, 1.0])
        seen = torch.cat([torch.randn(1, 50, 2, generator=g), legal.expand(1, 50, 2)], -1)
        actions, _ = act(seen, torch.rand(1, 50, 1, generator=g))
        assert (actions == legal.argmax()).all()


def test_the_baseline_that_looks_at_memories_is_one_least_squares_problem(point_mass):
    """Solved whole: columns of memories for all tasks, four columns of time for each. Catches weights that are every
    task's own, chunks that are left out, padding that counts, and a time that is not the trial's.
    """
    g = torch.Generator().manual_seed(0)
    tasks, steps, trials, units = 3, 6, 8, 2
    memory, seen = (
        torch.randn(tasks, steps, trials, units, generator=g),
        torch.randn(tasks, steps, trials, 1, generator=g),
    )
    returns = torch.randn(tasks, steps, trials, generator=g) + torch.arange(tasks).view(-1, 1, 1) * 3
    mask = (torch.arange(steps).view(1, -1, 1) < torch.randint(1, steps + 1, (tasks, 1, trials), generator=g)).float()
    parts = [baseline.moments(*(x[cut] for x in (memory, seen, returns, mask))) for cut in (slice(0, 2), slice(2, 3))]
    fitted = baseline.fit_remembered(parts)
    rows, targets, every = [], [], []
    for i in range(tasks):
        for t in range(steps):
            for e in range(trials):
                tau, h = t / steps, memory[i, t, e].tolist()
                own = [[1, tau, tau**2, tau**3] if i == j else [0] * 4 for j in range(tasks)]
                row = [*h, *(tau * x for x in h), float(seen[i, t, e, 0]), *itertools.chain(*own)]
                every.append(row)
                if mask[i, t, e]:
                    rows.append(row)
                    targets.append(float(returns[i, t, e]))
    ridge = 1e-5**0.5 * np.eye(len(rows[0]))
    solution = np.linalg.lstsq(np.concatenate([rows, ridge]), [*targets, *[0.0] * len(ridge)], rcond=None)[0]
    expected = (np.array(every) @ solution).reshape(tasks, steps, trials)
    for i in range(tasks):
        own = (fitted[0], fitted[1][i : i + 1])
        valued = baseline.predict_remembered(own, memory[i : i + 1], seen[i : i + 1])
        np.testing.assert_allclose(valued[0], expected[i], rtol=1e-5, atol=1e-5)


def test_advantages_of_all_tasks_have_one_deviation(point_mass):
    """A task in which nothing matters must not be blown up to the size of the others: no parameters are its own."""
    domain = _domain(point_mass(), episodes=30)
    batch = domain.collect(_params(domain, 4), domain.sample_tasks(4, "train", 1), (0,), "query").data
    weights, advantages = batch.weights / 4, batch.advantages
    mean = (weights * advantages).sum()
    assert float(mean) == pytest.approx(0, abs=1e-5)
    assert float((weights * (advantages - mean).square()).sum()) == pytest.approx(1, rel=1e-4)
    each = (batch.weights * advantages.square()).sum(1)
    assert float(each.max() / each.min()) > 1.2
