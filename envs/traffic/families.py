"""Families of traffic-signal tasks: what differs from task to task, and how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.task import TrafficTask, columns, grid_of, table
from metarl.families import Choices, EnvBatch, RLSpec, Split, TaskParameter, Tasks, split_uniform, stream
from metarl.settings import SettingsError, setting
from metarl.splits import SPLITS

_RECOMMENDED: Mapping[str, Any] = {
    "algo": "maml-trpo",
    "iterations": 300,
    "meta_batch_size": 20,
    "episodes_per_task": 10,
    "inner_steps": 1,
    "inner_lr": 0.1,
    "gamma": 0.97,
    "gae_lambda": 0.95,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}

_DEMAND = ("demand", "left", "right", "peak_height", "peak_time", "peak_width")
_CAPACITY = ("saturation", "lost_time", "incident_approach", "incident_factor", "incident_start", "incident_duration")
_SENSOR = ("noise", "bias", "detector")

# The busiest intersection's flow ratios sum to at most this (four phases with 3 s of yellow pass 0.9 with a cycle of 2 min),
# and no entry's demand exceeds this in its peak (a link carries 3812 veh/h).
_MOST_LOAD, _MOST_DEMAND = 0.95, 3600.0


class _Settings(Protocol):
    """What all families of this module have."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def interval(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def oracle(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class TrafficGrid:
    r"""Set the signals of a grid of intersections whose demand, capacity and detectors are hidden.

    $$ r_t = -\frac{1}{100 N} \int_{10 t}^{10 (t + 1)} n(\tau)\, d\tau $$

    n is the number of vehicles in the system, those that wait to enter and those on exits included, so that the return times
    -100 N is the total time spent, and divided by the vehicles demanded the mean time of a trip.

    Dynamics: :class:`metarl.envs.traffic.simulator.GridSim` in steps of 1 s, Poisson arrivals, 300 m links of two lanes and a
    left pocket of 100 m, 13.89 m/s, 1800 veh/h a lane, 3 s of yellow. N = rows x columns.

    Task: everything that :class:`TrafficDemand`, :class:`TrafficCapacity` and :class:`TrafficSensor` draw. Where the busiest
    intersection's flow ratios would sum to more than 0.95, all demand is scaled down to that.

    Observation (25 N + 4 N): 25 numbers of every intersection (:func:`metarl.envs.traffic.detectors.observation`) as detectors read
    them, then which phases are legal. Action: one of 4 protected phases for every intersection: north-south straight on and
    right, north-south left, east-west, east-west left. Control step 10 s, horizon 120 after 120 s of a fixed plan, no termination.
    Rewards are exact: detectors cannot hide a queue from them.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand_low: float = setting(250.0, "smallest base demand of an entry before the factor of its side, veh/h", low=0)
    demand_high: float = setting(1000.0, "largest base demand likewise, veh/h", above=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Check the order of the range."""
        _check_range(self.demand_low, self.demand_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, (*_DEMAND, *_CAPACITY, *_SENSOR))

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw demand, capacity and detectors."""
        draws = _Draws(self, num_tasks, split, seed)
        low, high = self.demand_low, self.demand_high
        parts = [_demand(draws, low, high), _capacity(draws), _sensor(draws)]
        return _tasks(self, parts, limited=True)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, _default(self))


@dataclasses.dataclass(frozen=True)
class TrafficDemand:
    r"""Set the signals of a grid whose demand is hidden; roads and detectors are sound.

    $$ d_e(t) = b\, f_{s(e)} \bigl(1 + A e^{-(t - t_0)^2 / 2 \sigma^2}\bigr) $$

    Task: ``demand`` of every entry, veh/h: a base b, uniform on [250, 1000], times a factor f of its side of the town, log-normal
    (0.45) within [0.25, 3]; shares of turns by heading, Dirichlet with means 0.15 left, 0.6 straight on, 0.25 right and
    concentration 20; a peak of height A, uniform on [0, 1.5], around $t_0$ in the middle 0.6 of the episode, of width
    $\sigma$ 0.08 to 0.2 of it. Demand is limited as in :class:`TrafficGrid`, which tells the rest.

    A policy that sees queues needs hardly more to be near the best on each of these tasks, so that little is left to adapt.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand_low: float = setting(250.0, "smallest base demand of an entry before the factor of its side, veh/h", low=0)
    demand_high: float = setting(1000.0, "largest base demand likewise, veh/h", above=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Check the order of the range."""
        _check_range(self.demand_low, self.demand_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, _DEMAND)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw demand."""
        draws = _Draws(self, num_tasks, split, seed)
        return _tasks(self, [_demand(draws, self.demand_low, self.demand_high)], limited=True)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, _default(self))


@dataclasses.dataclass(frozen=True)
class TrafficCapacity:
    """Set the signals of a grid whose roads are worse than they look.

    Task: ``saturation`` of every approach relative to 1800 veh/h a lane, uniform on [0.45, 1]; ``lost_time`` at the start of a
    green, uniform on [0, 4] s; an incident that lets only 0.1 to 0.5 of that pass one approach for 300 to 1200 s, beginning in
    the first 0.6 of the episode. Demand is the same everywhere (``demand``), a quarter of it turns right and 0.15 left.
    :class:`TrafficGrid` tells the rest.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand: float = setting(500.0, "demand of every entry, veh/h", low=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, _CAPACITY)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw capacity."""
        return _tasks(self, [_capacity(_Draws(self, num_tasks, split, seed), first=True)], limited=False)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, _default(self, self.demand))


@dataclasses.dataclass(frozen=True)
class TrafficSensor:
    """Set the signals of a grid with bad detectors; which of them are bad is hidden.

    Task: ``noise``, the relative standard deviation of every count, uniform on [0, 0.3]; ``bias`` of all counts, uniform on
    [-0.2, 0.2]; ``detector`` of every approach, dead (0) with probability 0.3, else 1. Demand is the same everywhere
    (``demand``), a quarter of it turns right and 0.15 left. :class:`TrafficGrid` tells the rest.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand: float = setting(500.0, "demand of every entry, veh/h", low=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, _SENSOR)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw detectors."""
        return _tasks(self, [_sensor(_Draws(self, num_tasks, split, seed), first=True)], limited=False)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, _default(self, self.demand))


def _check_range(low: float, high: float) -> None:
    if low >= high:
        raise SettingsError(f"demand_low={low:g} must be smaller than demand_high={high:g}")


def _default(family: _Settings, demand: float = 500.0) -> TrafficTask:
    return TrafficTask(rows=family.rows, columns=family.columns, demand=(demand,))


def _seconds(family: _Settings) -> float:
    """Seconds that an episode takes, warm-up included."""
    return float(family.warmup + family.horizon * family.interval)


def _spec(family: _Settings, names: tuple[str, ...]) -> RLSpec:
    count = family.rows * family.columns
    choices = Choices((4,) * count, masked=True)
    return RLSpec.discrete(
        _columns(family, names), 29 * count, choices, family.horizon, float(family.interval), family.oracle
    )


def _columns(family: _Settings, names: Sequence[str]) -> tuple[TaskParameter, ...]:
    seconds = _seconds(family)
    ranges = {
        "demand": (0.0, _MOST_DEMAND),
        "peak_height": (0.0, 1.5),
        "peak_time": (0.2 * seconds, 0.8 * seconds),
        "peak_width": (max(1.0, 0.08 * seconds), max(1.0, 0.2 * seconds)),
        "saturation": (0.45, 1.0),
        "lost_time": (0.0, 4.0),
        "incident_approach": (0.0, 4.0 * family.rows * family.columns - 1.0),
        "incident_factor": (0.1, 0.5),
        "incident_start": (0.0, 0.6 * seconds),
        "incident_duration": (300.0, 1200.0),
        "noise": (0.0, 0.3),
        "bias": (-0.2, 0.2),
    }
    return columns(names, family.rows, family.columns, ranges)


class _Draws:
    """The random numbers of M tasks: one that tells the split, and a generator of each task.

    Args:
        family: of which tasks are drawn.
        num_tasks: M.
        split: whose tasks.
        seed: of the draw.
    """

    def __init__(self, family: _Settings, num_tasks: int, split: Split, seed: int | Sequence[int]) -> None:
        self.unit = split_uniform(num_tasks, split, seed)[:, 0]
        words = [int(seed)] if isinstance(seed, int | np.integer) else [int(word) for word in seed]
        words.append(SPLITS.index(split))
        self.generators = [np.random.default_rng(stream(words, task)) for task in range(num_tasks)]
        self.grid: Grid = grid_of(_default(family))
        self.seconds = _seconds(family)

    def uniform(self, low: float, high: float, size: int = 1) -> np.ndarray:
        """Return uniform numbers, (size, M)."""
        return np.array([g.uniform(low, high, size) for g in self.generators]).reshape(-1, size).T


def _demand(draws: _Draws, low: float, high: float) -> dict[str, np.ndarray]:
    base = low + (high - low) * draws.unit
    sides = np.array([g.lognormal(0.0, 0.45, 4) for g in draws.generators]).reshape(-1, 4).T.clip(0.25, 3.0)
    sizes = [draws.grid.columns, draws.grid.rows, draws.grid.columns, draws.grid.rows]
    turns = np.array([g.dirichlet([3.0, 12.0, 5.0], 4) for g in draws.generators]).reshape(-1, 4, 3)
    seconds = draws.seconds
    return {
        "demand": base * np.repeat(sides, sizes, axis=0),
        "left": turns[..., 0].T,
        "right": turns[..., 2].T,
        "peak_height": draws.uniform(0.0, 1.5),
        "peak_time": draws.uniform(0.2 * seconds, 0.8 * seconds),
        "peak_width": draws.uniform(0.08 * seconds, 0.2 * seconds).clip(1.0),
    }


def _capacity(draws: _Draws, first: bool = False) -> dict[str, np.ndarray]:
    """Draw capacity; with ``first``, the first number tells the split."""
    approaches = 4 * draws.grid.intersections
    saturation = draws.uniform(0.45, 1.0, approaches)
    if first:
        saturation[0] = 0.45 + 0.55 * draws.unit
    return {
        "saturation": saturation,
        "lost_time": draws.uniform(0.0, 4.0),
        "incident_approach": np.array([[g.integers(approaches) for g in draws.generators]], dtype=np.float64),
        "incident_factor": draws.uniform(0.1, 0.5),
        "incident_start": draws.uniform(0.0, 0.6 * draws.seconds),
        "incident_duration": draws.uniform(300.0, 1200.0),
    }


def _sensor(draws: _Draws, first: bool = False) -> dict[str, np.ndarray]:
    """Draw detectors, likewise."""
    noise = draws.uniform(0.0, 0.3)
    if first:
        noise[0] = 0.3 * draws.unit
    return {
        "noise": noise,
        "bias": draws.uniform(-0.2, 0.2),
        "detector": (draws.uniform(0.0, 1.0, 4 * draws.grid.intersections) >= 0.3).astype(np.float64),
    }


def _tasks(family: _Settings, parts: Sequence[Mapping[str, np.ndarray]], limited: bool) -> Tasks:
    """Put columns together; ``limited`` scales demand down to what the roads can carry."""
    numbers = {name: value for part in parts for name, value in part.items()}
    names = tuple(column.name for column in _columns(family, tuple(numbers)))
    if limited:
        from metarl.envs.traffic.conditions import loads  # torch, not needed to describe a family

        heights = 1.0 + numbers["peak_height"][0]
        most = numbers["demand"].max(axis=0) * heights
        numbers["demand"] = numbers["demand"] * np.minimum(1.0, _MOST_DEMAND / most)
        rows = Tasks(names, np.concatenate(list(numbers.values())).T)
        # the mean over the episode of a peak that lies within it
        mean = 1.0 + numbers["peak_height"][0] * numbers["peak_width"][0] * np.sqrt(2 * np.pi) / _seconds(family)
        load = loads(table(rows, _default(family)), grid_of(_default(family))) * mean
        numbers["demand"] = numbers["demand"] * np.minimum(1.0, _MOST_LOAD / load)
    return Tasks(names, np.concatenate(list(numbers.values())).T)


def _batch(family: _Settings, default: TrafficTask) -> EnvBatch:
    from metarl.envs.traffic.batch import TrafficBatch  # torch, not needed to describe a family

    return TrafficBatch(default, family.horizon, family.interval, family.warmup)
