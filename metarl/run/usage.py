"""The help texts, generated from the schemas: every key with its default, its range and its line of documentation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from metarl import algorithms, families
from metarl.run.config import RunSettings, algorithm_of, resolve
from metarl.settings import SettingsError, fields

_TRAIN = """\
usage: python -m metarl.train env=NAME [algo=NAME] [key=value ...]

  env=halfcheetah-vel seed=3 env.horizon=100 algo.max_kl=0.02 hidden_sizes=[32,32] run_dir=runs/mine
  -m seed=0,1,2        runs one after another, each in a directory of its own (RUN_DIR/0, RUN_DIR/1, ...)
  env=NAME --help      the settings of that family, with the values that it recommends

A value given here wins over the family's recommendation, that over the algorithm's, that over the default. Text with
commas is quoted under -m: key='a,b'. Paths are taken as they stand."""


def wants_help(argv: Sequence[str]) -> bool:
    """Say whether ``-h`` or ``--help`` is among the tokens."""
    return "-h" in argv or "--help" in argv


def help_text(argv: Sequence[str] = ()) -> str:
    """Return the help of ``python -m metarl.train``; with ``env=NAME`` in ``argv`` that of one family.

    Raises:
        SettingsError: if ``argv`` names an unknown family or algorithm.
    """
    given = dict(token.split("=", 1) for token in argv if token.startswith(("env=", "algo=")))
    if "env" in given:
        return "\n\n".join([_TRAIN, *_chosen(given["env"], given.get("algo"))])
    parts = [_TRAIN, _table("run settings", RunSettings)]
    for name in families.names():
        try:
            family = families.lookup(name)
            parts.append(_table(f"env={name}  {_first_line(family)}", family, "env."))
        except SettingsError as error:  # one broken plug-in must not hide the others
            parts.append(f"env={name}  {error}")
    for name in algorithms.names():
        algorithm = algorithms.lookup(name)
        parts.append(_table(f"algo={name}  {_first_line(algorithm)}", algorithm, "algo."))
    return "\n\n".join(parts)


def help_for(schema: type, module: str) -> str:
    """Return the help of a command that one schema describes.

    Args:
        schema: a dataclass of settings.
        module: what follows ``python -m``.
    """
    return f"usage: python -m {module} [key=value ...]\n\n" + _table(_first_line(schema), schema)


def _chosen(env: str, algo: str | None) -> list[str]:
    config = resolve(env, algorithm_of(env, algo))
    family, algorithm = families.lookup(env), algorithms.lookup(config.algo)
    run = {name: getattr(config.run, name) for name in fields(RunSettings)}
    return [
        _table("run settings", RunSettings, "", run),
        _table(f"env={env}  {_first_line(family)}", family, "env.", config.env_settings),
        _table(f"algo={config.algo}  {_first_line(algorithm)}", algorithm, "algo.", config.algo_settings),
    ]


def _first_line(thing: type) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _table(title: str, schema: type, prefix: str = "", values: Mapping[str, Any] | None = None) -> str:
    """Return a title and one line a setting: key=value, range, documentation."""
    rows = []
    for name, field in fields(schema).items():
        value = field.default if values is None else values[name]
        meta = field.metadata
        rows.append((f"{prefix}{name}={_shown(value)}", _range(meta), str(meta.get("doc", ""))))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = (f"  {key:{widths[0]}}  {legal:{widths[1]}}  {doc}".rstrip() for key, legal, doc in rows)
    return "\n".join([title, *lines])


def _shown(value: Any) -> str:
    """Return a value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_shown, value))}]" if isinstance(value, tuple | list) else str(value)


def _range(meta: Mapping[str, Any]) -> str:
    choices, low, high, above = (meta.get(key) for key in ("choices", "low", "high", "above"))
    if choices:
        return "|".join(choices)
    ends = [f"> {above:g}" if above is not None else f">= {low:g}" if low is not None else ""]
    ends.append(f"<= {high:g}" if high is not None and high < 2**60 else "")
    return " ".join(end for end in ends if end)
