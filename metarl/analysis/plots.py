"""Pictures of adaptation and learning."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def adaptation(result: Mapping[str, Any], path: pathlib.Path, flat: Sequence[str] = ()) -> None:
    """Draw ``curve.json``: score against updates or rollouts, and each task's last score against its parameter.

    Args:
        result: what ``curve.json`` holds.
        path: PNG or SVG to write.
        flat: runs that do not adapt, drawn as a level.
    """
    by_rollouts = any(run["updates"] != list(range(len(run["updates"]))) for run in result["runs"].values())
    names = list(result["tasks"][0]) if result["tasks"] else []
    scatter = len(names) == 1
    figure, axes = plt.subplots(1, 1 + scatter, figsize=(5.5 * (1 + scatter), 4.2), squeeze=False, layout="constrained")
    left = axes[0, 0]
    for colour, (name, run) in zip(_COLOURS * 9, result["runs"].items(), strict=False):
        mean, ci = np.array(run["mean"]), np.array(run["ci95"])
        if name in flat:
            left.axhline(mean[0], color=colour, linestyle="--", label=f"{name} (not adapted)")
            left.axhspan(*ci[0], color=colour, alpha=0.12, linewidth=0)
        else:
            x = np.array(run["rollouts"] if by_rollouts else run["updates"])
            left.plot(x, mean, "o-", color=colour, label=name)
            left.fill_between(x, ci[:, 0], ci[:, 1], color=colour, alpha=0.2, linewidth=0)
        if scatter:
            values = np.array(run["values"])[0 if name in flat else -1]
            axes[0, 1].scatter([task[names[0]] for task in result["tasks"]], values, s=16, color=colour, label=name)
    left.set_xlabel("rollouts that the task has seen" if by_rollouts else "inner updates")
    left.set_ylabel(f"{result['metric']} ({result['unit']})" if result["unit"] else result["metric"])
    left.set_title(f"{len(result['tasks'])} {result['split']} tasks, mean and 95 % interval", fontsize=10)
    if not by_rollouts:
        left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    if scatter:
        axes[0, 1].set_xlabel(names[0])
        axes[0, 1].set_ylabel(f"{result['metric']} after the last update")
        axes[0, 1].set_title("each task", fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def learning(runs: Mapping[str, Sequence[Mapping[str, float]]], metric: str, unit: str, path: pathlib.Path) -> None:
    """Draw training curves: the score before and after adapting against environment steps.

    Args:
        runs: rows of ``metrics.jsonl`` by the run's name.
        metric: ``"return"``, ``"mse"``, ...
        unit: its unit.
        path: PNG or SVG to write.
    """
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for colour, (name, rows) in zip(_COLOURS * 9, runs.items(), strict=False):
        steps = [row["env_steps"] / 1e6 for row in rows]
        axis.plot(
            steps, _smooth([row[f"post_{metric}"] for row in rows]), color=colour, label=f"{name}, after adapting"
        )
        before = [row[f"pre_{metric}"] for row in rows]
        if before != [row[f"post_{metric}"] for row in rows]:
            axis.plot(steps, _smooth(before), ":", color=colour, label=f"{name}, before")
    axis.set_xlabel("environment steps of training (millions)")
    axis.set_ylabel(f"{metric} ({unit})" if unit else metric)
    axis.set_title("training tasks, mean of 10 iterations", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _smooth(values: Sequence[float], width: int = 10) -> list[float]:
    return [float(np.mean(values[max(0, i + 1 - width) : i + 1])) for i in range(len(values))]
