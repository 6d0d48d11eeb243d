"""What recorded trainings share: runs that are trained or resumed, evaluated, and kept beside a table made from them alone."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Where results stand that the README of the project does not show.
README = pathlib.Path("experiments/README.md")


def folders(name: str, tiny: bool) -> tuple[pathlib.Path, pathlib.Path]:
    """Return where an experiment keeps its runs and its results; a tiny one touches nothing that is recorded."""
    if tiny:
        return pathlib.Path("runs/tiny") / name, pathlib.Path("runs/tiny") / name / "results"
    return pathlib.Path("runs") / name, pathlib.Path("experiments/results") / name


def python(*words: str) -> None:
    """Run ``python -m WORDS`` and show the command; where it fails it has said why, and this ends with its status."""
    print("$ python -m", *words, flush=True)
    status = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if status:
        sys.exit(status)


def trainings(env: str, runs: pathlib.Path, members: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the words behind ``python -m`` that train the runs of a family, or finish what is there.

    Args:
        env: the family.
        runs: their directory.
        members: the settings of each run by its name.
    """
    return [
        ["metarl.train", f"env={env}", *words, f"run_dir={runs / label}", "resume=auto"]
        for label, words in members.items()
    ]


def train(env: str, runs: pathlib.Path, members: Mapping[str, Sequence[str]]) -> None:
    """Train the runs of a family one after another, as :func:`trainings` says."""
    for words in trainings(env, runs, members):
        python(*words)


def trained(runs: pathlib.Path, labels: Iterable[str]) -> list[str]:
    """Return the runs that are there; where none is, say so and end with status 2."""
    there = [label for label in labels if (runs / label / "checkpoints").is_dir()]
    if not there:
        print(f"error: {runs} has no run to evaluate; leave train=false out", file=sys.stderr)
        sys.exit(2)
    return there


def summarise(runs: pathlib.Path, first: str, results: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keep runs, curves and pictures, and say how much of the gap to an oracle is closed.

    Args:
        runs: the directory of the runs; those whose names begin with ``maml`` are seeds of one thing, and ``pretrained-s0``
            and ``oracle-s0`` what they are compared with.
        first: the run that ``metarl.evaluate`` was told to evaluate; its evaluation compares them all.
        results: where everything is kept.

    Returns:
        The summary, written as ``summary.json`` too, and the curve.
    """
    results.mkdir(parents=True, exist_ok=True)
    for name in ("curve.json", "curve.csv", "curve.png"):
        shutil.copyfile(runs / first / "evaluation" / name, results / name)
    curve = json.loads((results / "curve.json").read_text(encoding="utf-8"))
    keep(runs, list(curve["runs"]), results, curve["unit"])
    summary = {"runs": {}, "maml": {}, "gap_closed": {}, "evaluation": curve["command"]}
    for name, run in curve["runs"].items():
        shown = {"mean": run["mean"], "ci95": run["ci95"], "note": curve["notes"][name]}
        summary["runs"][name] = shown | facts(runs / name)
    values = {name: np.array(run["values"]) for name, run in curve["runs"].items()}
    stacked = np.stack([value for name, value in values.items() if name.startswith("maml")])  # (seeds, K+1, M)
    summary["maml"] = mean_of_seeds(stacked)
    if "pretrained-s0" in values and "oracle-s0" in values:
        summary["gap_closed"] = _gaps(stacked, values["pretrained-s0"], values["oracle-s0"][0])
    write(results / "summary.json", summary)
    return summary, curve


def keep(runs: pathlib.Path, labels: Sequence[str], results: pathlib.Path, unit: str) -> None:
    """Copy runs, small as they are (``metarl.load(RESULTS / LABEL)`` works), and draw their learning curves."""
    from metarl.analysis import plots

    left_out = shutil.ignore_patterns("tensorboard", "evaluation", ".lock")
    for label in labels:
        shutil.rmtree(results / label, ignore_errors=True)  # an earlier run's checkpoints are none of this one
        shutil.copytree(runs / label, results / label, ignore=left_out)
    plots.learning({label: _rows(runs / label) for label in labels}, "return", unit, results / "learning.png")


def facts(run: pathlib.Path) -> dict[str, Any]:
    """Return what a run's own files say of how it was made."""
    sessions = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    rows = _rows(run)
    return {
        "iterations": len(rows),
        "env_steps": rows[-1]["env_steps"],
        "hours": sum(row["seconds_iteration"] for row in rows) / 3600,
        "command": sessions[-1]["command"],  # what it went on with makes all of it
        "commits": sorted({session["commit"] for session in sessions}),
        "cpu": sessions[0]["cpu"],
        "cores": sessions[0]["cores"],
        "versions": sessions[0]["versions"],
    }


def mean_of_seeds(values: np.ndarray) -> dict[str, Any]:
    """Average values (seeds, points, M) over seeds; the interval is over tasks, so it does not tell how seeds differ."""
    from metarl.analysis.curves import interval

    mean = values.mean(0)
    return {"mean": mean.mean(-1).tolist(), "ci95": interval(mean).tolist(), "each_seed": values.mean(-1).tolist()}


def bootstrap(statistic: Any, tasks: int) -> list[float]:
    """Return the 95 % interval of ``statistic(rows)`` over 10,000 draws of task numbers (M,) with replacement."""
    draws = np.random.default_rng(0).integers(tasks, size=(10_000, tasks))
    low, high = np.percentile([statistic(rows) for rows in draws], [2.5, 97.5])
    return [float(low), float(high)]


def _gaps(maml: np.ndarray, pretrained: np.ndarray, oracle: np.ndarray) -> dict[int, dict[str, Any]]:
    r"""Gap closed after k updates, $(MAML_k - pretrained_k) / (oracle - pretrained_k)$, of (seeds, K+1, M), (K+1, M), (M,)."""
    gaps = {}
    for k in range(1, maml.shape[1]):
        each = [gap(seed[k], pretrained[k], oracle) for seed in maml]
        mean = maml[:, k].mean(0)
        interval = bootstrap(
            lambda rows, k=k, mean=mean: gap(mean[rows], pretrained[k][rows], oracle[rows]), len(oracle)
        )
        gaps[k] = {"mean": gap(mean, pretrained[k], oracle), "ci95_over_tasks": interval, "each_seed": each}
    return gaps


def gap(values: np.ndarray, reference: np.ndarray, oracle: np.ndarray) -> float:
    """Return the part of the gap from a reference to the oracle that is closed, each a mean over tasks (M,)."""
    return float((values.mean() - reference.mean()) / (oracle.mean() - reference.mean()))


def table(summary: Mapping[str, Any], digits: int = 1) -> list[str]:
    """Return the runs of a summary as a table, and the gaps that they close, in Markdown."""
    points = len(summary["maml"]["mean"])
    after = " | ".join(f"after {k}" for k in range(points))
    lines = [
        f"| run | {after} | adaptation rates | iterations | env steps | hours |",
        "| --- |" + " --- |" * (points + 4),
    ]
    for name, run in summary["runs"].items():
        cells = [*intervals(run, digits), *[""] * (points - len(run["mean"]))]
        rates = ", ".join(f"{rate:.3g}" for rate in run["note"].get("inner_lr", [])) or "not adapted"
        made = f"{run['iterations']} | {run['env_steps'] / 1e6:.0f} M | {run['hours']:.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {rates} | {made} |")
    if len(summary["maml"]["each_seed"]) > 1:
        lines.append(f"| maml, mean of seeds | {' | '.join(intervals(summary['maml'], digits))} | | | | |")
    lines.append("")
    for k, gap in summary["gap_closed"].items():
        low, high = gap["ci95_over_tasks"]
        each = ", ".join(f"{value:.2f}" for value in gap["each_seed"])
        lines.append(f"- gap closed after {k} updates: {gap['mean']:.2f} [{low:.2f}, {high:.2f}] (each seed: {each})")
    return lines


def intervals(shown: Mapping[str, Any], digits: int) -> list[str]:
    """Return means with their intervals as text."""
    pairs = zip(shown["mean"], shown["ci95"], strict=True)
    return [f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for mean, (low, high) in pairs]


def origin(summary: Mapping[str, Any]) -> list[str]:
    """Return commands, commits, hardware and versions of a summary's runs and of its evaluation, in Markdown."""
    runs = list(summary["runs"].values())
    commits = sorted({commit for run in runs for commit in run["commits"]})
    return [
        *("", "Commands:", "", "```"),
        *[run["command"] for run in runs],
        *(summary["evaluation"], "```", ""),
        f"Commits: {', '.join(commits)}.",
        f"Hardware: {runs[0]['cpu']}, {runs[0]['cores']} cores. Versions: {runs[0]['versions']}.",
        "",
    ]


def write(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def insert(path: pathlib.Path, mark: str, text: str) -> None:
    """Put text between the two marks of a Markdown file, so that no number there is typed by hand.

    Args:
        path: the file.
        mark: ``"<!-- results -->"``, which stands before and behind.
        text: what comes between.
    """
    head, *middle, tail = path.read_text(encoding="utf-8").split(mark)
    if len(middle) != 1:
        raise ValueError(f"{path} has {len(middle) + 1} of the two marks {mark}")
    path.write_text(f"{head}{mark}\n\n{text}\n{mark}{tail}", encoding="utf-8")


def pictures(results: pathlib.Path, readme: pathlib.Path) -> str:
    """Return the lines that show an experiment's pictures in a Markdown file."""
    names = {"curve": "adaptation curves", "learning": "learning curves"}
    where = results.relative_to(readme.parent)
    return "\n\n".join(f"![{text}]({where}/{name}.png)" for name, text in names.items()) + "\n"


def _rows(run: pathlib.Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
