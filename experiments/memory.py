"""What a meta-update holds in memory, and how long it takes, by the number of inner steps: MAML, first-order MAML, iMAML.

    python -m experiments.memory     about a minute; writes experiments/results/memory.json

Supervised regression on ``sinusoid``, with a network and support sets so large that the adaptation decides. Each case is a
process of its own, which reports how far its peak of resident memory rose over three meta-updates, and their median time.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments import recording
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.settings import setting

MARK = "<!-- memory -->"
ALGORITHMS = ("maml-adam", "fomaml-adam", "imaml-adam")
STEPS = (1, 5, 20)
SIZES = {"hidden_sizes": (128, 128), "meta_batch_size": 20, "chunk_tasks": 20, "threads": 1}
SHOTS = 1000


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    algo: str = setting("", "measure this one alone, in this process", choices=("", *ALGORITHMS))
    steps: int = setting(1, "with so many inner steps; iMAML: steps of its solver", low=1)
    tiny: bool = setting(False, "small networks, two step counts, nothing written")


def main() -> int:
    """Measure one case, or all and write."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    if settings.algo:
        print(json.dumps(measure(settings.algo, settings.steps, settings.tiny)))
        return 0
    rows = [
        _child(algo, steps, settings.tiny) for algo in ALGORITHMS for steps in (STEPS[:2] if settings.tiny else STEPS)
    ]
    from metarl.run.provenance import provenance

    result = {
        "rows": rows,
        "shots": SHOTS,
        **SIZES,
        "command": "python -m experiments.memory",
        "provenance": provenance(),
    }
    text = report(result)
    print(text)
    if not settings.tiny:
        recording.write(pathlib.Path("experiments/results/memory.json"), result)
        recording.insert(recording.README, MARK, text)
    return 0


def measure(algo: str, steps: int, tiny: bool = False) -> dict[str, Any]:
    """Run three meta-updates; return how far they raised the peak of resident memory, MiB, and the median seconds of one."""
    import torch

    import metarl

    torch.set_num_threads(1)
    sizes: dict[str, Any] = {**SIZES, "hidden_sizes": (8,), "meta_batch_size": 2} if tiny else SIZES
    implicit = algo.startswith("imaml")
    learner = metarl.build(
        "sinusoid",
        algo,
        env_settings={"shots": 2 if tiny else SHOTS},
        algo_settings={"solver_steps": steps + 1, "tolerance": 0.0} if implicit else {},  # the first only looks
        inner_steps=1 if implicit else steps,
        **sizes,
    )
    state, seconds, before = learner.init(0), [], _peak()
    for _ in range(3):
        state, metrics = learner.iteration(state)
        seconds.append(metrics["seconds_meta_gradient"])
    return {"algo": algo, "steps": steps, "mib": _peak() - before, "seconds": statistics.median(seconds)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(algo: str, steps: int, tiny: bool) -> dict[str, Any]:
    words = [f"algo={algo}", f"steps={steps}", f"tiny={str(tiny).lower()}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.memory", *words], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def report(result: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    counts = sorted({row["steps"] for row in result["rows"]})
    heads = [f"{n} step{'s' * (n > 1)}" for n in counts]
    lines = [
        f"Rise of peak memory over three meta-updates, MiB, and seconds of one meta-gradient, by inner steps (iMAML: steps of its"
        f" solver, all taken): `sinusoid`, {result['shots']} examples, {result['meta_batch_size']} tasks at once, hidden layers"
        f" {result['hidden_sizes']}, one thread.",
        "",
        f"| algorithm | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(counts),
    ]
    for algo in ALGORITHMS:
        own: Sequence[dict[str, Any]] = [row for row in result["rows"] if row["algo"] == algo]
        cells = [f"{row['mib']:.0f} MiB, {row['seconds']:.2f} s" for row in sorted(own, key=lambda row: row["steps"])]
        lines.append(f"| {algo} | {' | '.join(cells)} |")
    origin = result["provenance"]
    return "\n".join([*lines, "", f"`{result['command']}`, commit {origin['commit']}, {origin['cpu']}.", ""])


if __name__ == "__main__":
    sys.exit(main())
