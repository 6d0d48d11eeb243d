"""The command line: ``key=value``, checked against the schemas before torch, Hydra or a simulator is imported.

Numbers, ``true``, ``false``, ``null`` and lists ``[1,2]`` are read as YAML has them, text as it stands. Paths are taken
verbatim, whatever characters they hold.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import itertools
import os
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from metarl import algorithms, families
from metarl.run.config import PATHS, RunSettings, algorithm_of, resolve
from metarl.run.usage import help_for, help_text, wants_help
from metarl.run.values import arms, read_path, read_paths, read_value, split
from metarl.settings import SettingsError, fields, hints
from metarl.settings import check as checked

__all__ = ["Arguments", "check", "expand", "help_for", "help_text", "parse", "read", "wants_help"]

_MULTIRUN = ("-m", "--multirun")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A checked command line: what was given, by the group that it belongs to.

    Attributes:
        env: family name.
        algo: algorithm name, given or recommended.
        env_settings: settings of the family.
        algo_settings: settings of the algorithm.
        settings: run settings.
        hydra: ``hydra.*`` overrides as they stand.
    """

    env: str
    algo: str
    env_settings: dict[str, Any]
    algo_settings: dict[str, Any]
    settings: dict[str, Any]
    hydra: tuple[str, ...]


def check(argv: Sequence[str]) -> None:
    """Check a training's command line, every job of a multirun included.

    Raises:
        SettingsError: for the first thing that is wrong.
    """
    for job in expand(argv):
        given = read(job)
        resolve(
            given.env,
            given.algo,
            env_settings=given.env_settings,
            algo_settings=given.algo_settings,
            settings=given.settings,
        )


def read(argv: Sequence[str]) -> Arguments:
    """Read the command line of one training.

    Raises:
        SettingsError: for the first token, name, type or value that is wrong.
    """
    rest = [token for token in argv if not (token.startswith("hydra.") and "=" in token)]
    hydra = tuple(token for token in argv if token not in rest)
    given = _pairs(rest, PATHS, [*fields(RunSettings), "env", "algo"])
    env, algo = given.pop("env", None), given.pop("algo", None)
    if env is None:
        known = [*fields(RunSettings), "env", "algo"]
        for key in given:
            if key not in known and not key.startswith(("env.", "algo.")):
                raise _unknown(key, known)
        raise SettingsError(
            f"env is missing: choose a task family with env=NAME. Known: {', '.join(families.names())}."
        )
    for key, name, known in (("env", env, families.names()), ("algo", algo, algorithms.names())):
        if name is not None and name not in known and "," in name:
            raise SettingsError(f"{key}={name} names several: add -m to run them one after another")
    algo = algorithm_of(env, algo)
    schemas = {"": RunSettings, "env.": families.lookup(env), "algo.": algorithms.lookup(algo)}
    for key in given:
        _refuse_foreign(key, env, algo, schemas)
    values = _values(given, schemas, PATHS, ())
    return Arguments(env, algo, values["env."], values["algo."], values[""], hydra)


def parse(
    argv: Sequence[str], schema: type, *, paths: Collection[str] = (), path_lists: Collection[str] = ()
) -> dict[str, Any]:
    """Read a command line against one schema: ``run=RUN compare=[RUN2,'odd,name'] steps=3``.

    Args:
        argv: the tokens.
        schema: a dataclass of settings.
        paths: keys whose value is a path, taken verbatim.
        path_lists: keys whose value is a path, or several in brackets: split at commas, but not inside ``'...'`` or
            ``"..."`` around a whole name (double the quote to have it in there).

    Raises:
        SettingsError: for the first token, name, type or value that is wrong.
    """
    given = _pairs(argv, {*paths, *path_lists}, list(fields(schema)))
    return _values(given, {"": schema}, paths, path_lists)[""]


def expand(argv: Sequence[str]) -> list[list[str]]:
    """Return the command line of every job: ``-m seed=0,1 env.horizon=100,200`` means four, one without ``-m``.

    Commas inside quotes or brackets belong to a value, those of a path to its name. Job number n writes into
    ``run_dir/n`` where ``run_dir`` is given.
    """
    tokens = [token for token in argv if token not in _MULTIRUN]
    if len(tokens) == len(argv):
        return [tokens]
    choices = []
    for token in tokens:
        key, equals, text = token.partition("=")
        whole = not equals or key in PATHS or key.startswith("hydra.")
        choices.append([token] if whole else [f"{key}={element}" for element in split(text)])
    jobs = [list(job) for job in itertools.product(*choices)]
    return [[_numbered(token, number) for token in job] for number, job in enumerate(jobs)]


def _numbered(token: str, number: int) -> str:
    own = token.startswith("run_dir=") and token not in ("run_dir=", "run_dir=null")
    return os.path.join(token, str(number)) if own else token


def _pairs(argv: Sequence[str], paths: Collection[str], known: list[str]) -> dict[str, str]:
    """Split tokens at their first ``=``; ``known`` serves the messages."""
    given: dict[str, str] = {}
    for token in argv:
        key, equals, text = token.partition("=")
        if key not in paths and any(c in "\r\n" for c in token):
            raise SettingsError(f"{token!r} must not hold a line break")
        if token.startswith(("+", "~")):
            raise SettingsError(
                f"'{token}': settings are neither added nor removed here; write key=value without '{token[0]}'"
            )
        if token.startswith("hydra/"):
            raise SettingsError(f"'{token}': Hydra's own groups are not used; jobs of -m run one after another")
        if token.startswith("-"):
            raise SettingsError(_dashed(token, known))
        if not equals or not key:
            raise SettingsError(_bare(token, known))
        if not text:
            raise SettingsError(f"{key}= has no value; write {key}=VALUE, or leave it out for the default")
        if key in given:
            raise SettingsError(f"{key} is given twice, as {given[key]} and as {text}; give it once")
        given[key] = text
    return given


def _dashed(token: str, known: list[str]) -> str:
    if token in _MULTIRUN:
        return f"'{token}' runs several trainings, so it belongs to python -m metarl.train only"
    bare = token.lstrip("-")
    name = bare.partition("=")[0].replace("-", "_")
    if name in known or "." in name:
        value = bare.partition("=")[2] or "VALUE"
        return f"'{token}': settings have no dashes; write {name}={value}"
    return f"Unknown option '{token}'; settings are written key=value, and --help lists them"


def _bare(token: str, known: list[str]) -> str:
    for key, names in (("env", families.names()), ("algo", algorithms.names())):
        if key in known and token in names:
            return f"'{token}' is not key=value. Did you mean '{key}={token}'?"
    close = difflib.get_close_matches(token, known, n=1, cutoff=0.5)
    example = close[0] if close else "key"
    return f"'{token}' is not key=value; write {example}=VALUE without spaces around '='"


def _unknown(key: str, legal: Iterable[str]) -> SettingsError:
    legal = list(legal)
    last = key.rpartition(".")[2]
    # a right name in the wrong group is nearer than any likeness of letters: horizon for env.horizon, lr for algo.lr
    same = [option for option in legal if option.rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(key, legal, n=1, cutoff=0.5)
    return SettingsError(
        f"Unknown setting '{key}'. " + (f"Did you mean '{close[0]}'?" if close else "--help lists every setting.")
    )


def _refuse_foreign(key: str, env: str, algo: str, schemas: Mapping[str, type]) -> None:
    """Refuse a setting that another algorithm, or another family of this distribution, has and this one has not."""
    prefix, name = _place(key, schemas)
    if name in fields(schemas[prefix]) or not prefix:
        return
    if prefix == "algo.":
        owners = [other for other in algorithms.names() if name in fields(algorithms.lookup(other))]
        chosen = f"algo={algo}"
    else:
        owners = [other for other in _own_families() if name in fields(families.lookup(other))]
        chosen = f"env={env}"
    if owners:
        similar = difflib.get_close_matches(name, fields(schemas[prefix]), n=1, cutoff=0.7)
        hint = f" Did you mean '{prefix}{similar[0]}'?" if similar else ""
        raise SettingsError(f"'{key}' is a setting of {' and '.join(owners)}, not of {chosen}.{hint}")


def _own_families() -> list[str]:
    """Names of the families that come with this package; looking into a stranger's could take long or fail."""
    points = importlib.metadata.entry_points(group=families.GROUP)
    return sorted({point.name for point in points if point.dist is not None and point.dist.name == "metarl-toolkit"})


def _place(key: str, schemas: Mapping[str, type]) -> tuple[str, str]:
    prefix = next((group for group in schemas if group and key.startswith(group)), "")
    return prefix, key.removeprefix(prefix)


def _values(
    given: Mapping[str, str], schemas: Mapping[str, type], paths: Collection[str], path_lists: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each schema, read and checked; schemas by the prefix of their keys."""
    values: dict[str, dict[str, Any]] = {prefix: {} for prefix in schemas}
    for key, text in given.items():
        prefix, name = _place(key, schemas)
        schema = schemas[prefix]
        if name not in fields(schema):
            raise _unknown(key, (group + option for group in schemas for option in fields(schemas[group])))
        kind = hints(schema)[name]
        value: Any
        if key in path_lists:
            value = read_paths(text)
        elif key in paths:
            value = read_path(text, kind)
        else:
            _refuse_several(key, text, kind, fields(schema)[name].metadata.get("choices"))
            value = read_value(text, kind)
        values[prefix] |= checked(schema, {name: value}, prefix, {name: text})
    return values


def _refuse_several(key: str, text: str, kind: Any, choices: Collection[str] | None) -> None:
    """Explain ``seed=0,1`` and ``hidden_sizes=32,32``, whose remedies a word about the type would not tell."""
    arm = arms(kind)[0]
    if len(split(text)) == 1 or (arm is str and not choices):
        return
    if typing.get_origin(arm) is tuple:
        if "[" not in text:
            raise SettingsError(f"{key}={text} must be a list: {key}=[{text}]")
        if not all(item.startswith("[") and item.endswith("]") for item in split(text)):
            return  # a nested or unfinished list, of which the schema has more to say
    raise SettingsError(f"{key}={text} is several values: add -m to run them one after another")
