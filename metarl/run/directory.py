"""The run directory: made, continued or refused before anything is written into it."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

from metarl.run.config import RunConfig, difference, from_yaml, to_yaml
from metarl.settings import SettingsError

CONFIG, METRICS, TENSORBOARD, CHECKPOINTS, EVALUATION, LOCK = (
    "config.yaml",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "evaluation",
    ".lock",
)

# A resumed run may differ in these: where it runs, how far, how often it says so.
_FREE = ("run.device", "run.threads")
_GROWS = "run.iterations"
_IGNORED = ("run.run_dir", "run.resume")


def prepare(config: RunConfig) -> tuple[pathlib.Path, list[str]]:
    """Find or make the run's directory.

    Returns:
        The directory, and warnings about settings that differ from the run's so far.

    Raises:
        SettingsError: if the directory belongs to something else, to a run with other settings, or cannot be written.
    """
    run = config.run
    if run.run_dir is None:
        if run.resume == "auto":
            raise SettingsError("resume=auto needs run_dir: name the run to continue, run_dir=runs/NAME")
        return _fresh(config), []
    path = pathlib.Path(run.run_dir)
    if not path.exists():
        return _made(path), []
    if not path.is_dir():
        raise SettingsError(f"run_dir={path} is a file; choose another name")
    content = [name for name in _listed(path) if name != LOCK]
    if not content:
        return _made(path), []
    if not (path / CONFIG).exists():
        raise SettingsError(f"run_dir={path} holds files of something else (no {CONFIG}); choose another directory")
    if run.resume != "auto":
        raise SettingsError(
            f"run_dir={path} holds a run already; continue it with resume=auto, or choose another directory"
        )
    return path, _compatible(path, config)


def read_config(path: pathlib.Path) -> RunConfig:
    """Read a run's configuration.

    Raises:
        SettingsError: if ``path`` is no run directory or its configuration cannot be read.
    """
    if not path.is_dir():
        raise SettingsError(f"{path} does not exist; name a directory that python -m metarl.train has made")
    file = path / CONFIG
    if not file.exists():
        raise SettingsError(f"{path} is not a run directory: it has no {CONFIG}")
    try:
        return from_yaml(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error


def write_config(path: pathlib.Path, config: RunConfig) -> None:
    """Write ``config.yaml`` in one piece."""
    replace_text(path / CONFIG, to_yaml(config))


def replace_text(path: pathlib.Path, text: str) -> None:
    """Write a file so that a reader, or a killed writer, sees the old or the new content and nothing between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _compatible(path: pathlib.Path, config: RunConfig) -> list[str]:
    old = read_config(path)
    warnings = []
    for key in difference(old, config):
        if key in _IGNORED:
            continue
        shown = key.removeprefix("run.")
        before, now = _value(old, key), _value(config, key)
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


def _fresh(config: RunConfig) -> pathlib.Path:
    parent = pathlib.Path("runs")
    for number in itertools.count(1):
        path = parent / f"{config.env}-{config.algo}-s{config.run.seed}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise SettingsError(f"{path} cannot be made: {error.strerror}; name another place with run_dir=") from error
        return path
    raise AssertionError("unreachable")


def _listed(path: pathlib.Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        raise SettingsError(f"run_dir={path} cannot be read: {error.strerror}; choose another directory") from error


def _made(path: pathlib.Path) -> pathlib.Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"run_dir={path} cannot be made: {error.strerror}; choose another directory") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(f"run_dir={path} cannot be written; choose another directory")
    return path
