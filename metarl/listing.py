"""The table of all families: ``python -m metarl.families``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from metarl import families, ids
from metarl.families import RLSpec, TaskParameter
from metarl.settings import SettingsError

COLUMNS = ("family", "observation", "action", "horizon", "control step", "package", "task")
WIDTH = 140  # of a line, where a task has more than one entry


def package(name: str) -> str:
    """Return the distribution that brings a family, or the module where this process registered it."""
    point = ids.entry_points().get(name)
    if point is None:
        return families.lookup(name).__module__
    return point.dist.name if point.dist is not None else point.module


def row(name: str) -> list[str]:
    """Describe one family at its own settings; what cannot be described says why in one line."""
    try:
        spec: Any = families.make(name).spec
    except SettingsError as error:
        return [name, "", "", "", "", package(name), f"({error})"]
    except Exception as error:  # a family is foreign code and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [name, "", "", "", "", package(name), f"({reason})"]
    task = describe(spec.parameters)
    if not isinstance(spec, RLSpec):
        shape = "x".join(map(str, spec.input_shape))
        return [name, f"{shape} (input)", f"{spec.target_size} (target)", "", "", package(name), task]
    if spec.choices is None:
        action = f"{spec.action_size} in {spec.action_low:.4g} to {spec.action_high:.4g}"
    else:
        action = "one of " + " x ".join(map(str, spec.choices.counts))
    step = f"{spec.control_step:.4g} s" if spec.control_step else ""
    return [name, str(spec.observation_size), action, str(spec.horizon), step, package(name), task]


def describe(parameters: Sequence[TaskParameter]) -> str:
    """Return task parameters with ranges and units; neighbours of one kind (``mass_...``) and one range are one entry."""
    return "; ".join(_entry(list(alike)) for _, alike in itertools.groupby(parameters, _kind))


def _kind(parameter: TaskParameter) -> tuple[str, float, float, str]:
    letters = re.split(r"[\d_]", parameter.name, maxsplit=1)[0]
    return letters, parameter.low, parameter.high, parameter.unit


def _entry(alike: Sequence[TaskParameter]) -> str:
    names, one = [parameter.name for parameter in alike], alike[0]
    shown = ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
    unit = f"({one.unit})" if " " in one.unit else one.unit
    return f"{shown}: {one.low:.4g} to {one.high:.4g} {unit}".rstrip()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Set rows in columns that are as wide as they need to be; a task too long for ``WIDTH`` has one entry a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    margin, lines = "\n" + " " * (sum(widths[:-1]) + 2 * len(widths[:-1])), []
    for line in rows:
        whole = "  ".join(map(str.ljust, line, widths)).rstrip()
        lines.append(whole if len(whole) <= WIDTH else whole.replace("; ", ";" + margin))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([COLUMNS, *map(row, families.names())]))
