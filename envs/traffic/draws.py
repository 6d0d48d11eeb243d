"""How traffic tasks are drawn: the ranges of every number, and a generator for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.task import TrafficTask, columns, grid_of, table
from metarl.families import SPLITS, Split, TaskParameter, Tasks, split_uniform, stream

DEMAND = ("demand", "left", "right", "peak_height", "peak_time", "peak_width")
CAPACITY = ("saturation", "lost_time", "incident_approach", "incident_factor", "incident_start", "incident_duration")
SENSOR = ("noise", "bias", "detector")
OBJECTIVE = ("weight",)

# The busiest intersection's flow ratios sum to at most this (four phases with 3 s of yellow pass 0.9 with a cycle of 2 min),
# and no entry's demand exceeds this in its peak (a link carries 3812 veh/h).
_MOST_LOAD, _MOST_DEMAND = 0.95, 3600.0

# Factors of the heavy band's demand, and the tide of the tidal one.
_HEAVY, _TIDE = (1.2, 1.4), 0.6

# Weights of headings before they are divided by their mean.
_LEAST, _MOST = 0.1, 10.0


class Sizes(Protocol):
    """What all families of traffic signals have."""

    @property
    def rows(self) -> int:
        """Rows of intersections."""
        ...

    @property
    def columns(self) -> int:
        """Columns of intersections."""
        ...

    @property
    def horizon(self) -> int:
        """Decisions of an episode."""
        ...

    @property
    def interval(self) -> int:
        """Seconds between two decisions."""
        ...

    @property
    def warmup(self) -> int:
        """Seconds before the first decision."""
        ...

    @property
    def oracle(self) -> bool:
        """Whether the task is observed."""
        ...

    @property
    def simulator(self) -> str:
        """Who simulates: ``own`` or ``sumo``."""
        ...


def default_task(family: Sizes, demand: float = 500.0, band: str = "usual") -> TrafficTask:
    """Return what a family's tasks have in common; in the tidal band demand turns in the course of the episode."""
    tide, turn = (_TIDE, max(1.0, seconds_of(family))) if band == "tidal" else (0.0, 3600.0)
    return TrafficTask(rows=family.rows, columns=family.columns, demand=(demand,), tide=tide, tide_turn=turn)


def seconds_of(family: Sizes) -> float:
    """Seconds that an episode takes, warm-up included."""
    return float(family.warmup + family.horizon * family.interval)


def parameters(family: Sizes, names: Sequence[str]) -> tuple[TaskParameter, ...]:
    """Return the columns of some numbers, with the ranges from which they are drawn."""
    seconds = seconds_of(family)
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
        "weight": (_LEAST / (_LEAST + 3 * _MOST) * 4, 4.0),
    }
    return columns(names, family.rows, family.columns, ranges)


class Draws:
    """The random numbers of M tasks: one that tells the split, and a generator of each task.

    Args:
        family: of which tasks are drawn.
        num_tasks: M.
        split: whose tasks.
        seed: of the draw.
    """

    def __init__(self, family: Sizes, num_tasks: int, split: Split, seed: int | Sequence[int]) -> None:
        self.unit = split_uniform(num_tasks, split, seed)[:, 0]
        words = [int(seed)] if isinstance(seed, int | np.integer) else [int(word) for word in seed]
        words.append(SPLITS.index(split))
        self.generators = [np.random.default_rng(stream(words, task)) for task in range(num_tasks)]
        self.grid: Grid = grid_of(default_task(family))
        self.seconds = seconds_of(family)

    def uniform(self, low: float, high: float, size: int = 1) -> np.ndarray:
        """Return uniform numbers, (size, M)."""
        return np.array([g.uniform(low, high, size) for g in self.generators]).reshape(-1, size).T


def demand(draws: Draws, low: float, high: float) -> dict[str, np.ndarray]:
    """Draw demand: a base, of which ``unit`` is the place within [low, high], factors of sides, turns and a peak."""
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


def capacity(draws: Draws, first: bool = False) -> dict[str, np.ndarray]:
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


def sensor(draws: Draws, first: bool = False) -> dict[str, np.ndarray]:
    """Draw detectors, likewise."""
    noise = draws.uniform(0.0, 0.3)
    if first:
        noise[0] = 0.3 * draws.unit
    return {
        "noise": noise,
        "bias": draws.uniform(-0.2, 0.2),
        "detector": (draws.uniform(0.0, 1.0, 4 * draws.grid.intersections) >= 0.3).astype(np.float64),
    }


def objective(draws: Draws) -> dict[str, np.ndarray]:
    """Draw weights; the first number, before they are divided by their mean, tells the split."""
    sides = np.array([g.lognormal(0.0, 0.9, 4) for g in draws.generators]).reshape(-1, 4).T
    sides[0] = np.array([NormalDist().inv_cdf(x) for x in draws.unit.clip(1e-12)])
    sides[0] = np.exp(0.9 * sides[0])
    sides = sides.clip(_LEAST, _MOST)
    return {"weight": sides / sides.mean(axis=0)}


class Growth(NamedTuple):
    """By how much demand exceeds the usual, (1, M), and how much an entry's may be in its peak, veh/h."""

    factor: np.ndarray
    most: float


def growth(draws: Draws, band: str) -> Growth | None:
    """Draw by how much the demand of a band exceeds the usual, after everything else; None for the usual one."""
    if band == "tidal":  # about as much on the whole
        return Growth(np.ones((1, len(draws.unit))), _MOST_DEMAND / (1.0 + _TIDE))
    return Growth(draws.uniform(*_HEAVY), _MOST_DEMAND) if band == "heavy" else None


def tasks_of(
    family: Sizes, parts: Sequence[Mapping[str, np.ndarray]], limited: bool, grown: Growth | None = None
) -> Tasks:
    """Put columns together; ``limited`` scales demand down to what the roads can carry, ``grown`` up after that."""
    numbers = {name: value for part in parts for name, value in part.items()}
    names = tuple(column.name for column in parameters(family, tuple(numbers)))
    if limited:
        from metarl.envs.traffic.conditions import loads  # torch, not needed to describe a family

        heights = 1.0 + numbers["peak_height"][0]
        most = numbers["demand"].max(axis=0) * heights
        numbers["demand"] = numbers["demand"] * np.minimum(1.0, _MOST_DEMAND / np.maximum(most, 1e-9))
        rows = Tasks(names, np.concatenate(list(numbers.values())).T)
        # the mean over the episode of a peak that lies within it
        mean = 1.0 + numbers["peak_height"][0] * numbers["peak_width"][0] * np.sqrt(2 * np.pi) / seconds_of(family)
        load = loads(table(rows, default_task(family)), grid_of(default_task(family))) * mean
        numbers["demand"] = numbers["demand"] * np.minimum(1.0, _MOST_LOAD / np.maximum(load, 1e-9))
    if grown is not None:
        most = grown.most / (numbers["demand"].max(axis=0).clip(1e-9) * (1.0 + numbers["peak_height"][0]))
        numbers["demand"] = numbers["demand"] * np.minimum(grown.factor, most)
    return Tasks(names, np.concatenate(list(numbers.values())).T)
