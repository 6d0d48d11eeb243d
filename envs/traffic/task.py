"""What a traffic task is: demand, turns, capacity, an incident, detectors and the objective of one grid.

A :class:`TrafficTask` is for people and files; a batch of them is a table of plain numbers
(:class:`metarl.families.Tasks`), of which a family has the columns that differ from task to task.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.envs.traffic.network import HEADINGS, Grid
from metarl.families import TaskParameter, Tasks
from metarl.settings import SettingsError, check, setting


@dataclasses.dataclass(frozen=True)
class TrafficTask:
    """One task. Where there is a number for every entry, heading or approach, a single one stands for all of them.

    Entries and approaches are ordered as in :mod:`metarl.envs.traffic.network`: by heading (north, east, south, west), then
    by row and column.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    demand: tuple[float, ...] = setting((500.0,), "base demand of every entry, veh/h", low=0, high=4320)
    peak_height: float = setting(0.0, "demand in the middle of the peak above the base, relative to it", low=0, high=5)
    peak_time: float = setting(0.0, "middle of the peak, s since the simulation began", low=0, high=1e5)
    peak_width: float = setting(600.0, "standard deviation of the peak, s", low=1, high=1e5)
    tide: float = setting(
        0.0,
        "excess of demand eastwards, and lack westwards, in the beginning; it turns into the opposite",
        low=0,
        high=1,
    )
    tide_turn: float = setting(3600.0, "seconds in which the tide turns", low=1, high=1e5)
    left: tuple[float, ...] = setting((0.15,), "share of left turns, by heading", low=0, high=1)
    right: tuple[float, ...] = setting((0.25,), "share of right turns, by heading", low=0, high=1)
    saturation: tuple[float, ...] = setting(
        (1.0,), "saturation flow of every approach, relative to the grid's", low=0, high=1
    )
    lost_time: float = setting(0.0, "start-up lost time of a green, s", low=0, high=10)
    incident_approach: int = setting(0, "number of the approach that has an incident", low=0, high=1599)
    incident_factor: float = setting(1.0, "factor on its saturation flow; 1 is no incident", low=0, high=1)
    incident_start: float = setting(0.0, "begin of the incident, s since the simulation began", low=0, high=1e5)
    incident_duration: float = setting(0.0, "duration of the incident, s", low=0, high=1e5)
    detector: tuple[float, ...] = setting(
        (1.0,), "part of the vehicles that an approach's detectors count", low=0, high=1
    )
    noise: float = setting(0.0, "relative standard deviation of a count", low=0, high=1)
    bias: float = setting(0.0, "relative bias of a count", low=-1, high=1)
    weight: tuple[float, ...] = setting((1.0,), "weight of a vehicle in the objective, by heading", low=0, high=100)

    def __post_init__(self) -> None:
        """Check every value, and that they fit together."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in check(TrafficTask, given).items():
            object.__setattr__(self, name, value)
        for name, labels in _labels(self.rows, self.columns).items():
            length = len(getattr(self, name)) if labels != [""] else 1
            if length not in (1, len(labels)):
                raise SettingsError(
                    f"{name} has {length} values: a {self.rows}x{self.columns} grid takes 1 or {len(labels)}"
                )
        table(self.to_tasks(), self)  # which checks what no single value shows

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrafficTask:
        """Inverse of :meth:`to_json`; what is left out has its default.

        Raises:
            SettingsError: for a name that is none (with the nearest) or a value out of range.
        """
        return TrafficTask(**check(TrafficTask, values))

    def to_tasks(self) -> Tasks:
        """Return the task as a table of one row, with all columns."""
        row: dict[str, float] = {}
        for name, labels in _labels(self.rows, self.columns).items():
            value = getattr(self, name)
            values = value * (len(labels) // len(value)) if isinstance(value, tuple) else (value,)
            row |= {name + label: float(number) for label, number in zip(labels, values, strict=True)}
        return Tasks.from_json([row])

    @staticmethod
    def from_tasks(tasks: Tasks, index: int, default: TrafficTask) -> TrafficTask:
        """Return one row of a table; columns that it has not are the default's, and so is the size of the grid."""
        values: dict[str, Any] = {}
        for name, numbers in table(tasks.rows([index]), default).items():
            column = tuple(numbers[:, 0].tolist())
            values[name] = column if isinstance(getattr(default, name), tuple) else column[0]
        return dataclasses.replace(default, **values)


def _labels(rows: int, columns: int) -> dict[str, list[str]]:
    """Return for every number of a task what follows its name in a table: nothing, or an entry, heading or approach."""
    sizes = (columns, rows, columns, rows)
    entries = [f"_{heading}_{i}" for heading, size in zip(HEADINGS, sizes, strict=True) for i in range(size)]
    headings = [f"_{heading}" for heading in HEADINGS]
    approaches = [f"_{h}_{r}_{c}" for h, r, c in itertools.product(HEADINGS, range(rows), range(columns))]
    several = {"demand": entries, "saturation": approaches, "detector": approaches}
    several |= dict.fromkeys(("left", "right", "weight"), headings)
    names = [field.name for field in dataclasses.fields(TrafficTask) if field.name not in ("rows", "columns")]
    return {name: several.get(name, [""]) for name in names}


def columns(
    names: Sequence[str], rows: int, columns: int, ranges: Mapping[str, tuple[float, float]]
) -> tuple[TaskParameter, ...]:
    """Return the columns of some numbers of a task on a grid, in the order of ``names``; ``ranges`` replace the legal ones."""
    labels = _labels(rows, columns)
    legal = {field.name: field.metadata for field in dataclasses.fields(TrafficTask)}
    made = []
    for name in names:
        low, high = ranges.get(name, (legal[name]["low"], legal[name]["high"]))
        made += [TaskParameter(name + label, low, high, _UNITS.get(name, "")) for label in labels[name]]
    return tuple(made)


def concerning(names: Sequence[str], rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
    """Return for every intersection, row by row, which of :func:`columns` concern it, as many for each.

    Of approaches those that lead to it, of entries those at the beginning of its row and its column, and everything else.
    """
    labels = _labels(rows, columns)
    number = {name + label: i for i, (name, label) in enumerate((n, x) for n in names for x in labels[n])}
    found = []
    for row, column in itertools.product(range(rows), range(columns)):
        entries = [f"_{h}_{place}" for h, place in zip(HEADINGS, (column, row, column, row), strict=True)]
        approaches = [f"_{heading}_{row}_{column}" for heading in HEADINGS]
        local = {"demand": entries, "saturation": approaches, "detector": approaches}
        found.append(tuple(number[name + label] for name in names for label in local.get(name, labels[name])))
    return tuple(found)


_SECONDS = ("peak_time", "peak_width", "tide_turn", "lost_time", "incident_start", "incident_duration")
_UNITS = {"demand": "veh/h", **dict.fromkeys(_SECONDS, "s")}


def table(tasks: Tasks, default: TrafficTask) -> dict[str, np.ndarray]:
    """Return the numbers of B tasks by name, (entries, headings, approaches or 1, B); missing columns are the default's.

    Raises:
        SettingsError: for a column that is none, or a number that is illegal; it names the task.
    """
    labels = _labels(default.rows, default.columns)
    wanted = {name + label for name, all_of_it in labels.items() for label in all_of_it}
    unknown = [name for name in tasks.names if name not in wanted]
    if unknown:
        raise SettingsError(f"a task of a {default.rows}x{default.columns} grid has no '{unknown[0]}'")
    given = dict(zip(tasks.names, tasks.values.T, strict=True))
    values = {}
    for name, all_of_it in labels.items():
        usual = getattr(default, name)
        usual = usual * (len(all_of_it) // len(usual)) if isinstance(usual, tuple) else (usual,)
        numbers = [given.get(name + x, np.full(len(tasks), y)) for x, y in zip(all_of_it, usual, strict=True)]
        values[name] = np.stack(numbers).astype(np.float64)
    _check_table(values, labels, default)
    return values


def _check_table(values: Mapping[str, np.ndarray], labels: Mapping[str, list[str]], default: TrafficTask) -> None:
    for field in dataclasses.fields(TrafficTask):
        if field.name not in values:
            continue
        numbers, low, high = values[field.name], field.metadata["low"], field.metadata["high"]
        wrong = np.argwhere(~((numbers >= low) & (numbers <= high)))
        if len(wrong):
            row, task = wrong[0]
            name = field.name + labels[field.name][row]
            raise SettingsError(f"task {task}: {name}={numbers[row, task]:g} must be between {low:g} and {high:g}")
    turning = np.argwhere(values["left"] + values["right"] > 1.0 + 1e-13)
    if len(turning):
        heading, task = turning[0]
        raise SettingsError(f"task {task}: shares of left and right turns of heading {HEADINGS[heading]} exceed 1")
    heavy = np.argwhere(values["demand"] * (1.0 + values["peak_height"]) * (1.0 + values["tide"]) > 4320.0)
    if len(heavy):
        entry, task = heavy[0]
        raise SettingsError(f"task {task}: demand{labels['demand'][entry]} exceeds 4320 veh/h in its peak")
    numbers, most = values["incident_approach"][0], 4 * default.rows * default.columns - 1
    odd = np.flatnonzero((numbers > most) | (numbers != np.floor(numbers)))
    if len(odd):
        raise SettingsError(f"task {odd[0]}: incident_approach={numbers[odd[0]]:g} must be a whole number up to {most}")


def grid_of(task: TrafficTask) -> Grid:
    """Return a task's grid with the usual links and lights."""
    return Grid(rows=task.rows, columns=task.columns)
