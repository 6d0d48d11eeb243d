"""How close to the floor: ``python -m experiments.benchmark iteration|stepping|throughput [key=value ...]``.

``iteration`` times one meta-iteration on halfcheetah-vel against the floor: the physics of the very same episodes, same
starts and same actions on Gymnasium's model, replayed open loop by the fastest way that there is, and nothing else; beside
it, the same on the model as our engine steps it (without the search for islands; the same bits, faster). ``stepping`` times our
batched stepping, with observations and rewards, against raw physics, Gymnasium's vector environments and EnvPool; with
``family=NAME`` that of another locomotion family against raw physics, with ``family=all`` that of each. ``throughput`` counts
the steps of the families that are not MuJoCo. Repeats are interleaved: each goes once through everything. Measure on an idle
machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metarl.settings import SettingsError, check, nearest, setting

if TYPE_CHECKING:
    from experiments.physics import RecordedFamily
    from metarl.learner import MetaLearner, MetaState

RESULTS = pathlib.Path(__file__).parent / "results"
SPLIT = ("sampling", "physics", "adaptation", "meta_gradient", "cg", "line_search")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a benchmark."""

    tasks: int = setting(40, "tasks of the meta-batch", low=1)
    episodes: int = setting(20, "episodes of each task", low=1)
    horizon: int = setting(200, "control steps of an episode", low=1)
    inner_steps: int = setting(1, "inner updates (iteration)", low=0)
    repeats: int = setting(3, "measurements of everything", low=1)
    device: str = setting("cpu", "where the policy lives (iteration); physics runs on the CPU", choices=("cpu", "cuda"))
    threads: int | None = setting(None, "threads; null takes every core", low=1)
    family: str | None = setting(None, "locomotion family, or all (stepping); null compares other simulators instead")
    batch: int = setting(10_000, "simulations, each a task of its own (throughput)", low=1)
    steps: int = setting(500, "environment steps of each in a measurement (throughput)", low=1)
    busy: int = setting(0, "then the iteration again beside so many processes that compute without end", low=0)
    save: bool = setting(False, "write the result to experiments/results/")


def main(argv: Sequence[str] | None = None, results: pathlib.Path = RESULTS) -> int:
    """Measure, print, and save where asked; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    measures = {"iteration": iteration, "stepping": stepping, "throughput": throughput}
    try:
        if not argv or argv[0] not in measures:
            given = argv[0] if argv else ""
            raise SettingsError(f"Say what to measure, not '{given}'. {nearest(given, measures)}")
        settings = Settings(**check(Settings, dict(map(_parsed, argv[1:]))))
        name = _name(argv[0], settings)
        record = {
            "benchmark": argv[0],
            "command": shlex.join(["python", "-m", "experiments.benchmark", *argv]),
            **_circumstances(settings),
        }
        where = f"{record['threads']} threads, load {record['load_at_start']:.1f} before the start"
        print(f"{argv[0]}: {_described(argv[0], settings)}; {where}", flush=True)
        record |= measures[argv[0]](settings, record["threads"])
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if settings.save:
        file = results / f"benchmark_{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"saved: {file}")
    return 0


def iteration(settings: Settings, threads: int) -> Mapping[str, Any]:
    """Time meta-iterations and the physics of each."""
    from experiments.physics import PLAYERS, play_engine

    learner, recorder = _learner(settings, threads)
    # the first iteration is not counted: it makes the simulations, starts the threads and fills the caches
    state, _ = learner.iteration(learner.init(seed=0))
    recorder.rewind()
    repeats: list[dict[str, Any]] = []
    for _ in range(settings.repeats):
        _synchronize(settings.device)
        started, steps_before = time.perf_counter(), state.env_steps
        state, metrics = learner.iteration(state)
        _synchronize(settings.device)
        seconds = time.perf_counter() - started
        rollouts = recorder.rewind()
        floors = {name: sum(player(r, threads)[0] for r in rollouts) for name, player in PLAYERS.items()}
        engine = sum(play_engine(r, threads)[0] for r in rollouts)
        steps = state.env_steps - steps_before
        if steps != sum(r.controls.shape[0] * r.controls.shape[1] for r in rollouts):
            raise AssertionError("the floor must take as many control steps as the iteration")
        repeats.append(
            {
                "control_steps": steps,
                "floors": floors,
                "floor": min(floors.values()),
                "iteration": seconds,
                "ratio": min(floors.values()) / seconds,
                "engine_floor": engine,
                "engine_ratio": engine / seconds,
                "env_steps_per_second": steps / seconds,
                "split": {name: metrics[f"seconds_{name}"] for name in SPLIT},
            }
        )
    numbers = ("floor", "iteration", "ratio", "engine_floor", "engine_ratio", "env_steps_per_second")
    summary: dict[str, Any] = {name: _spread([r[name] for r in repeats]) for name in numbers}
    summary["floors"] = {name: _spread([r["floors"][name] for r in repeats]) for name in PLAYERS}
    summary["split"] = {name: _spread([r["split"][name] for r in repeats]) for name in SPLIT}
    if settings.busy:
        beside = [_beside_busy(learner, state, settings.busy) for _ in range(settings.repeats)]
        recorder.rewind()
        summary["beside_busy"] = _spread(beside)
        summary["beside_busy_over_idle"] = _spread([b / summary["iteration"]["median"] for b in beside])
    _print_iteration(summary, repeats[0]["control_steps"])
    return {"repeats": repeats, "summary": summary}


def _beside_busy(learner: MetaLearner, state: MetaState, count: int) -> float:
    """Time one iteration while other processes keep a core each busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        started = time.perf_counter()
        learner.iteration(state)
        return time.perf_counter() - started
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def stepping(settings: Settings, threads: int) -> Mapping[str, Any]:
    """Time every simulator, or every family."""
    from experiments import simulators

    if settings.family is not None:
        return _families(settings, threads)
    simulators.quiet()
    work = simulators.Workload(settings.tasks, settings.episodes, settings.horizon, threads)
    with contextlib.ExitStack() as opened:
        rivals = [
            simulators.ours(work),
            *simulators.raw(work),
            *(simulators.gymnasium_vector(work, mode) for mode in ("sync", "async")),
            *filter(None, [simulators.envpool(work)]),
        ]
        for rival in rivals:
            opened.callback(rival.close)
            rival.run()
        repeats = [{r.name: r.control_steps / r.run() for r in rivals} for _ in range(settings.repeats)]
    fastest = max((r.name for r in rivals if r.name.startswith("raw")), key=lambda n: _median(repeats, n))
    ours = rivals[0].name
    summary = {
        r.name: {
            "detail": r.detail,
            "control_steps_per_second": _spread([repeat[r.name] for repeat in repeats]),
            "ours_over_it": _spread([repeat[ours] / repeat[r.name] for repeat in repeats]),
        }
        for r in rivals
    }
    _print_stepping(summary, fastest)
    if not any(r.name == "EnvPool" for r in rivals):
        print("EnvPool is not installed; pip install -c constraints.txt -e '.[benchmark]' adds it")
    return {"repeats": repeats, "summary": summary, "fastest_raw": fastest}


def _families(settings: Settings, threads: int) -> Mapping[str, Any]:
    """Time locomotion families, ours and raw in turns, at no more simulations than the family is trained with."""
    from experiments.stepping import SECONDS, Ours, Raw, Size, chosen, with_islands
    from metarl import families

    assert settings.family is not None
    rows: dict[str, Any] = {}
    for name in chosen(settings.family):
        usual = families.lookup(name).recommended  # type: ignore[attr-defined]
        tasks = min(settings.tasks, usual.get("meta_batch_size", settings.tasks))
        episodes = min(settings.episodes, usual.get("episodes_per_task", settings.episodes))
        ours = Ours(name, Size(tasks, episodes, settings.horizon, threads))
        tape = ours.tape()
        players: dict[str, Raw | Ours] = {
            "raw": Raw(with_islands(tape), threads),
            "engine_raw": Raw(tape, threads),
            "ours": ours,
        }
        # short episodes are played several times, so that a measurement takes half a second at least
        rounds = math.ceil(SECONDS / max(SECONDS / 20, players["raw"].run()))
        repeats = []
        for _ in range(settings.repeats):
            turns = [{which: player.run() for which, player in players.items()} for _ in range(rounds)]
            repeats.append({which: sum(turn[which] for turn in turns) for which in players})
        rows[name] = {
            "simulations": tasks * episodes,
            "control_steps": int(tape.lengths.sum()),
            "frame_skip": tape.frame_skip,
            "mean_length": float(tape.lengths.mean()),
            "rounds": rounds,
            "load": os.getloadavg()[0],
            "seconds": repeats,
            "ratio": _spread([repeat["raw"] / repeat["ours"] for repeat in repeats]),
            "engine_ratio": _spread([repeat["engine_raw"] / repeat["ours"] for repeat in repeats]),
            "ours": _spread([rounds * tape.lengths.sum() / repeat["ours"] for repeat in repeats]),
        }
        _print_family(name, rows[name])
    return {"families": rows}


def throughput(settings: Settings, threads: int) -> Mapping[str, Any]:
    """Count environment steps a second of the families that are not MuJoCo, with the sampling noise."""
    from experiments.throughput import ROWS, Throughput

    measured = {row: Throughput(row, settings.batch, settings.steps, threads) for row in ROWS}
    for row in measured.values():
        row.run()  # not counted: it starts the threads and fills the caches
    repeats = [{name: row.env_steps / row.run() for name, row in measured.items()} for _ in range(settings.repeats)]
    summary = {name: _spread([repeat[name] for repeat in repeats]) for name in ROWS}
    print("million environment steps per second, sampling noise included; median and range")
    for name, rate in summary.items():
        print(f"{name:32} {rate['median'] / 1e6:8.1f} ({rate['low'] / 1e6:.1f} to {rate['high'] / 1e6:.1f})")
    return {"repeats": repeats, "summary": summary}


def _learner(settings: Settings, threads: int) -> tuple[MetaLearner, RecordedFamily]:
    """Build the default learner, with a family that keeps what is done to its simulations."""
    import torch

    import metarl
    from experiments.physics import RecordedFamily
    from metarl.rl import RLDomain
    from metarl.run.memory import keep_freed_memory

    torch.set_num_threads(1)  # as metarl.train does: the learner brings its own threads
    keep_freed_memory(threads)
    learner = metarl.build(
        "halfcheetah-vel",
        env_settings={"horizon": settings.horizon},
        meta_batch_size=settings.tasks,
        episodes_per_task=settings.episodes,
        inner_steps=settings.inner_steps,
        device=settings.device,
        threads=threads,
    )
    if not isinstance(learner.domain, RLDomain):
        raise TypeError("halfcheetah-vel is a reinforcement-learning family")
    recorder = RecordedFamily(learner.domain.family)
    return dataclasses.replace(learner, domain=dataclasses.replace(learner.domain, family=recorder)), recorder


def _parsed(argument: str) -> tuple[str, Any]:
    """Split ``key=value``; a value is JSON, or else text."""
    name, equals, value = argument.partition("=")
    if not equals:
        raise SettingsError(f"'{argument}' is no setting; write key=value, such as tasks=40")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _circumstances(settings: Settings) -> dict[str, Any]:
    """Return what a reader needs to judge and to repeat the numbers."""
    from metarl.run import build
    from metarl.run.provenance import provenance

    device = build.device(settings.device)
    try:
        pool = importlib.metadata.version("envpool")
    except importlib.metadata.PackageNotFoundError:
        pool = "not installed"
    found = provenance()
    return {
        "settings": dataclasses.asdict(settings),
        "threads": settings.threads or build.cores(),
        "device": _device_name(device.type),
        "load_at_start": os.getloadavg()[0],
        **found,
        "versions": {**found["versions"], "envpool": pool},
    }


def _device_name(kind: str) -> str:
    if kind != "cuda":
        return kind
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _name(measure: str, settings: Settings) -> str:
    """Return what the result is called; refuse settings that do not fit the measurement."""
    if measure != "iteration" and settings.device != "cpu":
        raise SettingsError(f"device={settings.device}: {measure} measures simulators, which run on the CPU")
    if settings.family is None:
        return measure
    if measure != "stepping":
        raise SettingsError(f"family={settings.family}: {measure} has no choice of families; stepping has")
    from experiments.stepping import chosen

    chosen(settings.family)
    return "families" if settings.family == "all" else settings.family


def _described(measure: str, settings: Settings) -> str:
    size = f"{settings.tasks} tasks x {settings.episodes} episodes x {settings.horizon} steps"
    if measure == "throughput":
        size = f"{settings.batch} simulations x {settings.steps} steps"
    return f"{size}, {settings.repeats} repeats"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _median(repeats: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(repeat[name] for repeat in repeats)


def _print_iteration(summary: Mapping[str, Any], control_steps: int) -> None:
    def line(name: str, spread: Mapping[str, float], digits: int, unit: str) -> None:
        low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("low", "median", "high"))
        print(f"{name:34} {middle:>10} {unit:3} ({low} to {high})")

    print(f"{control_steps} control steps; median and range")
    for name, spread in summary["floors"].items():
        line(f"  {name}", spread, 3, "s")
    line("floor (fastest of these)", summary["floor"], 3, "s")
    line("iteration", summary["iteration"], 3, "s")
    for name, spread in summary["split"].items():
        line(f"  seconds_{name}", spread, 3, "s")
    line("env steps per second", summary["env_steps_per_second"], 0, "/s")
    line("floor / iteration", summary["ratio"], 3, "")
    line("our model's own floor", summary["engine_floor"], 3, "s")
    line("our model's own floor / iteration", summary["engine_ratio"], 3, "")
    if "beside_busy" in summary:
        line("iteration beside busy processes", summary["beside_busy"], 3, "s")
        line("  over the idle iteration", summary["beside_busy_over_idle"], 3, "")


def _print_stepping(summary: Mapping[str, Any], fastest: str) -> None:
    print("control steps per second; median and range")
    for name, row in summary.items():
        rate, ratio = row["control_steps_per_second"], row["ours_over_it"]
        numbers = f"{rate['median']:9.0f} ({rate['low']:.0f} to {rate['high']:.0f})"
        mark = " <- fastest raw" if name == fastest else ""
        print(f"{name:32} {numbers:28} ours/it {ratio['median']:6.3f}  {row['detail']}{mark}")


def _print_family(name: str, row: Mapping[str, Any]) -> None:
    raw, engine = (
        f"{s['median']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for s in (row["ratio"], row["engine_ratio"])
    )
    rate = f"{row['ours']['median']:9.0f} control steps/s, episodes of {row['mean_length']:.1f}"
    print(f"{name:22} ours/raw {raw}, on our model {engine}, {rate}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
