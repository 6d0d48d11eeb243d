"""Tables and pictures of policies for traffic signals beside the controllers, made from their summary alone.

Times are mean times of a trip, s. Kinds of runs: ``start``, with whose parameters ``maml`` starts; ``pretrained``, which never
adapted in training and had as many samples as those two; ``oracle``, which sees the task;
``specialist``, the pretrained policy after training on each task alone.

Shapes: S seeds, K updates, M tasks, A arrivals (episodes).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import recording

_KINDS = {
    "maml": "MAML, intersections adapt together",
    "local": "MAML, each intersection adapts for itself",
    "pretrained": "domain-randomised, as many samples",
    "pretrained-local": "the same, each intersection adapts for itself",
    "oracle": "sees the task",
    "specialist": "the pretrained policy trained on, on each task alone",
    "specialist-local": "likewise, each intersection for itself",
}


def mark(env: str, what: str = "") -> str:
    """Return what stands before and behind a table in the page of experiments."""
    return f"<!-- {' '.join(filter(None, (env, what)))} -->"


def insert(env: str, what: str, text: str) -> None:
    """Put a table into the page of experiments, where it has a place for it."""
    if recording.README.exists() and recording.README.read_text(encoding="utf-8").count(mark(env, what)) == 2:
        recording.insert(recording.README, mark(env, what), text)
    else:
        print(f"{recording.README} has no two marks {mark(env, what)}: the table is not put there")


def publish(summary: Mapping[str, Any], results: pathlib.Path, tiny: bool) -> None:
    """Write ``summary.md`` and ``curve.png``, print the table, and put it into the page of experiments."""
    text = report(summary)
    (results / "summary.md").write_text(text, encoding="utf-8")
    draw(summary, results / "curve.png")
    print(text)
    if not tiny:
        shown = recording.pictures(results, recording.README)
        if (results / "film.png").exists():
            shown += (
                f"\n![one grid before and after adapting]({results.relative_to(recording.README.parent)}/film.png)\n"
            )
        insert(summary["settings"]["env"], "", f"{shown}\n{text}")


def report(summary: Mapping[str, Any]) -> str:
    """Return the summary in Markdown."""
    settings, lines = summary["settings"], list[str]()
    for what, found in summary["grids"].items():
        lines += [
            f"Mean time of a trip, s, on {len(found['own']['names'])} held-out tasks of {settings['env']} on a {found['grid']} grid"
            f" ({what}), {settings['arrivals']} episodes of each, the same for everybody; 95 % intervals over tasks. Adaptation"
            " rates: chosen on validation tasks of the grid of training; an update looks at as many episodes for everybody.",
            "",
            *_table(found, brief=what != "trained on"),
            "",
            *_comparisons(found),
            "",
        ]
    return "\n".join([*lines, *_made(summary), *recording.origin(summary)])


def _made(summary: Mapping[str, Any]) -> list[str]:
    """Say what runs there were, and what was planned and is not there."""
    lines = ["| run | iterations | env steps | hours | adaptation rates |", "| --- | --- | --- | --- | --- |"]
    for label, run in summary["runs"].items():
        planned, rates = summary["planned"][label], summary["rates"].get(label, [])
        made = f"{run['iterations']}" if run["iterations"] >= planned else f"{run['iterations']} of {planned}"
        shown = ", ".join(f"{rate:.3g}" for rate in rates) or "not adapted"
        lines.append(f"| {label} | {made} | {run['env_steps'] / 1e6:.2f} M | {run['hours']:.2f} | {shown} |")
    missing = [label for label in summary["planned"] if label not in summary["runs"]]
    if missing:
        lines += ["", f"Not run yet, and so not shown: {', '.join(missing)}."]
    # MAML's samples are its own and those of the run that it starts from
    own = {label: run["env_steps"] for label, run in summary["runs"].items()}
    begun = {label: f"start-s{label.rpartition('-s')[2]}" for label in own if label.startswith(("maml", "local"))}
    steps = [own[x] + own.get(begun.get(x, ""), 0) for x in summary["rates"] if x in own]
    steps += [own[label] for label in own if label.startswith("oracle")]
    if max(steps) > 1.02 * min(steps):
        lines += ["", "The runs have not all had as many samples: what compares them is not the last word."]
    return lines


def kinds(found: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return the times (K + 1, M, A) of every run by its kind and its seed."""
    several: dict[str, dict[str, np.ndarray]] = {}
    for label, times in found["times"].items():
        kind, _, seed = label.rpartition("-s")
        several.setdefault(kind, {})[seed] = np.array(times)
    return several


def _table(found: Mapping[str, Any], brief: bool = False) -> list[str]:
    """Return controllers and runs; ``brief``: the best controllers and the means over seeds alone."""
    several = kinds(found)
    points = max(len(times) for runs in several.values() for times in runs.values())
    heads = ["no update", "1 update", *[f"{k} updates" for k in range(2, points)]]
    lines = [f"| | {' | '.join(heads[:points])} |", "| --- |" + " --- |" * points]
    rows = {name: np.array(times)[None] for name, times in found["controllers"].items() if not brief}
    rows[f"best common controller: {found['common']['name']}"] = np.array(found["common"]["times"])[None]
    rows["each task's own best controller"] = np.array(found["own"]["times"])[None]
    for kind, runs in several.items():
        rows[f"**{kind}** ({_KINDS.get(kind, kind)})"] = np.mean(list(runs.values()), axis=0)
        if len(runs) > 1 and not brief:
            rows |= {f"{kind}-s{seed}": times for seed, times in runs.items()}
    for name, times in rows.items():
        cells = [_interval(each) for each in times.mean(-1)] + [""] * (points - len(times))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _comparisons(found: Mapping[str, Any]) -> list[str]:
    """Say what adapting gains over the policy that never adapts, task by task, and how much of what there is to gain."""
    several = kinds(found)
    # the second half of the arrivals had no say in the choice of a task's own controller
    own, common = (np.array(found[name]["times"]) for name in ("own", "common"))
    half = own.shape[1] // 2
    room = _estimate((1 - own[:, half:].mean(1) / common[:, half:].mean(1))[None])
    lines = [f"- own over best common controller, on arrivals that had no say: {room} %"]
    adapting = [kind for kind in ("maml", "local", "pretrained-local") if kind in several]
    if "pretrained" not in several or not adapting:
        return [*lines, "- maml and pretrained are not both there, and so are not compared."]
    for kind in adapting:
        lines += _compared(kind, several, own[:, half:])
    return list(dict.fromkeys(lines))  # how large a gap is stands with every kind that closes some of it


def _compared(kind: str, several: Mapping[str, Mapping[str, np.ndarray]], own: np.ndarray) -> list[str]:
    """Compare a kind with the pretrained policies; ``own`` (M, arrivals) are the times of each task's own controller at last."""
    adapted, start = _paired(several[kind], several["pretrained"])  # (S, K + 1, M, A), (S, M, A)
    before, lines, half = start.mean(-1), list[str](), start.shape[-1] // 2
    for k in range(int(kind == "pretrained-local"), adapted.shape[1]):
        after = adapted[:, k].mean(-1)
        share = (after.mean(0) < before.mean(0)).mean()
        lines.append(
            f"- {kind} after {k} over pretrained after 0: {_estimate(1 - after / before)} % of a trip's time, better on"
            f" {share:.0%} of tasks{_each([100 * (1 - a / b).mean() for a, b in zip(after, before, strict=True)], 1)}"
        )
    for k in range(1, adapted.shape[1] if kind != "pretrained-local" else 0):
        gains = 1 - adapted[:, k].mean(-1) / adapted[:, 0].mean(-1)
        lines.append(f"- {kind} after {k} over itself before: {_estimate(gains)} %{_each(100 * gains.mean(1), 1)}")
    for end, what in (
        ("oracle", "the policy that sees the task"),
        ("specialist", "a policy trained on the task alone"),
        ("specialist-local", "a policy trained on the task alone, each intersection for itself"),
    ):
        if end in several:
            lines += _closed(what, kind, adapted, start, np.mean(list(several[end].values()), axis=0)[0])
    return lines + _closed("each task's own best controller", kind, adapted[..., half:], start[..., half:], own)


def _paired(adapted: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put seeds together where both kinds have the same; otherwise compare with the mean of the others'."""
    first = {seed: times[0] for seed, times in start.items()}
    mean = np.mean(list(first.values()), axis=0)
    same = adapted.keys() == first.keys()
    return np.stack(list(adapted.values())), np.stack([first[seed] if same else mean for seed in adapted])


def _closed(what: str, kind: str, adapted: np.ndarray, start: np.ndarray, end: np.ndarray) -> list[str]:
    r"""Say which part of the gap is closed, $(start - adapted_k) / (start - end)$ of means.

    Args:
        what: whose times are the end.
        kind: who adapts.
        adapted: (S, K + 1, M, A).
        start: (S, M, A).
        end: (M, A).
    """
    times, before, last = adapted.mean(-1), start.mean(-1), end.mean(-1)
    mean = before.mean(0)
    lines = [f"- {what} over pretrained after 0: {_estimate((1 - last / mean)[None])} %"]
    if last.mean() >= mean.mean():
        return [f"{lines[0]}; it gains nothing, so that there is no gap to close"]
    for k in range(1, times.shape[1]):
        after = times[:, k].mean(0)
        low, high = recording.bootstrap(
            lambda rows, after=after: recording.gap(after[rows], mean[rows], last[rows]), len(last)
        )
        each = [recording.gap(one, other, last) for one, other in zip(times[:, k], before, strict=True)]
        lines.append(
            f"- of the gap to {what}, closed by {kind} after {k}: {recording.gap(after, mean, last):.2f} [{low:.2f}, {high:.2f}]"
            f"{_each(each, 2)}"
        )
    return lines


def _each(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """List the values of several seeds."""
    return f" (each seed: {', '.join(f'{value + 0.0:.{digits}f}' for value in values)})" if len(values) > 1 else ""


def _estimate(gains: np.ndarray) -> str:
    """Return the mean of gains (S, M) in percent, with its interval over seeds and tasks."""
    from metarl.analysis import statistics

    found = statistics.estimate(100 * gains, statistics.mean)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _interval(values: np.ndarray) -> str:
    from metarl.analysis.curves import interval

    low, high = interval(values)
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


def draw(summary: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw what is saved of a trip's time against updates, one panel a grid: means of seeds, intervals over tasks, levels.

    Task by task against the best common controller, whose times differ more from task to task than anything else.
    """
    from matplotlib.figure import Figure

    from metarl.analysis.curves import interval

    grids = summary["grids"]
    columns = min(3, len(grids))
    down = -(-len(grids) // columns)
    figure = Figure(figsize=(5.0 * columns, 3.8 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, columns, squeeze=False).ravel()
    for axes in panels[len(grids) :]:
        axes.set_axis_off()
    for axes, (what, found) in zip(panels, grids.items(), strict=False):
        common = np.array(found["common"]["times"]).mean(-1)
        for index, (kind, runs) in enumerate(kinds(found).items()):
            each = [100 * (1 - times.mean(-1) / common) for times in runs.values()]  # (K + 1, M)
            saved, colour = np.mean(each, axis=0), f"C{index}"
            if len(saved) == 1:
                axes.axhline(saved.mean(), color=colour, linestyle="--", label=f"{kind} ({_KINDS.get(kind, kind)})")
                continue
            below, above = np.abs(interval(saved).T - saved.mean(1))
            at = np.arange(len(saved)) + 0.04 * index
            axes.errorbar(at, saved.mean(1), [below, above], color=colour, marker="o", ms=4, capsize=3, label=kind)
            for one in each:
                axes.plot(at, one.mean(1), color=colour, linewidth=0.6, alpha=0.6)
        axes.axhline(0.0, color="black", linestyle=":", linewidth=1, label="best common controller")
        own = 100 * (1 - np.array(found["own"]["times"]).mean(-1) / common)
        axes.axhline(own.mean(), color="black", linestyle="-.", linewidth=1, label="each task's own best controller")
        axes.set_title(f"{found['grid']} ({what}), {len(own)} tasks", fontsize=10)
        axes.set_xlabel("inner updates")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    for axes in panels[::columns]:
        axes.set_ylabel("saved of a trip's time, % (thin lines: seeds)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
