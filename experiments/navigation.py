"""2-D navigation: MAML-TRPO against pretrained and oracle, the MAML paper's first reinforcement-learning experiment.

    python -m experiments.navigation                          trains (resumes what is there), evaluates, writes the results
    python -m experiments.navigation env=navigation-2d-sparse the half circle, where only the goal's neighbourhood pays
    python -m experiments.navigation tiny=true                the same with a budget of seconds, elsewhere

Runs are kept under ``runs/ENV/``, results under ``experiments/results/ENV/``.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

from experiments import recording
from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

SETUP: Mapping[str, str] = {
    "navigation-2d": "Horizon 100, goals uniform on [-0.5, 0.5]^2 m, steps of at most 0.1 m in x and in y.",
    "navigation-2d-sparse": "Horizon 20, goals on a half circle of 1 m, paid within 0.2 m only, steps of at most 0.1 m in x and y.",
}
MEMBERS: Mapping[str, Sequence[str]] = {
    "maml": (),
    "pretrained": ("inner_steps=0",),
    "oracle": ("inner_steps=0", "env.oracle=true"),
}
TINY = ("iterations=2", "meta_batch_size=4", "episodes_per_task=2", "env.horizon=10", "eval_every=1", "eval_tasks=2")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("navigation-2d", "the family", choices=tuple(SETUP))
    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    seeds: int = setting(3, "seeds of MAML", low=1)
    tasks: int = setting(100, "held-out tasks", low=2)
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, summarise."""
    try:
        settings = Settings(**parse(sys.argv[1:], Settings))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs, results = recording.folders(settings.env, settings.tiny)
    tasks, budget = (4, TINY) if settings.tiny else (settings.tasks, ())
    members = {
        f"{name}-s{seed}": (f"seed={seed}", "threads=1", *words, *budget)
        for name, words in MEMBERS.items()
        for seed in range(settings.seeds if name == "maml" else 1)
    }
    if settings.train:
        recording.train(settings.env, runs, members)
    first, *others = [str(runs / label) for label in members]
    words = [f"run={first}", f"compare=[{','.join(others)}]", f"tasks={tasks}", "steps=3", "tune=true"]
    recording.python("metarl.evaluate", *words)
    text = summarise(settings.env, runs, results)
    if not settings.tiny:
        mark = f"<!-- {settings.env} -->"
        recording.insert(recording.README, mark, f"{recording.pictures(results, recording.README)}\n{text}")
    return 0


def summarise(env: str, runs: pathlib.Path, results: pathlib.Path) -> str:
    """Keep the runs beside a table made from them; return it."""
    summary, curve = recording.summarise(runs, "maml-s0", results)
    lines = [
        f"Return on {len(curve['tasks'])} held-out {curve['split']} tasks after k inner updates (20 fresh rollouts each), mean"
        f" and 95 % interval over tasks; adaptation rates chosen on 20 validation tasks. {SETUP[env]}",
        "",
        *recording.table(summary, digits=2),
        *recording.origin(summary),
    ]
    text = "\n".join(lines)
    (results / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    sys.exit(main())
