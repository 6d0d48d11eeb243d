"""The text of a value, read as its setting's type asks: numbers, true, false, null, text, and lists of these."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any

_QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_LIST = rf"""\[(?:{_QUOTED}|[^\]'"])*\]"""
# Quotes and brackets hold commas together only where they enclose a whole element: it's,[x],b is three elements.
_ELEMENT = re.compile(rf"\s*(?:{_QUOTED}|{_LIST})\s*(?=,|\Z)|[^,]*")
_PATH = re.compile(rf"\s*(?:{_QUOTED})\s*(?=,|\Z)|[^,]*")
_INT = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
# Longer ones overflow a float, and thousands of digits are refused by Python itself.
_MOST_DIGITS = 300


def split(text: str) -> list[str]:
    """Split at commas, but not inside quotes or brackets around a whole element.

    >>> split("[32,32],[64],a b,'x,y'")
    ['[32,32]', '[64]', 'a b', "'x,y'"]
    """
    return _split(text, _ELEMENT)


def arms(kind: Any) -> tuple[Any, bool]:
    """Return a setting's type without ``None``, and whether it may be ``None``.

    >>> arms(int | None)
    (<class 'int'>, True)
    """
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    members = typing.get_args(kind) if union else (kind,)
    return next(member for member in members if member is not types.NoneType), types.NoneType in members


def read_value(text: str, kind: Any) -> Any:
    """Return the value that ``text`` stands for; what does not fit ``kind`` stays text, for the schema to refuse.

    Args:
        text: the right-hand side of ``key=text``.
        kind: the setting's type; it decides between number and text, so that ``label=007`` keeps its zeros.

    >>> read_value("1e-3", float), read_value("[32, 32]", tuple[int, ...]), read_value("null", int | None)
    (0.001, (32, 32), None)
    """
    arm, optional = arms(kind)
    if optional and text == "null":
        return None
    if arm is str:
        return _unquoted(text)
    stripped = text.strip()
    if typing.get_origin(arm) is tuple:
        if not (stripped.startswith("[") and stripped.endswith("]")):
            return text
        inside = stripped[1:-1].strip()
        return tuple(read_value(item.strip(), typing.get_args(arm)[0]) for item in split(inside)) if inside else ()
    return _scalar(stripped)


def read_path(text: str, kind: Any) -> str | None:
    """Return a path verbatim; ``null`` is none where there may be none (a file of that name is ``./null``)."""
    return None if arms(kind)[1] and text == "null" else text


def read_paths(text: str) -> tuple[str, ...]:
    """Return one path, or those in brackets: split at commas, but not inside quotes around a whole name.

    A quote inside such quotes is doubled. A single path that has brackets around it is written ``./[x]``.

    >>> read_paths("[runs/a, 'odd,name',it's]")
    ('runs/a', 'odd,name', "it's")
    """
    if not (text.startswith("[") and text.endswith("]")):
        return (text,)
    inside = text[1:-1]
    return tuple(_unquoted(item.strip()) for item in _split(inside, _PATH)) if inside.strip() else ()


def write_paths(paths: Sequence[str]) -> str:
    """Return text that :func:`read_paths` reads, as simple as it can be: brackets around several, quotes where they must be.

    >>> write_paths(["runs/a", "it's"]), write_paths(["runs/a"]), write_paths(["odd,name"])
    ("[runs/a,it's]", 'runs/a', 'odd,name')
    """
    if len(paths) == 1 and read_paths(paths[0]) == (paths[0],):
        return paths[0]
    return f"[{','.join(_quoted(path) for path in paths)}]"


def _quoted(path: str) -> str:
    """Quote a name that would be read as something else in a list."""
    if path.strip() == path != "" and "," not in path and path[0] not in "'\"":
        return path
    return "'" + path.replace("'", "''") + "'"


def _split(text: str, element: re.Pattern[str]) -> list[str]:
    found, start = [], 0
    while True:
        match = element.match(text, start)
        assert match is not None  # the last alternative matches anything, nothing included
        found.append(match.group())
        if match.end() == len(text):
            return found
        start = match.end() + 1


def _unquoted(text: str) -> str:
    if re.fullmatch(_QUOTED, text):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


def _scalar(text: str) -> Any:
    constants = {"true": True, "false": False, "null": None}
    if text.lower() in constants:
        return constants[text.lower()]
    if len(text) > _MOST_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
