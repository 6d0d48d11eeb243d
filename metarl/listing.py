"""The table of all families: ``python -m metarl.families``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarl import families, ids
from metarl.families import RLSpec, TaskParameter
from metarl.settings import SettingsError

COLUMNS = ("family", "task", "observation", "action", "horizon", "control step", "package")


def _parameter(parameter: TaskParameter) -> str:
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{parameter.name} {parameter.low:g} to {parameter.high:g}{unit}"


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
        return [name, f"({error})"]
    except Exception as error:  # a family is foreign code and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [name, f"({reason})", "", "", "", "", package(name)]
    task = ", ".join(_parameter(parameter) for parameter in spec.parameters)
    if not isinstance(spec, RLSpec):
        shape = " x ".join(map(str, spec.input_shape))
        return [name, task, f"{shape} (input)", f"{spec.target_size} (target)", "", "", package(name)]
    if spec.choices is None:
        action = f"{spec.action_size} in {spec.action_low:g} to {spec.action_high:g}"
    else:
        action = "one of " + " x ".join(map(str, spec.choices.counts))
    step = f"{spec.control_step:g} s" if spec.control_step else ""
    return [name, task, str(spec.observation_size), action, str(spec.horizon), step, package(name)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Set rows in columns that are as wide as they need to be."""
    whole = [list(line) + [""] * (len(COLUMNS) - len(line)) for line in rows]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in whole)


if __name__ == "__main__":
    print(table([COLUMNS, *map(row, families.names())]))
