"""Decisions a second of the traffic simulator in one thread, and of SUMO in one process: ``python -m experiments.traffic speed``.

Max-pressure stands in the place of a policy. Our own grids step ``batch`` at a time, SUMO's one after the other (extra
``sumo``; left out with a line where it is missing), on the first of the same tasks with the same arrivals, all in turns. Of
SUMO there are two rates: one by the clock, in which our signals, detectors and the way to its process are, and one by the
processor time of that process alone, which is what libsumo costs at least. Starting a simulation is in none of them; making and
resetting ours is in ours.

``save=true`` keeps the result under ``experiments/results/``. Measure on an idle machine.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import recording
from metarl.run.arguments import parse
from metarl.settings import setting

if TYPE_CHECKING:
    from metarl.envs.traffic.controllers import Controller
    from metarl.families import Tasks

GRIDS = ((1, 1), (2, 2), (3, 3), (4, 4), (1, 6))
# The grid that SUMO runs, too.
BESIDE = (3, 3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the measurement can be told."""

    horizon: int = setting(120, "decisions of an episode", low=1)
    batch: int = setting(256, "grids that step together", low=1)
    sumo: int = setting(4, "of these in SUMO, one after the other; 0 leaves it out", low=0)
    repeats: int = setting(3, "measurements of everything", low=1)
    save: bool = setting(False, "write the result to experiments/results/")


def speed(argv: Sequence[str], results: pathlib.Path) -> int:
    """Measure, print, and save where asked; return the exit code."""
    settings = Settings(**parse(argv[1:], Settings))
    found = measured(settings)
    print("\n".join(described(settings, found)))
    if settings.save:
        from metarl.run.provenance import provenance

        command = shlex.join(["python", "-m", "experiments.traffic", *argv])
        record = {"command": command, "settings": dataclasses.asdict(settings), **found, **provenance()}
        if found["sumo"]:
            record["versions"] |= {"libsumo": importlib.metadata.version("libsumo")}
        recording.write(results / "traffic_speed.json", record)
        print(f"saved: {results / 'traffic_speed.json'}")
    return 0


def measured(settings: Settings) -> dict[str, Any]:
    """Time episodes of every grid and, between them, of SUMO."""
    import torch

    torch.set_num_threads(1)
    there = all(importlib.util.find_spec(name) for name in ("sumo", "libsumo"))
    rates: dict[str, list[float]] = {_name(grid): [] for grid in GRIDS}
    sumo: dict[str, list[float]] = {"clock": [], "process": []}
    load = os.getloadavg()[0]
    for turn in range(settings.repeats + 1):  # the first is not counted: it fills the caches
        for grid in GRIDS:
            rate, tasks, rule = _own(settings, grid)
            if not turn:
                continue
            rates[_name(grid)].append(rate)
            if grid == BESIDE and there and settings.sumo:
                for clock, seconds in zip(sumo, _sumo(settings, tasks, rule), strict=True):
                    sumo[clock].append(min(settings.sumo, settings.batch) * settings.horizon / seconds)
    return {"rates": rates, "sumo": sumo if there and settings.sumo else {}, "load_at_start": load}


def _own(settings: Settings, grid: tuple[int, int]) -> tuple[float, Tasks, Controller]:
    """Return decisions a second on a grid, and what was played by whom."""
    from metarl import families
    from metarl.envs.traffic.headroom import candidates, mean_times
    from metarl.envs.traffic.network import Grid

    rows, columns = grid
    family = families.make("traffic-grid", rows=rows, columns=columns, horizon=settings.horizon, warmup=0)
    tasks = family.sample_tasks(settings.batch, "train", 0)
    name, rule = next(iter(candidates(Grid(rows=rows, columns=columns)).items()))
    started = time.perf_counter()
    mean_times(family, tasks, {name: rule}, [0])
    return settings.batch * settings.horizon / (time.perf_counter() - started), tasks, rule


def _sumo(settings: Settings, tasks: Tasks, rule: Controller) -> tuple[float, float]:
    """Return the seconds that SUMO takes for the first tasks: by the clock, and of the processor in its own process."""
    from metarl import families
    from metarl.envs.traffic.batch import TrafficBatch
    from metarl.envs.traffic.sumo_simulator import SumoSim

    rows, columns = BESIDE
    # one decision more than are taken: with the last one the process ends
    sizes = {"rows": rows, "columns": columns, "horizon": settings.horizon + 1, "warmup": 0}
    env = families.make("traffic-grid", **sizes, simulator="sumo").batch(1, 1)
    assert isinstance(env, TrafficBatch)
    clock = process = 0.0
    for task in range(min(settings.sumo, len(tasks))):
        env.reset(tasks.rows([task]), np.zeros(1, dtype=np.uint32))
        simulation = env.simulator
        assert isinstance(simulation, SumoSim)
        before, started = float(simulation.seconds()[0]), time.perf_counter()
        for _ in range(settings.horizon):
            env.step(rule(simulation, env.readings).flatten(0, 1).T.numpy())
        clock += time.perf_counter() - started
        process += float(simulation.seconds()[0]) - before
        simulation.finish()
    return clock, process


def described(settings: Settings, found: Mapping[str, Any]) -> list[str]:
    """Return the measurement as lines."""
    lines = [
        f"decisions of 10 s a second, one thread, {settings.batch} grids, load {found['load_at_start']:.1f} before; median and"
        " range"
    ]
    for name, rates in found["rates"].items():
        nodes = int(np.prod([int(part) for part in name.split("x")]))
        lines.append(f"{name:8} {_spread(rates)}; {statistics.median(rates) * nodes:.0f} of intersections")
    if not found["sumo"]:
        return [*lines, "SUMO: not measured (extra sumo, and sumo=1 or more)"]
    own = found["rates"][_name(BESIDE)]
    words = {"clock": "by the clock", "process": "by its process's own time"}
    for clock, rates in found["sumo"].items():
        ratios = [here / there for here, there in zip(own, rates, strict=True)]
        lines.append(
            f"{_name(BESIDE)} in SUMO, one process, {words[clock]}: {_spread(rates)}; ours is {_spread(ratios)} times"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _name(grid: tuple[int, int]) -> str:
    return "x".join(map(str, grid))
