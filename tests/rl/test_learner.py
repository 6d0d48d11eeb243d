"""One meta-iteration: pure, deterministic, and looking at the data that the adapted policies sampled."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metarl import families
from metarl.core import SGD, TRPO, Adam, GradientStep, Objective, Workers, adapt
from metarl.core.params import expand, ravel
from metarl.learner import MetaLearner
from metarl.nets import MLP
from metarl.rl import GaussianPolicy, RLDomain


def _learner(family, outer=None, inner_steps=2, threads=1, **settings):
    spec = family.spec
    policy = GaussianPolicy(MLP((spec.observation_size, 6, spec.action_size)), spec.action_size)
    domain = RLDomain(family, policy, episodes=6, workers=Workers(threads), **settings)
    return MetaLearner(domain, GradientStep(domain.inner_loss, 0.1), outer or TRPO(), inner_steps, meta_batch_size=4)


def _same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[n], b[n]) for n in a)


def _timeless(metrics):
    return {n: v for n, v in metrics.items() if not n.startswith("seconds")}


@pytest.mark.parametrize("outer", [TRPO(), Adam(), SGD()], ids=["trpo", "adam", "sgd"])
@pytest.mark.parametrize("threads", [1, 2])
def test_iteration_is_a_pure_function_of_the_state(point_mass, outer, threads):
    """Twice from one state, and in a fresh learner that never ran: the same bits; the state is not written.

    Catches carried generators, simulators that remember and in-place updates: what would make a resumed run differ.
    """
    learner = _learner(point_mass(), outer, threads=threads)
    start = learner.init(seed=3)
    kept = {n: v.clone() for n, v in start.meta.items()}
    one, first = learner.iteration(start)
    two, second = learner.iteration(one)
    again, repeated = learner.iteration(start)
    assert _same(start.meta, kept)
    assert (start.iteration, start.env_steps) == (0, 0)
    assert _same(one.meta, again.meta)
    assert _same(one.outer, again.outer)
    assert _timeless(first) == _timeless(repeated)

    fresh = _learner(point_mass(), outer, threads=threads)
    resumed, third = fresh.iteration(one)
    assert _same(two.meta, resumed.meta)
    assert _same(two.outer, resumed.outer)
    assert _timeless(second) == _timeless(third)
    assert not _same(one.meta, two.meta)
    assert _timeless(first)["pre_return"] != _timeless(second)["pre_return"], "iterations share their randomness"


def test_iterations_differ_though_the_parameters_stay(point_mass):
    """A learning rate of 0 shows whether tasks, resets and actions are drawn anew in every iteration."""
    learner = _learner(point_mass(), SGD(lr=0.0))
    state, returns = learner.init(seed=3), []
    for _ in range(4):
        state, metrics = learner.iteration(state)
        returns += [metrics["pre_return"], metrics["post_return"]]
    assert _same(state.meta, learner.init(seed=3).meta)
    assert len(set(returns)) == len(returns)
    tasks = [learner.domain.sample_tasks(4, "train", (3, 0, i)) for i in range(4)]
    assert len(set(tasks)) == 4


def test_seeds_differ(point_mass):
    learner = _learner(point_mass())
    results = [learner.iteration(learner.init(seed=s)) for s in (0, 1)]
    assert not _same(results[0][0].meta, results[1][0].meta)


def test_half_cheetah_iteration_is_pure_with_threads():
    """The real engine: its warm start and its clock must not survive a reset."""
    family = families.make("halfcheetah-vel", horizon=15)
    learner = _learner(family, inner_steps=1, threads=2)
    start = learner.init(seed=0)
    one, _ = learner.iteration(start)
    two, _ = learner.iteration(one)
    again, _ = learner.iteration(start)
    resumed, _ = _learner(family, inner_steps=1, threads=2).iteration(one)
    assert _same(one.meta, again.meta)
    assert _same(two.meta, resumed.meta)


def test_random_numbers_of_torch_and_numpy_are_left_alone(point_mass):
    """Drawing from the global generators would tie results to the rest of the user's program, and disturb it."""
    import numpy as np

    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    learner = _learner(point_mass())
    learner.iteration(learner.init(seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)


def _explored(point_mass, inner_steps):
    learner = _learner(point_mass(), inner_steps=inner_steps)
    meta = learner.init(seed=1).meta
    tasks = learner.domain.sample_tasks(4, "train", 0)
    return learner, meta, tasks, learner.explore(meta, tasks, (1, 0, 0), inner_steps)


@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_every_stage_samples_with_the_parameters_adapted_so_far(point_mass, inner_steps):
    """theta -> theta' -> theta'' on each stage's own fresh data: the chain that the objective differentiates."""
    learner, meta, _, trail = _explored(point_mass, inner_steps)
    policy, stages = learner.domain.policy, [*trail.supports, trail.query]
    assert len(trail.supports) == inner_steps
    params = expand(meta, 4)
    for step, stage in enumerate(stages):
        acted = policy.distribution(params, stage.data.observations)
        torch.testing.assert_close(stage.data.behaviour[0], acted.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stage.data.behaviour[1], acted.log_std)
        if step < inner_steps:
            params = adapt(learner.inner, params, [stage.data])
    for name, value in trail.params.items():
        torch.testing.assert_close(value, params[name], rtol=1e-5, atol=1e-6)
    firsts = [tuple(stage.data.observations[:, 0, 0].tolist()) for stage in stages]
    assert len(set(firsts)) == len(stages), "stages reuse episodes"


@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_objective_starts_at_ratio_one_and_kl_zero(point_mass, inner_steps):
    """Where the query was sampled, KL and loss = -mean(advantage) are 0; else the old policy is not the old one."""
    learner, meta, _, trail = _explored(point_mass, inner_steps)
    supports = [s.data for s in trail.supports]
    objective = Objective(learner.inner, supports, trail.query.data, learner.domain.query)
    outcome = objective.value(meta)
    assert outcome.kl == pytest.approx(0.0, abs=1e-6)
    assert outcome.loss == pytest.approx(0.0, abs=1e-4)


def test_metrics_are_those_of_the_data(point_mass):
    """Steps count support and query up to each episode's end; returns are undiscounted means over tasks and episodes."""
    learner, meta, tasks, _ = _explored(point_mass, 2)
    start = dataclasses.replace(learner.init(seed=1), env_steps=1000)
    state, metrics = learner.iteration(start)
    tasks = learner.domain.sample_tasks(4, "train", (1, 0, 0))
    trail = learner.explore(meta, tasks, (1, 0, 0), 2)
    lengths = [(s.data.weights > 0).sum().item() for s in (*trail.supports, trail.query)]
    assert state.env_steps == metrics["env_steps"] == 1000 + sum(lengths)
    assert metrics["pre_return"] == pytest.approx(trail.supports[0].scores.mean().item())
    assert metrics["post_return"] == pytest.approx(trail.query.scores.mean().item())
    difference = trail.query.scores - trail.supports[0].scores
    assert metrics["gain_ci95"] == pytest.approx(1.96 * difference.std().item() / 4**0.5)
    assert (metrics["iteration"], state.iteration) == (0, 1)


def test_trpo_respects_its_bound_on_the_real_objective(point_mass):
    """Accepted steps lower the surrogate and keep the KL within the bound; most of ten are accepted."""
    learner = _learner(point_mass(), TRPO(max_kl=0.02, fisher_fraction=0.5), inner_steps=1)
    state = learner.init(seed=2)
    accepted = 0
    for _ in range(10):
        following, metrics = learner.iteration(state)
        if metrics["line_search_accepted"]:
            accepted += 1
            assert metrics["loss_change"] < 0
            assert 0 < metrics["kl"] <= 0.02
        else:
            assert following.meta is state.meta
        state = following
    assert accepted >= 8


def test_a_problem_that_can_be_learned_is_learned(point_mass):
    """Sanity of all signs together: 25 iterations raise the return before and after adaptation."""
    learner = _learner(point_mass(horizon=7), TRPO(max_kl=0.03, fisher_fraction=0.5), inner_steps=1)
    state, gains = learner.init(seed=0), []
    for _ in range(25):
        state, metrics = learner.iteration(state)
        gains.append(metrics["post_return"])
    assert ravel(state.meta).isfinite().all()
    assert sum(gains[-5:]) / 5 > sum(gains[:5]) / 5 + 0.3
