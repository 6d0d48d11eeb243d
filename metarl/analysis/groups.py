"""Runs that differ in nothing but their seeds, taken together: what an adaptation curve says beyond its tasks."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.analysis import statistics
from metarl.analysis.statistics import Estimate, steps_to
from metarl.run.config import RunConfig, difference
from metarl.run.directory import METRICS

# What two runs of one thing may differ in: the seed, and where, how long and how often they say something.
_FREE = {
    f"run.{name}"
    for name in (
        "seed",
        "run_dir",
        "resume",
        "device",
        "threads",
        "eval_every",
        "eval_tasks",
        "eval_steps",
        "checkpoint_every",
    )
}


def grouped(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Return the group of each run: those that differ in their seeds alone share one, named by what their names share.

    Runs that start from others (``init_from=``) of the same name, each with its own seed behind it, do not differ by that.
    """
    members: list[list[str]] = []
    for name, config in configs.items():
        same = next((g for g in members if not _differ(configs[g[0]], config)), None)
        if same is None:
            members.append([name])
        else:
            same.append(name)
    named = [_shared(group) for group in members]
    labels = [label if named.count(label) == 1 else group[0] for label, group in zip(named, members, strict=True)]
    return {name: label for label, group in zip(labels, members, strict=True) for name in group}


def _differ(one: RunConfig, other: RunConfig) -> bool:
    """Tell whether two runs differ in more than their seeds."""
    keys = set(difference(one, other)) - _FREE
    starts = [re.sub(rf"[-_./]?(s|seed)?[-_=]?{c.run.seed}/?$", "", c.run.init_from or "") for c in (one, other)]
    return bool(keys - {"run.init_from"} if starts[0] == starts[1] else keys)


def by_name(names: Sequence[str]) -> dict[str, str]:
    """Return the group of each run by its name alone, ``maml-s0`` and ``maml-s1``; for results that say no more."""
    return {name: re.sub(r"-s\d+$", "", name) for name in names}


def together(
    configs: Mapping[str, RunConfig],
    result: Mapping[str, Any],
    level: float | None = None,
    paths: Mapping[str, pathlib.Path] | None = None,
) -> dict[str, Any]:
    """Return all that the runs of an evaluation say together.

    Args:
        configs: of every run.
        result: what ``curve.json`` holds of the runs.
        level: a validation score, for :func:`efficiency`; None leaves that out.
        paths: directory of every run, for the same.
    """
    members = grouped(configs)
    found: dict[str, Any] = {"groups": summarise(result, members), "improvement": compare(result, members)}
    where = along(result, members)
    found |= {} if where is None else {"along": where}
    return found if level is None else found | {"efficiency": efficiency(level, paths or {}, result, members)}


def summarise(result: Mapping[str, Any], groups: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return interquartile mean and mean of every group at every point, with intervals over seeds and tasks.

    Args:
        result: what ``curve.json`` holds.
        groups: the group of each run.
    """
    return {
        label: _summary([result["runs"][name] for name in names], names) for label, names in _members(groups).items()
    }


def compare(result: Mapping[str, Any], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return how probably the first group is better than each other after the last update, on a task and by a run of each."""
    members, sign = _members(groups), 1.0 if result["higher_is_better"] else -1.0
    last = {
        label: sign * np.array([result["runs"][name]["values"][-1] for name in names])
        for label, names in members.items()
    }
    first, *others = members
    return [
        {"group": first, "against": other, **_told("probability", statistics.improvement(last[first], last[other]))}
        for other in others
    ]


def along(result: Mapping[str, Any], groups: Mapping[str, str], parts: int = 4) -> dict[str, Any] | None:
    """Return the mean last score of every group in parts of the task parameter's range; None where a task is several numbers.

    Args:
        result: what ``curve.json`` holds, with ``task_ranges``.
        groups: the group of each run.
        parts: of equal width; where there are no more different tasks than that, each is a part by itself.

    Returns:
        The parameter's name, the ends and the number of tasks of every part that has any, and means with intervals over seeds
        and tasks.
    """
    parameter, *others = result["tasks"][0]
    if others:
        return None
    values = np.array([task[parameter] for task in result["tasks"]])
    different, where = np.unique(values, return_inverse=True)
    ends = [[float(value)] * 2 for value in different]
    if len(different) > parts:
        low, high = result["task_ranges"][parameter]
        edges = np.linspace(min(low, values.min()), max(high, values.max()), parts + 1)
        where = np.digitize(values, edges[1:-1])
        ends = [[float(edge), float(following)] for edge, following in itertools.pairwise(edges)]
    filled = [part for part in range(len(ends)) if (where == part).any()]
    told = {}
    for label, names in _members(groups).items():
        last = np.array([result["runs"][name]["values"][-1] for name in names])
        each = [statistics.estimate(last[:, where == part], statistics.mean) for part in filled]
        told[label] = {"mean": [e.value for e in each], "ci95": [[e.low, e.high] for e in each]}
    counts = [int((where == part).sum()) for part in filled]
    return {"parameter": parameter, "ranges": [ends[part] for part in filled], "tasks": counts, "groups": told}


def efficiency(
    level: float, paths: Mapping[str, pathlib.Path], result: Mapping[str, Any], groups: Mapping[str, str]
) -> dict[str, Any]:
    """Return the environment steps of training after which each run's validation score reached a level.

    Args:
        level: of the score after the most inner updates that were validated.
        paths: directory of every run.
        result: what ``curve.json`` holds, of which the metric is needed.
        groups: the group of each run.
    """
    metric, better = result["metric"], result["higher_is_better"]
    steps = {name: steps_to(level, *_validations(path, metric), better) for name, path in paths.items()}
    told = {}
    for label, names in _members(groups).items():
        reached = [taken for name in names if (taken := steps[name]) is not None]
        # the middle of all runs, which those that never reached it are behind
        median = float(np.median([np.inf if (taken := steps[name]) is None else taken for name in names]))
        told[label] = {
            "reached": len(reached),
            "of": len(names),
            "median": median if np.isfinite(median) else None,
        }
    return {"level": level, "env_steps": steps, "groups": told}


def table_of_bands(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return the groups of ``bands.json`` as rows with a head: :func:`table` of every band below each other."""
    tables = {band: table(place) for band, place in result["bands"].items()}
    head = next(iter(tables.values()))[0]
    return [["band", *head], *([band, *row] for band, (_, *rows) in tables.items() for row in rows)]


def table(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return the groups of ``curve.json`` as rows with a head: one for every group, point and statistic."""
    rows: list[list[Any]] = [["group", "runs", "tasks", "updates", "rollouts", "statistic", "value", "low", "high"]]
    for label, group in result["groups"].items():
        for point, (updates, rollouts) in enumerate(zip(group["updates"], group["rollouts"], strict=True)):
            for statistic in ("iqm", "mean"):
                interval = group[f"{statistic}_ci95"][point]
                head = [label, len(group["runs"]), len(result["tasks"]), updates, rollouts]
                rows.append([*head, statistic, group[statistic][point], *interval])
    return rows


def _members(groups: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name, label in groups.items():
        members.setdefault(label, []).append(name)
    return members


def _summary(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    points = min(len(run["values"]) for run in runs)
    values = np.array([run["values"][:points] for run in runs])  # (S, points, M)
    told: dict[str, Any] = {
        "runs": list(names),
        "updates": runs[0]["updates"][:points],
        "rollouts": runs[0]["rollouts"][:points],
    }
    for name, statistic in (("iqm", statistics.iqm), ("mean", statistics.mean)):
        each = [statistics.estimate(values[:, point], statistic) for point in range(points)]
        told |= {name: [e.value for e in each], f"{name}_ci95": [[e.low, e.high] for e in each]}
    return told


def _told(name: str, estimated: Estimate) -> dict[str, Any]:
    return {name: estimated.value, "ci95": [estimated.low, estimated.high]}


def _validations(path: pathlib.Path, metric: str) -> tuple[list[float], list[float]]:
    """Return environment steps and the validation score after the most updates, as ``metrics.jsonl`` has them."""
    rows = [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]
    prefix = f"validation_{metric}_"
    known = [row for row in rows if f"{prefix}0" in row]
    if not known:
        return [], []
    last = max(int(key.removeprefix(prefix)) for key in known[-1] if key.startswith(prefix))
    return [row["env_steps"] for row in known], [row[f"{prefix}{last}"] for row in known]


def _shared(names: Sequence[str]) -> str:
    """``["maml-s0", "maml-s1"]`` as ``maml``; one name as it is."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike)
    return (shared if len(names) == 1 else re.sub(r"[-_./ ]*(s|seed)?[-_=]?\d*$", "", shared)) or names[0]
