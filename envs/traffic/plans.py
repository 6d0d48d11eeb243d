"""Grids whose signals follow a plan that is set once a cycle and sees no queue: open-loop control."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic.batch import REWARD_SCALE, Simulate
from metarl.envs.traffic.conditions import conditions
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.simulator import GridSim
from metarl.envs.traffic.task import TrafficTask, grid_of, table
from metarl.envs.traffic.town import Town
from metarl.families import Step, Tasks

# Logits of the splits at the ends of the range of an action: a phase may get e^4 times the spare green of another.
_SHARPNESS = 2.0


def greens(grid: Grid, actions: Tensor, cycle: int) -> Tensor:
    r"""Return the green time of every phase, whole seconds, int64 (4, R, C, B), that fill the cycle together.

    $$ g_\phi = g_{\min} + \frac{e^{2 a_\phi}}{\sum_\psi e^{2 a_\psi}} (C - 4 (y + g_{\min})) $$

    with clearance y. Rounding is cumulative, so that the sum stays.

    Args:
        grid: tells clearance and minimum green.
        actions: a in [-1, 1], (B, 4 N), the four phases of one intersection after those of another.
        cycle: C, s.
    """
    count = len(PHASES)
    spare = float(cycle - count * (grid.clearance + grid.min_green))
    logits = _SHARPNESS * actions.double().clamp(-1.0, 1.0).reshape(-1, grid.intersections, count)
    shares = torch.softmax(logits, -1).permute(2, 1, 0).reshape(count, grid.rows, grid.columns, -1)
    ends = (shares.cumsum(0) * spare).round().long()
    ends[-1] = round(spare)
    return grid.min_green + ends.diff(dim=0, prepend=torch.zeros_like(ends[:1]))


class PlanBatch:
    """B grids whose plans are set once a cycle.

    Every episode begins with ``warmup`` whole cycles of equal greens, which are not counted.

    Args:
        default: the task's numbers that tables leave out, and the size of the grid.
        horizon: cycles of an episode.
        cycle: seconds of one.
        warmup: cycles before the first plan.
        simulate: see :func:`metarl.envs.traffic.batch.simulate_in`.
    """

    def __init__(
        self, default: TrafficTask, horizon: int, cycle: int, warmup: int, simulate: Simulate = GridSim
    ) -> None:
        self._default, self._grid, self._simulate = default, grid_of(default), simulate
        self._horizon, self._cycle, self._warmup = horizon, cycle, warmup
        self._sim: Town | None = None
        self._done = 0

    @property
    def simulator(self) -> Town:
        """The grids of this episode."""
        assert self._sim is not None, "reset comes first"
        return self._sim

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode on every grid; return observations (B, 2)."""
        given = conditions(table(tasks, self._default), self._grid)
        self._sim, self._done = None, 0  # before the next one begins
        self._sim = self._simulate(self._grid, given, seeds, True)
        even = torch.zeros(len(seeds), len(PHASES) * self._grid.intersections)
        for _ in range(self._warmup):
            self._run(greens(self._grid, even, self._cycle))
        return self._seen()

    def step(self, actions: np.ndarray) -> Step:
        """Let one cycle pass with the plans of actions float32 (B, 4 N)."""
        count = self.simulator.demanded.shape[0]
        over, never = np.full(count, self._done + 1 >= self._horizon), np.zeros(count, dtype=bool)
        if self._done >= self._horizon:
            return Step(self._seen(), np.zeros(count, dtype=np.float32), never, over)
        before = self.simulator.time_spent
        self._run(greens(self._grid, torch.tensor(actions), self._cycle))
        self._done += 1
        if self._done >= self._horizon:
            self.simulator.finish()
        cost = (self.simulator.time_spent - before) / (REWARD_SCALE * self._grid.intersections)
        return Step(self._seen(), (-cost).numpy().astype(np.float32), never, over)

    def _run(self, each: Tensor) -> None:
        """Show the phases one after the other, each with its clearance before it."""
        sim = self.simulator
        ends = (each + self._grid.clearance).cumsum(0)
        for second in range(self._cycle):
            wanted = (ends <= second).sum(0)
            sim.signals.request(torch.where(sim.signals.free, wanted, sim.signals.phase))
            sim.tick()

    def _seen(self) -> np.ndarray:
        """Return how much of the episode has passed, and 1."""
        row = np.array([self._done / self._horizon, 1.0], dtype=np.float32)
        return np.tile(row, (self.simulator.demanded.shape[0], 1))
