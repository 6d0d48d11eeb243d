"""How a street fills and empties under two controllers: ``python -m experiments.traffic street``.

Space-time diagrams of the eastbound street of the first row, and the vehicles in the whole grid over time, of one validation
task: a PNG under ``experiments/results/``.

    python -m experiments.traffic street                                        a street of six intersections
    python -m experiments.traffic street env=traffic-capacity task=3 columns=4  another one
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.run.arguments import parse
from metarl.settings import setting

if TYPE_CHECKING:
    from metarl.envs.traffic.batch import TrafficBatch
    from metarl.envs.traffic.headroom import Actions, Player

RULES = ("fixed time, 60 s", "max-pressure")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be told."""

    env: str = setting("traffic-demand", "family")
    rows: int = setting(1, "rows of intersections", low=1, high=20)
    columns: int = setting(6, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions of an episode", low=1)
    task: int = setting(0, "which of the validation tasks, from 0", low=0)
    seed: int = setting(0, "of its arrivals", low=0)


class History:
    """What a player's grid was like before each decision.

    Attributes:
        loads: part of each eastbound link of the first row that is full, a list of (columns,).
        green: whether it has green, likewise.
        vehicles: in the system.
    """

    def __init__(self) -> None:
        self.loads: list[np.ndarray] = []
        self.green: list[np.ndarray] = []
        self.vehicles: list[float] = []

    def watching(self, player: Player) -> Player:
        """Return the player that is written down."""

        def begin(env: TrafficBatch, seeds: np.ndarray) -> Actions:
            act = player(env, seeds)

            def watched(seen: np.ndarray) -> np.ndarray:
                town = env.simulator
                self.loads.append((town.on_links[1, 0, :, 0] / town.grid.storage).numpy())
                self.green.append((town.signals.phase[0, :, 0] == 2).numpy())
                self.vehicles.append(float(town.vehicles[0]))
                return act(seen)

            return watched

        return begin


def street(argv: Sequence[str], results: pathlib.Path) -> int:
    """Play, draw, save; return the exit code."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from metarl import families
    from metarl.envs.traffic import headroom, picture
    from metarl.envs.traffic.network import Grid

    settings = Settings(**parse(argv, Settings))
    grid = Grid(rows=settings.rows, columns=settings.columns)
    family = families.make(settings.env, rows=grid.rows, columns=grid.columns, horizon=settings.horizon)
    tasks = family.sample_tasks(settings.task + 1, "validation", 0).rows([settings.task])
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplot_mosaic([["0", "1"], ["all", "all"]])
    for number, name in enumerate(RULES):
        history = History()
        player = history.watching(headroom.controlled(headroom.eight(grid)[name]))
        spent = headroom.played(family, tasks, [settings.seed], player).item()
        own, step = axes[str(number)], float(family.spec.control_step)
        picture.space_time(own, np.stack(history.loads), np.stack(history.green), step, grid.length)
        own.set_title(f"{name}: {spent:.0f} s a trip")
        axes["all"].plot(np.arange(len(history.vehicles)) * step, history.vehicles, label=name)
    axes["all"].set_xlabel("time, s")
    axes["all"].set_ylabel("vehicles in the system")
    axes["all"].legend()
    file = results / f"{settings.env}_street.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    print(f"saved: {file}")
    return 0
