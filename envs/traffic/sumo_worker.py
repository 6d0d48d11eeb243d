"""One SUMO simulation in a process of its own, driven through a pipe; imports no torch.

libsumo is one simulation in a process: a second ``libsumo.start`` silently destroys the first. So :func:`work` is the only place
that starts one, once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.sumo_network import edge, onto, places

# Slower than this, a vehicle waits (SUMO's own queue lengths count below 5 km/h), m/s.
_WAITS = 5 / 3.6
# Seconds between two vehicles that leave a queue beyond their time gap tau: measured 1.78 s with tau = 1 s.
_OWN_GAP = 0.78

_started = False


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a simulation is told.

    Attributes:
        grid: geometry.
        network: file of :func:`metarl.envs.traffic.sumo_network.build`.
        seed: of the drivers.
        saturation: relative to the grid's, (H, R, C).
        incident: factor on it from ``begin`` to ``end``, (H, R, C).
        begin: second in which the incident begins.
        end: second in which it is over.
    """

    grid: Grid
    network: str
    seed: int
    saturation: np.ndarray
    incident: np.ndarray
    begin: float
    end: float


@dataclasses.dataclass(frozen=True)
class Counts:
    """Vehicles of one moment: queues (K, H, R, C); moving, waiting upstream and waiting to enter (H, R, C) each."""

    queues: np.ndarray
    moving: np.ndarray
    mixed: np.ndarray
    origins: np.ndarray


def work(pipe: Connection, setup: Setup) -> None:
    """Answer messages until the pipe closes: ``("tick", colours, routes)`` by how many have arrived, ``("count",)`` by
    counts, ``("seconds",)`` by the processor time that the process has used.
    """
    global _started
    if _started:
        raise RuntimeError("a process can run one SUMO simulation only")
    _started = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with contextlib.suppress(OSError):  # of a pipe at whose other end nobody is any more
        try:
            simulation = _Simulation(setup)
            answers: dict[str, Callable[..., object]]
            answers = {"tick": simulation.tick, "count": simulation.count, "seconds": time.process_time}
            pipe.send(("ready", None))
            while True:
                kind, *given = pipe.recv()
                pipe.send(("done", answers[kind](*given)))
        except Exception as error:  # libsumo raises its own kinds; the parent must learn of any
            pipe.send(("error", f"{type(error).__name__}: {' '.join(str(error).split())}"))


class _Simulation:
    """The simulation of this process."""

    def __init__(self, setup: Setup) -> None:
        import libsumo

        self._sumo: Any = libsumo
        self._setup, self._grid = setup, setup.grid
        self._clock, self._vehicles = 0, 0
        self._routes: dict[tuple[str, ...], str] = {}
        self._slowed: dict[str, float] = {}
        words = ["sumo", "-n", setup.network, "--seed", str(setup.seed), "--step-length", "1", "--no-step-log"]
        libsumo.start([*words, "--no-warnings", "--time-to-teleport", "-1", "--collision.action", "none"])
        self._tau = 3600 / setup.grid.saturation - _OWN_GAP
        libsumo.vehicletype.setTau("DEFAULT_VEHTYPE", self._tau)
        libsumo.vehicletype.setMinGap("DEFAULT_VEHTYPE", setup.grid.spacing - 5.0)
        self._places = list(places(setup.grid))
        self._turns = {
            (place, onto(setup.grid, place, movement)): movement for place in self._places for movement in range(3)
        }
        self._lights = self._links()
        self._shown: dict[str, str] = {}

    def _links(self) -> dict[str, list[tuple[int, int]]]:
        """Return of every signal the side (0 left, 1 not) and the axis of each of its links."""
        lights = {}
        for name in self._sumo.trafficlight.getIDList():
            sides = []
            for (begin, end, _), *_ in self._sumo.trafficlight.getControlledLinks(name):
                place = _place(begin.rpartition("_")[0])
                movement = self._turns[place, end.rpartition("_")[0]]
                sides.append((int(movement != 0), place[0] % 2))
            lights[name] = sides
        return lights

    def tick(self, colours: np.ndarray, routes: list[tuple[str, ...]]) -> int:
        """Show colours (2, 2, R, C), side, then axis: 0 red, 1 yellow, 2 green; let vehicles come, and a second pass."""
        for name, sides in self._lights.items():
            _, row, column = name.split("_")
            state = "".join("ryG"[colours[side, axis, int(row), int(column)]] for side, axis in sides)
            if self._shown.get(name) != state:
                self._sumo.trafficlight.setRedYellowGreenState(name, state)
                self._shown[name] = state
        for route in routes:
            if route not in self._routes:
                self._routes[route] = f"r{len(self._routes)}"
                self._sumo.route.add(self._routes[route], route)
            self._sumo.vehicle.add(f"v{self._vehicles}", self._routes[route], departLane="best", departSpeed="max")
            self._vehicles += 1
        self._slow_down()
        self._sumo.simulation.step()
        self._clock += 1
        return int(self._sumo.simulation.getArrivedNumber())

    def _slow_down(self) -> None:
        """Give the vehicles before every stop line the time gap with which its saturation flow results."""
        setup = self._setup
        active = setup.begin <= self._clock < setup.end
        wanted: dict[str, float] = {}
        for place in self._places:
            factor = setup.saturation[place] * (setup.incident[place] if active else 1.0)
            if factor < 1.0:
                tau = min(3600 / setup.grid.saturation / max(factor, 0.02) - _OWN_GAP, 100.0)
                wanted |= dict.fromkeys(self._sumo.edge.getLastStepVehicleIDs(edge("p", place)), tau)
        passed = self._slowed.keys() - wanted.keys()
        for name in passed.intersection(self._sumo.vehicle.getIDList()) if passed else ():
            self._sumo.vehicle.setTau(name, self._tau)
        for name, tau in wanted.items():
            if self._slowed.get(name) != tau:
                self._sumo.vehicle.setTau(name, tau)
        self._slowed = wanted

    def count(self) -> Counts:
        """Count vehicles."""
        links = (4, self._grid.rows, self._grid.columns)
        queues, (moving, mixed, origins) = np.zeros((3, *links)), np.zeros((3, *links))
        edges, vehicle = self._sumo.edge, self._sumo.vehicle
        for place in self._places:
            for name in edges.getLastStepVehicleIDs(edge("a", place)):
                (mixed if vehicle.getSpeed(name) < _WAITS else moving)[place] += 1
            for name in edges.getLastStepVehicleIDs(edge("p", place)):
                if vehicle.getSpeed(name) < _WAITS:
                    following = vehicle.getRoute(name)[vehicle.getRouteIndex(name) + 1]
                    queues[(self._turns[place, following], *place)] += 1
                else:
                    moving[place] += 1
            origins[place] = len(edges.getPendingVehicles(edge("a", place)))
        return Counts(queues, moving, mixed, origins)


def _place(name: str) -> tuple[int, int, int]:
    _, heading, row, column = name.split("_")
    return int(heading), int(row), int(column)
