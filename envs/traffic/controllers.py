"""Reference controllers, for all intersections of all grids at once; every one returns phases that are legal.

Call one as often as its signals may change: ``sim.signals.request(controller(sim, readings))``. They see what the detectors
read, and know time and lights exactly. Shapes: H = 4 headings, R rows, C columns, E entries, B grids.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import arrivals, topology
from metarl.envs.traffic.conditions import flow_ratios
from metarl.envs.traffic.detectors import Readings
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.signals import Signals
from metarl.envs.traffic.simulator import Conditions
from metarl.envs.traffic.town import Town

# Random phases count from here in a grid's stream, far beyond its arrivals and the noise of its detectors.
_CHOICES = 1 << 50


class Controller(Protocol):
    """Says which phase every intersection should have."""

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return legal phases, int64 (R, C, B)."""
        ...


def _legal(signals: Signals, wanted: Tensor) -> Tensor:
    """Keep the phase where none other is legal yet."""
    return torch.where(signals.free, wanted, signals.phase)


@dataclasses.dataclass(frozen=True)
class Random:
    """Any legal phase, all alike, anew at every call.

    Attributes:
        seeds: uint32 (B,); grid b's choices are a function of ``seeds[b]`` and the time.
    """

    seeds: np.ndarray

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        del seen
        phase = sim.signals.phase
        keys = arrivals.keys(self.seeds, phase.device)
        rows, columns, _ = phase.shape
        counter = torch.arange(rows * columns, device=phase.device) + (_CHOICES + sim.clock * rows * columns)
        level = arrivals.uniform(keys, counter.reshape(rows, columns, 1))
        return _legal(sim.signals, (level * len(PHASES)).long())


@dataclasses.dataclass(frozen=True)
class FixedTime:
    """Phases one after the other by the clock, each for its time, over and over.

    Attributes:
        durations: from one request to the next, clearance included, s, (4, R, C, B); a phase of 0 s is left out.
        offsets: second at which a cycle's first phase is requested, (R, C, B).
    """

    durations: Tensor
    offsets: Tensor

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        del seen
        ends = self.durations.cumsum(0)
        position = torch.remainder(sim.clock - self.offsets, ends[-1])
        return _legal(sim.signals, (ends <= position).sum(0))


@dataclasses.dataclass(frozen=True)
class MaxPressure:
    r"""The phase whose queues have most to gain over those they would join.

    $$ \arg\max_\phi \sum_{m \in \phi} s_m \Bigl( x_m - \sum_p r_p x_p \Bigr) + h\, s\, [\phi \text{ is shown}] $$

    m are the phase's movements, x queues at stop lines, $s_m$ the saturation flow of m's lanes, p the movements of the link
    into which m leads and $r_p$ their shares; exits have no queue. The lowest phase wins a tie.

    With ``stay`` h = 0 this is Varaiya's rule, which keeps queues finite under any demand that can be served *if changing
    phases costs no time*. It does, so that near capacity plain max-pressure is worse than a fixed plan; h > 0 helps.

    Reference: Varaiya (2013), "Max pressure control of a network of signalized intersections".

    Attributes:
        shares: turning shares r, (K, H, R, C, B).
        stay: advantage h of the phase that is shown, vehicles on one lane.
    """

    shares: Tensor
    stay: float = 0.0

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        lanes = sim.grid.lanes
        part = self.shares * seen.queues
        joined = part[0] + part[1] + part[2]
        ahead = topology.look_ahead(joined, torch.zeros_like(joined))
        gain = seen.queues - topology.incoming(ahead.expand_as(seen.queues))
        weighted = torch.cat([gain[:1], lanes * gain[1:]])
        return _legal(sim.signals, _best(sim.signals, topology.by_phase(weighted), self.stay))


@dataclasses.dataclass(frozen=True)
class LongestQueue:
    """The phase for which most vehicles wait at the stop lines; the lowest wins a tie.

    Attributes:
        stay: advantage of the phase that is shown, vehicles.
    """

    stay: float = 0.0

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        return _legal(sim.signals, _best(sim.signals, topology.by_phase(seen.queues), self.stay))


def _best(signals: Signals, scores: Tensor, stay: float) -> Tensor:
    """Return the phase with the highest score, (R, C, B), the lowest of those with the same.

    (``argmax`` promises no order.)
    """
    phases = torch.arange(len(PHASES), device=scores.device).reshape(-1, 1, 1, 1)
    scores = scores + stay * (phases == signals.phase)
    return torch.where(scores == scores.amax(0), phases, len(PHASES)).amin(0)


@dataclasses.dataclass(frozen=True)
class Actuated:
    """Green until its queue has gone, at most ``max_green``; then the next phase for which somebody waits.

    The detectors of a real one measure gaps between vehicles; a fluid has none, so that a queue of at most ``gap`` vehicles
    stands for one. With no one else waiting, a green goes on.

    Attributes:
        max_green: longest green while others wait, s.
        gap: vehicles that are no queue.
    """

    max_green: float = 45.0
    gap: float = 1.0

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        signals, waiting = sim.signals, topology.by_phase(seen.queues)
        own = waiting.gather(0, signals.phase[None])[0]
        served = (own <= self.gap) | (signals.age - sim.grid.clearance >= self.max_green)
        return _legal(signals, torch.where(served, _following(signals, waiting > self.gap), signals.phase))


@dataclasses.dataclass(frozen=True)
class SelfOrganizing:
    """SOTL: the next phase when few go and many wait, or nobody goes and somebody waits.

    Reference: Gershenson (2005), "Self-organizing traffic lights"; the thresholds are LibSignal's. Differs: a phase for
    which nobody waits is left out.

    Attributes:
        few: a green's queue that may be interrupted, vehicles.
        many: waiting vehicles that may interrupt it.
    """

    few: float = 3.0
    many: float = 6.0

    def __call__(self, sim: Town, seen: Readings) -> Tensor:
        """Return phases."""
        signals, waiting = sim.signals, topology.by_phase(seen.queues)
        own = waiting.gather(0, signals.phase[None])[0]
        others = waiting.sum(0) - own
        change = ((own <= self.few) & (others > self.many)) | ((own < 0.5) & (others >= 0.5))
        return _legal(signals, torch.where(change, _following(signals, waiting >= 0.5), signals.phase))


def _following(signals: Signals, wanted: Tensor) -> Tensor:
    """Return the first phase after the present one that is wanted (4, R, C, B); the present one where none is."""
    phase = signals.phase
    for ahead in range(len(PHASES) - 1, 0, -1):
        candidate = (signals.phase + ahead) % len(PHASES)
        phase = torch.where(wanted.gather(0, candidate[None])[0], candidate, phase)
    return phase


def webster(grid: Grid, conditions: Conditions, shortest: float = 40.0, longest: float = 160.0) -> FixedTime:
    r"""Return Webster's plan for a demand that is known (its base, without the peak), in whole seconds.

    $$ C = \frac{1.5 L + 5}{1 - Y}, \qquad g_\phi = \frac{y_\phi}{Y} (C - L) $$

    $y_\phi$ is the largest ratio of flow to saturation flow among the phase's lanes, Y their sum, L the time lost in a
    cycle. C is kept within bounds (and is the longest where $Y \ge 1$), greens at the minimum; there are no offsets.

    Reference: Webster (1958), "Traffic signal settings".
    """
    ratios = flow_ratios(grid, conditions)
    lost = len(PHASES) * (grid.clearance + conditions.lost)
    total = ratios.sum(0)
    cycle = (1.5 * lost + 5.0) / (1.0 - total)
    cycle = torch.where(total < 1.0, cycle, longest).clamp(shortest, longest)
    greens = torch.where(total > 0, ratios / total, 1.0 / len(PHASES)) * (cycle - lost).clamp(min=0.0)
    durations = (greens + conditions.lost).clamp(min=grid.min_green).round() + grid.clearance
    return FixedTime(durations, torch.zeros_like(cycle))
