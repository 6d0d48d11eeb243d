"""Where a result comes from: command, code, versions, hardware; written beside every run and every evaluation."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
import warnings
from typing import Any

from metarl.learner import MetaLearner
from metarl.run.config import RunConfig
from metarl.run.directory import PROVENANCE, replace_text

_PACKAGES = ("metarl-toolkit", "torch", "numpy", "mujoco", "gymnasium")


def provenance() -> dict[str, Any]:
    """Return code version, package versions and hardware."""
    return {
        "commit": _commit(),
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }


def record_session(path: pathlib.Path, command: str, config: RunConfig, learner: MetaLearner, iteration: int) -> None:
    """Append one start of the run to its ``provenance.json``."""
    file = path / PROVENANCE
    try:
        sessions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        damaged = not isinstance(sessions, list)
    except ValueError:  # neither UTF-8 nor JSON
        damaged = True
    if damaged:  # a record of the past, which a run does not need to go on
        kept = file.with_name(f"{PROVENANCE}.damaged")
        file.replace(kept)
        warnings.warn(
            f"{PROVENANCE} is damaged; it is kept as {kept.name}, and a new one begun", RuntimeWarning, stacklevel=2
        )
        sessions = []
    workers = learner.domain.workers
    session = {
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_iteration": iteration,
        "device": str(workers.device),
        "threads": workers.threads,
        **provenance(),
    }
    replace_text(file, json.dumps([*sessions, session], indent=1) + "\n")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the commit of the clone that this package runs from, with ``+`` for local changes; empty outside a clone."""
    here = pathlib.Path(__file__).parent
    try:
        root = _git(here, "rev-parse", "--show-toplevel")
        if not (pathlib.Path(root) / "metarl" / "core").is_dir():
            return ""
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
        return _git(here, "rev-parse", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(where: pathlib.Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(where), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
