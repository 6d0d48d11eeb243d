"""What an evaluation prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metarl.run.command import say


def tell(result: Mapping[str, Any], by: str) -> None:
    """Print the means of every run, and what groups of several runs say.

    Args:
        result: what ``curve.json`` holds.
        by: ``"updates"`` or ``"rollouts"``.
    """
    metric = result["metric"]
    for name, run in result["runs"].items():
        protocol = result["notes"][name]["protocol"]
        label = f"{metric} ({protocol})" if protocol else metric
        for what, summary in ((label, run), ("success rate", run.get("success"))):
            if summary is not None:
                say(f"{name}  {what} after {by}  {_points(run[by], summary['mean'], summary['ci95'])}")
    for name, group in result["groups"].items():
        if len(group["runs"]) > 1:
            shown = _points(group[by], group["iqm"], group["iqm_ci95"])
            say(f"{name}, {len(group['runs'])} seeds  interquartile mean of {metric} after {by}  {shown}")
    _tell_better(result["improvement"])
    if "published" in result and by == "updates":
        told = result["published"]
        for curve in told["curves"]:
            points = "  ".join(f"{k}: {value:.4g}" for k, value in zip(curve["updates"], curve["values"], strict=True))
            say(f"published, {curve['method']}  {metric} after updates  {points}")
        say(f"published: {told['source']}. Different there: {told['differs']}")
    for name, steps in result.get("efficiency", {}).get("env_steps", {}).items():
        reached = "was never validated at" if steps is None else f"took {steps:,.0f} training steps to"
        say(f"{name}  {reached} {metric} {result['efficiency']['level']:g}")


def tell_bands(result: Mapping[str, Any], by: str) -> None:
    """Print the mean of every group in every band, with its interval over seeds and tasks.

    Args:
        result: what ``bands.json`` holds.
        by: ``"updates"`` or ``"rollouts"``.
    """
    for band, place in result["bands"].items():
        for name, group in place["groups"].items():
            shown = _points(group[by], group["mean"], group["mean_ci95"])
            say(f"{band}  {name}  mean {result['metric']} after {by}  {shown}")
        _tell_better(place["improvement"], f"{band}  ")


def _tell_better(improvement: Sequence[Mapping[str, Any]], where: str = "") -> None:
    for pair in improvement:
        low, high = pair["ci95"]
        better = f"{pair['probability']:.2f} [{low:.2f}, {high:.2f}]"
        say(f"{where}{pair['group']}  is better than {pair['against']} on a task with probability {better}")


def _points(counts: Sequence[int], means: Sequence[float], intervals: Sequence[Sequence[float]]) -> str:
    points = zip(counts, means, intervals, strict=True)
    return "  ".join(f"{count}: {mean:.4g} [{low:.4g}, {high:.4g}]" for count, mean, (low, high) in points)
