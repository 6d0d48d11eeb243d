"""MAML-TRPO against its references on one family: pretrained (never adapts in training) and oracle (sees the task).

    python -m experiments.references                       halfcheetah-vel: trains (resumes what is there), evaluates, records
    python -m experiments.references env=navigation-2d     another of the recorded families
    python -m experiments.references train=false           evaluates what is there
    python -m experiments.references tiny=true             a budget of seconds, elsewhere, to see that everything works

Runs are kept under ``runs/ENV/``, results under ``experiments/results/ENV/``: learning curves, adaptation curves on held-out
tasks, ``summary.json`` and ``summary.md``, both made from the result files alone, and the runs themselves.
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
from metarl.run.command import guarded
from metarl.settings import setting

MEMBERS: Mapping[str, Sequence[str]] = {
    "maml": (),
    "pretrained": ("inner_steps=0",),
    "oracle": ("inner_steps=0", "env.oracle=true"),
}
TINY = ("iterations=2", "meta_batch_size=4", "episodes_per_task=2", "env.horizon=10", "eval_every=1", "eval_tasks=2")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recorded family.

    Attributes:
        setup: what a reader of the numbers must know of the family.
        words: settings of every run, beside the family's recommended ones.
        seeds: of MAML; the references have one.
        tasks: held-out tasks.
        digits: behind the decimal point of a return.
        readme: where the table goes, between marks of the family's name.
        parts: task parameter and edges of a table by its value.
    """

    setup: str
    words: Sequence[str] = ()
    seeds: int = 1
    tasks: int = 40
    digits: int = 1
    readme: pathlib.Path = recording.README
    parts: tuple[str, str, Sequence[float]] | None = None


RECIPES: Mapping[str, Recipe] = {
    "halfcheetah-vel": Recipe(
        "Control step 0.05 s, horizon 200, targets U(0, 2) m/s, actions not scaled.",
        seeds=3,
        readme=pathlib.Path("README.md"),
        parts=("velocity", "m/s", (0.0, 0.5, 1.0, 1.5, 2.0)),
    ),
    "halfcheetah-dir": Recipe(
        "Control step 0.05 s, horizon 200, actions not scaled. There are two tasks only, so that nothing is held out, and"
        " intervals over tasks say little.",
    ),
    "ant-dir": Recipe(
        "Control step 0.05 s, horizon 200, 20 tasks x 10 episodes, no contact forces, actions not scaled. There are two tasks"
        " only, so that nothing is held out, and intervals over tasks say little.",
        ("init_std=0.3", "normalize_observations=true", "gae_lambda=0.95", "algo.max_kl=0.02", "iterations=120"),
    ),
    "ant-dir-maml": Recipe(
        "The MAML paper's timing: control step 0.02 s, one physics step, horizon 200; 20 tasks x 10 episodes, no contact forces,"
        " actions not scaled. There are two tasks only, so that nothing is held out, and intervals over tasks say little.",
        (
            *("meta_batch_size=20", "episodes_per_task=10", "init_std=0.3", "normalize_observations=true"),
            *("gae_lambda=0.95", "inner_lr=0.05", "algo.max_kl=0.03", "iterations=300", "eval_steps=3"),
        ),
    ),
    "navigation-2d": Recipe(
        "Horizon 100, goals uniform on [-0.5, 0.5]^2 m, steps of at most 0.1 m in x and in y.",
        ("threads=1",),
        seeds=3,
        tasks=100,
        digits=2,
    ),
    "navigation-2d-sparse": Recipe(
        "Horizon 20, goals on a half circle of 1 m, paid within 0.2 m only, steps of at most 0.1 m in x and y.",
        ("threads=1",),
        tasks=100,
        digits=2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("halfcheetah-vel", "the family", choices=tuple(RECIPES))
    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    seeds: int | None = setting(None, "seeds of MAML; null takes the recorded number", low=1)
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, summarise."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    env, recipe = settings.env, RECIPES[settings.env]
    runs, results = recording.folders(env, settings.tiny)
    tasks, budget = (4, TINY) if settings.tiny else (recipe.tasks, tuple(recipe.words))
    members = {
        f"{name}-s{seed}": (f"seed={seed}", *words, *budget)
        for name, words in MEMBERS.items()
        for seed in range((settings.seeds or recipe.seeds) if name == "maml" else 1)
    }
    if settings.train:
        recording.train(env, runs, members)
    first, *others = [str(runs / label) for label in recording.trained(runs, members)]
    words = [f"run={first}", f"compare=[{','.join(others)}]", f"tasks={tasks}", "steps=3", "tune=true"]
    recording.python("metarl.evaluate", *words)
    text = summarise(recipe, runs, pathlib.Path(first).name, results)
    if not settings.tiny:
        recording.insert(recipe.readme, mark(env), f"{recording.pictures(results, recipe.readme)}\n{text}")
    return 0


def mark(env: str) -> str:
    """Return what stands before and behind a family's table in its README."""
    return f"<!-- {env} -->"


def summarise(recipe: Recipe, runs: pathlib.Path, first: str, results: pathlib.Path) -> str:
    """Keep the runs beside a table made from them; return it."""
    summary, curve = recording.summarise(runs, first, results)
    lines = [
        f"Return on {len(curve['tasks'])} held-out {curve['split']} tasks after k inner updates (on fresh rollouts each), mean and"
        f" 95 % interval over tasks; adaptation rates chosen on 20 validation tasks. {recipe.setup}",
        "",
        *recording.table(summary, recipe.digits),
    ]
    missing = [f"{name}-s0" for name in MEMBERS if f"{name}-s0" not in summary["runs"]]
    if missing:
        lines += ["", f"Not run yet, and so not shown: {', '.join(missing)}."]
    if recipe.parts:
        lines += ["", *_by_parameter(curve, *recipe.parts)]
    text = "\n".join([*lines, *recording.origin(summary)])
    (results / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return text


def _by_parameter(curve: Mapping[str, Any], name: str, unit: str, edges: Sequence[float]) -> list[str]:
    """Mean return of the last point of every run in parts of a task parameter's range."""
    targets = np.array([task[name] for task in curve["tasks"]])
    parts = [(low, high, (targets >= low) & (targets < high)) for low, high in itertools.pairwise(edges)]
    parts = [part for part in parts if part[2].any()]
    heads = [f"{low:g} to {high:g} {unit} ({chosen.sum()})" for low, high, chosen in parts]
    lines = [f"By {name}, after the last update (in brackets the number of tasks):", ""]
    lines += [f"| run | {' | '.join(heads)} |", "| --- |" + " --- |" * len(parts)]
    for label, run in curve["runs"].items():
        last = np.array(run["values"])[-1]
        lines.append(f"| {label} | {' | '.join(f'{last[chosen].mean():.1f}' for _, _, chosen in parts)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
