"""What controllers, detectors and pictures know of a simulation, whoever simulates."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.signals import Signals
from metarl.envs.traffic.simulator import Conditions


class Town(Protocol):
    """B grids that step together; shapes and meanings are those of :class:`metarl.envs.traffic.simulator.GridSim`."""

    grid: Grid
    conditions: Conditions
    signals: Signals
    clock: int
    demanded: Tensor
    time_spent: Tensor

    @property
    def queues(self) -> Tensor:
        """Vehicles that wait at the stop line, by movement, (K, H, R, C, B)."""
        ...

    @property
    def mixed(self) -> Tensor:
        """Vehicles that wait in front of the turning lanes, (H, R, C, B)."""
        ...

    @property
    def origins(self) -> Tensor:
        """Vehicles that wait for room at the entries, (H, R, C, B)."""
        ...

    @property
    def vehicles(self) -> Tensor:
        """Vehicles in the system, those that wait to enter and those on exits included, (B,)."""
        ...

    @property
    def on_links(self) -> Tensor:
        """Vehicles on every approach, (H, R, C, B)."""
        ...

    @property
    def in_transit(self) -> Tensor:
        """Vehicles on every approach that are not in a queue, (H, R, C, B)."""
        ...

    def tick(self) -> None:
        """Let one second pass."""
        ...

    def finish(self) -> None:
        """Let go of what runs beside, when no more seconds will pass; what was asked about the last one stays known."""
        ...
