"""Bandit families: which of K arms pays best can only be learned by pulling them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs import counters
from metarl.families import Choices, EnvBatch, RLSpec, Split, Step, TaskParameter, Tasks, split_uniform
from metarl.settings import setting

# Rewards float32 (B,) of the pulled arms' means (B,), from the streams (B,) at a step.
Payout = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

_RECOMMENDED: Mapping[str, Any] = {
    "algo": "maml-trpo",
    "iterations": 500,
    "meta_batch_size": 20,
    "episodes_per_task": 100,
    "inner_steps": 1,
    "inner_lr": 0.5,
    "gamma": 0.95,
    "gae_lambda": 1.0,
    "hidden_sizes": (32, 32),
    "activation": "relu",
}


@dataclasses.dataclass(frozen=True)
class BernoulliBandit:
    r"""Pull one of K arms; arm k pays 1 with probability $p_k$ and else 0.

    $$ p_k \sim U(0, 1), \qquad r \sim \operatorname{Bernoulli}(p_a) $$

    Task: ``p0`` to ``p(K-1)``, probabilities. Observation (1): always 1. Action: one of K choices. One pull is an episode
    (``horizon=1``): adapting fits ``episodes_per_task`` pulls, and the adapted policy is judged on as many fresh ones. So
    no pull is blamed for another's luck, and all pulls of all tasks are one batch. ``horizon=N`` makes an episode of N
    pulls, for methods that learn by memory within one. The return is per episode: per pull at ``horizon=1``. Control step:
    none. No termination but the horizon.

    Reference: Duan et al. (2016), arXiv:1611.02779, section 3.1. Differs from it: fitted on some pulls and judged on
    others (as in the code of MAML-RL toolkits), where RL² and SNAIL count the reward of the very pulls that it learns from.
    """

    arms: int = setting(5, "number of arms K", low=2, high=10_000)
    horizon: int = setting(1, "pulls in an episode", low=1)
    oracle: bool = setting(False, "append the arms' probabilities to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self.arms, "p", "probability", self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw every arm's probability."""
        return Tasks(_names(self.arms, "p"), split_uniform(num_tasks, split, seed, self.arms))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del threads
        return BanditBatch(_bernoulli, self.horizon)


@dataclasses.dataclass(frozen=True)
class GaussianBandit:
    r"""Pull one of K arms; arm k pays a normal reward around its mean.

    $$ \mu_k \sim U(0, 1), \qquad r \sim \mathcal N(\mu_a, \sigma^2) $$

    Task: ``mean0`` to ``mean(K-1)``. Observation (1): always 1. Action: one of K choices. Protocol, horizon, control step
    and ends as in :class:`BernoulliBandit`.

    Reference: the Gaussian bandit of pytorch-maml-rl (means uniform on [0, 1], standard deviation 1), whose observation
    is always 0.
    """

    arms: int = setting(5, "number of arms K", low=2, high=10_000)
    std: float = setting(1.0, "standard deviation of a reward", above=0)
    horizon: int = setting(1, "pulls in an episode", low=1)
    oracle: bool = setting(False, "append the arms' means to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self.arms, "mean", "reward", self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw every arm's mean."""
        return Tasks(_names(self.arms, "mean"), split_uniform(num_tasks, split, seed, self.arms))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del threads
        return BanditBatch(self._payout, self.horizon)

    def _payout(self, means: np.ndarray, keys: np.ndarray, time: int) -> np.ndarray:
        return means.astype(np.float32) + np.float32(self.std) * counters.normal(keys, time)


class BanditBatch:
    """B bandits that are pulled together.

    Args:
        payout: how an arm pays.
        horizon: pulls of an episode.
    """

    def __init__(self, payout: Payout, horizon: int) -> None:
        self._payout, self._horizon = payout, horizon
        self._means: np.ndarray = np.zeros(0)
        self._keys: np.ndarray = np.zeros(0, dtype=np.uint64)
        self._rows: np.ndarray = np.zeros(0, dtype=np.int64)
        self._ends: np.ndarray = np.zeros(0, dtype=np.int64)
        self._time = 0

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode of every bandit; return observations (B, 1)."""
        self._means, self._keys, self._time = tasks.values.ravel(), counters.keys(seeds), 0
        self._rows = np.arange(0, tasks.values.size, tasks.values.shape[1])  # where each bandit's arms begin
        self._ends = np.full(len(tasks), self._horizon)
        return np.ones((len(tasks), 1), dtype=np.float32)

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode of some bandits; return observations (k, 1)."""
        means = self._means.reshape(len(self._rows), -1).copy()  # they are the tasks' own
        means[envs] = tasks.values
        self._means = means.ravel()
        self._keys[envs] = counters.later(counters.keys(seeds), self._time)
        self._ends[envs] = self._time + self._horizon
        return np.ones((len(envs), 1), dtype=np.float32)

    def step(self, actions: np.ndarray) -> Step:
        """Pull arms int64 (B, 1)."""
        count = len(self._rows)
        means = self._means.take(self._rows + actions[:, 0])
        rewards = self._payout(means, self._keys, self._time)
        self._time += 1
        # the trial's own end, not a time limit: nothing would follow the last pull
        terminated = self._ends <= self._time
        return Step(np.ones((count, 1), dtype=np.float32), rewards, terminated, np.zeros(count, dtype=bool))


def _bernoulli(means: np.ndarray, keys: np.ndarray, time: int) -> np.ndarray:
    return (counters.uniform(keys, time) < means).astype(np.float32)


def _names(arms: int, prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{arm}" for arm in range(arms))


def _spec(arms: int, prefix: str, unit: str, horizon: int, oracle: bool) -> RLSpec:
    parameters = tuple(TaskParameter(name, 0.0, 1.0, unit) for name in _names(arms, prefix))
    return RLSpec.discrete(parameters, 1, Choices((arms,)), horizon, control_step=0.0, oracle=oracle)
