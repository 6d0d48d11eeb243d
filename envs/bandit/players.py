"""Reference players of bandits: what learned players are compared with, for many tasks at once.

A player sees only its own pulls; one bandit is one row. Shapes: B bandits, K arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from metarl.envs.bandit.families import BernoulliBandit, GaussianBandit
from metarl.envs.bandit.gittins import indices
from metarl.families import Tasks


@dataclass(frozen=True)
class Record:
    """What a player has seen.

    Attributes:
        counts: pulls of every arm, int64 (B, K).
        sums: rewards of every arm, float64 (B, K).
        time: pulls so far.
        pulls: pulls in all.
    """

    counts: np.ndarray
    sums: np.ndarray
    time: int
    pulls: int


class Player(Protocol):
    """Chooses an arm for every bandit."""

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return how much each arm is wanted, (B, K); the largest is pulled, ties are broken at random.

        Args:
            record: what was seen.
            means: the true means (B, K); for the oracle's eyes only.
            random: where a player's own randomness comes from.
        """
        ...


@dataclass(frozen=True)
class Random:
    """Pulls any arm."""

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Want all arms alike."""
        del means, random
        return np.zeros(record.counts.shape)


@dataclass(frozen=True)
class Oracle:
    """Knows the best arm."""

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Want the largest true mean."""
        del record, random
        return means


@dataclass(frozen=True)
class UCB1:
    r"""Pulls the arm with the largest $\bar r_k + \sqrt{c \ln t / n_k}$, each arm once at first.

    Attributes:
        width: c; 2 in the paper, for rewards in [0, 1].

    Reference: Auer, Cesa-Bianchi and Fischer (2002), "Finite-time analysis of the multiarmed bandit problem", figure 1.
    """

    width: float = 2.0

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return upper confidence bounds."""
        del means, random
        tried = np.maximum(record.counts, 1)
        bounds = record.sums / tried + np.sqrt(self.width * np.log(max(record.time, 1)) / tried)
        return np.where(record.counts == 0, np.inf, bounds)


@dataclass(frozen=True)
class Thompson:
    """Draws every arm's mean from its posterior and pulls the largest.

    Attributes:
        std: standard deviation of a normal reward; None: Bernoulli arms with a uniform prior.

    Reference: Thompson (1933), "On the likelihood that one unknown probability exceeds another".
    """

    std: float | None = None

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return draws from the posteriors."""
        del means
        if self.std is None:
            return random.beta(1 + record.sums, 1 + record.counts - record.sums)
        # the normal of the prior's mean and variance (1/2, 1/12) stands for the uniform prior
        precision = 12 + record.counts / self.std**2
        centre = (6 + record.sums / self.std**2) / precision
        return random.normal(centre, 1 / np.sqrt(precision))


@dataclass(frozen=True)
class Gittins:
    """Pulls the Bernoulli arm with the largest Gittins index: best for discounted rewards without end.

    Attributes:
        discount: in (0, 1); 1 - 1 / pulls looks about as far ahead as there are pulls.
    """

    discount: float = 0.99

    def scores(self, record: Record, means: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return Gittins indices."""
        del means, random
        wins = record.sums.astype(np.int64)
        if not np.array_equal(wins, record.sums):
            raise ValueError("these Gittins indices are of Bernoulli arms, which pay 0 or 1")
        return indices(record.pulls, self.discount)[wins, record.counts - wins]


# For Bernoulli arms; of normal ones ``Thompson(std)`` knows the standard deviation, and there are no Gittins indices here.
PLAYERS: Mapping[str, Player] = {
    "random": Random(),
    "oracle": Oracle(),
    "ucb1": UCB1(),
    "thompson": Thompson(),
    "gittins": Gittins(),
}


def play(family: BernoulliBandit | GaussianBandit, tasks: Tasks, player: Player, pulls: int, seed: int) -> Record:
    """Let a player pull every bandit's arms in one trial; ``record.sums.sum(1)`` is what it earned.

    Args:
        family: whose bandits, of either protocol: to fit a record and judge it on fresh pulls, see
            :func:`best_empirical_arm`.
        tasks: B rows.
        player: who plays.
        pulls: N.
        seed: of rewards and player.
    """
    rewards, choices = np.random.SeedSequence(seed).spawn(2)
    random, rows = np.random.default_rng(choices), np.arange(len(tasks))
    env = replace(family, protocol="trial", horizon=pulls).batch(len(tasks), 1)
    env.reset(tasks, rewards.generate_state(len(tasks)))
    counts, sums = np.zeros(tasks.values.shape, dtype=np.int64), np.zeros(tasks.values.shape)
    for time in range(pulls):
        scores = player.scores(Record(counts, sums, time, pulls), tasks.values, random)
        # a second key breaks ties: the largest random number among the best
        tied = np.where(scores == scores.max(axis=1, keepdims=True), random.random(scores.shape), -1.0)
        arms = tied.argmax(axis=1)
        sums[rows, arms] += env.step(arms[:, None]).rewards
        counts[rows, arms] += 1
    return Record(counts, sums, pulls, pulls)


def best_empirical_arm(record: Record) -> np.ndarray:
    """Return the arm with the largest mean reward in a record, int64 (B,); never one that was not pulled.

    Judged on fresh pulls, it is what fitting ``record`` could at best be expected to find without a prior.
    """
    means = np.where(record.counts > 0, record.sums / np.maximum(record.counts, 1), -np.inf)
    return means.argmax(axis=1)
