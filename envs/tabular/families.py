"""Random tabular Markov decision processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from metarl.envs import counters
from metarl.families import Choices, EnvBatch, RLSpec, Split, Step, TaskParameter, Tasks, split_uniform
from metarl.settings import setting

# Mean rewards are drawn within so many standard deviations, because task parameters have a range (6e-7 is cut off).
_CUT = 5.0


@dataclasses.dataclass(frozen=True)
class TabularMDP:
    r"""Learn a small world whose every rule is random.

    $$ P(\cdot|s, a) \sim \operatorname{Dirichlet}(1), \quad \mu(s, a) \sim \mathcal N(1, 1), \quad
       r_t \sim \mathcal N(\mu(s_t, a_t), 1), \quad s_0 = 0 $$

    Task: ``reward_{s}_{a}`` $\mu(s, a)$ and ``to_{s}_{a}_{n}`` $P(n|s, a)$: 550 numbers for 10 states and 5 actions. The
    means are cut off at 5 standard deviations. Observation (10): the state, one-hot. Action: one of 5 choices. Horizon 10
    steps, no termination. Control step: none. :func:`metarl.envs.tabular.optimum.optimal_returns` tells the best expected return.

    Reference: Duan et al. (2016), arXiv:1611.02779, section 3.2. Differs from pytorch-maml-rl: there the observation is
    the state's number.
    """

    states: int = setting(10, "number of states S", low=1, high=1000)
    actions: int = setting(5, "number of actions A", low=2, high=1000)
    reward_std: float = setting(1.0, "standard deviation of a reward around its mean", low=0)
    horizon: int = setting(10, "steps in an episode", low=1)
    oracle: bool = setting(False, "append all of the tables to the observation")

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "maml-trpo",
        "iterations": 200,
        "meta_batch_size": 20,
        "episodes_per_task": 20,
        "inner_steps": 1,
        "inner_lr": 1.5,  # of 0.5, 1.5, 2 and 4 the best on validation tasks
        "gamma": 0.99,
        "gae_lambda": 1.0,
        "hidden_sizes": (64, 64),
        "activation": "tanh",
    }

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self.states, self.actions, self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw tables."""
        names = tuple(parameter.name for parameter in self.spec.parameters)
        pairs = self.states * self.actions
        unit = split_uniform(num_tasks, split, seed, len(names))
        tail = NormalDist().cdf(-_CUT)
        levels = tail + (1 - 2 * tail) * unit[:, :pairs]
        means = 1.0 + np.array([NormalDist().inv_cdf(level) for level in levels.ravel()]).reshape(levels.shape)
        # exponentials over their sum are Dirichlet(1); log1p, because unit is in [0, 1)
        steps = -np.log1p(-unit[:, pairs:]).reshape(num_tasks, pairs, self.states)
        steps /= steps.sum(axis=-1, keepdims=True)
        return Tasks(names, np.concatenate([means, steps.reshape(num_tasks, -1)], axis=1))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return TabularBatch(self.states, self.actions, self.reward_std, self.horizon)


def tables(tasks: Tasks, states: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean rewards (M, S, A) and transition probabilities (M, S, A, S) of tasks."""
    pairs = tasks.values.shape[1] // (1 + states)
    actions = pairs // states
    means = tasks.values[:, :pairs].reshape(-1, states, actions)
    return means, tasks.values[:, pairs:].reshape(-1, states, actions, states)


class TabularBatch:
    """B worlds that step together.

    Args:
        states: S.
        actions: A.
        reward_std: standard deviation of a reward.
        horizon: steps of an episode.
    """

    def __init__(self, states: int, actions: int, reward_std: float, horizon: int) -> None:
        self._states, self._actions, self._std, self._horizon = states, actions, np.float32(reward_std), horizon
        self._means: np.ndarray = np.zeros(0)
        self._cumulated: np.ndarray = np.zeros((0, states))
        self._keys: np.ndarray = np.zeros(0, dtype=np.uint64)
        self._state: np.ndarray = np.zeros(0, dtype=np.int64)
        self._ends: np.ndarray = np.zeros(0, dtype=np.int64)
        self._time = 0

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start every world in state 0; return observations (B, S)."""
        means, steps = tables(tasks, self._states)
        self._means, self._cumulated = means.reshape(-1), steps.cumsum(axis=-1).reshape(-1, self._states)
        self._keys, self._time = counters.keys(seeds), 0
        self._state, self._ends = np.zeros(len(tasks), dtype=np.int64), np.full(len(tasks), self._horizon)
        return self._observed()

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start some worlds in state 0; return their observations (k, S)."""
        count, (means, steps) = len(self._state), tables(tasks, self._states)
        whole = self._means.reshape(count, -1).copy()  # it may be the tasks' own
        whole[envs] = means.reshape(len(envs), whole.shape[1])
        self._means = whole.reshape(-1)
        self._cumulated.reshape(count, -1, self._states)[envs] = steps.cumsum(axis=-1).reshape(
            len(envs), whole.shape[1], self._states
        )
        self._keys[envs] = counters.later(counters.keys(seeds), 2 * self._time)
        self._state[envs], self._ends[envs] = 0, self._time + self._horizon
        return self._observed()[envs]

    def step(self, actions: np.ndarray) -> Step:
        """Take actions int64 (B, 1)."""
        count = len(self._state)
        row = (np.arange(count) * self._states + self._state) * self._actions + actions[:, 0]
        noise = counters.normal(self._keys, 2 * self._time)
        rewards = self._means[row].astype(np.float32) + self._std * noise
        level = counters.uniform(self._keys, 2 * self._time + 1)
        # the last column is 1 but for rounding, and is not compared
        self._state = (self._cumulated[row, :-1] <= level[:, None]).sum(axis=1)
        self._time += 1
        return Step(self._observed(), rewards, np.zeros(count, dtype=bool), self._ends <= self._time)

    def _observed(self) -> np.ndarray:
        observations = np.zeros((len(self._state), self._states), dtype=np.float32)
        observations[np.arange(len(observations)), self._state] = 1.0
        return observations


@functools.lru_cache(maxsize=8)
def _spec(states: int, actions: int, horizon: int, oracle: bool) -> RLSpec:
    """Describe the family; kept, because it is asked for at every step and has hundreds of parameters."""
    pairs = [f"{s}_{a}" for s in range(states) for a in range(actions)]
    means = [TaskParameter(f"reward_{pair}", 1.0 - _CUT, 1.0 + _CUT, "reward") for pair in pairs]
    steps = [TaskParameter(f"to_{pair}_{n}", 0.0, 1.0, "probability") for pair in pairs for n in range(states)]
    choices = Choices((actions,))
    return RLSpec.discrete((*means, *steps), states, choices, horizon, control_step=0.0, oracle=oracle)
