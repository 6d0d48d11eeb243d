"""The grids of :class:`~metarl.envs.traffic.simulator.GridSim` in SUMO, vehicle by vehicle, each in a process of its own.

The same tasks, signals, detectors, controllers and arrivals: as many vehicles come in the same seconds to the same entries, and
turn by the same shares. What a task hides acts so: an approach's saturation flow by the time gap that its drivers keep before the
stop line, lost time by a green that shows later, everything else as it is. Only protected phases, no teleporting.

Shapes as in :mod:`metarl.envs.traffic.simulator`.
"""

from __future__ import annotations

import multiprocessing
import pathlib
import tempfile
import weakref
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import arrivals, sumo_network, sumo_worker
from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.signals import Signals
from metarl.envs.traffic.simulator import Conditions
from metarl.families import EnvFault
from metarl.settings import SettingsError

# Seconds after which a simulation that says nothing is given up.
PATIENCE = 600.0
_BLOCK = 20  # seconds of arrivals that are drawn at once
_DRIVERS = 0x5A0


class SumoSim:
    """B grids in SUMO; stands in for :class:`~metarl.envs.traffic.simulator.GridSim`.

    Where one of the simulations crashes or stalls, :meth:`tick` and counts raise :class:`~metarl.families.EnvFault`, which names
    it; the others go on when called again, and it stays as it was.

    Args:
        grid: geometry and constants of all grids.
        conditions: of every grid, on the CPU.
        seeds: uint32 (B,), at most 32; arrivals are those of ``GridSim`` with the same seeds.
        poisson: must be true: vehicles are whole.

    Attributes:
        signals: the lights; request phases there, then call :meth:`tick`.
        clock: whole seconds since the beginning.
        demanded: vehicles that have arrived, (B,).
        exited: vehicles that have reached the end of an exit, (B,).
        time_spent: vehicle-seconds spent in the system, entries and exits included, (B,).

    Raises:
        SettingsError: where SUMO is missing, or for more simulations than it can be given processes.
    """

    def __init__(self, grid: Grid, conditions: Conditions, seeds: np.ndarray, poisson: bool = True) -> None:
        if not poisson:
            raise ValueError("vehicles are whole in SUMO: arrivals cannot be even")
        if len(seeds) > sumo_network.MOST:
            raise SettingsError(
                f"{len(seeds)} SUMO simulations at once need as many processes; at most {sumo_network.MOST}: use fewer tasks or"
                " episodes"
            )
        self.grid, self.conditions = grid, conditions
        self.signals, self.clock = Signals(grid, conditions.lost), 0
        self.demanded, self.exited, self.time_spent = torch.zeros(3, len(seeds), dtype=torch.float64).unbind()
        self._keys = arrivals.keys(seeds, conditions.lost.device)
        self._drawn = torch.zeros(0)
        self._random = [np.random.default_rng([_DRIVERS, int(seed)]) for seed in seeds]
        self._shares = conditions.shares.cpu().numpy().cumsum(0)
        self._entries = _entries(grid)
        self._counted, self._counts = -1, [_nothing(grid)] * len(seeds)
        folder = tempfile.TemporaryDirectory(prefix="metarl-sumo-")
        network = str(sumo_network.build(grid, pathlib.Path(folder.name)))
        self._workers = [_Worker(self._setup(network, index, int(seed))) for index, seed in enumerate(seeds)]
        self._end = weakref.finalize(self, _close, self._workers, folder)
        self._answers()

    def _setup(self, network: str, index: int, seed: int) -> sumo_worker.Setup:
        given = self.conditions
        saturation, incident = (x[..., index].cpu().numpy().copy() for x in (given.saturation, given.incident))
        times = float(given.begin[index]), float(given.end[index])
        return sumo_worker.Setup(self.grid, network, seed & 0x7FFFFFFF, saturation, incident, *times)

    @property
    def vehicles(self) -> Tensor:
        """Vehicles in the system, those that wait for room at the entries and those on exits included, (B,)."""
        return self.demanded - self.exited

    @property
    def queues(self) -> Tensor:
        """Vehicles below 5 km/h before the stop line, by movement, (K, H, R, C, B)."""
        return self._stacked("queues")

    @property
    def mixed(self) -> Tensor:
        """Vehicles below 5 km/h further upstream, (H, R, C, B)."""
        return self._stacked("mixed")

    @property
    def in_transit(self) -> Tensor:
        """Vehicles on every approach that move, (H, R, C, B)."""
        return self._stacked("moving")

    @property
    def origins(self) -> Tensor:
        """Vehicles that wait for room at the entries, (H, R, C, B)."""
        return self._stacked("origins")

    @property
    def on_links(self) -> Tensor:
        """Vehicles on every approach, (H, R, C, B)."""
        return self.queues.sum(0) + self.mixed + self.in_transit

    def tick(self) -> None:
        """Let one second pass.

        Raises:
            EnvFault: where simulations crashed or stalled; for the others the second has passed.
        """
        coming = self._arriving()
        colours = self._colours()
        for index, worker in enumerate(self._workers):
            routes = [self._route(index, e) for e, n in enumerate(coming[:, index].tolist()) for _ in range(int(n))]
            worker.send(("tick", colours[..., index], routes))
        self.demanded = self.demanded + coming.sum(0)
        self.signals.tick()
        self.clock += 1
        answers, fault = self._gathered()
        self.exited = self.exited + torch.tensor([float(answer or 0) for answer in answers], dtype=torch.float64)
        self.time_spent = self.time_spent + self.vehicles
        if fault is not None:
            raise fault

    def seconds(self) -> np.ndarray:
        """Return the processor time that each process has used so far, its start included, s, (B,)."""
        for worker in self._workers:
            worker.send(("seconds",))
        return np.array([float(answer or 0) for answer in self._answers()])

    def finish(self) -> None:
        """End the processes."""
        self._end()

    def _arriving(self) -> Tensor:
        """Return how many vehicles come in this second, (E, B)."""
        if self.clock % _BLOCK == 0:
            seconds = torch.arange(self.clock, self.clock + _BLOCK, dtype=torch.float64)
            given = self.conditions
            mean = given.demand * arrivals.course(seconds, given.course, self.grid.eastwards)
            self._drawn = arrivals.drawn(self._keys, mean, self.clock)
        return self._drawn[self.clock % _BLOCK]

    def _colours(self) -> np.ndarray:
        """Return what the lights show in this second, (2, 2, R, C, B); green is shown while traffic may go."""
        yellow = self.signals.shown() == 1
        return (2 * (self.signals.open() >= 0.5).long() + yellow.long()).clamp(max=2).numpy()

    def _route(self, index: int, entry: int) -> tuple[str, ...]:
        """Draw a vehicle's way through the grid."""
        place, edges = self._entries[entry], list[str]()
        while True:
            edges += [sumo_network.edge("a", place), sumo_network.edge("p", place)]
            shares = self._shares[(slice(None), *place, index)]
            movement = int((self._random[index].random() * shares[-1] >= shares[:-1]).sum())
            edges.append(sumo_network.onto(self.grid, place, movement))
            further = sumo_network.ahead(self.grid, place, sumo_network.after(place[0], movement))
            if further is None:
                return tuple(edges)
            place = further
            edges.pop()

    def _stacked(self, name: str) -> Tensor:
        """Return counts of this second by name, grids last."""
        if self._counted != self.clock:
            for worker in self._workers:
                worker.send(("count",))
            answers = self._answers()
            self._counts = [new or old for new, old in zip(answers, self._counts, strict=True)]
            self._counted = self.clock
        return torch.stack([torch.tensor(getattr(counts, name)) for counts in self._counts], -1)

    def _answers(self) -> list[Any]:
        """Wait for all workers; return what they say, None for those that are gone."""
        answers, fault = self._gathered()
        if fault is not None:
            raise fault
        return answers

    def _gathered(self) -> tuple[list[Any], EnvFault | None]:
        """Wait for all workers; say which have broken down since the last time."""
        answers, broken, reason = [], [], ""
        for index, worker in enumerate(self._workers):
            answer, trouble = worker.answer()
            answers.append(answer)
            if trouble:
                broken.append(index)
                reason = reason or trouble
        return answers, EnvFault(reason, np.array(broken)) if broken else None


class _Worker:
    """A process with one simulation."""

    def __init__(self, setup: sumo_worker.Setup) -> None:
        context = multiprocessing.get_context("spawn")  # never a fork: libsumo must not have been loaded before
        self._pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=sumo_worker.work, args=(other, setup), daemon=True)
        self.process.start()
        other.close()
        self._waits = True

    @property
    def pipe(self) -> Connection:
        """To the process."""
        return self._pipe

    def send(self, message: tuple[Any, ...]) -> None:
        """Ask, if the process is there."""
        if not self._pipe.closed:
            self._waits = True
            try:
                self._pipe.send(message)
            except OSError:
                return  # it is gone, as the answer will tell

    def answer(self) -> tuple[Any, str]:
        """Return the answer; or what is the matter, once, when the process has broken down."""
        if self._pipe.closed or not self._waits:
            return None, ""
        self._waits = False
        try:
            if not self._pipe.poll(PATIENCE):
                return None, self._gone(f"SUMO has not answered for {PATIENCE:g} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return None, self._gone(f"SUMO crashed (exit code {self.process.exitcode})")
        return (value, "") if kind != "error" else (None, self._gone(f"SUMO failed: {value}"))

    def _gone(self, reason: str) -> str:
        self._pipe.close()
        self.process.kill()
        return reason


def _close(workers: list[_Worker], folder: tempfile.TemporaryDirectory[str]) -> None:
    """End the processes, and remove what was written for them."""
    for worker in workers:
        worker.pipe.close()
        worker.process.kill()
    for worker in workers:
        worker.process.join(5)
    folder.cleanup()


def _entries(grid: Grid) -> list[sumo_network.Place]:
    """Return the approaches of the entries, in their order."""
    rows, columns = range(grid.rows), range(grid.columns)
    north, south = [(0, grid.rows - 1, c) for c in columns], [(2, 0, c) for c in columns]
    east, west = [(1, r, 0) for r in rows], [(3, r, grid.columns - 1) for r in rows]
    return [*north, *east, *south, *west]


def _nothing(grid: Grid) -> sumo_worker.Counts:
    links = np.zeros((4, grid.rows, grid.columns))
    return sumo_worker.Counts(np.zeros((3, *links.shape)), links, links, links)
