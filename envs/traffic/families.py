"""Families of traffic-signal tasks: what differs from task to task, and how much."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from metarl.envs.traffic import draws
from metarl.envs.traffic.sumo_network import MOST
from metarl.envs.traffic.task import TrafficTask, concerning
from metarl.families import Agents, Choices, EnvBatch, RLSpec, Split, Tasks
from metarl.settings import SettingsError, setting

_RECOMMENDED: Mapping[str, Any] = {
    "algo": "maml-trpo",
    "iterations": 300,
    "meta_batch_size": 20,
    "episodes_per_task": 20,
    "inner_steps": 1,
    "inner_lr": 0.05,
    "local_adaptation": True,
    "gamma": 0.97,
    "gae_lambda": 0.95,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}


@dataclasses.dataclass(frozen=True)
class TrafficGrid:
    r"""Set the signals of a grid of intersections whose demand, capacity and detectors are hidden.

    $$ r_t = -\frac{1}{100 N} \int_{10 t}^{10 (t + 1)} n(\tau)\, d\tau $$

    n is the number of vehicles in the system, those that wait to enter and those on exits included, so that the return times
    -100 N is the total time spent, and divided by the vehicles demanded the mean time of a trip.

    Dynamics: :class:`metarl.envs.traffic.simulator.GridSim` in steps of 1 s, Poisson arrivals, 300 m links of two lanes and a
    left pocket of 100 m, 13.89 m/s, 1800 veh/h a lane, 3 s of yellow. N = rows x columns.

    Task: everything that :class:`TrafficDemand`, :class:`TrafficCapacity` and :class:`TrafficSensor` draw. Where the busiest
    intersection's flow ratios would sum to more than 0.95, all demand is scaled down to that.

    Observation (25 N + 4 N): 25 numbers of every intersection (:func:`metarl.envs.traffic.detectors.observation`) as detectors read
    them, then which phases are legal. Action: one of 4 protected phases for every intersection: north-south straight on and
    right, north-south left, east-west, east-west left. Control step 10 s, horizon 120 after 120 s of a fixed plan, no termination.
    Intersections are a team of equal agents: the learner gives them one policy, which fits any grid, unless
    ``shared_policy=false``, and lets each adapt for itself by what waits before its own stop lines, unless
    ``local_adaptation=false``; with ``oracle`` each sees the part of the task that concerns it.
    Rewards are exact: detectors cannot hide a queue from them.

    Other codes' rewards, for comparison: with ``reward=queues`` n counts those that wait only, entries included; with
    ``reward=pressure`` it is $\sum_i |n^{in}_i - n^{out}_i|$ over intersections, of vehicles on the links that lead there and on
    those that lead on (PressLight; exits count 0), which does not see who waits to enter.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand_low: float = setting(250.0, "smallest base demand of an entry before the factor of its side, veh/h", low=0)
    demand_high: float = setting(1000.0, "largest base demand likewise, veh/h", above=0, high=3600)
    band: str = setting(
        "usual",
        "usual; heavy: 1.2 to 1.4 times its demand; tidal: demand turns from eastwards to westwards",
        choices=("usual", "heavy", "tidal"),
    )
    oracle: bool = setting(False, "append the task to the observation")
    reward: str = setting(
        "vehicles",
        "what costs: vehicles in the system, those that wait, or pressure",
        choices=("vehicles", "queues", "pressure"),
    )
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Check the order of the range."""
        _check_range(self.demand_low, self.demand_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, (*draws.DEMAND, *draws.CAPACITY, *draws.SENSOR))

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw demand, capacity and detectors."""
        drawn = draws.Draws(self, num_tasks, split, seed)
        demand = draws.demand(drawn, self.demand_low, self.demand_high)
        parts = [demand, draws.capacity(drawn), draws.sensor(drawn)]
        return draws.tasks_of(self, parts, limited=True, grown=draws.growth(drawn, self.band))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, draws.default_task(self, band=self.band), self.reward)


@dataclasses.dataclass(frozen=True)
class TrafficDemand:
    r"""Set the signals of a grid whose demand is hidden; roads and detectors are sound.

    $$ d_e(t) = b\, f_{s(e)} \bigl(1 + A e^{-(t - t_0)^2 / 2 \sigma^2}\bigr) $$

    Task: ``demand`` of every entry, veh/h: a base b, uniform on [250, 1000], times a factor f of its side of the town, log-normal
    (0.45) within [0.25, 3]; shares of turns by heading, Dirichlet with means 0.15 left, 0.6 straight on, 0.25 right and
    concentration 20; a peak of height A, uniform on [0, 1.5], around $t_0$ in the middle 0.6 of the episode, of width
    $\sigma$ 0.08 to 0.2 of it. Demand is limited as in :class:`TrafficGrid`, which tells the rest.

    A policy that sees queues needs hardly more to be near the best on each of these tasks, so that little is left to adapt.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand_low: float = setting(250.0, "smallest base demand of an entry before the factor of its side, veh/h", low=0)
    demand_high: float = setting(1000.0, "largest base demand likewise, veh/h", above=0, high=3600)
    band: str = setting(
        "usual",
        "usual; heavy: 1.2 to 1.4 times its demand; tidal: demand turns from eastwards to westwards",
        choices=("usual", "heavy", "tidal"),
    )
    oracle: bool = setting(False, "append the task to the observation")
    reward: str = setting(
        "vehicles",
        "what costs: vehicles in the system, those that wait, or pressure",
        choices=("vehicles", "queues", "pressure"),
    )
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Check the order of the range."""
        _check_range(self.demand_low, self.demand_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, draws.DEMAND)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw demand."""
        drawn = draws.Draws(self, num_tasks, split, seed)
        parts = [draws.demand(drawn, self.demand_low, self.demand_high)]
        return draws.tasks_of(self, parts, limited=True, grown=draws.growth(drawn, self.band))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, draws.default_task(self, band=self.band), self.reward)


@dataclasses.dataclass(frozen=True)
class TrafficCapacity:
    """Set the signals of a grid whose roads are worse than they look.

    Task: ``saturation`` of every approach relative to 1800 veh/h a lane, uniform on [0.45, 1]; ``lost_time`` at the start of a
    green, uniform on [0, 4] s; an incident that lets only 0.1 to 0.5 of that pass one approach for 300 to 1200 s, beginning in
    the first 0.6 of the episode. Demand is the same everywhere (``demand``), a quarter of it turns right and 0.15 left.
    :class:`TrafficGrid` tells the rest.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand: float = setting(500.0, "demand of every entry, veh/h", low=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")
    reward: str = setting(
        "vehicles",
        "what costs: vehicles in the system, those that wait, or pressure",
        choices=("vehicles", "queues", "pressure"),
    )
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, draws.CAPACITY)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw capacity."""
        return draws.tasks_of(
            self, [draws.capacity(draws.Draws(self, num_tasks, split, seed), first=True)], limited=False
        )

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, draws.default_task(self, self.demand), self.reward)


@dataclasses.dataclass(frozen=True)
class TrafficSensor:
    """Set the signals of a grid with bad detectors; which of them are bad is hidden.

    Task: ``noise``, the relative standard deviation of every count, uniform on [0, 0.3]; ``bias`` of all counts, uniform on
    [-0.2, 0.2]; ``detector`` of every approach, dead (0) with probability 0.3, else 1. Demand is the same everywhere
    (``demand``), a quarter of it turns right and 0.15 left. :class:`TrafficGrid` tells the rest.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand: float = setting(500.0, "demand of every entry, veh/h", low=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")
    reward: str = setting(
        "vehicles",
        "what costs: vehicles in the system, those that wait, or pressure",
        choices=("vehicles", "queues", "pressure"),
    )
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, draws.SENSOR)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw detectors."""
        return draws.tasks_of(
            self, [draws.sensor(draws.Draws(self, num_tasks, split, seed), first=True)], limited=False
        )

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, draws.default_task(self, self.demand), self.reward)


@dataclasses.dataclass(frozen=True)
class TrafficObjective:
    """Set the signals of a grid for a town that cares more for some headings; which ones is hidden.

    Task: ``weight`` of a vehicle by heading, on approaches and at entries (buses, say): log-normal (0.9) within [0.1, 10],
    divided by their mean. Vehicles on exits weigh 1. Demand is the same everywhere (``demand``), a quarter of it turns right and
    0.15 left. :class:`TrafficGrid` tells the rest.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(120, "decisions in an episode", low=1)
    interval: int = setting(10, "seconds between two decisions", low=1, high=120)
    warmup: int = setting(120, "seconds of a fixed plan before the first decision", low=0, high=3600)
    demand: float = setting(700.0, "demand of every entry, veh/h", low=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self, draws.OBJECTIVE)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw weights."""
        return draws.tasks_of(self, [draws.objective(draws.Draws(self, num_tasks, split, seed))], limited=False)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return _batch(self, draws.default_task(self, self.demand))


def _check_range(low: float, high: float) -> None:
    if low >= high:
        raise SettingsError(f"demand_low={low:g} must be smaller than demand_high={high:g}")


@functools.lru_cache(64)
def _spec(family: draws.Sizes, names: tuple[str, ...]) -> RLSpec:
    count = family.rows * family.columns
    choices = Choices((4,) * count, masked=True)
    agents = Agents(count, concerning(names, family.rows, family.columns), credited=True)
    parameters = draws.parameters(family, names)
    spec = RLSpec.discrete(
        parameters, 29 * count, choices, family.horizon, float(family.interval), family.oracle, agents
    )
    return dataclasses.replace(spec, at_once=MOST if family.simulator == "sumo" else None)


def _batch(family: draws.Sizes, default: TrafficTask, reward: str = "vehicles") -> EnvBatch:
    from metarl.envs.traffic.batch import COSTS, TrafficBatch, simulate_in  # torch, not needed to describe a family

    simulate, cost = simulate_in(family.simulator), COSTS[reward]
    return TrafficBatch(default, family.horizon, family.interval, family.warmup, cost=cost, simulate=simulate)
