"""Pictures of adaptation and learning."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: a notebook's backend is not ours to choose

# Okabe and Ito's colours, which colour-blind readers tell apart; the markers serve print in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v")


def adaptation(result: Mapping[str, Any], path: pathlib.Path, by: str = "updates") -> None:
    """Draw ``curve.json``: score against updates or rollouts, and each task's last score against its parameter.

    Args:
        result: what ``curve.json`` holds; runs whose note says that they are not adapted are drawn as a level, published
            numbers as grey marks that no line joins.
        path: PNG or SVG to write.
        by: ``"updates"`` or ``"rollouts"``, the horizontal axis; its points are drawn evenly spaced.
    """
    runs, names = result["runs"], list(result["tasks"][0])
    flat = {name for name, note in result.get("notes", {}).items() if not note["adapted"]}
    counts = sorted({count for run in runs.values() for count in run[by]})
    axes = _axes(1 + (len(names) == 1))
    for index, ((name, run), (colour, marker)) in enumerate(zip(runs.items(), _styles(), strict=False)):
        # side by side, so that intervals of the same point do not hide each other
        shift = 0.05 * (index - (len(runs) - 1) / 2)
        at = [counts.index(count) + shift for count in run[by]]
        if name in flat:
            at = [len(counts) - 1 + shift]
            axes[0].axhline(run["mean"][0], color=colour, linestyle="--", linewidth=1.2)
        below, above = np.abs(np.array(run["ci95"]).T - np.array(run["mean"]))
        words = [result.get("notes", {}).get(name, {}).get("protocol", ""), "not adapted" if name in flat else ""]
        shown, line = ", ".join(filter(None, words)), "--" if name in flat else "-"
        label = f"{name} ({shown})" if shown else name
        label = f" {label}" if label.startswith("_") else label  # matplotlib leaves these out of a legend
        bars = axes[0].errorbar(at, run["mean"], [below, above], capsize=3, elinewidth=1, label=label, color=colour)
        bars[0].set(linestyle=line, marker=marker, markersize=5)
        if len(axes) > 1:
            values = [task[names[0]] for task in result["tasks"]]
            axes[1].scatter(values, run["values"][-1], s=22, color=colour, marker=marker, alpha=0.75)
    if by == "updates" and "published" in result:
        _published(axes[0], result["published"], counts)
    axes[0].set_xlabel("inner updates" if by == "updates" else "rollouts that the task has learned from")
    axes[0].set_xticks(range(len(counts)), [str(count) for count in counts])
    # a single point would be drawn on an axis of no width
    axes[0].set_xlim(-0.4, len(counts) - 0.6)
    better = "" if result.get("higher_is_better", True) else ", lower is better"
    axes[0].set_ylabel(_labelled(result["metric"], result["unit"]) + better)
    axes[0].set_title("mean and 95 % interval over tasks", fontsize=10)
    if len(axes) > 1:
        axes[1].set_xlabel(_labelled(names[0], result.get("task_units", {}).get(names[0], "")))
        axes[1].set_ylabel(result["metric"] + better)
        axes[1].set_title("each task, after the last update", fontsize=10)
    family = result.get("family", "")
    _save(axes, path, f"{family}: {len(result['tasks'])} {result['split']} tasks".removeprefix(": "))


def _published(axes: Axes, published: Mapping[str, Any], counts: Sequence[int]) -> None:
    """Draw published scores after the updates that are shown; what was never adapted stands at the right, as our own does."""
    for curve, marker in zip(published["curves"], itertools.cycle("x+12"), strict=False):
        spread = curve.get("ci95", [0.0] * len(curve["values"]))
        alone = curve["updates"] == [0]
        points = [
            (len(counts) - 0.85 if alone else counts.index(updates) + 0.15, value, half)
            for updates, value, half in zip(curve["updates"], curve["values"], spread, strict=True)
            if updates in counts or alone
        ]
        if points:
            at, values, halves = zip(*points, strict=True)
            label = f"{curve['method']}, {published['short']} (published)"
            axes.errorbar(
                at, values, halves, fmt=marker, color="#555555", markersize=8, capsize=2, elinewidth=1, label=label
            )


def before_and_after(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the last score of every task against its first, of all runs that have several points.

    Args:
        result: what ``curve.json`` holds.
        path: PNG or SVG to write.
    """
    axes = _axes(1)
    for (name, run), (colour, marker) in zip(result["runs"].items(), _styles(), strict=False):
        if len(run["values"]) > 1:
            before, after = run["values"][0], run["values"][-1]
            axes[0].scatter(before, after, s=22, color=colour, marker=marker, alpha=0.75, label=name)
    low, high = axes[0].get_xlim()
    axes[0].axline((low, low), (high, high), color="#888888", linewidth=1)
    axes[0].set_xlabel(f"before adapting: {_labelled(result['metric'], result['unit'])}")
    axes[0].set_ylabel("after")
    _save(axes, path, f"each of {len(result['tasks'])} {result['split']} tasks")


def bands(result: Mapping[str, Any], path: pathlib.Path, by: str = "updates") -> None:
    """Draw ``bands.json``: every group's mean in every band, and last scores against the task parameter, or by band.

    Args:
        result: what ``bands.json`` holds; a colour is a band, a marker a group of runs.
        path: PNG or SVG to write.
        by: ``"updates"`` or ``"rollouts"``, the horizontal axis; its points are drawn evenly spaced.
    """
    places, (left, right) = result["bands"], _axes(2)
    labels = list(next(iter(places.values()))["groups"])
    counts = sorted({count for place in places.values() for group in place["groups"].values() for count in group[by]})
    lines = [(band, label) for band in places for label in labels]
    for index, (band, label) in enumerate(lines):
        place, colour = places[band], _COLOURS[list(places).index(band) % len(_COLOURS)]
        group, marker = place["groups"][label], _MARKERS[labels.index(label) % len(_MARKERS)]
        shift = 0.05 * (index - (len(lines) - 1) / 2)
        named: dict[str, Any] = {
            "label": band if len(labels) == 1 else f"{band}, {label}",
            "color": colour,
            "marker": marker,
        }
        at = [counts.index(count) + shift for count in group[by]]
        bars: dict[str, Any] = {"capsize": 3, "elinewidth": 1, "markersize": 5}
        left.errorbar(at, group["mean"], _around(group["mean"], group["mean_ci95"]), **named, **bars)
        if "along" in place:
            values = np.array([task[place["along"]["parameter"]] for task in place["tasks"]])
            own = [place["runs"][name]["values"][-1] for name in group["runs"]]
            right.scatter(values, np.mean(own, 0), s=12, color=colour, marker=marker, alpha=0.4)
            told, middles = place["along"]["groups"][label], np.mean(place["along"]["ranges"], 1)
            right.errorbar(
                middles, told["mean"], _around(told["mean"], told["ci95"]), color=colour, marker=marker, **bars
            )
        else:
            last = [list(places).index(band) + 0.1 * (labels.index(label) - (len(labels) - 1) / 2)]
            right.errorbar(
                last, group["mean"][-1:], _around(group["mean"][-1:], group["mean_ci95"][-1:]), **named, **bars
            )
    better = "" if result["higher_is_better"] else ", lower is better"
    left.set_xlabel("inner updates" if by == "updates" else "rollouts that the task has learned from")
    left.set_xticks(range(len(counts)), [str(count) for count in counts])
    left.set_xlim(-0.5, len(counts) - 0.5)
    left.set_ylabel(_labelled(result["metric"], result["unit"]) + better)
    left.set_title("mean and 95 % interval over seeds and tasks", fontsize=10)
    right.set_title("after the last update", fontsize=10)
    along = next(iter(places.values())).get("along")
    if along is None:
        right.set_xticks(range(len(places)), list(places), rotation=20)
    else:
        right.set_xlabel(_labelled(along["parameter"], result["task_units"].get(along["parameter"], "")))
    tasks = len(next(iter(places.values()))["tasks"])
    _save([left, right], path, f"{result['family']}: {tasks} {result['split']} tasks of each band")


def _around(means: Sequence[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """Return how far intervals reach below and above their means, (2, N)."""
    distances: np.ndarray = np.abs(np.array(intervals).T - np.array(means))
    return distances


def learning(runs: Mapping[str, Sequence[Mapping[str, float]]], metric: str, unit: str, path: pathlib.Path) -> None:
    """Draw training curves: the score before and after adapting against environment steps.

    Args:
        runs: rows of ``metrics.jsonl`` by the run's name.
        metric: ``"return"``, ``"mse"``, ...
        unit: its unit.
        path: PNG or SVG to write.
    """
    axes = _axes(1)
    for (name, rows), (colour, _) in zip(runs.items(), _styles(), strict=False):
        steps = [row["env_steps"] / 1e6 for row in rows]
        before, after = ([row[f"{stage}_{metric}"] for row in rows] for stage in ("pre", "post"))
        adapts = before != after
        axes[0].plot(steps, _smooth(after), color=colour, label=f"{name}, after adapting" if adapts else name)
        if adapts:
            axes[0].plot(steps, _smooth(before), ":", color=colour, label=f"{name}, before")
    axes[0].set_xlabel("environment steps of training (millions)")
    axes[0].set_ylabel(_labelled(metric, unit))
    _save(axes, path, "training tasks, mean of 10 iterations")


def references(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw ``references.json``: score against environment steps on the test task, the meta-learner's and every reference's.

    Args:
        result: what ``references.json`` holds; a reference with one point is drawn as a level.
        path: PNG or SVG to write.
    """
    ours, axes = result["meta_learner"], _axes(1)
    curves = {f"{result['run']} ({result['algorithm']})": ours, **result["references"]}
    first, last = (pick(s for c in curves.values() for s in c["steps"] if s > 0) for pick in (min, max))
    for index, ((name, curve), (colour, marker)) in enumerate(zip(curves.items(), _styles(), strict=False)):
        below, above = np.abs(np.array(curve["ci95"]).T - np.array(curve["mean"]))
        alone = len(curve["steps"]) == 1
        if alone:
            axes[0].axhline(curve["mean"][0], color=colour, linestyle="--", linewidth=1.2)
        # side by side, so that intervals of the same point do not hide each other; no step is half a decade before the first
        shift = 1.04 ** (index - (len(curves) - 1) / 2)
        at = [last * 1.6 * shift if alone else max(steps, first / 3) * shift for steps in curve["steps"]]
        label = f" {name}" if name.startswith("_") else name  # matplotlib leaves these out of a legend
        bars = axes[0].errorbar(at, curve["mean"], [below, above], capsize=3, elinewidth=1, label=label, color=colour)
        bars[0].set(
            linestyle="--" if alone else "-", marker=marker, markersize=5, linewidth=2.2 if curve is ours else 1.3
        )
    axes[0].axhline(ours["mean"][-1], color="#888888", linestyle=":", linewidth=1)  # what references are to reach
    ends = [math.floor(math.log10(steps)) for steps in (first, last)]
    # threes, too, where there are few tens
    marks = [m * 10.0**n for n in range(ends[0], ends[1] + 1) for m in ((1, 3) if ends[1] - ends[0] < 3 else (1,))]
    marks = [steps for steps in marks if first <= steps <= last] or [first]
    axes[0].set_xscale("log")
    axes[0].set_xlim(first / 4, last * 2.2)
    axes[0].set_xticks([first / 3, *marks], ["0", *(f"{steps:,.0f}" for steps in marks)])
    axes[0].minorticks_off()
    axes[0].set_xlabel("environment steps on the test task")
    axes[0].set_ylabel(_labelled(result["metric"], result["unit"]))
    seeds = result["seeds"]
    axes[0].set_title(
        f"mean and 95 % interval over tasks, and {seeds} seed{'s' * (seeds > 1)} of references", fontsize=10
    )
    _save(axes, path, f"{result['family']}: {len(result['tasks'])} {result['split']} tasks")


def shot_references(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw ``references.json`` of labelled shots: the adaptation curve with a level for each reference, and paired differences.

    Args:
        result: what ``references.json`` holds.
        path: PNG or SVG to write.
    """
    ours, others, (left, right) = result["meta_learner"], result["references"], _axes(2)
    counts, styles = ours["updates"], _styles()
    colour, marker = next(styles)
    label = f"{result['run']} ({result['algorithm']})"
    label = f" {label}" if label.startswith("_") else label  # matplotlib leaves these out of a legend
    bars: dict[str, Any] = {"capsize": 3, "elinewidth": 1, "markersize": 5}
    around = _around(ours["mean"], ours["ci95"])
    left.errorbar(
        range(len(counts)), ours["mean"], around, label=label, color=colour, marker=marker, linewidth=2.2, **bars
    )
    for index, ((name, one), (colour, marker)) in enumerate(zip(others.items(), styles, strict=False)):
        named: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "--", **bars}
        left.axhline(one["mean"], color=colour, linestyle="--", linewidth=1.2)
        at = [len(counts) - 0.7 + 0.2 * index]
        left.errorbar(at, [one["mean"]], _around([one["mean"]], [one["ci95"]]), label=name, **named)
        mean, interval = one["difference"]["mean"], one["difference"]["ci95"]
        right.errorbar([mean], [-index], xerr=_around([mean], [interval]), **named)
    left.set_xlabel("inner updates")
    left.set_xticks(range(len(counts)), [str(count) for count in counts])
    left.set_xlim(-0.4, len(counts) - 0.5 + 0.2 * len(others))
    shown = f", {result['protocol']}" if result["protocol"] else ""
    left.set_ylabel(_labelled(result["metric"], result["unit"]) + shown)
    left.set_title("mean and 95 % interval over tasks", fontsize=10)
    right.axvline(0.0, color="#888888", linestyle=":", linewidth=1)
    right.set_yticks([-index for index in range(len(others))], list(others))
    right.set_ylim(0.5 - len(others), 0.5)
    right.set_xlabel(f"{result['metric']} after the last update minus the reference's")
    right.set_title("paired by task", fontsize=10)
    _save([left, right], path, f"{result['family']}: {len(result['tasks'])} {result['split']} tasks")


def _axes(count: int) -> list[Axes]:
    figure = Figure(figsize=(5.5 * count, 4.4), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False).flat)


def _styles() -> Iterator[tuple[str, str]]:
    """Colours and markers in step, in all 30 combinations, again and again."""
    return zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)


def _labelled(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _save(axes: Sequence[Axes], path: pathlib.Path, title: str) -> None:
    """Write the figure with its title above and the legend below, where it covers no data."""
    figure = axes[0].get_figure()
    assert isinstance(figure, Figure)
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    # a run's name is text, whatever characters it has
    with mpl.rc_context({"text.parse_math": False}):
        figure.suptitle(title, fontsize=11)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(axes)), fontsize=9)
        figure.savefig(path, dpi=130)


def _smooth(values: Sequence[float], width: int = 10) -> list[float]:
    return [float(np.mean(values[max(0, i + 1 - width) : i + 1])) for i in range(len(values))]
