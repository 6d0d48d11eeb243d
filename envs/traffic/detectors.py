"""What controllers and policies see: counts of vehicles, by detectors that may be dead, noisy or biased.

Shapes: K = 3 movements, H = 4 headings, R rows, C columns, N = R * C intersections, B grids.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import arrivals, topology
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.town import Town

FEATURES = 25  # numbers that an intersection sees

# The noise of detectors counts from here in a grid's stream, far beyond its arrivals.
_NOISE = 1 << 40


@dataclasses.dataclass(frozen=True)
class Readings:
    """Counts of one moment, vehicles.

    Attributes:
        queues: at the stop lines by movement, (K, H, R, C, B).
        upstream: elsewhere on the approach, moving or waiting for a turning lane, (H, R, C, B).
    """

    queues: Tensor
    upstream: Tensor

    @staticmethod
    def exact(sim: Town) -> Readings:
        """Return the true counts."""
        return Readings(sim.queues.clone(), sim.in_transit + sim.mixed)

    @property
    def approaching(self) -> Tensor:
        """All vehicles on every approach, (H, R, C, B)."""
        return self.queues[0] + self.queues[1] + self.queues[2] + self.upstream


@dataclasses.dataclass(frozen=True)
class Detectors:
    r"""Detectors with faults: a count x is read as $\max(0,\ x (1 + b) (1 + \sigma \varepsilon))$, or 0 where they are dead.

    $\varepsilon$ is new for every count and second, nearly normal (:func:`metarl.envs.traffic.arrivals.gaussian`).

    Attributes:
        alive: 1 where an approach's detectors work, else 0, (H, R, C, B).
        noise: relative standard deviation $\sigma$, (B,).
        bias: relative bias b, (B,).
        keys: streams of the grids (:func:`metarl.envs.traffic.arrivals.keys`), (B,).
    """

    alive: Tensor
    noise: Tensor
    bias: Tensor
    keys: Tensor

    def read(self, sim: Town) -> Readings:
        """Return what the detectors say now."""
        exact = Readings.exact(sim)
        counts = torch.cat([exact.queues, exact.upstream[None]])
        each = counts[..., 0].numel()
        counter = torch.arange(each, device=counts.device) + (_NOISE + sim.clock * each)
        noise = arrivals.gaussian(self.keys, counter.reshape(*counts.shape[:-1], 1))
        read = counts * ((1.0 + self.bias) * (1.0 + self.noise * noise)).clamp_(min=0.0) * self.alive
        return Readings(read[:3], read[3])


def observation(sim: Town, seen: Readings) -> Tensor:
    """Return the 25 numbers of every intersection, (B, N, 25).

    In this order: queues by movement and heading (left of north, east, south, west; then straight, right), each relative to
    what fits into its lanes before the stop line (12); vehicles upstream by heading, relative to a full link (4); vehicles on
    the link ahead by outgoing heading, likewise, 0 for exits (4); the phase, one-hot (4); seconds since it was requested, in
    minutes, at most 2.
    """
    grid, signals = sim.grid, sim.signals
    lanes = torch.tensor([1.0, grid.lanes, grid.lanes], dtype=torch.float64, device=seen.queues.device)
    queues = seen.queues / (lanes * grid.pocket_storage).reshape(3, 1, 1, 1, 1)
    ahead = topology.look_ahead(seen.approaching, torch.zeros_like(seen.upstream))
    phase = torch.arange(len(PHASES), device=signals.phase.device).reshape(-1, 1, 1, 1) == signals.phase
    elapsed = (signals.age / 60.0).clamp_(max=2.0)
    rows = [queues.flatten(0, 1), seen.upstream / grid.storage, ahead / grid.storage, phase.double(), elapsed[None]]
    return torch.cat(rows).flatten(1, 2).permute(2, 1, 0)


def sound(grid: Grid, seeds: np.ndarray, device: torch.device) -> Detectors:
    """Return detectors without a fault."""
    zeros = torch.zeros(len(seeds), dtype=torch.float64, device=device)
    alive = torch.ones(4, grid.rows, grid.columns, len(seeds), dtype=torch.float64, device=device)
    return Detectors(alive, zeros, zeros, arrivals.keys(seeds, device))
