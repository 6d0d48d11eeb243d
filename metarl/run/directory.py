"""The run directory: made, continued or refused before anything is written into it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from metarl.run.config import RunConfig, difference, from_yaml, to_yaml
from metarl.run.disk import replace_file
from metarl.run.lock import RunLock
from metarl.settings import SettingsError

CONFIG, METRICS, TENSORBOARD, CHECKPOINTS, EVALUATION, PROVENANCE, LOCK = (
    "config.yaml",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "evaluation",
    "provenance.json",
    ".lock",
)

# Where runs go that have no run_dir.
_RUNS = pathlib.Path("runs")

# What a writer leaves that was killed before its first complete file.
_LITTER = frozenset({LOCK, f".{CONFIG}.tmp"})
# What a run writes; nothing else in its directory is ever removed.
_OWN = frozenset({CONFIG, METRICS, TENSORBOARD, CHECKPOINTS, PROVENANCE, LOCK})

# A resumed run may differ in these: where it runs, how far, how often it says so.
_FREE = ("run.device", "run.threads")
_GROWS = "run.iterations"
_IGNORED = ("run.run_dir", "run.resume")


class Place(NamedTuple):
    """Where a run is written.

    Attributes:
        path: its directory.
        made: the directories that were made for it, deepest first.
        warnings: about settings that differ from the run's so far.
    """

    path: pathlib.Path
    made: list[pathlib.Path]
    warnings: list[str]


def check(config: RunConfig) -> list[str]:
    """Refuse a directory that a run cannot have, as far as that can be told without writing; torch is not needed.

    Returns:
        Warnings about settings that differ from the run's so far.

    Raises:
        SettingsError: if the directory belongs to something else, to a run with other settings, or cannot be written,
            or if ``init_from`` is no run.
    """
    run = config.run
    begun = run.resume == "auto" and run.run_dir is not None and os.path.isdir(os.path.join(run.run_dir, CHECKPOINTS))
    if run.init_from is not None and not begun:  # a run that goes on needs it no longer
        read_config(pathlib.Path(run.init_from))
    if run.run_dir is None:
        if run.resume == "auto":
            raise SettingsError("resume=auto needs run_dir: name the run to continue, run_dir=runs/NAME")
        _refuse_unwritable(_RUNS)
        return []
    path = pathlib.Path(run.run_dir)
    _refuse_unwritable(path)
    if os.path.exists(path.parent / CONFIG) and os.path.exists(path.parent / CHECKPOINTS):
        raise SettingsError(f"run_dir={path} lies inside another run; choose another directory")
    if not set(_listed(path)) - _LITTER:
        return []
    if not os.path.exists(path / CONFIG):
        raise SettingsError(f"run_dir={path} holds files of something else (no {CONFIG}); choose another directory")
    if run.resume != "auto":
        raise SettingsError(
            f"run_dir={path} holds a run already; continue it with resume=auto, or choose another directory"
        )
    return _compatible(path, config)


def prepare(config: RunConfig) -> Place:
    """Find or make the run's directory, after the same refusals as :func:`check`."""
    warnings = check(config)
    if config.run.run_dir is None:
        return _fresh(config)
    path = pathlib.Path(config.run.run_dir)
    missing = _missing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"run_dir={path} cannot be made: {error.strerror}; choose another directory") from error
    return Place(path, missing, warnings)


@contextlib.contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the run's lock. Of a new run that fails before its first row nothing stays behind."""
    try:
        with RunLock(place.path / LOCK):
            new = not os.path.exists(place.path / CONFIG)
            try:
                yield
            except BaseException:
                if new and not _has_rows(place.path):
                    _clear(place)
                raise
    finally:
        with contextlib.suppress(OSError):  # what holds something stays
            for directory in place.made:
                directory.rmdir()


@contextlib.contextmanager
def writing(what: pathlib.Path) -> Iterator[None]:
    """Turn a full disk or a missing right into one line that names ``what``."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{what} cannot be written: {error.strerror or error}; make room or allow writing there,"
            " then continue with resume=auto"
        ) from error


def read_config(path: pathlib.Path) -> RunConfig:
    """Read a run's configuration.

    Raises:
        SettingsError: if ``path`` is no run directory or its configuration cannot be read.
    """
    file = path / CONFIG
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError("it is no regular file")
        return from_yaml(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.isdir(path):
            raise SettingsError(f"{path} is not a run directory: it has no {CONFIG}") from error
        raise SettingsError(f"{path} does not exist; name a directory that python -m metarl.train has made") from error
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SettingsError(f"{file} cannot be read: {reason}") from error


def write_config(path: pathlib.Path, config: RunConfig) -> None:
    """Write ``config.yaml`` in one piece."""
    replace_text(path / CONFIG, to_yaml(config))


def replace_text(path: pathlib.Path, text: str) -> None:
    """Write a file so that a reader, or a killed writer, sees the old or the new content and nothing between."""
    replace_file(path, text.encode())


def _compatible(path: pathlib.Path, config: RunConfig) -> list[str]:
    old = read_config(path)
    warnings = []
    for key in difference(old, config):
        if key in _IGNORED:
            continue
        shown = key.removeprefix("run.")
        before, now = _value(old, key), _value(config, key)
        if key == "run.init_from" and before and now and os.path.abspath(before) == os.path.abspath(now):
            continue
        if key == _GROWS:
            if now < before:
                raise SettingsError(
                    f"iterations={now} is less than the {before} of the run in {path}; a run can only be extended"
                )
        elif key in _FREE:
            warnings.append(f"{shown} was {before} and is now {now}: results may differ in the last digits")
        else:
            raise SettingsError(
                f"{shown}={now} differs from {shown}={before} of the run in {path}; resume with the same settings,"
                " or choose another run_dir"
            )
    return warnings


def _value(config: RunConfig, key: str) -> Any:
    group, _, name = key.partition(".")
    if not name:
        return {"env": config.env, "algo": config.algo}[group]
    source = {"env": config.env_settings, "algo": config.algo_settings}.get(group)
    return source.get(name) if source is not None else getattr(config.run, name)


def _fresh(config: RunConfig) -> Place:
    for number in itertools.count(1):
        path = _RUNS / f"{config.env}-{config.algo}-s{config.run.seed}-{number:03d}"
        missing = _missing(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise SettingsError(f"{path} cannot be made: {error.strerror}; name another place with run_dir=") from error
        return Place(path, missing, [])
    raise AssertionError("unreachable")


def _missing(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the directories that making ``path`` makes, deepest first."""
    return [place for place in (path, *path.parents) if not os.path.exists(place)]


def _refuse_unwritable(path: pathlib.Path) -> None:
    missing = _missing(path)
    nearest = missing[-1].parent if missing else path
    if not nearest.is_dir():
        raise SettingsError(f"run_dir={path}: {nearest} is a file; choose another name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SettingsError(f"run_dir={path}: {nearest} cannot be written; choose another directory")


def _listed(path: pathlib.Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"run_dir={path} cannot be read: {error.strerror}; choose another directory") from error


def _has_rows(path: pathlib.Path) -> bool:
    try:
        return b"\n" in (path / METRICS).read_bytes()
    except OSError:
        return False


def _clear(place: Place) -> None:
    """Remove a run's own files; the lock as well, unless the directory was there before and others may wait for it."""
    for entry in [e for e in place.path.iterdir() if e.name in _OWN or e.name.startswith(".")]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK or place.path in place.made:
            with contextlib.suppress(OSError):
                entry.unlink()
