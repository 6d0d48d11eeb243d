"""The files of an evaluation: ``curve.json``, ``curve.csv`` and ``curve.png``, old or new, never half."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from metarl.analysis import plots
from metarl.settings import SettingsError


def write(result: Mapping[str, Any], out: pathlib.Path, by: str) -> None:
    """Write a result in all three forms.

    Args:
        result: what ``curve.json`` is to hold.
        out: the directory; made where it is missing.
        by: ``"updates"`` or ``"rollouts"``, the picture's horizontal axis.

    Raises:
        SettingsError: if it cannot be written.
    """
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as name:
        fresh = pathlib.Path(name)
        (fresh / "curve.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _write_csv(fresh / "curve.csv", result)
        plots.adaptation(result, fresh / "curve.png", by)
        for file in sorted(fresh.iterdir()):
            file.replace(out / file.name)


@contextlib.contextmanager
def writing(out: pathlib.Path) -> Iterator[None]:
    """Make a directory to write into; what goes wrong becomes one line, and the directory goes if it holds nothing."""
    try:
        out.mkdir(exist_ok=True)
        yield
    except OSError as error:
        raise SettingsError(
            f"{out} cannot be written: {error.strerror or error}; free some space or change its rights"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # what holds something stays
            out.rmdir()


def _write_csv(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Write one row for every run, point and task."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "updates", "rollouts", "task", *result["tasks"][0], result["metric"]])
        for run, curve in result["runs"].items():
            for updates, rollouts, values in zip(curve["updates"], curve["rollouts"], curve["values"], strict=True):
                for index, (task, value) in enumerate(zip(result["tasks"], values, strict=True)):
                    writer.writerow([run, updates, rollouts, index, *task.values(), value])
