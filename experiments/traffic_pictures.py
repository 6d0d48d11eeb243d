"""Pictures of traffic: ``python -m experiments.traffic street`` and ``film``.

``street``: space-time diagrams of the eastbound street of the first row under two controllers, and the vehicles in the whole
grid over time, of one validation task: a PNG under ``experiments/results/``.

    python -m experiments.traffic street                                        a street of six intersections
    python -m experiments.traffic street env=traffic-capacity task=3 columns=4  another one

``film``: a film strip of one grid before and after a policy has adapted to it, the same arrivals in both: queues and signals at
some moments, and the vehicles over time: a PNG under ``RUN/evaluation/``. (``python -m metarl.evaluate run=RUN video=true`` makes
a film of it, of the policy without its noise.)

    python -m experiments.traffic film run=runs/traffic-grid-policies/maml-s0 task=2
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.core.params import Params
    from metarl.envs.traffic.batch import TrafficBatch
    from metarl.envs.traffic.headroom import Actions, Player
    from metarl.families import Tasks

RULES = ("fixed time, 60 s", "max-pressure")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``street`` can be told."""

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

    def watching(self, player: Player, look: Callable[[TrafficBatch], None] = lambda env: None) -> Player:
        """Return the player that is written down; ``look`` may look at the grid after each line."""

        def begin(env: TrafficBatch, seeds: np.ndarray) -> Actions:
            act = player(env, seeds)

            def watched(seen: np.ndarray) -> np.ndarray:
                town = env.simulator
                self.loads.append((town.on_links[1, 0, :, 0] / town.grid.storage).numpy())
                self.green.append((town.signals.phase[0, :, 0] == 2).numpy())
                self.vehicles.append(float(town.vehicles[0]))
                look(env)
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


@dataclasses.dataclass(frozen=True)
class FilmSettings:
    """What ``film`` can be told."""

    run: str = setting("", "the run directory whose policy plays")
    task: int = setting(0, "which of the held-out tasks, from 0", low=0)
    updates: int = setting(3, "inner updates", low=1)
    inner_lr: tuple[float, ...] = setting((), "step size of each, the last for all later; empty: training's", above=0)
    moments: int = setting(5, "pictures of each episode", low=2, high=12)
    seed: int = setting(0, "of its arrivals", low=0)


def film(argv: Sequence[str]) -> int:
    """Adapt, play, draw, save; return the exit code."""
    from experiments.traffic_training import adapted
    from metarl.analysis.agent import load
    from metarl.envs.traffic.batch import TrafficBatch
    from metarl.learner import TEST
    from metarl.rl.domain import RLDomain

    settings = FilmSettings(**parse(argv, FilmSettings, paths={"run"}))
    if not settings.run:
        raise SettingsError("run is missing: name a run directory, run=runs/NAME")
    agent = load(settings.run)
    domain = agent.learner.domain
    if not isinstance(domain, RLDomain) or domain.remembers or not isinstance(domain.family.batch(1, 1), TrafficBatch):
        raise SettingsError(
            f"run={settings.run}: a film strip needs a policy for traffic signals that adapts by updates"
        )
    tasks = domain.sample_tasks(settings.task + 1, "test", (0, TEST)).rows([settings.task])
    before, *_, after = adapted(agent, tasks, (0, TEST, 1), settings.updates, settings.inner_lr)
    stages = {"before adapting": before, f"after {settings.updates} update{'s' * (settings.updates > 1)}": after}
    file = pathlib.Path(settings.run) / "evaluation" / f"film_task{settings.task}.png"
    spent = strip(agent, stages, tasks, file, settings.moments, settings.seed)
    print("\n".join(f"{name}: {time:.1f} s a trip" for name, time in spent.items()))
    print(f"saved: {file}")
    return 0


def strip(
    agent: Agent, stages: Mapping[str, Params], tasks: Tasks, path: pathlib.Path, moments: int = 5, seed: int = 0
) -> dict[str, float]:
    """Draw the same grid and arrivals under several parameters.

    Args:
        agent: whose policy plays.
        stages: parameters (1, ...) by what they are called, a row of pictures each.
        tasks: one.
        path: of the picture.
        moments: pictures in a row, evenly over the episode.
        seed: of the arrivals.

    Returns:
        The mean time of a trip of each, s.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from experiments.traffic_training import player
    from metarl.envs.traffic import headroom, picture
    from metarl.rl.domain import RLDomain

    domain = agent.learner.domain
    assert isinstance(domain, RLDomain)
    spec = domain.family.spec
    shown = sorted({round(at) for at in np.linspace(0, spec.horizon - 1, min(moments, spec.horizon))})
    figure = Figure(figsize=(2.6 * len(shown), 2.9 * len(stages) + 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(stages) + 1, len(shown))
    below, spent = figure.add_subplot(grid[-1, :]), {}
    for row, (name, params) in enumerate(stages.items()):
        history = History()
        axes = {at: figure.add_subplot(grid[row, column]) for column, at in enumerate(shown)}

        def look(env: TrafficBatch, history: History = history, axes: Mapping[int, Any] = axes) -> None:
            at = len(history.vehicles) - 1
            if at in axes:
                picture.draw(env.simulator, 0, axes[at])

        plays = history.watching(player(agent, params, tasks, 1), look)
        spent[name] = headroom.played(domain.family, tasks, [seed], plays).item()
        first = axes[shown[0]]
        first.text(-0.08, 0.5, name, transform=first.transAxes, rotation=90, ha="center", va="center", fontsize=10)
        times = np.arange(len(history.vehicles)) * spec.control_step
        below.plot(times, history.vehicles, label=f"{name}: {spent[name]:.0f} s a trip")
    figure.suptitle(
        "roads: the redder the fuller; bars: queues to the left (blue), straight on (black), to the right (violet); dots: lights;"
        " numbers: vehicles that wait to enter",
        fontsize=8,
    )
    below.set_xlabel("time since the first decision, s")
    below.set_ylabel("vehicles in the system")
    below.legend()
    below.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return spent


def against(own: np.ndarray, sumo: np.ndarray, names: Sequence[str], path: pathlib.Path) -> None:
    """Draw mean times of a trip in SUMO against the own simulator's, both (tasks, controllers)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    for column, name in enumerate(names):
        axes.plot(own[:, column], sumo[:, column], "o", ms=4, alpha=0.7, label=name)
    axes.axline((100, 100), (200, 200), color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="own simulator: mean time of a trip, s", ylabel="SUMO, s")
    figure.legend(loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def gains(here: np.ndarray, there: np.ndarray, path: pathlib.Path) -> None:
    """Draw what adapting gained each task in SUMO against what it gained in the own simulator, as fractions (N,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * here, 100 * there, "o", ms=4, alpha=0.7)
    axes.axline((0, 0), (1, 1), color="black", linewidth=0.8)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set(xlabel="gain of adapting in the own simulator, % of a trip's time", ylabel="in SUMO, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
