"""What all outer rules share: what they return, how rejected steps are counted, what time they took."""

from __future__ import annotations

import math
import time
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.core.adapt import Outcome
from metarl.core.params import Params

State = dict[str, Tensor]
Metrics = dict[str, float]

# So many rejected steps in a row mean that something is wrong rather than unlucky.
_WARN_AFTER = 5


class Update(NamedTuple):
    """What an outer rule returns.

    Attributes:
        meta: the parameters after the step.
        state: of the rule.
        metrics: what is worth logging.
        scores: of every task after adapting, before the step, where the rule has evaluated them: ``Outcome.scores``.
    """

    meta: Params
    state: State
    metrics: Metrics
    scores: tuple[float, ...] = ()


def rejections(state: State, rejected: bool, reason: str) -> tuple[State, Metrics]:
    """Count rejected steps, and warn when they do not end."""
    in_a_row = int(state["rejected_in_a_row"]) + 1 if rejected else 0
    total = int(state["rejected_total"]) + int(rejected)
    if in_a_row and in_a_row % _WARN_AFTER == 0:
        warnings.warn(f"The last {in_a_row} meta-updates were rejected ({reason})", RuntimeWarning, stacklevel=3)
    counters = {"rejected_in_a_row": torch.tensor(in_a_row), "rejected_total": torch.tensor(total)}
    return {**state, **counters}, {"rejected_updates": float(total)}


def no_rejections() -> State:
    """Return counters at zero."""
    return {"rejected_in_a_row": torch.tensor(0), "rejected_total": torch.tensor(0)}


def skip(meta: Params, state: State, before: Outcome, clock: Clock) -> Update:
    """Return the update that a gradient without finite values leads to: none."""
    state, counters = rejections(state, True, "the meta-gradient is not finite")
    return Update(meta, state, {"loss": before.loss, "gradient_norm": math.nan} | counters | clock.laps, before.scores)


def refuse_other_predictions(kl: float, most: float) -> None:
    """Refuse data whose recorded predictions are not the model's: a step would be judged against the wrong distribution.

    Raises:
        ValueError: if the KL before any step is more than ``most``; rounding gives 1e-7.
    """
    if kl > most:
        raise ValueError(
            f"the model's predictions differ from those recorded with the data (KL {kl:.2g} before any step): they depend on"
            " other samples or on chance (recurrent layers, batch normalisation, dropout)"
        )


class Clock:
    """Seconds spent between laps."""

    def __init__(self) -> None:
        """Start now."""
        self.laps: Metrics = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap a name."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
