"""Outer rules: how the meta-parameters change. They receive the objective, and return new values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.core.adapt import Objective, Outcome
from metarl.core.params import Params, is_finite, ravel, unravel
from metarl.core.solvers import conjugate_gradient
from metarl.core.update import Clock, Metrics, State, Update, no_rejections, refuse_other_predictions, rejections

# A step is lengthened where that promises at least so much, and never by more.
_WORTH_LENGTHENING, _MOST_LENGTHENING = 1.1, 4.0


class _Candidate(NamedTuple):
    meta: Params
    length: float
    after: Outcome


class OuterRule(Protocol):
    """``step(meta, objective, state) -> Update``; a rejected step returns the very same ``meta``.

    Attributes:
        needs_geometry: whether the rule works only where predictions are a distribution. A rule that does not need it may find
            no KL in an :class:`Outcome`: what was predicted when the data were drawn is recorded for those that do.
        needs_ratio: whether it works only where the loss is made of likelihood ratios.
    """

    needs_geometry: ClassVar[bool]
    needs_ratio: ClassVar[bool]

    def init(self, meta: Params) -> State:
        """Return the state before the first step."""
        ...

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take one step."""
        ...


@dataclass(frozen=True)
class TRPO:
    r"""Trust-region step on the meta-objective.

    $$ \theta \leftarrow \theta - s\, x, \qquad H x = g, \quad
       H = \tfrac1M \sum_i J_i^T F_i J_i + \lambda I, \qquad s_0 = \sqrt{2\delta / x^T H x} $$

    The line search accepts a candidate only if the loss decreases and the mean KL(old||new) over *all* query states is at
    most delta. A candidate that fails is shortened by beta (or to where its KL says the bound is, if that is shorter).
    One that passes well inside the bound is lengthened once, by the same rule: Fisher products on a part of the states
    see too much curvature, because the noise of that part adds to J, so $s_0$ is too short. The better of the two counts,
    and the next step starts from $s_0$ times the factor that would have met the bound, so that one candidate usually does.

    A non-finite gradient, a curvature that is not positive or a line search without success reject the step: the
    parameters stay what they were, bit for bit.

    Attributes:
        max_kl: delta, nats.
        cg_iterations: most conjugate-gradient products.
        cg_damping: lambda.
        fisher_fraction: part of the states that the Fisher products look at, in (0, 1].
        line_search_steps: most candidates.
        line_search_shrink: beta, in (0, 1).

    Reference: Schulman et al. (2015), arXiv:1502.05477, appendix C; as the meta-optimiser, Finn et al. (2017),
    arXiv:1703.03400, section 5.3. Differs from them: exact Fisher products instead of finite differences.
    """

    max_kl: float = 0.01
    cg_iterations: int = 10
    cg_damping: float = 1e-2
    fisher_fraction: float = 0.05
    line_search_steps: int = 15
    line_search_shrink: float = 0.8

    needs_geometry: ClassVar[bool] = True
    needs_ratio: ClassVar[bool] = False

    def init(self, meta: Params) -> State:
        """Return zero counters, and 1 as the factor of the first candidate."""
        return {**no_rejections(), "length": torch.tensor(1.0, dtype=torch.float64)}

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take one trust-region step, or none."""
        clock = Clock()
        before, gradient = objective.gradient(meta)
        refuse_other_predictions(before.kl, 0.1 * self.max_kl)
        g = ravel(gradient)
        clock.lap("seconds_meta_gradient")
        metrics = {
            "loss": before.loss,
            "kl": 0.0,
            "gradient_norm": float(g.norm()),
            "cg_residual": 0.0,
            "line_search_steps": 0.0,
            "line_search_accepted": 0.0,
            "step_norm": 0.0,
            "loss_change": 0.0,
        }
        if not math.isfinite(before.loss) or not is_finite(gradient):
            return self._reject(meta, state, metrics, clock, "the meta-gradient is not finite")
        if not bool(g.any()):
            return self._reject(meta, state, metrics, clock, "the meta-gradient is zero")

        fisher = objective.fisher(meta, self.fisher_fraction)
        x, residual, _ = conjugate_gradient(
            lambda v: ravel(fisher(unravel(v, meta))) + self.cg_damping * v, g, self.cg_iterations
        )
        curvature = float(x @ (g - residual))  # x' H x without another product, because H x = g - residual
        metrics["cg_residual"] = float(residual.norm() / g.norm())
        clock.lap("seconds_cg")
        if not (math.isfinite(curvature) and curvature > 0 and bool(torch.isfinite(x).all())):
            return self._reject(meta, state, metrics, clock, "the curvature is not positive")

        full = math.sqrt(2 * self.max_kl / curvature) * x
        accepted, tried = self._search(meta, objective, full, before, float(state["length"]))
        metrics["line_search_steps"] = float(tried)
        clock.lap("seconds_line_search")
        if accepted is None:
            return self._reject(meta, state, metrics, clock, "the line search found no better point within max_kl")
        metrics |= {
            "kl": accepted.after.kl,
            "loss_change": accepted.after.loss - before.loss,
            "line_search_accepted": 1.0,
            "step_norm": accepted.length * float(full.norm()),
        }
        state, counters = rejections(state, False, "")
        length = min(max(accepted.length * self._to_bound(accepted.after), 1 / _MOST_LENGTHENING), _MOST_LENGTHENING)
        state |= {"length": torch.tensor(length, dtype=torch.float64)}
        return Update(accepted.meta, state, metrics | counters | clock.laps)

    def _search(
        self, meta: Params, objective: Objective, full: Tensor, before: Outcome, length: float
    ) -> tuple[_Candidate | None, int]:
        """Return the accepted candidate along ``full``, if there is one, and how many were tried."""
        accepted: _Candidate | None = None
        for tried in range(1, self.line_search_steps + 1):
            candidate = unravel(ravel(meta) - length * full, meta)
            after = objective.value(candidate)
            if self._improves(before, after) and (accepted is None or after.loss < accepted.after.loss):
                scale = 1.0 if accepted is not None else self._to_bound(after)
                accepted = _Candidate(candidate, length, after)
                if scale < _WORTH_LENGTHENING:
                    return accepted, tried
                length *= scale
            elif accepted is not None:
                return accepted, tried
            else:
                length *= min(self.line_search_shrink, self._to_bound(after))
        return accepted, self.line_search_steps

    def _to_bound(self, after: Outcome) -> float:
        """Factor that would bring a step's KL, which grows with its square, just inside the bound; 1 where unknown."""
        if not (math.isfinite(after.kl) and after.kl > 0):
            return 1.0
        return min(math.sqrt(0.95 * self.max_kl / after.kl), _MOST_LENGTHENING)

    def _improves(self, before: Outcome, after: Outcome) -> bool:
        return math.isfinite(after.loss) and after.loss < before.loss and after.kl <= self.max_kl

    def _reject(self, meta: Params, state: State, metrics: Metrics, clock: Clock, reason: str) -> Update:
        state, counters = rejections(state, True, reason)
        state |= {"length": torch.tensor(1.0, dtype=torch.float64)}
        return Update(meta, state, metrics | counters | clock.laps)
