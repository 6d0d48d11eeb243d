"""A family with masked multi-discrete actions, from its spec through the learner to a loaded policy's actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from metarl.analysis.agent import AdaptedPolicy
from metarl.core import TRPO, GradientStep, Workers
from metarl.core.params import expand
from metarl.families import Choices, FamilyError, RLSpec, Step, TaskParameter, Tasks, split_uniform
from metarl.learner import MetaLearner
from metarl.nets import MLP
from metarl.rl import CategoricalPolicy, RLDomain
from metarl.testing import check_family

COUNTS = (3, 2)


@dataclasses.dataclass(frozen=True)
class Doors:
    """Choose one of three doors and one of two hands; the door that was just taken is locked.

    Reward: the task's worth of the door, plus 1 for hand 1. An illegal choice raises.
    """

    flaw: str = ""
    oracle: bool = False

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        worth = tuple(TaskParameter(f"worth{i}", 0.0, 1.0, "") for i in range(3))
        return RLSpec.discrete(worth, 1 + sum(COUNTS), Choices(COUNTS, masked=True), 6, 0.0, self.oracle)

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("worth0", "worth1", "worth2"), split_uniform(num_tasks, split, seed, 3))

    def batch(self, num_envs, threads):
        return DoorsBatch(self.flaw, num_envs)


class DoorsBatch:
    def __init__(self, flaw, count):
        self.flaw, self.rows = flaw, np.arange(count)

    def reset(self, tasks, seeds):
        self.worth, self.time = tasks.values, 0
        self.legal = np.ones((len(tasks), 5), dtype=np.float32)
        self.legal[self.rows, np.asarray(seeds) % 3] = 0
        return self._observe()

    def step(self, actions):
        assert actions.dtype == np.int64
        assert actions.shape == (len(self.rows), 2)
        columns = actions + np.array([0, 3])
        assert self.legal[self.rows[:, None], columns].all(), "an illegal choice was played"
        door, hand = actions.T
        rewards = (self.worth[self.rows, door] + hand).astype(np.float32)
        self.legal = np.ones_like(self.legal)
        self.legal[self.rows, door] = 0
        self.time += 1
        if self.flaw == "stuck" and self.time == 2:
            self.legal[1, :3] = 0
        if self.flaw == "half" and self.time == 2:
            self.legal[:, 3] = 0.7
        flags = np.zeros(len(self.rows), dtype=bool)
        return Step(self._observe(), rewards, flags, flags | (self.time >= 6))

    def _observe(self):
        return np.concatenate([np.full((len(self.rows), 1), self.time / 6, np.float32), self.legal], axis=1)


def _learner(family, threads=1, normalizing=False):
    spec = family.spec
    size = spec.observation_size + (3 if spec.oracle else 0)
    policy = CategoricalPolicy(MLP((size, 8, 5)), COUNTS, spec.observation_size - 5)
    domain = RLDomain(family, policy, episodes=20, workers=Workers(threads))
    domain = domain.normalizing() if normalizing else domain
    return MetaLearner(domain, GradientStep(domain.inner_loss, 0.3), TRPO(max_kl=0.05), 1, meta_batch_size=6)


def test_the_kit_plays_legal_choices_and_names_a_flawed_mask():
    check_family(Doors())
    with pytest.raises(AssertionError, match="a choice of every component is legal; none of component 0"):
        check_family(Doors("stuck"))
    with pytest.raises(AssertionError, match="an action mask is made of 0 and 1"):
        check_family(Doors("half"))


@pytest.mark.parametrize(("oracle", "normalizing"), [(False, False), (True, False), (True, True)])
def test_a_learner_learns_with_legal_choices_only(oracle, normalizing):
    """The simulations raise at an illegal choice; behind the mask an oracle has its task, which is no mask."""
    learner = _learner(Doors(oracle=oracle), normalizing=normalizing)
    state, returns = learner.init(0), []
    for _ in range(10):
        state, metrics = learner.iteration(state)
        returns.append(metrics["post_return"])
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 0.5
    assert 0 < metrics["kl"] < 0.06
    assert 0 < metrics["entropy"] < np.log(2) + np.log(2)  # two of three doors, two hands


def test_a_state_without_a_legal_choice_is_named():
    """Drawing at random from illegal choices would go on without a word."""
    learner = _learner(Doors("stuck"))
    with pytest.raises(FamilyError, match="no choice of action component 0 is legal") as caught:
        learner.iteration(learner.init(0))
    assert "task" in str(caught.value)


def test_acting_gives_legal_whole_numbers():
    learner = _learner(Doors())
    params = expand(learner.init(0).meta, 1)
    policy = AdaptedPolicy(learner.domain.policy, params, Doors().spec, np.zeros(0, dtype=np.float32))
    observations = np.tile([[0.5, 0, 1, 1, 1, 0]], (500, 1))
    drawn = policy.act(observations, deterministic=False)
    assert drawn.dtype == np.int64
    assert drawn.shape == (500, 2)
    assert set(drawn[:, 0]) == {1, 2}
    assert set(drawn[:, 1]) == {0}
    likeliest = policy.act(observations[0])
    with torch.no_grad():
        seen = torch.tensor(observations[:1], dtype=torch.float32)[None]
        (log_probs,) = learner.domain.policy.distribution(params, seen)
    assert likeliest.tolist() == [int(log_probs[0, 0, :3].argmax()), 0]
