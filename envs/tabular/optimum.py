"""The best that can be done in a tabular task by a player who knows its tables."""

from __future__ import annotations

import numpy as np

from metarl.envs.tabular.families import tables
from metarl.families import Tasks


def optimal_returns(tasks: Tasks, states: int = 10, horizon: int = 10) -> np.ndarray:
    r"""Return the largest expected undiscounted return of an episode from state 0, float64 (M,).

    $$ V_0 = 0, \qquad V_{k+1}(s) = \max_a \mu(s, a) + \sum_n P(n|s, a) V_k(n) $$

    Args:
        tasks: M tasks of :class:`metarl.envs.tabular.families.TabularMDP`.
        states: S of the family.
        horizon: steps of an episode.

    Reference: Bellman (1957), dynamic programming over a finite horizon.
    """
    means, steps = tables(tasks, states)
    values = np.zeros((len(tasks), states))
    for _ in range(horizon):
        values = (means + np.einsum("msan,mn->msa", steps, values)).max(axis=-1)
    return values[:, 0]
