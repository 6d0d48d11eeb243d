"""Plans of traffic signals that see no queue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from metarl.envs.traffic import draws
from metarl.envs.traffic.network import PHASES
from metarl.envs.traffic.sumo_network import MOST
from metarl.families import EnvBatch, RLSpec, Split, Tasks
from metarl.settings import SettingsError, setting


@dataclasses.dataclass(frozen=True)
class TrafficPlan:
    r"""Set the green times of a grid once a cycle, without seeing a queue: what the demand is, only the reward tells.

    $$ r_k = -\frac{1}{100 N} \int_{C k}^{C (k + 1)} n(\tau)\, d\tau $$

    n is the number of vehicles in the system, as in :class:`metarl.envs.traffic.families.TrafficGrid`, whose simulator it is.

    Task: what :class:`metarl.envs.traffic.families.TrafficDemand` draws. Policies that see queues adapt to demand by themselves;
    a plan that is set blindly cannot, so that there is something to learn from rollouts.

    Observation (2): the part of the episode that has passed, and 1. Action (4 N): for every intersection, row by row, and each of
    its phases a number a within [-1, 1]; beyond the minimum of 7 s, green is divided in proportion to $e^{2 a}$
    (:func:`metarl.envs.traffic.plans.greens`). Every cycle of C = ``cycle`` seconds shows all four phases, each after
    3 s of yellow. Control step C, horizon 15 after two cycles of equal greens, no termination.
    """

    rows: int = setting(2, "rows of intersections", low=1, high=20)
    columns: int = setting(2, "columns of intersections", low=1, high=20)
    horizon: int = setting(15, "cycles in an episode", low=1)
    cycle: int = setting(80, "seconds of a cycle", low=40, high=300)
    warm_cycles: int = setting(2, "cycles of equal greens before the first plan", low=0, high=20)
    demand_low: float = setting(250.0, "smallest base demand of an entry before the factor of its side, veh/h", low=0)
    demand_high: float = setting(1000.0, "largest base demand likewise, veh/h", above=0, high=3600)
    oracle: bool = setting(False, "append the task to the observation")
    simulator: str = setting("own", "own, or SUMO (extra sumo): a process a grid", choices=("own", "sumo"))

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "maml-trpo",
        "iterations": 300,
        "meta_batch_size": 20,
        "episodes_per_task": 20,
        "inner_steps": 1,
        "inner_lr": 0.1,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "hidden_sizes": (64, 64),
        "activation": "tanh",
        "init_std": 0.5,
    }

    def __post_init__(self) -> None:
        """Check the order of the range."""
        if self.demand_low >= self.demand_high:
            raise SettingsError(f"demand_low={self.demand_low:g} must be smaller than demand_high={self.demand_high:g}")

    @property
    def interval(self) -> int:
        """Seconds between two decisions."""
        return self.cycle

    @property
    def warmup(self) -> int:
        """Seconds before the first decision."""
        return self.warm_cycles * self.cycle

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(self)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw demand."""
        drawn = draws.Draws(self, num_tasks, split, seed)
        return draws.tasks_of(self, [draws.demand(drawn, self.demand_low, self.demand_high)], limited=True)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        from metarl.envs.traffic.batch import simulate_in  # torch, not needed to describe a family
        from metarl.envs.traffic.plans import PlanBatch

        del num_envs, threads
        default, simulate = draws.default_task(self), simulate_in(self.simulator)
        return PlanBatch(default, self.horizon, self.cycle, self.warm_cycles, simulate)


@functools.lru_cache(64)
def _spec(family: TrafficPlan) -> RLSpec:
    size = len(PHASES) * family.rows * family.columns
    parameters = draws.parameters(family, draws.DEMAND)
    at_once = MOST if family.simulator == "sumo" else None
    return RLSpec(parameters, 2, size, -1.0, 1.0, family.horizon, float(family.cycle), family.oracle, at_once=at_once)
