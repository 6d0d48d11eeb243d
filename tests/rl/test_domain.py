"""Rollouts and batches against plain Python loops over single episodes."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from metarl import families
from metarl.core import Workers
from metarl.core.params import expand
from metarl.families import FamilyError
from metarl.nets import MLP
from metarl.rl import GaussianPolicy, RLDomain
from metarl.rl.groups import groups
from metarl.rl.losses import Batch

M, E = 5, 6


def _tensors(rollouts):
    named = {field.name: getattr(rollouts, field.name) for field in dataclasses.fields(rollouts)}
    behaviour = named.pop("behaviour")
    return named | {"means": behaviour.mean, "log_std": behaviour.log_std}


def _columns(batch):
    """A batch's tensors by name, those of the distribution too."""
    named = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
    means, log_std = named.pop("behaviour")
    assert named.pop("horizon") is None  # lvc needs no order
    return named | {"means": means, "log_std": log_std}


def _domain(family, threads=1, **settings):
    size = family.spec.observation_size + (len(family.spec.parameters) if family.spec.oracle else 0)
    policy = GaussianPolicy(MLP((size, 5, 1)), 1)
    return RLDomain(family, policy, episodes=E, workers=Workers(threads), **settings)


def _params(domain, num_tasks=M):
    """Different parameters for every task, so that mixing rows shows."""
    g = torch.Generator().manual_seed(3)
    meta = domain.init(g)
    return {n: v + 0.5 * torch.randn(num_tasks, *v.shape, generator=g) for n, v in meta.items()}


def _collected(family, threads=1, seed=(1, 0, 4, 0), **settings):
    domain = _domain(family, threads, **settings)
    tasks = domain.sample_tasks(M, "train", 9)
    return domain, tasks, domain.rollout(_params(domain), tasks, seed)[0]


def test_rollouts_are_what_a_plain_loop_over_episodes_sees(point_mass, point_physics):
    """Masks, ends, rewards, observations and final observations of ragged episodes, replayed one at a time."""
    first_state, advance, limit = point_physics
    family = point_mass()
    _, tasks, r = _collected(family)
    seeds = family.seeds[0].reshape(M, E)
    kinds = set()
    for m in range(M):
        goal, push = tasks.values[m]
        for e in range(E):
            x, speed, alive = first_state(seeds[m, e]), 0.0, True
            total = 0.0
            for t in range(family.horizon):
                assert r.mask[m, t, e] == float(alive)
                if not alive:
                    assert r.rewards[m, t, e] == 0.0
                    assert not r.terminated[m, t, e]
                    assert not r.truncated[m, t, e]
                    continue
                np.testing.assert_allclose(r.observations[m, t, e], [x, speed], rtol=1e-6, atol=1e-6)
                following = advance(x, float(r.actions[m, t, e, 0]), push)
                x, speed = following, following - x
                assert r.rewards[m, t, e].item() == pytest.approx(-abs(x - goal), rel=1e-5, abs=1e-6)
                total -= abs(x - goal)
                fell = abs(x) > limit
                stopped = not fell and (t + 1 == family.horizon or (seeds[m, e] % 3 == 0 and t + 1 >= 4))
                assert bool(r.terminated[m, t, e]) == fell
                assert bool(r.truncated[m, t, e]) == stopped
                if fell or stopped:
                    np.testing.assert_allclose(r.final_observations[m, e], [x, speed], rtol=1e-6, atol=1e-6)
                    alive = False
                    kinds.add("fell" if fell else "limit" if t + 1 == family.horizon else "short")
            assert not alive
            assert r.returns[m, e].item() == pytest.approx(total, rel=1e-5)
    assert kinds == {"fell", "limit", "short"}, "the test needs every kind of ending"
    assert r.steps == int(r.mask.sum())


def test_the_horizon_ends_an_episode_that_the_family_does_not_end(point_mass):
    """Else its advantages would be those of an episode that goes on into the padding."""
    flagged, silent = (_collected(point_mass(limit=limit))[2] for limit in (True, False))
    for name, value in _tensors(flagged).items():
        assert torch.equal(value, _tensors(silent)[name]), name
    assert bool(silent.truncated[:, -1].any())


def test_scores_are_mean_undiscounted_returns_and_steps_are_counted(point_mass):
    domain, tasks, r = _collected(point_mass())
    sample = domain.collect(_params(domain), tasks, (1, 0, 4, 0), "support")
    torch.testing.assert_close(sample.scores, r.rewards.sum(1).mean(1))
    assert sample.env_steps == int(r.mask.sum())
    assert sample.metrics["episode_length"] == pytest.approx(r.mask.sum(1).mean().item())
    expected = Normal(0.0, _params(domain)["log_std"].exp()).entropy().sum(-1).mean().item()
    assert sample.metrics["entropy"] == pytest.approx(expected, rel=1e-5)


def test_the_smallest_standard_deviation_is_the_one_that_acts_and_is_stored(point_mass):
    """Storing the unclamped one would start every ratio and KL at the wrong value."""
    family = point_mass()
    domain = dataclasses.replace(_domain(family), policy=GaussianPolicy(MLP((2, 5, 1)), 1, min_std=0.2))
    params = _params(domain) | {"log_std": torch.full((M, 1), -5.0)}
    r = domain.rollout(params, domain.sample_tasks(M, "train", 9), (1, 0, 4, 0))[0]
    assert r.behaviour.log_std.exp().flatten().tolist() == pytest.approx([0.2] * M)
    noise = (r.actions - r.behaviour.mean)[r.mask.bool()]
    assert noise.std().item() == pytest.approx(0.2, rel=0.3)
    terms = domain.query(params, domain.judge(r))
    assert terms.kl.abs().max() < 1e-5
    assert terms.loss.abs().max() < 1e-4


def test_stored_distribution_is_the_one_that_acted(point_mass):
    """Ratio and KL start at 1 and 0 only if what is stored is what the sampling parameters give."""
    domain, _, r = _collected(point_mass())
    params, batch = _params(domain), domain.judge(r)
    std = params["log_std"].exp()
    torch.testing.assert_close(r.behaviour.log_std, params["log_std"])
    for m in range(M):
        observations, actions = (x[m].flatten(0, 1) for x in (r.observations, r.actions))
        hidden = torch.tanh(observations @ params["0.weight"][m] + params["0.bias"][m])
        mean = hidden @ params["1.weight"][m] + params["1.bias"][m]
        torch.testing.assert_close(r.behaviour.mean[m].flatten(0, 1), mean, rtol=1e-4, atol=1e-4)
        log_probs = Independent(Normal(mean, std[m]), 1).log_prob(actions)
        torch.testing.assert_close(batch.log_probs[m], log_probs, rtol=1e-4, atol=1e-4)
    assert torch.equal(batch.behaviour[0], r.behaviour.mean.flatten(1, 2))
    assert torch.equal(batch.actions, r.actions.flatten(1, 2))


def test_action_noise_is_standard_normal_and_no_two_episodes_or_tasks_share_it(point_mass):
    """Workers that inherit one noise stream explore together; equal noise in two iterations or stages likewise."""
    family = point_mass(horizon=40, rubbish=0.0)
    streams = []
    for seed in ((1, 0, 4, 0), (1, 0, 4, 1), (1, 0, 5, 0), (2, 0, 4, 0)):
        _, _, r = _collected(family, seed=seed)
        ran = r.mask.bool()
        noise = ((r.actions - r.behaviour.mean)[..., 0] / r.behaviour.log_std.exp().view(M, 1, 1))[ran]
        assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
        assert abs(noise.std() - 1) < 5 / math.sqrt(2 * len(noise))
        first = (
            (r.actions - r.behaviour.mean)[:, 0, :, 0] / r.behaviour.log_std.exp()
        ).flatten()  # every episode's first draw
        streams.append(first)
    everything = torch.cat(streams)
    assert len(torch.unique(torch.round(everything * 1e4))) >= len(everything) - 1
    seeds = np.concatenate(family.seeds)
    assert len(np.unique(seeds)) == len(seeds), "episodes share reset seeds"


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
def test_advantages_are_those_of_a_plain_loop(point_mass, bootstrap, gae_lambda):
    """Ridge regression, GAE and normalisation of one task after another, in NumPy float64, over valid steps only."""
    gamma, horizon = 0.9, 7
    domain, _, r = _collected(point_mass(horizon=horizon), gamma=gamma, gae_lambda=gae_lambda, bootstrap=bootstrap)
    batch = domain.judge(r)
    for m in range(M):
        mask, rewards = r.mask[m].numpy(), r.rewards[m].double().numpy()
        lengths = mask.sum(0).astype(int)

        def phi(observation, t):
            s = np.clip(np.asarray(observation, dtype=np.float64), -10, 10)
            tau = (
                0.0 if bootstrap else t / 100
            )  # a value that goes on behind the time limit does not depend on the time
            return np.concatenate([s, s**2, [tau, tau**2, tau**3, 1.0]])

        rows, goals = [], []
        for e in range(E):
            for t in range(lengths[e]):
                rows.append(phi(r.observations[m, t, e], t))
                goals.append(sum(gamma ** (k - t) * rewards[k, e] for k in range(t, lengths[e])))
                if bootstrap and bool(r.truncated[m, lengths[e] - 1, e]):  # the return goes on with the value behind it
                    rows[-1] = rows[-1] - gamma ** (lengths[e] - t) * phi(r.final_observations[m, e], 0)
        rows.extend(np.sqrt(1e-5) * np.eye(len(rows[0])))
        w = np.linalg.lstsq(np.array(rows), np.array(goals + [0.0] * len(rows[0])), rcond=None)[0]

        advantages = {}
        for e in range(E):
            running, last = 0.0, lengths[e] - 1
            for t in reversed(range(lengths[e])):
                if t < last:
                    following = w @ phi(r.observations[m, t + 1, e], t + 1)
                elif bool(r.truncated[m, t, e]) and bootstrap:
                    following = w @ phi(r.final_observations[m, e], lengths[e])
                else:
                    following = 0.0
                delta = rewards[t, e] + gamma * following - w @ phi(r.observations[m, t, e], t)
                running = delta + gamma * gae_lambda * running
                advantages[t, e] = running
        values = np.array(list(advantages.values()))
        for (t, e), value in advantages.items():
            expected = (value - values.mean()) / values.std()
            assert batch.advantages[m, t * E + e].item() == pytest.approx(expected, rel=2e-3, abs=2e-3)
            assert batch.weights[m, t * E + e].item() == pytest.approx(1 / mask.sum(), rel=1e-6)
    assert torch.equal(batch.weights > 0, r.mask.flatten(1, 2) > 0)


@pytest.mark.parametrize("rubbish", [0.0, -1e7, math.nan, math.inf])
def test_padding_influences_nothing(point_mass, rubbish):
    """What a finished simulation returns must not reach any valid step, bit for bit."""
    batches = []
    for value in (99.0, rubbish):
        domain, tasks, r = _collected(point_mass(rubbish=value), gae_lambda=0.9, bootstrap=True)
        sample = domain.collect(_params(domain), tasks, (1, 0, 4, 0), "support")
        batches.append((domain.judge(r), sample))
    (a, first), (b, second) = batches
    valid = a.weights > 0
    assert 0 < int(valid.sum()) < valid.numel()
    assert torch.equal(a.weights, b.weights)
    for (name, x), y in zip(_columns(a).items(), _columns(b).values(), strict=True):
        assert torch.equal(x, y) if name in ("log_std", "credit") else torch.equal(x[valid], y[valid]), name
        assert bool(torch.isfinite(y).all()), f"{name} of padding would turn 0 * x into NaN"
    assert torch.equal(first.scores, second.scores)
    assert first.env_steps == second.env_steps == int(valid.sum())


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(point_mass, threads):
    """Twice in one domain (whose simulations are used again) and once in a fresh one."""
    domain, tasks, first = _collected(point_mass(), threads)
    again = domain.rollout(_params(domain), tasks, (1, 0, 4, 0))[0]
    _, _, fresh = _collected(point_mass(), threads)
    other = domain.rollout(_params(domain), tasks, (1, 0, 4, 1))[0]
    for name in _tensors(first):
        a, b, c = (_tensors(r)[name] for r in (first, again, fresh))
        assert torch.equal(a, b), name
        assert torch.equal(a, c), name
    assert not torch.equal(first.observations[:, 0], other.observations[:, 0])
    assert not torch.equal(first.actions, other.actions)


def test_flags_may_be_numbers(point_mass):
    """A family whose flags are 0.0 and 1.0 is as good as one that returns booleans."""

    class Numbers:
        def __init__(self, env):
            self.env, self.reset = env, env.reset

        def step(self, actions):
            step = self.env.step(actions)
            return step._replace(terminated=step.terminated.astype(float), truncated=step.truncated.astype(int))

    class Family(point_mass):
        def batch(self, num_envs, threads):
            return Numbers(super().batch(num_envs, threads))

    flags, numbers = (_tensors(_collected(family)[2]) for family in (point_mass(), Family()))
    assert all(torch.equal(flags[name], numbers[name]) for name in flags)


def test_another_family_gets_its_own_simulations(point_mass):
    """``replace(domain, family=...)`` would go on stepping the simulations of the old one."""
    domain, tasks, _ = _collected(point_mass())
    longer = point_mass(limit=False, horizon=9)
    other = dataclasses.replace(domain, family=longer).rollout(_params(domain), tasks, (1, 0, 4, 0))[0]
    assert torch.equal(other.observations, _collected(longer)[2].observations)


def test_seeds_of_another_length_are_other_seeds(point_mass):
    """NumPy pads a seed with zeros: the rollouts that judge would be those that were adapted to."""
    seeds = [(1, 2), (1, 2, 0), (1, 2, 0, 0)]
    actions = [_collected(point_mass(), seed=seed)[2].actions for seed in seeds]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(actions, 2))


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
def test_results_do_not_depend_on_threads_or_on_other_tasks(point_mass, num_tasks):
    """Catches randomness drawn per group instead of per task, and rows that land in another task's place."""
    domain, tasks, whole = _collected(point_mass())
    params, seed = _params(domain), (1, 0, 4, 0)
    two = _domain(point_mass(), 2)
    rows = slice(0, num_tasks)
    threaded = two.rollout({n: v[rows] for n, v in params.items()}, tasks.rows(rows), seed)[0]
    for name, value in _tensors(whole).items():
        torch.testing.assert_close(
            _tensors(threaded)[name].float(), value[rows].float(), rtol=1e-5, atol=1e-5, msg=name
        )


def test_half_cheetah_does_not_depend_on_threads():
    """The engine's threads and ours together; physics amplifies rounding, so the episode is short."""
    results = []
    for threads in (1, 2):
        family = families.make("halfcheetah-vel", horizon=10)
        domain = RLDomain(family, GaussianPolicy(MLP((17, 8, 6)), 6), episodes=2, workers=Workers(threads))
        tasks = domain.sample_tasks(3, "train", 0)
        params = expand(domain.init(torch.Generator().manual_seed(0)), 3)
        results.append(domain.rollout(params, tasks, (0, 0, 0, 0))[0])
        assert bool(results[-1].truncated[:, -1].all())
        assert not bool(results[-1].truncated[:, :-1].any())
    torch.testing.assert_close(results[0].observations, results[1].observations, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0].rewards, results[1].rewards, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_groups_cover_every_task_once_and_use_no_more_threads_than_there_are(num_tasks, threads):
    cuts, each = groups(num_tasks, Workers(threads))
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(num_tasks))
    assert all(cut.stop > cut.start for cut in cuts)
    assert each >= 1
    assert each * len(cuts) <= threads


def test_few_at_once_are_the_same_rollouts(point_mass, monkeypatch):
    """Groups that run together where only some may, tasks that are left out, noise that depends on the group."""
    family = point_mass()
    whole = _collected(family)[2]
    made, batch = [], type(family).batch

    def watched(self, num_envs, threads):
        made.append(num_envs)
        return batch(self, num_envs, threads)

    limited = dataclasses.replace(family.spec, at_once=E + 1)
    monkeypatch.setattr(type(family), "spec", limited)
    monkeypatch.setattr(type(family), "batch", watched)
    _, _, parts = _collected(family, threads=2)
    assert made == [E]  # one task at once, and the same simulations for each
    for name in ("rewards", "mask", "final_observations"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
    ran = whole.mask.bool()
    torch.testing.assert_close(parts.actions[ran], whole.actions[ran], rtol=1e-5, atol=1e-6)
    assert groups(5, Workers(3), 2) == ([slice(0, 2), slice(2, 4), slice(4, 5)], 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_oracle_sees_the_scaled_task_beside_the_observation(point_mass, threads):
    """Each simulation its own task, in [-1, 1] over the declared range, in first and last observations alike."""
    family = point_mass(oracle=True)
    _, tasks, r = _collected(family, threads)
    blind = _collected(point_mass())[2]
    scaled = torch.tensor((tasks.values - [0.5, 0.1]) / [1.0, 0.1], dtype=torch.float32)
    assert r.observations.shape == (M, 7, E, 4)
    ran = r.mask.bool()
    for m in range(M):
        shown = r.observations[m][ran[m]][:, 2:]
        torch.testing.assert_close(shown, scaled[m].expand_as(shown), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(r.final_observations[m, :, 2:], scaled[m].expand(E, 2), rtol=1e-5, atol=1e-6)
    assert scaled.abs().max() <= 1.0
    assert torch.equal(r.observations[:, 0, :, :2], blind.observations[:, 0])


FAULTS = [
    ("reward nan", 3, "at step 2, task {task}", "rewards are not finite"),
    ("reward inf", 1, "at step 0, task {task}", "rewards are not finite"),
    ("observation nan", 2, "at step 1, task {task}", "observations are not finite"),
    ("reset observation nan", 0, "at step 0, task {task}", "observations are not finite"),
    ("observation fault", 3, "at step 2, task {task}", "the engine is on fire"),
    ("reward shape", 2, "at step 1", "rewards have shape"),
    ("observation shape", 1, "at step 0", "observations have shape"),
    ("reset shape", 0, "at step 0", "observations have shape"),
    ("reward raises", 3, "at step 2", "ZeroDivisionError: the engine is out of oil"),
    ("reset raises", 0, "at step 0", "ZeroDivisionError: the engine is out of oil"),
]


@pytest.mark.parametrize(("kind", "time", "where", "what"), FAULTS, ids=[f[0] for f in FAULTS])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_broken_family_gives_one_line_that_names_family_step_and_task(point_mass, kind, time, where, what, threads):
    """The second simulation of the third task of a group fails (steps count from 0, as actions do)."""
    simulation = 2 * E + 1 if threads == 1 else 1
    family = point_mass(fault=(kind, time, simulation))
    tasks = family.sample_tasks(M, "train", 9)
    with pytest.raises(FamilyError) as caught:
        _collected(family, threads)
    message = str(caught.value)
    assert message.startswith("Family PointMass failed ")
    assert "\n" not in message
    assert what in message
    named = [where.format(task=t) for t in tasks.to_json()]
    assert named[2] in message if threads == 1 else any(name in message for name in named)
    assert caught.value.__cause__ is not None


def test_a_fault_of_a_finished_simulation_is_no_fault(point_mass):
    """NaN after the end is padding, and must not stop the run; before it, it must."""
    family = point_mass(rubbish=math.nan)
    _, _, r = _collected(family)
    assert bool((r.mask == 0).any())
    assert bool(torch.isfinite(r.rewards).all() and torch.isfinite(r.observations).all())
