"""The simulator: B grids of signalised intersections, one second at a time.

Shapes, batch last so that every slice is contiguous: K = 3 movements, H = 4 headings, R rows, C columns, E entries, B grids.
An index (h, r, c) is an approach (see :mod:`metarl.envs.traffic.network`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import arrivals, topology
from metarl.envs.traffic.counts import RATE_QUANTUM, Cumulative, whole
from metarl.envs.traffic.network import LEFT, RIGHT, STRAIGHT, Grid
from metarl.envs.traffic.signals import Signals

_BLOCK = 20  # seconds of arrivals that are drawn at once


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What differs from grid to grid; float64 tensors on one device.

    Attributes:
        demand: mean arrivals at the entries before the factors of peak and tide, veh/s, (E, B).
        course: of demand, (5, B): height, middle (s) and width (s) of the peak, tide, and the seconds in which it turns; see
            :func:`metarl.envs.traffic.arrivals.course`.
        shares: parts of an approach's vehicles that turn left, go straight on and turn right, (K, H, R, C, B); they sum to 1.
        saturation: saturation flow of every approach relative to the grid's, (H, R, C, B).
        lost: start-up lost time of a green, s, (B,).
        incident: factor on the saturation flow of every approach during the incident, (H, R, C, B).
        begin: second in which the incident begins, (B,).
        end: second in which it is over, (B,).
    """

    demand: Tensor
    course: Tensor
    shares: Tensor
    saturation: Tensor
    lost: Tensor
    incident: Tensor
    begin: Tensor
    end: Tensor

    def __post_init__(self) -> None:
        """Check signs and sums: a wrong share would make vehicles from nothing."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value.dtype != torch.float64 or not bool(((value >= 0) & (value < math.inf)).all()):
                raise ValueError(f"{field.name} must be finite float64 numbers, none of them negative")
        if not bool(((self.shares.sum(0) - 1.0).abs() < 1e-12).all()):
            raise ValueError("shares of left, straight on and right must sum to 1")
        height, _, width, tide, turn = self.course
        if not bool(((width > 0) & (turn > 0) & (tide <= 1)).all()):
            raise ValueError("the width of a peak and the time of a tide must be positive, and a tide at most 1")
        if not bool((self.demand * (1.0 + height) * (1.0 + tide) <= arrivals.LARGEST_MEAN).all()):
            raise ValueError(f"demand must stay below {3600 * arrivals.LARGEST_MEAN:.0f} veh/h at every entry")


class GridSim:
    r"""Traffic on B grids: a link-transmission model with queues by movement. A new episode is a new object.

    Every link knows how many vehicles have entered, $N^{in}$, and left, $N^{out}$. In the second from t to t+1:

    1. *Arrival.* What entered a free travel time ago reaches the queue, $A(t+1) = N^{in}(t + 1 - L/v)$, and joins the
       mixed queue u.
    2. *Turning lanes.* The mixed queue feeds the movements in order (first in, first out): with $\beta_m$ the shares, room
       $P_g - q_g$ before the stop line (the left pocket; the lanes for straight on and right, which share theirs),
       $y = \min(u,\ Q,\ \min_g (P_g - q_g)/\beta_g)$, and movement m gets $\beta_m y$. A full pocket blocks everybody.
    3. *Sending.* Left: $\min(q, s \varphi)$. Straight on and right share their lanes' $s \varphi \cdot$ lanes in proportion to
       their queues. $\varphi$ is the open part of this second (:class:`~metarl.envs.traffic.signals.Signals`).
    4. *Receiving.* $R = \min(Q,\ N^{out}(t + 1 - L/w) + k_j L - N^{in}(t))$: a full link takes in nothing, and feels only after L/w
       that its head moves.
    5. *Intersection.* All movements into one link are scaled by $\min(1, R / \sum_m D_m)$.
    6. *Boundary.* At the entries unbounded queues wait for room; exits are links without an end.

    Amounts are fluid, arrivals are whole vehicles (Poisson) or fluid (uniform); both start in a network that is empty.
    All amounts are exact (:mod:`metarl.envs.traffic.counts`).

    Reference: Newell (1993), "A simplified theory of kinematic waves in highway traffic"; Yperman (2007), "The link transmission
    model for dynamic network loading" (arrival, receiving); Daganzo (1995), "The cell transmission model, part II"
    (first in, first out diverges). Merging in proportion to demand and queues that do
    not block each other across movements of the same lanes are simplifications; the pocket adds no room to its link.

    Args:
        grid: geometry and constants of all grids.
        conditions: of every grid.
        seeds: uint32 (B,); arrivals of grid b are a function of ``seeds[b]`` and its demand alone.
        poisson: whether arrivals are random; else they flow evenly.

    Attributes are live: copy what is to be kept.

    Attributes:
        signals: the lights; request phases there, then call :meth:`tick`.
        clock: t, whole seconds since the beginning.
        demanded: vehicles that have arrived, (B,).
        exited: vehicles that have reached the end of an exit, (B,).
        time_spent: vehicle-seconds spent in the system, entries and exits included, (B,).
        mixed: vehicles that wait in front of the turning lanes, (H, R, C, B).
        queues: vehicles that wait at the stop line, by movement, (K, H, R, C, B).
        origins: vehicles that wait for room at the entries, (H, R, C, B); 0 where an approach is no entry.
        reached: vehicles that have reached the end of the link so far, (H, R, C, B).
    """

    def __init__(self, grid: Grid, conditions: Conditions, seeds: np.ndarray, poisson: bool = True) -> None:
        self.grid, self.conditions = grid, conditions
        device, count = conditions.lost.device, len(seeds)
        _check_shapes(grid, conditions, count)
        links = (4, grid.rows, grid.columns, count)
        self.signals = Signals(grid, conditions.lost)
        self.clock = 0

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.demanded, self.exited, self.time_spent = zeros(count), zeros(count), zeros(count)
        self.mixed, self.queues, self.origins, self.reached = (
            zeros(*links),
            zeros(3, *links),
            zeros(*links),
            zeros(*links),
        )
        self._entered = Cumulative(links, grid.free_time, device)
        self._left = Cumulative(links, grid.wave_time, device)
        self._exits = Cumulative((count,), grid.free_time, device)
        self._capacity = _floor(grid.lanes * grid.lane_capacity)
        self._storage = _floor(grid.storage)
        self._rooms = [_floor(grid.pocket_storage), _floor(grid.pocket_storage * grid.lanes)]
        through = conditions.shares[STRAIGHT] + conditions.shares[RIGHT]
        self._inverse = (conditions.shares[LEFT].reciprocal(), through.reciprocal())  # infinite where nobody turns
        self._ahead = torch.full(links, self._capacity, dtype=torch.float64, device=device)
        self._keys, self._poisson = arrivals.keys(seeds, device), poisson
        self._drawn, self._pace = zeros(0), zeros(0)
        # seconds at which saturation flows change, known beforehand so that no step asks the device
        self._events = {0, *conditions.begin.tolist(), *conditions.end.tolist()}

    @property
    def vehicles(self) -> Tensor:
        """Vehicles in the system, those that wait for room at the entries and those on exits included, (B,)."""
        return self.demanded - self.exited

    @property
    def on_links(self) -> Tensor:
        """Vehicles on every approach, (H, R, C, B)."""
        return self._entered.now - self._left.now

    @property
    def in_transit(self) -> Tensor:
        """Vehicles on every approach that have not reached a queue, (H, R, C, B)."""
        return self._entered.now - self.reached

    @property
    def on_exits(self) -> Tensor:
        """Vehicles on all exits of a grid together, (B,)."""
        return self._exits.now - self.exited

    @property
    def entered(self) -> Tensor:
        """Vehicles that have entered every approach so far, (H, R, C, B)."""
        return self._entered.now.clone()

    @property
    def left(self) -> Tensor:
        """Vehicles that have crossed every approach's stop line so far, (H, R, C, B)."""
        return self._left.now.clone()

    def tick(self) -> None:
        """Let one second pass."""
        self._arrive()
        self._feed()
        receiving = self._receiving()
        moved = self._cross(receiving)  # by movement and outgoing heading
        self._enter(receiving, _total(moved))
        self.signals.tick()
        self.clock += 1
        self.time_spent = self.time_spent + self.vehicles

    def finish(self) -> None:
        """Do nothing: nothing runs beside."""

    def _arrive(self) -> None:
        """Vehicles come to the entries, to the ends of links, and to the ends of exits."""
        if self.clock % _BLOCK == 0:
            self._drawn = self._arrivals()
        coming, entries = self._drawn[self.clock % _BLOCK], topology.entries(self.origins)
        for queue, some in zip(entries, torch.split(coming, [len(queue) for queue in entries]), strict=True):
            queue += some
        self.demanded = self.demanded + coming.sum(0)
        self.exited = self._exits.delayed()
        reached = self._entered.delayed()
        self.mixed += reached - self.reached
        self.reached = reached

    def _arrivals(self) -> Tensor:
        """Draw what comes in the next seconds, (seconds, E, B)."""
        conditions, device = self.conditions, self._keys.device
        seconds = torch.arange(self.clock, self.clock + _BLOCK, device=device, dtype=torch.float64)
        mean = conditions.demand * arrivals.course(seconds, conditions.course, self.grid.eastwards)
        return arrivals.drawn(self._keys, mean, self.clock) if self._poisson else whole(mean)

    def _feed(self) -> None:
        """Vehicles go from the mixed queues to the turning lanes."""
        left, straight, right = self.queues.unbind()
        amount = torch.minimum(
            (self._rooms[0] - left).mul_(self._inverse[0]),
            (self._rooms[1] - straight).sub_(right).mul_(self._inverse[1]),
        )
        amount = torch.minimum(amount, self.mixed).clamp_(max=self._capacity)
        fed = whole(self.conditions.shares * amount)
        self.queues += fed
        self.mixed -= _total(fed)  # what rounding leaves, at most three quanta, waits

    def _receiving(self) -> Tensor:
        """Return what every approach can take in, (H, R, C, B)."""
        room = self._left.delayed() - self._entered.now
        return room.add_(self._storage).clamp_(max=self._capacity)

    def _sending(self) -> Tensor:
        """Return what would cross every stop line by movement if all exits were free, (K, H, R, C, B)."""
        if self.clock in self._events:
            self._pace = self._paces()
        rows, columns, count = self.queues.shape[2:]
        # heading 2 * i + axis as (i, axis): both directions of an axis have green together
        pace = self._pace.reshape(2, 2, 2, rows, columns, count) * self.signals.open()[:, None]
        left, through = pace.reshape(2, 4, rows, columns, count).unbind()
        turning, straight, right = self.queues.unbind()
        part = (through / (straight + right)).clamp_(max=1.0).nan_to_num_(0.0)  # nobody waits, nothing goes: 0 / 0
        return torch.stack([torch.minimum(turning, left), whole(straight * part), whole(right * part)])

    def _paces(self) -> Tensor:
        """Return the saturation flows in the seconds that begin now, veh/s, (2, H, R, C, B): left, straight on with right."""
        conditions = self.conditions
        active = (conditions.begin <= self.clock) & (self.clock < conditions.end)
        factor = torch.where(active, conditions.incident, 1.0) * conditions.saturation
        lane = factor * (self.grid.saturation / 3600)
        return whole(torch.stack([lane, lane * self.grid.lanes]), RATE_QUANTUM)

    def _cross(self, receiving: Tensor) -> Tensor:
        """Move vehicles across the intersections; return them by movement and outgoing heading, (K, H, R, C, B)."""
        ahead = topology.look_ahead(receiving, self._ahead)  # whose border is what exits take in
        moved = topology.outgoing(self._sending())
        scale = (ahead / _total(moved)).clamp_(max=1.0).nan_to_num_(0.0)  # no room, nobody wants it: 0 / 0
        moved = whole(moved.mul_(scale))
        gone = topology.incoming(moved)
        self.queues -= gone
        self._left.push(_total(gone))
        return moved

    def _enter(self, receiving: Tensor, outgoing: Tensor) -> None:
        """Let vehicles into approaches, from intersections and entries, and onto exits."""
        entering = torch.minimum(self.origins, receiving)  # nothing but at entries
        self.origins = self.origins - entering
        self._entered.push(topology.drive_on(outgoing, entering))
        north, east, south, west = (flow.sum(0) for flow in topology.exits(outgoing))
        self._exits.push(north + east + south + west)


def _total(movements: Tensor) -> Tensor:
    left, straight, right = movements.unbind()
    return left + straight + right


def _floor(amount: float) -> float:
    """Round down to multiples of the quantum."""
    return float(whole(torch.tensor(amount, dtype=torch.float64)))


def _check_shapes(grid: Grid, conditions: Conditions, count: int) -> None:
    links = (4, grid.rows, grid.columns, count)
    wanted: dict[str, tuple[int, ...]] = {
        "demand": (grid.entries, count),
        "course": (5, count),
        "shares": (3, *links),
        "saturation": links,
        "lost": (count,),
        "incident": links,
        "begin": (count,),
        "end": (count,),
    }
    for name, shape in wanted.items():
        found = tuple(getattr(conditions, name).shape)
        if found != shape:
            raise ValueError(f"{name} must have shape {shape}, got {found}")
