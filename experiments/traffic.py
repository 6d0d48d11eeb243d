"""Traffic signals: what there is to adapt, and how fast the simulator is.

    python -m experiments.traffic headroom env=traffic-grid tasks=32      best common against best own controllers
    python -m experiments.traffic speed                                   decisions a second, beside SUMO (traffic_speed.py)
    python -m experiments.traffic train                                   policies beside the controllers (traffic_training.py)
    python -m experiments.traffic street                                  space-time diagrams of a street (traffic_pictures.py)
    python -m experiments.traffic film run=RUN                            one grid before and after adapting, at some moments
    python -m experiments.traffic agree                                   the controllers here and in SUMO (traffic_sumo.py)
    python -m experiments.traffic transfer                                what policies gain by adapting, here and in SUMO

``save=true`` keeps the result under ``experiments/results/``. Measure speed on an idle machine.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import recording
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.settings import SettingsError, nearest, setting

RESULTS = pathlib.Path(__file__).parent / "results"
MEASURES = ("headroom", "speed", "train", "agree", "transfer", "street", "film")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``headroom`` can be told."""

    env: str = setting("traffic-grid", "family")
    tasks: int = setting(32, "validation tasks", low=1)
    seeds: int = setting(4, "episodes of each, half of which choose", low=2)
    rows: int = setting(2, "rows of intersections", low=1)
    columns: int = setting(2, "columns of intersections", low=1)
    horizon: int = setting(120, "decisions of an episode", low=1)
    save: bool = setting(False, "write the result to experiments/results/")


def main(argv: Sequence[str] | None = None, results: pathlib.Path = RESULTS) -> int:
    """Measure, print, and save where asked; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words, results))


def _main(argv: Sequence[str], results: pathlib.Path) -> int:
    if not argv or argv[0] not in MEASURES:
        given = argv[0] if argv else ""
        raise SettingsError(f"Say what to measure, not '{given}'. {nearest(given, MEASURES)}")
    if argv[0] == "train":
        from experiments import traffic_training

        return traffic_training.train(argv[1:])
    if argv[0] == "street":
        from experiments import traffic_pictures

        return traffic_pictures.street(argv[1:], results)
    if argv[0] == "film":
        from experiments import traffic_pictures

        return traffic_pictures.film(argv[1:])
    if argv[0] in ("agree", "transfer"):
        from experiments import traffic_sumo

        return traffic_sumo.main(argv)
    if argv[0] == "speed":
        from experiments import traffic_speed

        return traffic_speed.speed(argv, results)
    settings = Settings(**parse(argv[1:], Settings))
    found = headroom(settings)
    if settings.save:
        from metarl.run.provenance import provenance

        file = results / f"{settings.env}_headroom.json"
        command = shlex.join(["python", "-m", "experiments.traffic", *argv])
        record = {"command": command, "settings": dataclasses.asdict(settings), **found, **provenance()}
        recording.write(file, record)
        print(f"saved: {file}")
    return 0


def headroom(settings: Settings) -> Mapping[str, Any]:
    """Play all controllers on validation tasks."""
    from metarl import families
    from metarl.envs.traffic import headroom as rooms
    from metarl.envs.traffic.network import Grid

    sizes = {"rows": settings.rows, "columns": settings.columns, "horizon": settings.horizon}
    family = families.make(settings.env, **sizes)
    controllers = rooms.candidates(Grid(rows=settings.rows, columns=settings.columns))
    tasks = family.sample_tasks(settings.tasks, "validation", 0)
    try:
        times = rooms.mean_times(family, tasks, controllers, range(settings.seeds))
    except TypeError as error:
        raise SettingsError(f"env={settings.env}: {error}") from error
    found, names = rooms.headroom(times), list(controllers)
    means = dict(zip(names, times.mean((1, 2)).tolist(), strict=True))
    print(f"mean time of a trip, s, over {settings.tasks} tasks of {settings.env}")
    for name, mean in sorted(means.items(), key=lambda item: item[1]):
        print(f"{name:32} {mean:8.1f}")
    gains = found.gains
    print(f"best common: {names[found.common]}")
    print(f"gain of a task's own best, on other seeds: mean {gains.mean():.1%}, largest {gains.max():.1%}")
    return {
        "mean_times": means,
        "common": names[found.common],
        "own": [names[k] for k in found.own],
        "gains": gains.tolist(),
        "tasks": tasks.to_json(),
        "times": times.tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
