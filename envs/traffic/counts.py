"""Vehicles in exact arithmetic, and cumulative counts that remember their past.

Amounts of vehicles are float64 multiples of :data:`QUANTUM`, and every flow is rounded down to one. Sums and differences of such
numbers are exact up to 8 million vehicles, in any order: no vehicle appears or gets lost by rounding, not even in part,
and a grid's numbers cannot depend on its place in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUANTUM = 2.0**-30  # of a vehicle
# Rates per second and parts of a second are so much coarser that their product is a multiple of the quantum.
RATE_QUANTUM, SECOND_QUANTUM = 2.0**-20, 2.0**-10


def whole(amount: Tensor, quantum: float = QUANTUM) -> Tensor:
    """Round down to multiples of a quantum, in place."""
    return amount.mul_(1.0 / quantum).floor_().mul_(quantum)


class Cumulative:
    r"""A cumulative count $N(t)$ at whole seconds t, straight lines between them, and its value some time ago.

    Args:
        shape: of the count.
        delay: how long ago, s, at least 1; rounded to 1/1024 s, so that interpolation is exact and never decreases.
        device: where it lives.
    """

    def __init__(self, shape: tuple[int, ...], delay: float, device: torch.device) -> None:
        if delay < 1.0:
            raise ValueError(f"a delay of {delay:g} s is shorter than a step of 1 s")
        ticks = round(delay / SECOND_QUANTUM)
        self._seconds, part = divmod(ticks, round(1 / SECOND_QUANTUM))
        self._part = part * SECOND_QUANTUM
        self._ring = torch.zeros(self._seconds + 1, *shape, dtype=torch.float64, device=device).unbind(0)
        self._time = 0

    @property
    def now(self) -> Tensor:
        """N(t); not to be written to."""
        return self._ring[self._time % len(self._ring)]

    def delayed(self) -> Tensor:
        """Return N(t + 1 - delay), rounded down; 0 before the beginning."""
        newer = self._ring[(self._time + 1 - self._seconds) % len(self._ring)]
        if self._part == 0.0:
            return newer.clone()
        older = self._ring[(self._time - self._seconds) % len(self._ring)]
        # both products are exact, so rounding happens once, and keeps order
        return whole((newer - older).mul_(1.0 - self._part).add_(older))

    def push(self, flow: Tensor) -> None:
        """Let a flow pass in one second, multiples of the quantum."""
        following = self._ring[(self._time + 1) % len(self._ring)]
        torch.add(self.now, flow, out=following)
        self._time += 1
