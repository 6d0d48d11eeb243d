"""Running normalisation of observations: statistics against NumPy's over all data, and who may change them when."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from metarl.core import TRPO, GradientStep, Objective, Workers
from metarl.core.params import expand
from metarl.families import Choices, RLSpec, TaskParameter, Tasks
from metarl.learner import MetaLearner
from metarl.nets import MLP
from metarl.rl import GaussianPolicy, RLDomain
from metarl.rl.normalizer import Normalizer, merged, moments, unseen
from metarl.run.trainer import validate

KEPT = slice(0, 0)
CPU = torch.device("cpu")


def _parts(sizes=(7, 1, 30), offset=1e6, size=3):
    """Sets of two tasks each, their masks, and all states that count."""
    random, parts, valid = np.random.default_rng(0), [], []
    for count in sizes:
        x = (offset + random.normal(0, [1, 5, 0], (2, count, size))).astype(np.float32)
        mask = random.random((2, count)) < 0.7
        mask[:, 0] = True
        parts.append((torch.tensor(x), torch.tensor(mask, dtype=torch.float32)))
        valid.append(x[mask].astype(np.float64))
    return parts, np.concatenate(valid)


def _statistics(parts):
    return [moments(*part) for part in parts]


def test_statistics_are_numpys_over_all_data():
    """Squares that cancel a million away from 0, masked states that count, parts that all weigh the same."""
    parts, valid = _parts()
    running = unseen(3)
    for part in _statistics(parts):
        running = merged(running, [part])
    assert int(running["count"]) == len(valid)
    np.testing.assert_allclose(running["mean"], valid.mean(0), rtol=1e-14)
    np.testing.assert_allclose(running["squares"] / running["count"], valid.var(0), rtol=1e-9)
    assert valid.var(0)[2] == running["squares"][2] == 0.0
    assert {value.dtype for value in running.values()} == {torch.float64}


def test_statistics_do_not_depend_on_the_order():
    """An exponential mean, or one that favours what came last."""
    parts, _ = _parts()
    several = _statistics(parts)
    forth, back = merged(unseen(3), several), merged(unseen(3), several[::-1])
    one_by_one = merged(merged(merged(unseen(3), several[:1]), several[1:2]), several[2:])
    for other in (back, one_by_one):
        for name, value in forth.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-12)


def test_what_is_seen_is_standardised_and_clipped():
    """By hand; a column that never changed is 0 and not a division by 0; what was never seen is only clipped."""
    parts, valid = _parts(offset=100.0)
    seen = Normalizer(merged(unseen(3), _statistics(parts)), KEPT, CPU)
    far = np.array([100.0, -100.0, 0.0])
    x = torch.tensor(np.stack([valid[0], valid[-1], valid.mean(0) + far])[None], dtype=torch.float32)
    wanted = ((x.numpy() - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-8)).clip(-10, 10)
    np.testing.assert_allclose(seen(x), wanted, rtol=1e-4, atol=1e-4)
    assert wanted[0, 2].tolist() == [10.0, -10.0, 0.0]
    fresh = Normalizer(unseen(3), KEPT, CPU)
    assert fresh(torch.tensor([[0.25, 11.0, -1e9]])).tolist() == [[0.25, 10.0, -10.0]]


class _Masked:
    """What a domain asks of a family with masks and an oracle: observation (1), mask (5), task (1)."""

    spec = RLSpec.discrete(
        (TaskParameter("worth", 0.0, 10.0, ""),), 6, Choices((3, 2), masked=True), 4, 0.0, oracle=True
    )


def test_masks_stay_masks_and_the_task_is_an_observation_like_others():
    """A mask of 1 and 0 that becomes 0.3 and -3: illegal choices would be played, legal ones never."""
    domain = RLDomain(_Masked(), GaussianPolicy(MLP((7, 2, 2)), 2)).normalizing()
    legal = np.array([[1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1.0]])
    raw = np.column_stack([[2.0, 4.0, 9.0], legal, [-1.0, 0.0, 0.5]])
    statistics = merged(domain.learned([]), [moments(torch.tensor(raw[None], dtype=torch.float32), torch.ones(1, 3))])
    domain = domain.given(statistics)
    tasks = Tasks(("worth",), np.array([[10.0]]))
    seen = domain.observe(torch.tensor(raw[None, :, :6], dtype=torch.float32), tasks)[0].numpy()
    np.testing.assert_array_equal(seen[:, 1:6], legal)
    standard = (raw - raw.mean(0)) / raw.std(0).clip(1e-9)
    np.testing.assert_allclose(seen[:, 0], standard[:, 0], rtol=1e-5)
    np.testing.assert_allclose(seen[:, 6], (1 - raw[:, 6].mean()) / raw[:, 6].std(), rtol=1e-5)


def _learner(family, normalizing=True, inner_steps=1, **settings):
    spec = family.spec
    size = spec.observation_size + (len(spec.parameters) if spec.oracle else 0)
    domain = RLDomain(family, GaussianPolicy(MLP((size, 6, 1)), 1), episodes=6, workers=Workers(1), **settings)
    domain = domain.normalizing() if normalizing else domain
    return MetaLearner(domain, GradientStep(domain.inner_loss, 0.1), TRPO(), inner_steps, meta_batch_size=4)


def _replayed(learner, state):
    """The states that count in an iteration's rollouts, as the family gave them, and the rollouts."""
    domain, seed = learner.at(state).domain, (state.seed, 0, state.iteration)
    tasks = domain.sample_tasks(4, "train", seed)
    params, valid, rollouts = expand(state.meta, 4), [], []
    for step in range(learner.inner_steps + 1):
        rollouts.append(domain.rollout(params, tasks, (*seed, step))[0])
        valid.append(rollouts[-1].observations[rollouts[-1].mask.bool()].numpy().astype(np.float64))
        if step < learner.inner_steps:
            params = learner.adapt(params, domain.judge(rollouts[-1]))
    return np.concatenate(valid), rollouts


@pytest.mark.parametrize("oracle", [False, True])
def test_an_iteration_merges_all_of_its_rollouts(point_mass, oracle):
    """Support or query left out, states counted twice, statistics of what was already standardised."""
    learner = _learner(point_mass(oracle=oracle), inner_steps=2)
    state, every = learner.init(seed=3), []
    for _ in range(3):
        every.append(_replayed(learner, state)[0])
        state, metrics = learner.iteration(state)
    every = np.concatenate(every)
    assert len(every) == state.statistics["count"] == metrics["env_steps"]
    np.testing.assert_allclose(state.statistics["mean"], every.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.statistics["squares"] / len(every), every.var(0), rtol=1e-9)


def test_a_batch_holds_what_the_policy_saw(point_mass):
    """Rollouts keep what the family gave; acting, the batch and the baseline see it standardised, by one rule."""
    learner = _learner(point_mass(), bootstrap=True)
    state, _ = learner.iteration(learner.init(seed=1))
    domain = learner.at(state).domain
    _, (support, _) = _replayed(learner, state)
    batch, params = domain.judge(support), expand(state.meta, 4)
    std = (state.statistics["squares"] / state.statistics["count"] + 1e-8).sqrt()
    seen, last = (
        ((x.double() - state.statistics["mean"]) / std).clamp(-10, 10).float()
        for x in (support.observations, support.final_observations)
    )
    torch.testing.assert_close(batch.observations, seen.flatten(1, 2), rtol=1e-5, atol=1e-5)
    acted = domain.policy.distribution(params, batch.observations)
    torch.testing.assert_close(acted.mean, support.behaviour.mean.flatten(1, 2), rtol=1e-5, atol=1e-6)
    # the baseline, too, sees states standardised by hand, those behind the time limit included
    plain = _learner(point_mass(), normalizing=False, bootstrap=True).domain
    both = {"observations": seen, "final_observations": last}
    by_hand = plain.judge(dataclasses.replace(support, **both)).advantages
    torch.testing.assert_close(batch.advantages, by_hand, rtol=1e-3, atol=1e-4)
    for name, value in both.items():
        other = plain.judge(dataclasses.replace(support, **{name: value})).advantages
        assert (other - by_hand).abs().max() > 0.01, f"standardising {name} alone would not show"


def test_likelihood_ratios_start_at_one(point_mass):
    """Statistics that change between acting and learning make the old policy another one: KL 0 says they did not."""
    learner = _learner(point_mass(), inner_steps=2)
    state = learner.init(seed=1)
    for _ in range(2):
        state, _ = learner.iteration(state)
    present = learner.at(state)
    tasks = learner.domain.sample_tasks(4, "train", 0)
    trail = present.explore(state.meta, tasks, (1, 0, 2), 2)
    objective = Objective(learner.inner, [s.data for s in trail.supports], trail.query.data, learner.domain.query)
    assert objective.value(state.meta).kl == pytest.approx(0.0, abs=1e-6)
    late = learner.at(dataclasses.replace(state, statistics=present.domain.learned(trail.supports)))
    moved = late.explore(state.meta, tasks, (1, 0, 2), 2)
    assert not torch.equal(moved.query.data.observations, trail.query.data.observations)


def test_iterations_are_pure_and_validation_changes_nothing(point_mass):
    """Statistics carried by the learner and not by the state, written in place, or fed by validation tasks."""
    learner = _learner(point_mass())
    start, _ = learner.iteration(learner.init(seed=3))
    kept = {name: value.clone() for name, value in start.statistics.items()}
    scores = validate(learner, start, tasks=3, steps=2)
    one, first = learner.iteration(start)
    fresh, second = _learner(point_mass()).iteration(start)
    again = validate(learner, start, tasks=3, steps=2)
    for name, value in kept.items():
        assert torch.equal(start.statistics[name], value)
        assert torch.equal(one.statistics[name], fresh.statistics[name])
    assert all(torch.equal(one.meta[name], fresh.meta[name]) for name in one.meta)
    assert first["post_return"] == second["post_return"]
    assert {k: v for k, v in scores.items() if "return" in k} == {k: v for k, v in again.items() if "return" in k}
    unaware = dataclasses.replace(start, statistics=learner.domain.learned([]))
    assert validate(learner, unaware, tasks=3, steps=2)["validation_return_2"] != scores["validation_return_2"]


def test_off_is_off(point_mass):
    """Nothing is kept, and nothing of it reaches a checkpoint."""
    learner = _learner(point_mass(), normalizing=False)
    state, _ = learner.iteration(learner.init(seed=3))
    assert dict(state.statistics) == {}
    assert learner.domain.normalizer is None
