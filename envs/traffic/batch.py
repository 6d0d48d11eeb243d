"""Episodes on B grids that step together, as a family's simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import conditions, picture, topology
from metarl.envs.traffic.controllers import FixedTime
from metarl.envs.traffic.detectors import Detectors, Readings, observation
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.simulator import Conditions, GridSim
from metarl.envs.traffic.task import TrafficTask, grid_of, table
from metarl.envs.traffic.town import Town
from metarl.families import EnvFault, Step, Tasks

# Rewards are vehicle-seconds of a decision, divided by the intersections and by this.
REWARD_SCALE = 100.0


def waiting(town: Town) -> Tensor:
    """Return vehicles that wait, on an intersection's approaches and at its entries, (R, C, B)."""
    return (town.queues[0] + town.queues[1] + town.queues[2] + town.mixed + town.origins).sum(0)


def pressure(town: Town) -> Tensor:
    r"""Return $|n^{in}_i - n^{out}_i|$ of every intersection, (R, C, B); exits hold 0.

    Reference: Wei et al. (2019), "PressLight", definition 3.
    """
    present = town.on_links
    ahead = topology.look_ahead(present, torch.zeros_like(present))
    return (present - ahead).sum(0).abs()


# Makes a simulation of grids, their conditions and seeds, and whether arrivals are random.
Simulate = Callable[[Grid, Conditions, np.ndarray, bool], Town]


def simulate_in(simulator: str) -> Simulate:
    """Return who simulates: ``own`` or ``sumo``."""
    if simulator == "own":
        return GridSim
    from metarl.envs.traffic.sumo_simulator import SumoSim

    return SumoSim


# What a second costs at every intersection; None for vehicles in the system, weighted as the task says.
COSTS: Mapping[str, Callable[[Town], Tensor] | None] = {"vehicles": None, "queues": waiting, "pressure": pressure}


class TrafficBatch:
    """B grids with signals to be set.

    Every episode begins with ``warmup`` seconds in which all lights follow one plan (a quarter of a minute for each phase,
    clearance included), so that it does not begin in an empty town; they are not counted.

    Args:
        default: the task's numbers that tables leave out, and the size of the grid.
        horizon: decisions of an episode.
        interval: seconds between two decisions.
        warmup: seconds before the first one.
        poisson: whether arrivals are random.
        cost: of a second, one of :data:`COSTS`.
        simulate: see :func:`simulate_in`.
    """

    def __init__(
        self,
        default: TrafficTask,
        horizon: int,
        interval: int,
        warmup: int,
        poisson: bool = True,
        cost: Callable[[Town], Tensor] | None = None,
        simulate: Simulate = GridSim,
    ) -> None:
        self._default, self._grid = default, grid_of(default)
        self._horizon, self._interval, self._warmup, self._poisson = horizon, interval, warmup, poisson
        self._simulate, self._cost = simulate, cost
        self._sim: Town | None = None
        self._detectors: Detectors | None = None
        self._weight = torch.ones(4, 1, dtype=torch.float64)
        self._own = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._seen: np.ndarray = np.zeros((0, 0), dtype=np.float32)
        self._elapsed = 0

    @property
    def simulator(self) -> Town:
        """The grids of this episode."""
        assert self._sim is not None, "reset comes first"
        return self._sim

    @property
    def readings(self) -> Readings:
        """What the detectors say now."""
        assert self._detectors is not None, "reset comes first"
        return self._detectors.read(self.simulator)

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode on every grid; return observations (B, O)."""
        values = table(tasks, self._default)
        self._sim = None  # before the next one begins
        self._sim = self._simulate(self._grid, conditions.conditions(values, self._grid), seeds, self._poisson)
        self._detectors = conditions.detectors(values, self._grid, seeds)
        self._weight = torch.tensor(values["weight"])
        self._own = torch.zeros(self._grid.rows, self._grid.columns, len(seeds), dtype=torch.float64)
        self._elapsed = 0
        plan = _even(self._grid, len(seeds))
        for _ in range(self._warmup):
            self._sim.signals.request(plan(self._sim, Readings(self._sim.queues, self._sim.mixed)))
            self._sim.tick()
        self._seen = self._observed()
        return self._seen.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Request phases, int64 (B, N), and let the time of a decision pass."""
        count = len(self._seen)
        over = np.full(count, self._elapsed + 1 >= self._horizon)
        never, sim = np.zeros(count, dtype=bool), self.simulator
        self._own.zero_()
        if self._elapsed >= self._horizon:
            return Step(self._seen.copy(), np.zeros(count, dtype=np.float32), never, over)
        sim.signals.request(self._phases(actions))
        cost = torch.zeros(count, dtype=torch.float64)
        present = torch.zeros(4, *self._own.shape, dtype=torch.float64)
        for _ in range(self._interval):
            sim.tick()
            if self._cost is None:
                cost += self._present(sim)
                present += sim.on_links
                present += sim.origins
            else:
                own = self._cost(sim)
                cost += own.sum((0, 1))
                self._own += own
        if self._cost is None:
            self._own = (present * self._weight.view(4, 1, 1, -1)).sum(0)
        self._elapsed += 1
        self._seen = self._observed()
        if self._elapsed >= self._horizon:
            sim.finish()
        rewards = (cost / (-REWARD_SCALE * self._grid.intersections)).numpy().astype(np.float32)
        return Step(self._seen.copy(), rewards, never, over)

    def agent_rewards(self) -> np.ndarray:
        """Return what every intersection answers for, float32 (B, N): what the last decision cost before its stop lines.

        Vehicles on its approaches and at its entries count. The reward is the mean of these, less what those on exits cost.
        """
        return (self._own.flatten(0, 1).T / -REWARD_SCALE).numpy().astype(np.float32)

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one grid, uint8 (height, width, 3)."""
        return picture.image(self.simulator, env, width, height)

    def _phases(self, actions: np.ndarray) -> Tensor:
        signals = self.simulator.signals
        phases = torch.tensor(actions.T).reshape(signals.phase.shape)
        bad = (phases < 0) | (phases >= len(PHASES)) | ((phases != signals.phase) & ~signals.free)
        if bool(bad.any()):
            raise EnvFault("an illegal phase was chosen", np.flatnonzero(bad.flatten(0, 1).any(0).numpy()))
        return phases

    def _present(self, sim: Town) -> Tensor:
        """Return vehicles in the system, (B,), those on approaches and at entries weighted by heading."""
        if bool((self._weight == 1.0).all()):
            return sim.vehicles
        present = (sim.on_links + sim.origins).flatten(1, 2).sum(1)  # amounts are exact in any order
        extra = (self._weight - 1.0) * present
        return sim.vehicles + (extra[0] + extra[1] + extra[2] + extra[3])

    def _observed(self) -> np.ndarray:
        """Return what every intersection sees, then which of its phases are legal."""
        numbers = observation(self.simulator, self.readings).flatten(1)
        legal = self.simulator.signals.legal().flatten(1, 2).permute(2, 1, 0).flatten(1)
        return torch.cat([numbers, legal.double()], 1).numpy().astype(np.float32)


def _even(grid: Grid, count: int) -> FixedTime:
    """Return a plan with the same time for every phase, at least a quarter of a minute."""
    shape = (grid.rows, grid.columns, count)
    each = float(max(15, grid.clearance + grid.min_green))
    durations = torch.full((len(PHASES), *shape), each, dtype=torch.float64)
    return FixedTime(durations, torch.zeros(shape, dtype=torch.float64))
