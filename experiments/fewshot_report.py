"""Tables and pictures of few-shot results, made from the result file alone."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# where the statistics come from that normalise a query
PROTOCOLS = {
    "transductive": "transductive",
    "support": "support statistics",
    "one-by-one": "one query at a time",
    "running": "running statistics",
    "": "no network",
}


def report(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    rows, columns = result["rows"], _columns(result)
    alone = f" (one query at a time: on the first {result['alone']} of them)" if result["alone"] else ""
    lines = [
        f"`{result['env']}`, {result['ways']} ways, {result['shots']} shots: accuracy in % on {result['tasks']} test tasks{alone}"
        f" of {result['queries']} queries a class, mean ± 95 % interval over tasks. By whose statistics a query is normalised: all"
        " queries' (transductive), the support set's, those of the support set with that query alone, or training's (running)."
        " Parameters: the best on validation classes; number of updates, and what a reference has to choose: the best on 200"
        " validation tasks.",
        "",
        f"| method | updates | {' | '.join(columns.values())} | trained with | iterations | best at | minutes | seeds |",
        "| --- |" + " --- |" * (len(columns) + 6),
    ]
    for name, row in rows.items():
        cells = [_cell(row, protocol) for protocol in columns]
        made = [_range(row["iterations"]), _range(row["selected"]), _range(row["minutes"], ".0f")]
        lines.append(
            f"| {name} | {row['updates'] or ''} | {' | '.join(cells)} | {row['trained']} | {' | '.join(made)} |"
            f" {len(row['iterations']) or ''} |"
        )
    origin = result["provenance"]
    commits = sorted({commit for row in rows.values() for commit in row["commits"]})
    usual = {**origin, "command": result["command"]}  # of a file in which rows do not say how they were judged
    judged = {name: usual | row.get("judged", {}) for name, row in rows.items()}
    every = [
        *(command for row in rows.values() for command in row["commands"]),
        *(one["command"] for one in judged.values()),
    ]
    lines += ["", "Commands:", "", "```", *dict.fromkeys(every), "```", ""]
    lines += [
        f"Commits: {', '.join(commits)}; evaluation {_by(judged, '{commit}')}.",
        f"Hardware: {_by(judged, '{cpu}, {cores} cores. Versions: {versions}')}.",
        "",
    ]
    return "\n".join(lines)


def _by(judged: Mapping[str, Mapping[str, Any]], form: str) -> str:
    """Return what a form says of the rows, with their names where it is not the same for all."""
    found: dict[str, list[str]] = {}
    for name, one in judged.items():
        found.setdefault(form.format(**one), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


def _columns(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the protocols by which any row was judged, with their headings."""
    found = {name: None for row in result["rows"].values() for name in row["protocols"]}
    return {name: PROTOCOLS.get(name, name) for name in [*PROTOCOLS, *found] if name in found}


def _cell(row: Mapping[str, Any], protocol: str) -> str:
    """Return accuracy and interval after the chosen number of updates; empty where the protocol does not apply."""
    found = row["protocols"].get(protocol)
    if found is None:
        return ""
    at = found["updates"].index(found.get("chosen_updates", row["updates"]))
    mean, (low, high) = found["mean"][at], found["ci95"][at]
    if mean is None or not math.isfinite(mean):  # in a file what diverged is null
        return "diverged"
    return f"{100 * mean:.2f} ± {50 * (high - low):.2f}"


def _range(values: Sequence[float], form: str = "") -> str:
    """Return a number, or the least and the greatest of several."""
    if not values:
        return ""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def draw(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw accuracy against inner updates with intervals over tasks, one panel for each protocol that has a curve.

    What does not adapt by updates is a level; pixels, which no network normalises, are the same level in every panel.
    """
    from matplotlib.figure import Figure

    rows, columns = result["rows"], _columns(result)
    shown = [p for p in columns if any(len(_curve(row, p)["mean"]) > 1 for row in rows.values())]
    figure = Figure(figsize=(5.2 * max(1, len(shown)), 4.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(shown)), squeeze=False, sharey=True)[0]
    for axes, protocol in zip(panels, shown, strict=False):
        for index, (name, row) in enumerate(rows.items()):
            curve = _curve(row, protocol) if protocol in row["protocols"] else _curve(row, "")
            _line(axes, curve, name, index)
        axes.set_title(columns[protocol], fontsize=10)
        axes.set_xlabel("inner updates")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, mean and 95 % interval over tasks")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 1 + len(handles)), fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _curve(row: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    empty: Mapping[str, Any] = {"updates": [], "mean": [], "ci95": []}
    return row["protocols"].get(protocol, empty)


def _line(axes: Any, curve: Mapping[str, Any], name: str, index: int) -> None:
    """Draw a curve, or a level where there is one point only; the same row has the same colour in all panels."""
    colour = f"C{index % 10}"
    if len(curve["mean"]) > 1:
        axes.plot(curve["updates"], np.array(curve["mean"], dtype=float), marker="o", ms=3, color=colour, label=name)
        axes.fill_between(
            curve["updates"], *np.array(curve["ci95"], dtype=float).T, color=colour, alpha=0.2, linewidth=0
        )
    elif curve["mean"]:
        axes.axhline(curve["mean"][0], color=colour, linestyle="--", linewidth=1, label=name)
