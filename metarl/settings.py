"""Documented, range-checked settings: what a family, an algorithm and a run are described with.

A group of settings is a frozen dataclass whose fields are made by :func:`setting`. Names, types, ranges and the line of
documentation live in one place; the command line, ``config.yaml`` and the generated documentation all read them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class SettingsError(ValueError):
    """A setting, name or path that the user can correct; the message is one line with the culprit and the remedy."""


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare one dataclass field with its documentation and range.

    Args:
        default: value when nothing is said.
        doc: one line, with the unit.
        low: smallest legal value.
        high: largest legal value.
        above: the value must be strictly greater than this.
        choices: the legal strings.
    """
    return dataclasses.field(
        default=default, metadata={"doc": doc, "low": low, "high": high, "above": above, "choices": choices}
    )


def nearest(name: str, options: Iterable[str]) -> str:
    """Say ``Did you mean 'x'?`` for the option nearest to ``name``, or list the options; for error messages."""
    known = sorted(options)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f"Did you mean '{match[0]}'?"
    return f"Known: {', '.join(known)}." if known else "None is known."


def fields(schema: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the declared settings of a dataclass by name."""
    return {field.name: field for field in dataclasses.fields(schema) if field.init}


def hints(schema: type) -> dict[str, Any]:
    """Return the evaluated type of every setting."""
    return typing.get_type_hints(schema)


def check(
    schema: type, values: Mapping[str, Any], prefix: str = "", words: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check names, types and ranges of ``values`` against ``schema`` and return them in their declared types.

    Args:
        schema: a dataclass made of :func:`setting` fields.
        values: what the user gave, plain Python values.
        prefix: put before names in messages, e.g. ``"env."``.
        words: the text that values were read from, which messages repeat; without it they show the values.

    Raises:
        SettingsError: on the first unknown name, wrong type or value out of range.
    """
    known = fields(schema)
    types_ = hints(schema)
    checked = {}
    for name, value in values.items():
        if name not in known:
            options = [prefix + option for option in known]
            raise SettingsError(f"Unknown setting '{prefix}{name}'. {nearest(f'{prefix}{name}', options)}")
        said = None if words is None else words.get(name)
        checked[name] = _checked(_Named(prefix + name, said), value, types_[name], known[name].metadata)
    return checked


class _Named(typing.NamedTuple):
    """A setting's name, and the text that its value was read from; None where it was a value from the start."""

    name: str
    text: str | None

    def said(self, value: Any) -> str:
        """Return ``name=value`` as the user wrote it."""
        return f"{self.name}={value if self.text is None else self.text}"

    def element(self, item: Any) -> _Named:
        """Return the same of one element of a list."""
        if self.text is None:
            return self
        return _Named(self.name, "null" if item is None else str(item).lower() if isinstance(item, bool) else str(item))


def _checked(name: _Named, value: Any, kind: Any, meta: Mapping[str, Any]) -> Any:
    arms = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in arms:
        return None
    arm = next(a for a in arms if a is not type(None))
    value = _coerced(name, value, arm)
    items = value if isinstance(value, tuple) else (value,)
    low, high, above, choices = (meta.get(key) for key in ("low", "high", "above", "choices"))
    for item in items:
        own = name.element(item) if isinstance(value, tuple) else name
        if choices and item not in choices:
            guess = nearest(str(item), choices)
            hint = f". {guess}" if guess.startswith("Did") else ""  # or it lists what has just been listed
            raise SettingsError(f"{own.said(item)} is not one of {', '.join(choices)}{hint}")
        if isinstance(item, float) and not math.isfinite(item):
            raise SettingsError(f"{own.said(item)} must be a finite number")
        if low is not None and item < low:
            raise SettingsError(f"{own.said(item)} is too small: it must be at least {low:g}")
        if above is not None and item <= above:
            raise SettingsError(f"{own.said(item)} is too small: it must be greater than {above:g}")
        if high is not None and item > high:
            raise SettingsError(f"{own.said(item)} is too large: it must be at most {high:g}")
    return value


def _coerced(name: _Named, value: Any, arm: Any) -> Any:
    if typing.get_origin(arm) is tuple:
        element = typing.get_args(arm)[0]
        if isinstance(value, list | tuple):
            return tuple(_coerced(name.element(item), item, element) for item in value)
        example = value if element is str else "1,2"
        raise SettingsError(f"{name.said(value)} must be a list such as {name.name}=[{example}]")
    if arm is bool and isinstance(value, bool):
        return value
    if arm is int and not isinstance(value, bool):
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    if arm is float and not isinstance(value, bool) and isinstance(value, numbers.Real):
        return float(value)
    if arm is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[arm]
    raise SettingsError(f"{name.said(value)} has the wrong type: it must be {wanted}")
