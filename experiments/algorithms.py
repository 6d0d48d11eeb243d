"""All algorithms on one family at equal environment steps: scores after updates, seconds per iteration, peak memory.

    python -m experiments.algorithms                         navigation-2d, three seeds each; resumes what is there
    python -m experiments.algorithms env=sinusoid            those that are not for reinforcement learning alone
    python -m experiments.algorithms only=[promp,maml-trpo]  some of them
    python -m experiments.algorithms tiny=true               the same with a budget of seconds, elsewhere

Every algorithm has its own recommended settings, the family's for the rest, and as many iterations as the budget of environment
steps allows. Nothing is tuned on test tasks; adaptation takes training's step sizes. Runs are kept under ``runs/algorithms/ENV/``,
results under ``experiments/results/algorithms/``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import peak, recording
from metarl import algorithms
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.run.config import RunSettings, algorithm_of
from metarl.settings import SettingsError, setting

POINTS = (0, 1, 3)
# environment steps (examples, for sinusoid), and settings of every run
BUDGETS: Mapping[str, tuple[int, Sequence[str]]] = {
    "navigation-2d": (1_500_000, ("threads=1", "eval_every=0", "meta_batch_size=20", "episodes_per_task=10")),
    "sinusoid": (2_000_000, ("threads=1", "eval_every=0")),
    "halfcheetah-vel": (16_000_000, ("threads=1", "eval_every=0", "meta_batch_size=20")),
}
# what is written beside a run when its training has ended, and not before
PEAK = "memory.json"
TINY = ("meta_batch_size=2", "episodes_per_task=2", "hidden_sizes=[8]", "threads=1", "eval_every=0")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("navigation-2d", "the family", choices=tuple(BUDGETS))
    only: tuple[str, ...] = setting((), "train these alone; empty: all that the family can have")
    seeds: int = setting(3, "of each algorithm", low=1)
    tasks: int = setting(100, "held-out tasks", low=2)
    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, write."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    fitting = [name for name in algorithms.names() if _fits(settings.env, name)]
    chosen = [algorithm_of(settings.env, name) for name in settings.only] or fitting
    plans = {name: _plan(settings.env, name, settings.tiny) for name in chosen}
    runs, _ = recording.folders(f"algorithms/{settings.env}", settings.tiny)
    # all that are there are compared, whichever were chosen this time
    labels = {name: [f"{name}-s{seed}" for seed in range(settings.seeds)] for name in fitting}
    if settings.train:
        for name in chosen:
            for seed, label in enumerate(labels[name]):
                train(runs / label, [f"env={settings.env}", f"algo={name}", f"seed={seed}", *plans[name]])
    there = finished(runs, recording.trained(runs, [label for each in labels.values() for label in each]))
    from metarl.run.provenance import provenance

    count = 4 if settings.tiny else settings.tasks
    rows = {
        name: _row([runs / label for label in each if label in there], count)
        for name, each in labels.items()
        if there & set(each)
    }
    result = {
        "env": settings.env,
        "tasks": count,
        "budget": BUDGETS[settings.env][0],
        "rows": rows,
        "command": " ".join(["python -m experiments.algorithms", *sys.argv[1:]]),
        "provenance": provenance(),
    }
    text = report(result)
    print(text)
    if not settings.tiny:
        out = pathlib.Path("experiments/results/algorithms")
        recording.write(out / f"{settings.env}.json", _null_for_nan(result))
        draw(result, out / f"{settings.env}.png")
        picture = f"![adaptation by algorithm]({(out / f'{settings.env}.png').relative_to(recording.README.parent)})"
        recording.insert(recording.README, f"<!-- algorithms {settings.env} -->", f"{picture}\n\n{text}")
    return 0


def _null_for_nan(value: Any) -> Any:
    """Return a result with null for what diverged: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _null_for_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished(runs: pathlib.Path, labels: Sequence[str]) -> set[str]:
    """Return the runs that have used up their budget.

    Raises:
        SettingsError: if there is none.
    """
    there = {label for label in labels if (runs / label / PEAK).exists()}
    if not there:
        raise SettingsError(f"no run under {runs} has come to its end; leave train=false out")
    return there


def _fits(env: str, name: str) -> bool:
    """Tell whether a family can be learned by an algorithm, by trying to build it."""
    import metarl

    try:
        metarl.build(env, name)
    except SettingsError:
        return False
    return True


def _plan(env: str, name: str, tiny: bool) -> list[str]:
    """Return the settings of a run whose iterations use up the budget, the last one begun included."""
    import metarl
    from metarl.core.params import expand

    if tiny:
        return [*TINY, "iterations=1"]
    budget, words = BUDGETS[env]
    known = parse([word for word in words if not word.startswith("eval_")], RunSettings)
    learner = metarl.build(env, name, **known)
    domain = learner.domain
    sample = domain.collect(
        expand(learner.init(0).meta, 2),
        domain.sample_tasks(2, "train", (0,)),
        (0, 0),
        "query",
    )
    of_iteration = sample.env_steps // 2 * learner.meta_batch_size * (learner.inner_steps + 1)
    return [*words, f"iterations={max(1, -(-budget // of_iteration))}"]


def train(path: pathlib.Path, words: Sequence[str]) -> None:
    """Train in a process of its own, and keep the peak of its resident memory beside the run."""
    whole = ["metarl.train", *words, f"run_dir={path}", "resume=auto"]
    print("$ python -m", *whole, flush=True)
    status, mib = peak.run([sys.executable, "-m", *whole])
    if status:
        sys.exit(status)
    kept = path / PEAK
    # a run that was there already only looks at itself, and takes less
    before = json.loads(kept.read_text(encoding="utf-8"))["peak_mib"] if kept.exists() else 0.0
    recording.write(kept, {"peak_mib": max(before, mib)})


def _row(runs: Sequence[pathlib.Path], count: int) -> dict[str, Any]:
    """Evaluate the seeds of one algorithm on the same test tasks."""
    from metarl.analysis.agent import load
    from metarl.analysis.curves import interval, trial_curve, update_curve
    from metarl.learner import TEST

    curves, seconds = [], []
    for run in runs:
        agent = load(run)
        tasks = agent.learner.domain.sample_tasks(count, "test", (0, TEST))
        seed = (0, TEST, 1)
        if agent.learner.domain.remembers:
            curves.append(trial_curve(agent.learner, agent.meta, tasks, seed, POINTS).values)
        else:
            curves.append(update_curve(agent.learner, agent.meta, tasks, seed, max(POINTS)).values[list(POINTS)])
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        seconds.append(float(np.median([row["seconds_iteration"] for row in rows])))
    table = np.stack([values.mean(1) for values in curves], 1)  # (points, seeds)
    known = [recording.facts(run) for run in runs]
    facts = known[0]
    peaks = [json.loads((run / PEAK).read_text(encoding="utf-8"))["peak_mib"] for run in runs]
    return {
        "mean": table.mean(1).tolist(),
        # one seed says nothing of others, but something of other tasks
        "ci95_over": "seeds" if len(curves) > 1 else "tasks",
        "ci95": interval(table if len(curves) > 1 else curves[0]).tolist(),
        "each_seed": table.T.tolist(),
        "seconds_per_iteration": float(np.median(seconds)),
        "peak_mib": max(peaks),
        "iterations": facts["iterations"],
        "env_steps": float(np.mean([fact["env_steps"] for fact in known])),
        "command": facts["command"],
        "commits": sorted({commit for fact in known for commit in fact["commits"]}),
        "metric": agent.learner.domain.metric,
        "higher_is_better": agent.learner.domain.higher_is_better,
    }


def draw(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the score after three updates of every algorithm, best first, with those before and after one."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    sign = 1 if next(iter(rows.values()))["higher_is_better"] else -1
    order = sorted(
        rows, key=lambda name: np.nan_to_num(-sign * rows[name]["mean"][-1], nan=np.inf)
    )  # what diverged last
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(order)), layout="constrained")
    axes = figure.subplots()
    for at, k in enumerate(POINTS):
        means = np.array([rows[name]["mean"][at] for name in order])
        ends = np.array([rows[name]["ci95"][at] for name in order])
        errors = np.abs(ends - means[:, None]).T
        axes.errorbar(means, np.arange(len(order)) + 0.18 * (at - 1), xerr=errors, fmt="o", ms=4, label=f"after {k}")
    # one seed that went astray must not squeeze all others into a point: its interval is cut off, the table has it
    low, high = np.nanpercentile([mean for row in rows.values() for mean in row["mean"]], [4, 96])
    axes.set_xlim(low - 0.2 * (high - low), high + 0.2 * (high - low))
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlabel(f"{next(iter(rows.values()))['metric']} on {result['tasks']} test tasks of {result['env']}")
    figure.legend(title="updates (rl2: episodes)", loc="outside upper center", ncols=len(POINTS))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def report(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    rows = result["rows"]
    first = next(iter(rows.values()))
    seeds = max(len(row["each_seed"]) for row in rows.values())
    average = f"mean over {seeds} seeds and its" if seeds > 1 else "one seed, mean over tasks and its"
    lines = [
        f"`{result['env']}`, {first['metric']} on {result['tasks']} test tasks after {', '.join(map(str, POINTS))} updates (rl2:"
        f" episodes) with training's step sizes: {average} 95 % interval;"
        f" at most {result['budget'] / 1e6:g} M environment steps (sinusoid: examples) each, by the length of an untrained policy's"
        " episodes, and those really taken; median seconds per iteration, peak resident memory.",
        "",
        f"| algorithm | {' | '.join(f'after {k}' for k in POINTS)} | iterations | M steps | s/iteration | MiB |",
        "| --- |" + " --- |" * (len(POINTS) + 4),
    ]
    for name, row in sorted(rows.items()):
        cells = recording.intervals({"mean": row["mean"], "ci95": row["ci95"]}, 2)
        cells = [cell if math.isfinite(mean) else "diverged" for cell, mean in zip(cells, row["mean"], strict=True)]
        own = len(row["each_seed"])
        over = "; interval over tasks" if own == 1 else ""
        label = name if own == seeds else f"{name} (seeds: {own}{over})"
        lines.append(
            f"| {label} | {' | '.join(cells)} | {row['iterations']} | {row['env_steps'] / 1e6:.2f} |"
            f" {row['seconds_per_iteration']:.2f} | {row['peak_mib']:.0f} |"
        )
    commits = sorted({commit for row in rows.values() for commit in row["commits"]})
    origin = result["provenance"]
    lines += ["", f"`{result['command']}`, which prints the command of every run; commits {', '.join(commits)}."]
    return "\n".join(
        [*lines, f"Hardware: {origin['cpu']}, {origin['cores']} cores. Versions: {origin['versions']}.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())
