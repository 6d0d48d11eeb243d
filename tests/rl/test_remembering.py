"""Policies that learn a task by remembering it: what they can learn, and whom they refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import metarl
from metarl.core import SGD, TRPO, Adam, GradientStep, ProMP, Unchanged
from metarl.families import Choices, RLSpec, Step, TaskParameter, Tasks, split_uniform
from metarl.nets import GRU, MLP
from metarl.rl import CategoricalPolicy, RLDomain, Trial
from metarl.settings import SettingsError


@dataclasses.dataclass(frozen=True)
class Cue:
    """A cue of -1 or 1 at the first of three steps; the third pays 1 for the choice that the cue named.

    Before the third step one choice is illegal, so that neither observations nor own actions carry the cue: what sees one
    state at a time earns 1/2.
    """

    recommended: ClassVar[Mapping[str, Any]] = {}
    spec: ClassVar[RLSpec] = RLSpec.discrete((TaskParameter("cue", 0, 1, ""),), 3, Choices((2,), masked=True), 3, 0.0)

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("cue",), split_uniform(num_tasks, split, seed, dimensions=1))

    def batch(self, num_envs, threads):
        return CueBatch()


class CueBatch:
    """Cue as arrays."""

    def reset(self, tasks, seeds):
        self.right, self.time = (tasks["cue"] > 0.5).astype(int), 0
        return self._seen()

    def step(self, actions):
        paid = ((actions[:, 0] == self.right) & (self.time == 2)).astype(np.float32)
        self.time += 1
        flags = np.zeros(len(paid), dtype=bool)
        return Step(self._seen(), paid, flags | (self.time == 3), flags)

    def _seen(self):
        cue = (2 * self.right - 1) * (self.time == 0)
        return np.stack([cue, 0 * cue + 1, 0 * cue + (self.time == 2)], 1).astype(np.float32)


def _learner(net, trial, **settings):
    domain = RLDomain(trial, CategoricalPolicy(net, (2,), trial.spec.observation_size - 2), episodes=4, gae_lambda=0.9)
    return metarl.MetaLearner(
        domain, Unchanged(), ProMP(Adam(0.03), 3, 0.2, 0.0), 0, **{"meta_batch_size": 20, "chunk_tasks": 20} | settings
    )


def _trained(learner, iterations):
    """Mean return of the last five iterations."""
    state, last = learner.init(0), []
    for _ in range(iterations):
        state, metrics = learner.iteration(state)
        last.append(metrics["post_return"])
    return np.mean(last[-5:])


def test_a_memory_learns_what_no_policy_without_one_can():
    """Catches a memory that is not carried while acting or not learned through time, and one that reads the task elsewhere."""
    trial = Trial(Cue(), 1)
    size = trial.spec.observation_size
    assert _trained(_learner(GRU(size, 8, (2,), 3), trial), 30) > 0.95
    # 5 x 80 draws of probability 1/2, and tasks that are not half and half: 5 standard errors of 0.05
    assert _trained(_learner(MLP((size, 8, 2)), trial), 30) < 0.75


def test_what_is_learned_in_the_first_episode_serves_the_second():
    """Two cues of one task: the first episode's return is before, the second's after, and both count."""
    trial = Trial(Cue(), 2)
    learner = _learner(GRU(trial.spec.observation_size, 6, (2,), 6), trial)
    _, metrics = learner.iteration(learner.init(0))
    sample = learner.domain.collect(
        {n: v.expand(20, *v.shape).contiguous() for n, v in learner.init(0).meta.items()},
        learner.domain.sample_tasks(20, "train", (0, 0, 0)),
        (0, 0, 0, 0),
        "query",
    )
    assert sample.course.shape == (20, 2)
    assert metrics["pre_return"] == pytest.approx(float(sample.course[:, 0].mean()))
    assert metrics["post_return"] == pytest.approx(float(sample.course[:, 1].mean()))
    assert metrics["env_steps"] == 20 * 4 * 6
    assert metrics["episode_length"] == 3


def test_the_meta_gradient_is_the_slope_of_the_loss():
    """Through the domain, the policy and the memory, by central differences in float64; tasks in two chunks."""
    trial = Trial(Cue(), 2)
    learner = _learner(GRU(trial.spec.observation_size, 3, (2,), 6), trial, meta_batch_size=3)
    meta = {name: value.double() for name, value in learner.init(0).meta.items()}
    domain = learner.domain
    tasks, g = domain.sample_tasks(3, "train", 0), torch.Generator().manual_seed(1)
    rows = {name: value.float().expand(3, *value.shape).contiguous() for name, value in meta.items()}
    batch = domain.collect(rows, tasks, (0,), "query").data
    batch = dataclasses.replace(
        batch,
        **{name: getattr(batch, name).double() for name in ("observations", "advantages", "weights", "log_probs")},
        behaviour=tuple(x.double() for x in batch.behaviour),
    )
    objective = metarl.core.Objective(Unchanged(), [], batch, domain.query, chunk_tasks=2)
    _, gradient = objective.gradient(meta)
    for name in ("gru.input", "gru.hidden", "gru.input_bias", "head.0.weight"):
        direction = torch.randn(meta[name].shape, generator=g, dtype=torch.float64)
        ends = [objective.value({**meta, name: meta[name] + h * direction}).loss for h in (1e-5, -1e-5)]
        assert float((gradient[name] * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5), name


@pytest.mark.parametrize(
    ("inner", "outer", "steps", "reason"),
    [
        (Unchanged(), SGD(), 1, "inner_steps=1 does not fit a policy with a memory"),
        (GradientStep(lambda *_: None, 0.1), SGD(), 2, "inner_steps=2 does not fit a policy with a memory"),
        (Unchanged(), TRPO(), 0, "TRPO does not fit a policy with a memory"),
    ],
)
def test_rules_that_take_sequences_apart_are_refused(inner, outer, steps, reason):
    """A memory adapts by reading; a rule that changed its parameters, or looked at some of its states, would be wrong."""
    trial = Trial(Cue(), 1)
    policy = CategoricalPolicy(GRU(trial.spec.observation_size, 3, (2,), 3), (2,))
    with pytest.raises(SettingsError, match=reason):
        metarl.MetaLearner(RLDomain(trial, policy), inner, outer, steps)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"inner_steps": 1}, "inner_steps=1 has no meaning for algo=rl2"),
        ({"eval_steps": 2}, "eval_steps=2 has no meaning for algo=rl2"),
        ({"inner_lr": 0.5}, "inner_lr=0.5 has no meaning for algo=rl2"),
        ({"bootstrap": True}, "bootstrap=True has no meaning for algo=rl2"),
    ],
)
def test_settings_of_inner_updates_are_refused(settings, reason):
    """What is given and has no effect would be believed."""
    with pytest.raises(SettingsError, match=reason):
        metarl.build("navigation-2d", "rl2", **settings)


def test_labelled_shots_have_no_trials():
    with pytest.raises(SettingsError, match="algo=rl2 belongs to reinforcement learning; sinusoid has labelled shots"):
        metarl.build("sinusoid", "rl2")


def test_entropy_earns_its_bonus_in_every_form_of_the_outer_loss():
    """Catches a bonus that the clipped rule forgets, and one of the wrong sign."""
    learner = metarl.build(
        "bandit-bernoulli", "rl2", env_settings={"protocol": "trial", "horizon": 4}, threads=1,
        meta_batch_size=2, episodes_per_task=3, entropy_bonus=0.3, algo_settings={"trial_episodes": 1, "memory_size": 3},
    )  # fmt: skip
    domain = learner.domain
    params = {n: v.expand(2, *v.shape).contiguous() for n, v in learner.init(0).meta.items()}
    batch = domain.collect(params, domain.sample_tasks(2, "train", 0), (0,), "query").data
    bare = dataclasses.replace(domain.query, entropy_bonus=0.0)
    probs = domain.policy.distribution(params, batch.observations)[0].exp()
    entropy = torch.distributions.Categorical(probs).entropy().mean(1)  # no padding: all steps weigh alike
    for ours, theirs in ((domain.query, bare), (domain.query.clipped(0.2), bare.clipped(0.2))):
        torch.testing.assert_close(ours(params, batch).loss, theirs(params, batch).loss - 0.3 * entropy)


def test_labelled_shots_have_no_entropy():
    with pytest.raises(SettingsError, match=r"entropy_bonus=0\.1 has no meaning for env=sinusoid"):
        metarl.build("sinusoid", entropy_bonus=0.1)
