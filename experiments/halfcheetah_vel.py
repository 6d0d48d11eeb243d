"""The headline experiment: MAML-TRPO on ``halfcheetah-vel``, three seeds, against pretrained and oracle.

    python -m experiments.halfcheetah_vel             trains (resumes what is there), evaluates, writes the results
    python -m experiments.halfcheetah_vel tiny=true   the same with a budget of seconds, elsewhere

Runs are kept under ``runs/halfcheetah-vel/``; results go to ``experiments/results/halfcheetah-vel/``: learning curves,
adaptation curves on 40 held-out tasks, and ``summary.json`` and ``summary.md``, both made from the result files alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

RESULTS = pathlib.Path("experiments/results/halfcheetah-vel")
EXPECTED = ("maml-s0", "maml-s1", "maml-s2", "pretrained-s0", "oracle-s0")
MARK = "<!-- results -->"
RUNS = pathlib.Path("runs/halfcheetah-vel")
MEMBERS: Mapping[str, Sequence[str]] = {
    "maml": ("inner_steps=1",),
    "pretrained": ("inner_steps=0",),
    "oracle": ("inner_steps=0", "env.oracle=true"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    iterations: int = setting(300, "meta-updates of every run", low=1)
    seeds: int = setting(3, "seeds of the MAML run", low=1)
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, summarise."""
    try:
        settings = Settings(**parse(sys.argv[1:], Settings))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs, results = (
        (RUNS, RESULTS) if not settings.tiny else (pathlib.Path("runs/tiny"), pathlib.Path("runs/tiny/results"))
    )
    budget = [f"iterations={settings.iterations}"]
    evaluation = ["tasks=40", "steps=3", "tune=true"]
    if settings.tiny:
        budget = [
            "iterations=2",
            "meta_batch_size=4",
            "episodes_per_task=2",
            "env.horizon=10",
            "eval_every=1",
            "eval_tasks=2",
        ]
        evaluation = ["tasks=4", "steps=3", "tune=true"]
    members = [
        (f"{name}-s{seed}", name, seed) for name in MEMBERS for seed in range(settings.seeds if name == "maml" else 1)
    ]
    for label, name, seed in members if settings.train else []:
        path = runs / label
        _python(
            "metarl.train",
            "env=halfcheetah-vel",
            f"seed={seed}",
            *MEMBERS[name],
            *budget,
            f"run_dir={path}",
            "resume=auto",
        )
    labels = [label for label, _, _ in members if (runs / label / "checkpoints").is_dir()]
    first, others = labels[0], ",".join(str(runs / label) for label in labels[1:])
    _python("metarl.evaluate", f"run={runs / first}", f"compare=[{others}]", *evaluation)
    summarise(runs, first, results)
    if not settings.tiny:
        update_readme(results)
    return 0


def summarise(runs: pathlib.Path, first: str, results: pathlib.Path) -> None:
    """Copy curves and pictures beside a table made from them."""
    from metarl.analysis import plots

    results.mkdir(parents=True, exist_ok=True)
    evaluation = runs / first / "evaluation"
    for name in ("curve.json", "curve.csv", "curve.png"):
        (results / name).write_bytes((evaluation / name).read_bytes())
    curve = json.loads((results / "curve.json").read_text(encoding="utf-8"))
    rows = {}
    for label in curve["runs"]:
        lines = (runs / label / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows[label] = [json.loads(line) for line in lines]
        # the run itself, small as it is: metarl.load("experiments/results/halfcheetah-vel/maml-s0") works
        left_out = shutil.ignore_patterns("tensorboard", "evaluation", ".lock")
        shutil.copytree(runs / label, results / label, ignore=left_out, dirs_exist_ok=True)
    plots.learning(rows, "return", curve["unit"], results / "learning.png")
    summary = _summary(curve, rows, runs)
    (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (results / "summary.md").write_text(_table(summary, curve), encoding="utf-8")
    print((results / "summary.md").read_text(encoding="utf-8"))


def update_readme(results: pathlib.Path, readme: pathlib.Path = pathlib.Path("README.md")) -> None:
    """Put the table between the README's result markers, so that no number there is typed by hand."""
    head, _, rest = readme.read_text(encoding="utf-8").partition(MARK)
    tail = rest.partition(MARK)[2]
    table = (results / "summary.md").read_text(encoding="utf-8")
    pictures = f"![adaptation curves]({results}/curve.png)\n\n![learning curves]({results}/learning.png)\n"
    readme.write_text(f"{head}{MARK}\n\n{pictures}\n{table}\n{MARK}{tail}", encoding="utf-8")


def _summary(curve: Mapping[str, Any], rows: Mapping[str, Any], runs: pathlib.Path) -> dict[str, Any]:
    """Gap closed at k: (MAML_k - pretrained_k) / (oracle - pretrained_k), with a bootstrap over tasks."""
    values = {name: np.array(run["values"]) for name, run in curve["runs"].items()}
    maml = [name for name in values if name.startswith("maml")]
    summary: dict[str, Any] = {"runs": {}, "gap_closed": {}, "evaluation": curve["command"]}
    for name, run in curve["runs"].items():
        sessions = json.loads((runs / name / "provenance.json").read_text(encoding="utf-8"))
        summary["runs"][name] = {
            "mean": run["mean"],
            "ci95": run["ci95"],
            "note": curve["notes"][name],
            "iterations": len(rows[name]),
            "env_steps": rows[name][-1]["env_steps"],
            "hours": sum(row["seconds_iteration"] for row in rows[name]) / 3600,
            "command": sessions[0]["command"],
            "commits": sorted({session["commit"] for session in sessions}),
            "cpu": sessions[0]["cpu"],
            "cores": sessions[0]["cores"],
            "versions": sessions[0]["versions"],
        }
    if "pretrained-s0" in values and "oracle-s0" in values:
        stacked = np.stack([values[name] for name in maml])  # (seeds, K+1, M)
        for k in range(1, stacked.shape[1]):
            draw = np.random.default_rng(0).integers(stacked.shape[2], size=(10_000, stacked.shape[2]))
            gaps = [_gap(stacked[:, k][:, d], values["pretrained-s0"][k][d], values["oracle-s0"][0][d]) for d in draw]
            each = [_gap(seed[k][None], values["pretrained-s0"][k], values["oracle-s0"][0]) for seed in stacked]
            point = _gap(stacked[:, k], values["pretrained-s0"][k], values["oracle-s0"][0])
            low, high = np.percentile(gaps, [2.5, 97.5])
            summary["gap_closed"][k] = {"mean": point, "ci95_over_tasks": [low, high], "each_seed": each}
    return summary


def _gap(maml: np.ndarray, pretrained: np.ndarray, oracle: np.ndarray) -> float:
    return float((maml.mean() - pretrained.mean()) / (oracle.mean() - pretrained.mean()))


def _table(summary: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    points = len(next(run["mean"] for name, run in summary["runs"].items() if name.startswith("maml")))
    head = [
        f"| run | {' | '.join(f'after {k}' for k in range(points))} | adaptation rates | iterations | env steps | hours |"
    ]
    head.append("| --- |" + " --- |" * (points + 4))
    for name, run in summary["runs"].items():
        cells = [f"{m:.1f} [{a:.1f}, {b:.1f}]" for m, (a, b) in zip(run["mean"], run["ci95"], strict=True)]
        cells += [""] * (points - len(cells))
        rates = ", ".join(f"{rate:.3g}" for rate in run["note"].get("inner_lr", [])) or "not adapted"
        millions = run["env_steps"] / 1e6
        head.append(
            f"| {name} | {' | '.join(cells)} | {rates} | {run['iterations']} | {millions:.0f} M | {run['hours']:.2f} |"
        )
    lines = [
        f"Return on {len(curve['tasks'])} held-out {curve['split']} tasks after k inner updates (20 fresh rollouts each), mean and"
        " 95 % interval over tasks; adaptation rates chosen on 20 validation tasks. Control step 0.05 s, horizon 200, targets"
        " U(0, 2) m/s, actions not scaled.",
        "",
        *head,
        "",
    ]
    missing = [name for name in EXPECTED if name not in summary["runs"]]
    if missing:
        lines += [
            f"Not run yet, and so not shown: {', '.join(missing)}. Without pretrained there is no gap to close.",
            "",
        ]
    for k, gap in summary["gap_closed"].items():
        low, high = gap["ci95_over_tasks"]
        each = ", ".join(f"{value:.2f}" for value in gap["each_seed"])
        lines.append(f"- gap closed after {k} updates: {gap['mean']:.2f} [{low:.2f}, {high:.2f}] (each seed: {each})")
    lines += ["", *_by_speed(curve)]
    run = next(iter(summary["runs"].values()))
    lines += ["", "Commands:", "", "```"]
    lines += [run["command"] for run in summary["runs"].values()]
    lines += [summary["evaluation"], "```", ""]
    lines += [f"Commits: {', '.join(sorted({c for r in summary['runs'].values() for c in r['commits']}))}."]
    lines += [f"Hardware: {run['cpu']}, {run['cores']} cores. Versions: {run['versions']}.", ""]
    return "\n".join(lines)


def _by_speed(curve: Mapping[str, Any]) -> list[str]:
    """Mean return of the last point of every run in quarters of the target velocity."""
    targets = np.array([task["velocity"] for task in curve["tasks"]])
    edges = [0.0, 0.5, 1.0, 1.5, 2.0]
    parts = [(low, high, (targets >= low) & (targets < high)) for low, high in itertools.pairwise(edges)]
    parts = [part for part in parts if part[2].any()]
    heads = [f"{low:g} to {high:g} m/s ({chosen.sum()})" for low, high, chosen in parts]
    lines = ["By target velocity, after the last update (in brackets the number of tasks):", ""]
    lines += [f"| run | {' | '.join(heads)} |", "| --- |" + " --- |" * len(parts)]
    for name, run in curve["runs"].items():
        last = np.array(run["values"])[-1]
        lines.append(f"| {name} | {' | '.join(f'{last[chosen].mean():.1f}' for _, _, chosen in parts)} |")
    return lines


def _python(*words: str) -> None:
    print("$ python -m", *words, flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
