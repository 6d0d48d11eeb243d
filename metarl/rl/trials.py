"""Trials: several episodes of one task as one, for policies that learn a task by remembering what they have seen of it.

RL² is ordinary reinforcement learning on these (``python -m metarl.algorithms rl2``).

Shapes: M tasks, E trials of each, K episodes of a trial, T steps of a trial, B simulations, O observation, A action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarl.cohorts import Cohorts
from metarl.families import EnvBatch, FamilyError, Judging, RLFamily, RLSpec, Split, Step, Tasks
from metarl.rl.rollouts import Rollouts

_GOLDEN = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True)
class Trial:
    r"""A family whose episodes are trials: K episodes of one task, one behind the other.

    Observation: the last action (choices one-hot, numbers clipped to their range and scaled to [-1, 1]; zeros before the
    first), what it paid, 1 where an episode begins and else 0, and then what the family observes, which may end in a mask
    of legal choices. Where an episode ends, by itself or by the family's horizon H, the next begins, and the state that it
    ended in is not seen. A trial terminates with its last episode, at the latest after K H steps. The first episode is the
    family's own with the same seed; the seeds of those that follow are drawn from it.

    Where the family judges, a trial is a success if its last episode is.

    Attributes:
        family: whose episodes they are.
        episodes: K.

    Reference: Duan et al. (2016), RL², arXiv:1611.02779, section 2.2.
    """

    family: RLFamily
    episodes: int

    recommended: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        """Check the number of episodes."""
        if self.episodes < 1:
            raise ValueError(f"a trial has at least 1 episode, not {self.episodes}")

    @property
    def spec(self) -> RLSpec:
        """The family's, with more to observe and a longer horizon."""
        spec = self.family.spec
        size, horizon = self.begins_at + 1 + spec.observation_size, self.episodes * spec.horizon
        return dataclasses.replace(spec, observation_size=size, horizon=horizon)

    @property
    def begins_at(self) -> int:
        """The column of an observation that says where an episode begins."""
        return _width(self.family.spec) + 1

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the family's tasks."""
        return self.family.sample_tasks(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations of trials."""
        batch = TrialBatch(self, num_envs, threads)
        return JudgingTrials(batch) if batch.judges else batch

    def returns(self, rollouts: Rollouts) -> Tensor:
        """Return the undiscounted return of every episode of every trial, (M, K, E); of one never begun it is 0."""
        # before the first episode and behind the last there are no rewards
        number = rollouts.observations[..., self.begins_at].cumsum(1).long() - 1
        tasks, _, trials = rollouts.rewards.shape
        empty = torch.zeros(tasks, self.episodes, trials, device=rollouts.rewards.device)
        return empty.scatter_add(1, number.clamp(0, self.episodes - 1), rollouts.rewards)


def bare(family: RLFamily) -> RLFamily:
    """Return the family whose episodes a trial is made of; any other family as it is."""
    return family.family if isinstance(family, Trial) else family


class TrialBatch:
    """B trials that step together.

    Args:
        trial: which.
        count: B.
        threads: of the simulations.

    Attributes:
        judges: whether the family does.
        last: bool (B,), whose last step was one of its last episode.
    """

    def __init__(self, trial: Trial, count: int, threads: int) -> None:
        self._spec, self._episodes = trial.family.spec, trial.episodes
        # simulations of a family start anew together or, at some cost, one by one
        self._simulations = Cohorts(trial.family, threads)
        self.judges = isinstance(self._simulations.prepare(count), Judging)
        self._seeds = np.zeros(count, dtype=np.uint32)
        self._done = np.zeros(count, dtype=np.int64)  # episodes
        self._time = np.zeros(count, dtype=np.int64)  # steps of the present episode
        self._tasks = Tasks((), np.zeros((count, 0)))
        self.last = np.zeros(count, dtype=bool)

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Begin every trial; return observations (B, O)."""
        count = len(self._seeds)
        self._tasks, self._seeds = tasks, np.array(seeds, dtype=np.uint32)
        self._done[:], self._time[:] = 0, 0
        observations = self._simulations.reset(np.arange(count), tasks, self._seeds.copy())
        return seen(self._spec, observations, None, np.zeros(count), np.ones(count))

    def step(self, actions: np.ndarray) -> Step:
        """Step every trial; where an episode has ended and was not the last, the next begins."""
        self.last = self._done >= self._episodes - 1
        observations, rewards, terminated, truncated = self._simulations.step(actions)
        self._check(observations, rewards, terminated, truncated)
        self._time += 1
        ended = (terminated | truncated | (self._time >= self._spec.horizon)) & (self._done < self._episodes)
        self._done += ended
        again = ended & (self._done < self._episodes)
        if again.any():
            rows = np.flatnonzero(again)
            seeds = following(self._seeds[rows], self._done[rows])
            observations = observations.copy()
            observations[rows] = self._simulations.reset(rows, self._tasks.rows(rows), seeds)
            self._time[rows] = 0
        whole = seen(self._spec, observations, actions, rewards, again)
        # a trial's own end, not a time limit: nothing would follow the last episode
        return Step(whole, rewards, self._done >= self._episodes, np.zeros(len(rewards), dtype=bool))

    def verdict(self) -> np.ndarray | None:
        """Return whether the last step left each task solved in its trial's last episode, bool (B,); None where nobody judges."""
        solved = self._simulations.success(len(self._seeds))
        return None if solved is None else solved & self.last

    def _check(self, observations: np.ndarray, *others: np.ndarray) -> None:
        count = len(self._seeds)
        for name, array, shape in zip(
            ("observations", "rewards", "terminated", "truncated"),
            (observations, *others),
            ((count, self._spec.observation_size), *[(count,)] * 3),
            strict=True,
        ):
            if np.shape(array) != shape:
                raise FamilyError(f"{name} have shape {np.shape(array)} instead of {shape}")


class JudgingTrials:
    """Trials of a family that judges: a :class:`TrialBatch` with a verdict.

    Args:
        trials: that are judged.
    """

    def __init__(self, trials: TrialBatch) -> None:
        self._trials = trials

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Begin every trial."""
        return self._trials.reset(tasks, seeds)

    def step(self, actions: np.ndarray) -> Step:
        """Step every trial."""
        return self._trials.step(actions)

    def success(self) -> np.ndarray:
        """Return whether the last step left each task solved in its trial's last episode, bool (B,)."""
        solved = self._trials.verdict()
        assert solved is not None
        return solved


def seen(
    spec: RLSpec, observations: np.ndarray, actions: np.ndarray | None, rewards: np.ndarray, begins: np.ndarray
) -> np.ndarray:
    """Return what is observed in a trial, float32 (B, O').

    Args:
        spec: the family's.
        observations: the family's, (B, O).
        actions: the last ones, (B, A); None before the first.
        rewards: what they paid, (B,).
        begins: where an episode begins, (B,).
    """
    if actions is None:
        acted = np.zeros((len(observations), _width(spec)))
    elif spec.choices is None:
        middle, half = (spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2
        acted = (np.clip(actions, spec.action_low, spec.action_high) - middle) / half
    else:
        acted = np.zeros((len(observations), _width(spec)))
        np.put_along_axis(acted, actions + np.cumsum([0, *spec.choices.counts[:-1]]), 1.0, axis=1)
    return np.concatenate([acted, rewards[:, None], begins[:, None], observations], axis=1).astype(np.float32)


def _width(spec: RLSpec) -> int:
    """Numbers in which an action is observed."""
    return spec.action_size if spec.choices is None else sum(spec.choices.counts)


def following(seeds: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Return the seeds of episodes 1, 2, ... (k,) of trials with seeds uint32 (k,); of episode 0 it is the trial's own.

    Reference: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators" (SplitMix64).
    """
    z = (seeds.astype(np.uint64) << np.uint64(32)) + episodes.astype(np.uint64)
    z = z * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
