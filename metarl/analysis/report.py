"""The files of an evaluation: ``curve.json``, ``curve.csv``, ``curve.png`` and ``groups.csv``, old or new, never half."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from metarl.analysis import groups, plots
from metarl.settings import SettingsError


def write(result: Mapping[str, Any], out: pathlib.Path, by: str) -> None:
    """Write a result in all its forms.

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
        with (fresh / "groups.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows(groups.table(result))
        plots.adaptation(result, fresh / "curve.png", by)
        _keep_other(result, out)
        for file in sorted(fresh.iterdir()):
            file.replace(out / file.name)


def _keep_other(result: Mapping[str, Any], out: pathlib.Path) -> None:
    """Give an earlier result of other settings a number, ``curve-1.json`` and so on: it may have taken hours."""
    try:
        old = json.loads((out / "curve.json").read_text(encoding="utf-8"))
        same = json.dumps(old["settings"]) == json.dumps(result["settings"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        same = False
    if same:
        return
    number = next(n for n in itertools.count(1) if not (out / f"curve-{n}.json").exists())
    for name in ("groups.csv", "curve.csv", "curve.png", "curve.json"):  # the one that is looked for comes last
        stem, suffix = name.split(".")
        with contextlib.suppress(FileNotFoundError):
            (out / name).replace(out / f"{stem}-{number}.{suffix}")


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
        judged = any("success" in curve for curve in result["runs"].values())
        header = ["run", "updates", "rollouts", "task", *result["tasks"][0], result["metric"]]
        writer.writerow([*header, "success"] if judged else header)
        for run, curve in result["runs"].items():
            for point, (updates, rollouts) in enumerate(zip(curve["updates"], curve["rollouts"], strict=True)):
                for index, task in enumerate(result["tasks"]):
                    row = [run, updates, rollouts, index, *task.values(), curve["values"][point][index]]
                    writer.writerow([*row, curve["success"]["values"][point][index]] if judged else row)
