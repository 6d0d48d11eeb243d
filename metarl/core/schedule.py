"""What of the meta-objective changes with the number of meta-updates: the two annealings of MAML++."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarl.core.adapt import Geometry, Objective, Query, Ratio, Terms
from metarl.core.inner import GradientStep, InnerRule
from metarl.core.params import Params

# A step before the last keeps at least this part of the weight that it began with, as in the authors' code.
_LEAST = 0.03


@dataclass(frozen=True)
class Schedule:
    r"""Multi-step loss and derivative order by meta-update t = 0, 1, ...; both are functions of t alone, so that runs resume.

    The multi-step loss, for t < T, is a weighted sum of the query losses after every one of the k inner steps,
    $$ \sum_{j=1}^k w_j(t)\, L(\theta_j), \qquad
       w_j(t) = \max\bigl(\tfrac1k (1 - \tfrac tT), \tfrac{0.03}k\bigr) \text{ for } j < k, \quad w_k = 1 - \sum_{j<k} w_j, $$
    and from T on the last one alone. For t < D inner steps are of first order, from D on of whatever the rule says.

    Attributes:
        multi_step: T; 0 for the last loss alone from the start.
        first_order: D; 0 for the rule's own order from the start.

    Reference: Antoniou et al. (2019), MAML++, arXiv:1810.09502, section 4, equation 4 (multi-step loss), and its paragraph on
    derivative-order annealing; the weights are those of the authors' code, which lowers them once an epoch of 500 updates instead
    of at every one.
    """

    multi_step: int = 0
    first_order: int = 0

    def weights(self, steps: int, update: int) -> tuple[float, ...]:
        """Return w_1 .. w_k of k = ``steps`` at meta-update t = ``update``."""
        if update >= self.multi_step:
            return (0.0,) * (steps - 1) + (1.0,)
        early = max(1 - update / self.multi_step, _LEAST) / steps
        return (early,) * (steps - 1) + (1 - (steps - 1) * early,)

    def rule(self, rule: InnerRule[Any], update: int) -> InnerRule[Any]:
        """Return the inner rule of meta-update t."""
        if update < self.first_order and isinstance(rule, GradientStep):
            return dataclasses.replace(rule, first_order=True)
        return rule

    def at(self, objective: Objective, update: int) -> Objective:
        """Return the objective of meta-update t, given that of the rule's own order and of the last loss alone."""
        objective = dataclasses.replace(objective, rule=self.rule(objective.rule, update))
        steps = len(objective.supports)
        if update >= self.multi_step or steps < 2:
            return objective
        weights = self.weights(steps, update)
        path = _OnTheWay(objective.loss, weights[:-1])
        return dataclasses.replace(objective, loss=_Weighted(objective.loss, weights[-1]), path=path)


@dataclass(frozen=True)
class _OnTheWay:
    """The query losses after every inner step but the last, weighted: the parameters before step j are those after step j - 1."""

    loss: Query
    weights: tuple[float, ...]

    def __call__(self, params: Params, support: Any, query: Any, step: int) -> Tensor:
        """Return (M,); zeros before the first step, where nothing has adapted."""
        del support
        loss = self.loss(params, query).loss if step else next(iter(params.values())).new_zeros(query.num_tasks)
        return loss * self.weights[step - 1] if step else loss


@dataclass(frozen=True)
class _Weighted:
    """The outer loss times a number; the distribution that it predicts is the same."""

    loss: Query
    weight: float

    @property
    def geometry(self) -> Geometry | None:
        """Of the loss."""
        return self.loss.geometry

    @property
    def ratio(self) -> Ratio | None:
        """None: what is clipped would have another weight."""
        return None

    def __call__(self, params: Params, query: Any) -> Terms:
        """Return the weighted loss, and the KL as it is."""
        terms = self.loss(params, query)
        return terms._replace(loss=self.weight * terms.loss)
