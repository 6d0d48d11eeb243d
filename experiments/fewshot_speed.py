"""How fast few-shot learning is beside other ways to the same meta-gradient, what ANIL saves, and what is held in memory.

    python -m experiments.fewshot_speed     some ten minutes; writes experiments/results/fewshot_speed.json

Tasks a second of a meta-gradient (forward, adapt, differentiate) at four settings, on one thread and on all of them, beside the
ways of :mod:`experiments.fewshot_rivals`, which must agree on loss and gradient. Rounds are interleaved: each goes once through
everything, in an order of its own. A ratio is the median over rounds; the best of the others is the one that ours gains least
over by that median (who is luckiest in a round changes from round to round, and would be ahead of its own equal).
``pip install higher==0.2.1`` adds that library to them. Peaks of memory are those of processes of their own, above one that only
holds the data. Measure on an idle machine.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import peak, recording
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from experiments.fewshot_rivals import Problem

MARK = "<!-- fewshot_speed -->"
HELD = ("idle", "loop", "ours")  # whose memory is measured
PROCESSES = 5  # of each; peaks of the same way differ by some MiB
SIZES = ("A", "A2", "B", "S")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    rounds: int = setting(5, "interleaved rounds; medians are over them", low=1)
    threads: tuple[int, ...] = setting((), "numbers of threads; [] takes 1 and every core", low=1)
    only: tuple[str, ...] = setting(SIZES, "these settings alone; then nothing is written")
    part: str = setting("", "write the rows of one number of threads to this file, and end")
    hold: str = setting("", "take two meta-gradients by this way, in this process, and end", choices=("", *HELD))
    tiny: bool = setting(False, "small networks, few tasks, nothing written")


def main() -> int:
    """Measure, print and write; or be the process whose memory is measured."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    unknown = sorted(set(settings.only) - set(SIZES))
    if unknown:
        raise SettingsError(f"only=[{','.join(unknown)}] is none of {', '.join(SIZES)}")
    if settings.hold:
        hold(settings.hold, settings.threads[0], settings.tiny)
        return 0
    if settings.part:
        _write_part(settings)
        return 0
    from metarl.run.build import cores
    from metarl.run.provenance import provenance

    counts = settings.threads or tuple(sorted({1, cores()}))
    memory = {count: _memory(count, settings.tiny) for count in counts} if "A2" in settings.only else {}
    result = {
        "rows": [row for count in counts for row in _part(count, settings)],
        "memory": memory,
        "rounds": settings.rounds,
        "command": f"python -m experiments.fewshot_speed {' '.join(sys.argv[1:])}".rstrip(),
        "load": os.getloadavg()[0],
        "provenance": provenance(),
    }
    text = report(result)
    print(text)
    if not settings.tiny and settings.only == SIZES:
        recording.write(pathlib.Path("experiments/results/fewshot_speed.json"), result)
        recording.insert(recording.README, MARK, text)
    return 0


def _part(threads: int, settings: Settings) -> list[dict[str, Any]]:
    """Measure one number of threads in a process of its own: what the C library is told of them it is told once."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        words = [
            f"part={path}",
            f"threads=[{threads}]",
            f"rounds={settings.rounds}",
            f"only=[{','.join(settings.only)}]",
        ]
        words.append(f"tiny={str(settings.tiny).lower()}")
        subprocess.run([sys.executable, "-m", "experiments.fewshot_speed", *words], check=True)
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _write_part(settings: Settings) -> None:
    from metarl.run.memory import keep_freed_memory

    (threads,) = settings.threads
    keep_freed_memory(threads)  # as metarl.train does; it serves all ways alike
    rows = [_row(name, threads, settings) for name in settings.only]
    pathlib.Path(settings.part).write_text(json.dumps(rows), encoding="utf-8")


def _problem(name: str, tiny: bool) -> Problem:
    from experiments.fewshot_rivals import SIZES, problem

    size = SIZES[name]
    if tiny:
        size = size._replace(queries=1, shots=min(2, size.shots), steps=min(2, size.steps), tasks=2)
    return problem(size, filters=4 if tiny else 64)


def _row(name: str, threads: int, settings: Settings) -> dict[str, Any]:
    """Measure one setting on so many threads: all ways, and of convolutional networks ANIL."""
    import torch

    from experiments import fewshot_rivals as rivals
    from metarl.core import Workers

    torch.set_num_threads(threads)
    p = _problem(name, settings.tiny)
    workers = Workers(threads)
    ways: Mapping[str, rivals.Way] = rivals.ways(p, workers)
    disagreement = _agree({way: run() for way, run in ways.items()})  # not timed: it starts threads and fills caches
    runs: dict[str, Callable[[], Any]] = dict(ways)
    if name.startswith("A"):
        runs["ANIL"] = rivals.ours(p, workers, head=True)
        runs |= {f"{label} adapts": rivals.adaptation(p, workers, label == "ANIL") for label in ("MAML", "ANIL")}
        for label in ("ANIL", "MAML adapts", "ANIL adapts"):
            runs[label]()
    order = list(runs)
    rounds = [{label: _seconds(runs[label]) for label in _shuffled(order, number)} for number in range(settings.rounds)]
    seconds = [{label: each[label] for label in order} for each in rounds]
    row = {
        "setting": name,
        **p.size._asdict(),
        "threads": threads,
        "chunk_tasks": rivals.learner(p, workers).chunk_tasks,
        "disagreement": disagreement,
        "seconds": seconds,
        "tasks_per_second": {label: _spread([p.size.tasks / s[label] for s in seconds]) for label in runs},
        "ours_over": {label: _spread([s[label] / s["ours"] for s in seconds]) for label in ways if label != "ours"},
    }
    row["best"] = min(row["ours_over"], key=lambda way: row["ours_over"][way]["median"])
    if "ANIL" in runs:
        row["anil_over_maml"] = {
            "training": _spread([s["ours"] / s["ANIL"] for s in seconds]),
            "adaptation": _spread([s["MAML adapts"] / s["ANIL adapts"] for s in seconds]),
        }
    return row


def _shuffled(labels: Sequence[str], number: int) -> list[str]:
    """Return the order of a round, another one in each, so that none always follows the same one."""
    return random.Random(number).sample(labels, len(labels))


def _seconds(run: Callable[[], Any]) -> float:
    gc.collect()  # nobody pays for the garbage that the one before left
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _agree(found: Mapping[str, Any]) -> float:
    """Return the largest relative difference from ours in loss and gradient norm; refuse ways that do something else."""
    ours = found["ours"]
    off = [abs(b / a - 1) for other in found.values() for a, b in zip(ours, other, strict=True)]
    if not all(one < 1e-2 for one in off):  # NaN is not, either
        raise AssertionError(f"the ways disagree: {found}")
    return max(off)


def hold(way: str, threads: int, tiny: bool) -> None:
    """Hold what 32 tasks of 15 queries and 5 steps take: of data alone, or through two meta-gradients."""
    import torch

    from experiments import fewshot_rivals as rivals
    from metarl.core import Workers
    from metarl.run.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory(threads)
    p, workers = _problem("A2", tiny), Workers(threads)
    run = rivals.ours(p, workers) if way == "ours" else rivals.loop(p)
    for _ in range(0 if way == "idle" else 2):
        run()


def _memory(threads: int, tiny: bool) -> dict[str, float]:
    """Return peaks of resident memory, MiB, medians of some processes in turn: idle, and above it."""
    words = [f"threads=[{threads}]", f"tiny={str(tiny).lower()}"]
    found: dict[str, list[float]] = {way: [] for way in HELD}
    for way in (*HELD,) * (1 if tiny else PROCESSES):
        status, mib = peak.run([sys.executable, "-m", "experiments.fewshot_speed", f"hold={way}", *words])
        if status:
            raise RuntimeError(f"hold={way} ended with status {status}")
        found[way].append(mib)
    peaks = {way: statistics.median(each) for way, each in found.items()}
    above = {way: peaks[way] - peaks["idle"] for way in ("loop", "ours")}
    return {"idle": peaks["idle"], **above, "ours_over_loop": above["ours"] / above["loop"]}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def report(result: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    names = [n for n in ("ours", "loop", "vmap", "higher") if n in result["rows"][0]["tasks_per_second"]]
    lines = [
        f"Tasks a second of a meta-gradient, median of {result['rounds']} interleaved rounds, and ours over the best of the"
        " others, median of its ratios (range). A: strided Conv4-64, 5 ways, 1 shot, 1 query, 1 step, 32 tasks. A2: the"
        " same with 15 queries and 5 steps. B: three pooled convolutions as a torch module, 5 shots, 15 queries, 5 steps, 4"
        " tasks. S: sinusoid, 25 tasks, 1 step.",
        "",
        f"| setting | threads | {' | '.join(names)} | ours / best | ANIL | ANIL / MAML, training | adaptation |",
        "| --- |" + " --- |" * (len(names) + 5),
    ]
    for row in result["rows"]:
        rates = row["tasks_per_second"]
        cells = [_short(rates[n]["median"]) for n in names] + [_ratio(row["ours_over"][row["best"]])]
        saved = row.get("anil_over_maml")
        if saved:
            cells += [_short(rates["ANIL"]["median"]), _ratio(saved["training"]), _ratio(saved["adaptation"])]
        lines.append(f"| {row['setting']} | {row['threads']} | {' | '.join([*cells, *[''] * (0 if saved else 3)])} |")
    for threads, held in result["memory"].items():
        lines += [
            "",
            f"Peak memory at A2, median of {PROCESSES} processes, above an idle one of {held['idle']:.0f} MiB, {threads}"
            f" thread{'s' * (threads > 1)}: ours {held['ours']:.0f} MiB,"
            f" the loop {held['loop']:.0f} MiB ({held['ours_over_loop']:.2f} times).",
        ]
    origin = result["provenance"]
    return "\n".join(
        [*lines, "", f"`{result['command']}`, commit {origin['commit']}, {origin['cpu']}, {origin['cores']} cores.", ""]
    )


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _ratio(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
