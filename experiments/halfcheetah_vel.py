"""The headline experiment: MAML-TRPO on ``halfcheetah-vel``, three seeds, against pretrained and oracle.

    python -m experiments.halfcheetah_vel             trains (resumes what is there), evaluates, writes the results
    python -m experiments.halfcheetah_vel tiny=true   the same with a budget of seconds, elsewhere

Runs are kept under ``runs/halfcheetah-vel/``; results go to ``experiments/results/halfcheetah-vel/``: learning curves,
adaptation curves on 40 held-out tasks, and ``summary.json`` and ``summary.md``, both made from the result files alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import recording
from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

RESULTS = pathlib.Path("experiments/results/halfcheetah-vel")
EXPECTED = ("maml-s0", "maml-s1", "maml-s2", "pretrained-s0", "oracle-s0")
README = pathlib.Path("README.md")
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
    words = {label: (f"seed={seed}", *MEMBERS[name], *budget) for label, name, seed in members}
    if settings.train:
        recording.train("halfcheetah-vel", runs, words)
    labels = [label for label, _, _ in members if (runs / label / "checkpoints").is_dir()]
    first, others = labels[0], ",".join(str(runs / label) for label in labels[1:])
    recording.python("metarl.evaluate", f"run={runs / first}", f"compare=[{others}]", *evaluation)
    text = summarise(runs, first, results)
    if not settings.tiny:
        recording.insert(README, MARK, f"{recording.pictures(results, README)}\n{text}")
    return 0


def summarise(runs: pathlib.Path, first: str, results: pathlib.Path) -> str:
    """Copy curves and pictures beside a table made from them; return it."""
    summary, curve = recording.summarise(runs, first, results)
    lines = [
        f"Return on {len(curve['tasks'])} held-out {curve['split']} tasks after k inner updates (20 fresh rollouts each), mean and"
        " 95 % interval over tasks; adaptation rates chosen on 20 validation tasks. Control step 0.05 s, horizon 200, targets"
        " U(0, 2) m/s, actions not scaled.",
        "",
        *recording.table(summary),
    ]
    missing = [name for name in EXPECTED if name not in summary["runs"]]
    if missing:
        lines += [
            "",
            f"Not run yet, and so not shown: {', '.join(missing)}. Without pretrained there is no gap to close.",
        ]
    text = "\n".join([*lines, "", *_by_speed(curve), *recording.origin(summary)])
    (results / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return text


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


if __name__ == "__main__":
    sys.exit(main())
