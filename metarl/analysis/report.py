"""The files of an evaluation, old or new, never half: ``curve.json`` and the like, ``bands.json`` and the like."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metarl.analysis import groups, plots
from metarl.settings import SettingsError


def write(result: Mapping[str, Any], out: pathlib.Path, by: str, suffix: str = "") -> list[str]:
    """Write a result in all its forms.

    Args:
        result: what ``curve.json`` is to hold.
        out: the directory; made where it is missing.
        by: ``"updates"`` or ``"rollouts"``, the picture's horizontal axis.
        suffix: of the files' stems, ``curve-sumo.json``; none for a run as it was trained.

    Returns:
        The files' names, the one that holds everything first.

    Raises:
        SettingsError: if it cannot be written.
    """
    names = [f"curve{suffix}.json", f"curve{suffix}.csv", f"curve{suffix}.png", f"groups{suffix}.csv"]
    with _replaced(result, out, names) as fresh:
        _write_rows(fresh / names[1], _rows(result))
        _write_rows(fresh / names[3], groups.table(result))
        plots.adaptation(result, fresh / names[2], by)
    return names


def write_bands(result: Mapping[str, Any], out: pathlib.Path, by: str, suffix: str = "") -> list[str]:
    """Write what runs do in several bands of tasks, likewise.

    Args:
        result: what ``bands.json`` is to hold.
        out: the directory.
        by: the picture's horizontal axis.
        suffix: of the files' stems.
    """
    names = [f"bands{suffix}.json", f"bands{suffix}.csv", f"bands{suffix}.png", f"bands-tasks{suffix}.csv"]
    with _replaced(result, out, names) as fresh:
        _write_rows(fresh / names[1], groups.table_of_bands(result))
        tables = {band: _rows({**result, **place}) for band, place in result["bands"].items()}
        head = next(iter(tables.values()))[0]
        _write_rows(
            fresh / names[3],
            [["band", *head], *([band, *row] for band, (_, *rows) in tables.items() for row in rows)],
        )
        plots.bands(result, fresh / names[2], by)
    return names


@contextlib.contextmanager
def _replaced(result: Mapping[str, Any], out: pathlib.Path, names: Sequence[str]) -> Iterator[pathlib.Path]:
    """Give a directory for files of these names, the first of which is the result's, and put them all in place at the end."""
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as name:
        fresh = pathlib.Path(name)
        (fresh / names[0]).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        yield fresh
        _keep_other(result, out, names)
        for file in sorted(fresh.iterdir()):
            file.replace(out / file.name)


def _keep_other(result: Mapping[str, Any], out: pathlib.Path, names: Sequence[str]) -> None:
    """Give an earlier result of other settings a number, ``curve-1.json`` and so on: it may have taken hours."""
    try:
        old = json.loads((out / names[0]).read_text(encoding="utf-8"))
        same = json.dumps(old["settings"]) == json.dumps(result["settings"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        same = False
    if same:
        return
    first, *_ = names[0].split(".")
    number = next(n for n in itertools.count(1) if not (out / f"{first}-{n}.json").exists())
    for name in reversed(names):  # the one that is looked for comes last
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


def _write_rows(path: pathlib.Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return a head, and one row for every run, point and task."""
    judged = any("success" in curve for curve in result["runs"].values())
    head = ["run", "updates", "rollouts", "task", *result["tasks"][0], result["metric"]]
    rows: list[list[Any]] = [[*head, "success"] if judged else head]
    for run, curve in result["runs"].items():
        for point, (updates, rollouts) in enumerate(zip(curve["updates"], curve["rollouts"], strict=True)):
            for index, task in enumerate(result["tasks"]):
                row = [run, updates, rollouts, index, *task.values(), curve["values"][point][index]]
                rows.append([*row, curve["success"]["values"][point][index]] if judged else row)
    return rows
