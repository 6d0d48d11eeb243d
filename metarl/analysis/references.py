"""References against a meta-learner at equal environment steps on the test task: when scored, kept, summarised, written.

Those of labelled shots (:mod:`metarl.analysis.shot_references`) are written to the same files.
Shapes: S seeds, M test tasks, P rungs, which are numbers of environment steps on the test task.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import pathlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarl.analysis import plots, shot_references, statistics
from metarl.analysis.methods import METHODS
from metarl.analysis.report import writing
from metarl.families import RLSpec, ShotSpec, make
from metarl.run.config import RunConfig
from metarl.run.disk import replace_file
from metarl.settings import SettingsError

CELLS, RESULT, TABLE, PICTURE = "references.jsonl", "references.json", "references.csv", "references.png"


class Rung(NamedTuple):
    """A point at which references are scored.

    Attributes:
        steps: environment steps that they have taken on the test task.
        point: of the meta-learner's curve whose episodes the score is taken in: where it has taken as many steps, or the last.
    """

    steps: int
    point: int


def ladder(taken: Sequence[int], multiples: Sequence[int]) -> list[Rung]:
    """Return the rungs of a comparison: no step, every number of steps that the meta-learner took, and multiples of the last.

    Args:
        taken: environment steps that the meta-learner took before each point of its curve.
        multiples: of the most steps.

    >>> [tuple(rung) for rung in ladder([0, 2000, 4000], [10])]
    [(0, 0), (2000, 1), (4000, 2), (40000, 2)]
    """
    last = len(taken) - 1
    own = {steps: point for point, steps in enumerate(taken)}
    beyond = {taken[last] * factor: last for factor in multiples}
    return [Rung(steps, point) for steps, point in sorted({**beyond, **own, 0: own.get(0, 0)}.items())]


def digest(value: Any) -> str:
    """Return what identifies a value made of plain numbers, texts, lists and mappings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Cells:
    """Finished cells, one method on one task at one seed, in a file of JSON lines; a line that was cut is dropped.

    Args:
        file: where; its folder exists.

    Raises:
        SettingsError: if it cannot be read or written.
    """

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, Any]] = {}
        with writing(file.parent):
            data = file.read_bytes() if file.exists() else b""
            whole = [line for line in data.splitlines(keepends=True) if self._read(line)]
            if b"".join(whole) != data:
                replace_file(file, b"".join(whole))

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what is known of a cell; None where it has not been finished."""
        return self._known.get(key)

    def add(self, key: str, found: Mapping[str, Any]) -> None:
        """Keep a finished cell, on disk when this returns."""
        line = json.dumps({"key": key, **found}, allow_nan=False) + "\n"
        with writing(self._file.parent), self._file.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._read(line.encode())

    def _read(self, line: bytes) -> bool:
        """Take a line in; tell whether it is whole."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            cell = json.loads(line)
            if line.endswith(b"\n"):
                self._known[str(cell["key"])] = cell
                return True
        return False


def summarise(cells: Sequence[Sequence[Mapping[str, Any]]], steps: Sequence[int], level: float) -> dict[str, Any]:
    """Return what a method's cells say together: means and intervals over seeds and tasks, and when a level was reached.

    Args:
        cells: of every seed, those of every task.
        steps: environment steps on the test task at each score.
        level: the adapted policy's score.
    """
    values = np.array([[cell["values"] for cell in row] for row in cells])  # (S, M, P)
    each = [statistics.estimate(values[:, :, rung], statistics.mean) for rung in range(len(steps))]
    means = [estimate.value for estimate in each]
    told: dict[str, Any] = {
        "steps": list(steps),
        "mean": means,
        "ci95": [[estimate.low, estimate.high] for estimate in each],
        "values": values.transpose(2, 0, 1).tolist(),
        "reaches_the_adapted_policy_after": statistics.steps_to(level, steps, means),
    }
    solved = [[cell["success"] for cell in row] for row in cells]
    if solved[0][0] is not None:
        told["success"] = np.array(solved).mean((0, 1)).tolist()
    return told


def command(run: pathlib.Path, config: RunConfig, curve: Mapping[str, Any] | None = None) -> str:
    """Return the command that makes references for a run; empty where it can have none.

    Args:
        run: its directory.
        config: its settings.
        curve: what its ``curve.json`` holds; references are then made for the same updates.
    """
    settings = config.env_settings
    never = settings.get("oracle") and not config.run.inner_steps
    with contextlib.suppress(SettingsError):  # of a family that is not installed
        spec, words = make(config.env, **settings).spec, ["python", "-m", "metarl.references", f"run={run}"]
        if not never and isinstance(spec, RLSpec):
            memory = config.algo_settings.get("memory_size")  # which has no updates to name
            like = shot_references.like(curve, ("episodes", "checkpoint", "seed"), updates=not memory)
            return shlex.join([*words, *like])
        if isinstance(spec, ShotSpec) and not shot_references.refusal(config.env, spec):
            return shlex.join([*words, *shot_references.like(curve)])
    return ""


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Say of every reference when it reaches the adapted policy's score, and what the meta-learner needs."""
    meta, unit = result["meta_learner"], result["metric"]
    level, needs = meta["mean"][-1], meta["reaches_the_adapted_policy_after"]
    found = []
    for name, one in result["references"].items():
        reached, steps, mean = one["reaches_the_adapted_policy_after"], one["steps"], one["mean"]
        if not METHODS[name].learns:
            found.append(
                f"{name}, which observes the task, has a {unit} of {mean[0]:.4g}; the adapted policy has {level:.4g}."
            )
        elif reached is None:
            found.append(
                f"{name} does not reach the adapted policy's {unit} of {level:.4g} within {steps[-1]:,} environment steps on the"
                f" test task (it has {mean[-1]:.4g}); the meta-learner needs {needs:,}."
            )
        else:
            found.append(
                f"{name} reaches the adapted policy's {unit} of {level:.4g} after {reached:,.0f} environment steps on the test"
                f" task; the meta-learner needs {needs:,}."
            )
    return found


def write(result: Mapping[str, Any], out: pathlib.Path) -> None:
    """Write a result as JSON, table and picture, each old or new, never half.

    Raises:
        SettingsError: if it cannot be written.
    """
    of_shots = shot_references.holds(result)
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as name:
        fresh = pathlib.Path(name)
        (fresh / RESULT).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with (fresh / TABLE).open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows((shot_references.rows if of_shots else _rows)(result))
        (plots.shot_references if of_shots else plots.references)(result, fresh / PICTURE)
        for file in (TABLE, PICTURE, RESULT):  # the one that is looked for comes last
            (fresh / file).replace(out / file)


def _rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return a head, and a row for every score of every task at every seed."""
    tasks = result["tasks"]
    rows: list[list[Any]] = [["method", "env_steps", "seed", "task", *tasks[0], result["metric"]]]
    ours = result["meta_learner"]
    curves = {"meta-learner": {**ours, "values": [[point] for point in ours["values"]]}, **result["references"]}
    for name, curve in curves.items():
        for steps, seeds in zip(curve["steps"], curve["values"], strict=True):
            for seed, scores in enumerate(seeds):
                for task, score in enumerate(scores):
                    rows.append([name, steps, seed, task, *tasks[task].values(), score])
    return rows
