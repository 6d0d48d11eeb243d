"""Random tabular MDPs: what part of the exact optimal return MAML-TRPO earns after k updates.

    python -m experiments.tabular             trains (resumes what is there), evaluates, writes the results
    python -m experiments.tabular tiny=true   the same with a budget of seconds, elsewhere

The optimum is that of a player who knows the tables, by dynamic programming. Runs are kept under ``runs/tabular-mdp/``,
results under ``experiments/results/tabular-mdp/``.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import recording
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.settings import setting

ENV = "tabular-mdp"
MARK = f"<!-- {ENV} -->"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    seeds: int = setting(2, "seeds of MAML", low=1)
    tasks: int = setting(200, "held-out tasks", low=2)
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, summarise."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    runs, results = recording.folders(ENV, settings.tiny)
    tasks, budget = settings.tasks, list[str]()
    if settings.tiny:
        tasks, budget = 4, ["iterations=2", "meta_batch_size=4", "episodes_per_task=2", "eval_every=1", "eval_tasks=2"]
    members = {f"maml-s{seed}": [f"seed={seed}", "threads=1", *budget] for seed in range(settings.seeds)}
    if settings.train:
        recording.train(ENV, runs, members)
    labels = recording.trained(runs, members)
    first, *others = [str(runs / label) for label in labels]
    words = [f"run={first}", f"compare=[{','.join(others)}]", f"tasks={tasks}", "steps=3", "tune=true"]
    recording.python("metarl.evaluate", *words)
    text = summarise(runs, labels, results)
    if not settings.tiny:
        recording.insert(recording.README, MARK, f"{recording.pictures(results, recording.README)}\n{text}")
    return 0


def summarise(runs: pathlib.Path, labels: Sequence[str], results: pathlib.Path) -> str:
    """Keep the runs beside a table of returns and their part of the optimum; return it.

    The curve itself stays with the runs: a task is 550 numbers.
    """
    from metarl.analysis import plots
    from metarl.envs.tabular.optimum import optimal_returns
    from metarl.families import Tasks

    curve = json.loads((runs / labels[0] / "evaluation" / "curve.json").read_text(encoding="utf-8"))
    recording.keep(runs, labels, results, curve["unit"])
    values = np.stack([np.array(curve["runs"][label]["values"]) for label in labels])
    best = optimal_returns(Tasks.from_json(curve["tasks"]))
    summary = {
        "runs": {label: {"note": curve["notes"][label], **recording.facts(runs / label)} for label in labels},
        "evaluation": curve["command"],
        "tasks": len(best),
        "maml": recording.mean_of_seeds(values),
        "optimum": recording.mean_of_seeds(best[None, None]),
        "fraction": [fraction(values[:, k].mean(0), best) for k in range(values.shape[1])],
    }
    recording.write(results / "summary.json", summary)
    level = {"updates": [0], "mean": summary["optimum"]["mean"], "ci95": summary["optimum"]["ci95"]}
    curve["runs"]["optimum"], curve["notes"]["optimum"] = level, {"adapted": False}
    plots.adaptation(curve, results / "curve.png")
    text = _report(summary)
    (results / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return text


def fraction(returns: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """Return the mean return (M,) over the mean optimum (M,), with an interval over tasks."""
    interval = recording.bootstrap(lambda rows: float(returns[rows].mean() / best[rows].mean()), len(best))
    return {"mean": float(returns.mean() / best.mean()), "ci95": interval}


def _report(summary: Mapping[str, Any]) -> str:
    (optimum,), returns = recording.intervals(summary["optimum"], 2), recording.intervals(summary["maml"], 2)
    parts = [{key: [point[key]] for key in ("mean", "ci95")} for point in summary["fraction"]]
    rates = {name: run["note"]["inner_lr"] for name, run in summary["runs"].items()}
    lines = [
        f"Return of an episode of 10 steps on {summary['tasks']} test tasks after k updates (20 fresh rollouts each), mean of"
        f" {len(rates)} seed(s) and 95 % interval over tasks; the optimum is {optimum}. Adaptation rates chosen on 20"
        f" validation tasks: {rates}.",
        "",
        "| updates | return | part of the optimum |",
        "| --- | --- | --- |",
    ]
    for k, (shown, part) in enumerate(zip(returns, parts, strict=True)):
        lines.append(f"| {k} | {shown} | {recording.intervals(part, 3)[0]} |")
    return "\n".join([*lines, *recording.origin(summary)])


if __name__ == "__main__":
    sys.exit(main())
