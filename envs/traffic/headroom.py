r"""How much there is to adapt: what each task's own best controller gains over the one that is best on the whole.

A benchmark on which one rule is near the best everywhere cannot show that adapting pays. With $T_{km}$ the mean time of a trip
under controller k in task m, $k^*$ the controller with the least mean over tasks and $k_m$ the least in task m,

$$ \text{gain}_m = 1 - T_{k_m m} / T_{k^* m} $$

Both are chosen on some seeds and judged on others, so that luck is no gain; a gain may then be negative. As controllers are
few, this is a lower bound of what a policy that knows the task could gain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from metarl.envs.traffic.batch import TrafficBatch
from metarl.envs.traffic.controllers import (
    Actuated,
    Controller,
    FixedTime,
    LongestQueue,
    MaxPressure,
    Random,
    SelfOrganizing,
    webster,
)
from metarl.envs.traffic.network import PHASES, Grid
from metarl.envs.traffic.town import Town
from metarl.families import RLFamily, Tasks

# From grids and their seeds to who controls them.
Maker = Callable[[Town, np.ndarray], Controller]
# From observations (B, O) to actions (B, N); and from grids that were reset, with their seeds, to such a function.
Actions = Callable[[np.ndarray], np.ndarray]
Player = Callable[[TrafficBatch, np.ndarray], Actions]

# What a max-pressure controller takes for the turning shares, which it cannot know.
_USUAL = (0.15, 0.6, 0.25)


def candidates(grid: Grid) -> dict[str, Controller]:
    """Return controllers that any policy could be, for one or more grids: none knows the task."""
    shape = (3, 4, grid.rows, grid.columns, 1)
    shares = torch.tensor(_USUAL, dtype=torch.float64).reshape(3, 1, 1, 1, 1).expand(shape)
    made: dict[str, Controller] = {
        f"max-pressure stay={stay:g}": MaxPressure(shares, stay) for stay in (0, 2, 5, 10, 20)
    }
    made |= {f"longest queue stay={stay:g}": LongestQueue(stay) for stay in (0, 3, 10)}
    made |= {f"actuated max_green={green:g}": Actuated(green) for green in (27, 47, 87)}
    made |= {f"self-organizing many={many:g}": SelfOrganizing(many=many) for many in (6, 15)}
    made |= {f"fixed {cycle} s": fixed(grid, cycle) for cycle in (60, 100)}
    return made


def fixed(grid: Grid, cycle: int) -> FixedTime:
    """Return a plan that gives straight traffic twice the time of left turns, in whole tens of seconds."""
    through = round(cycle / 30) * 10
    times = (through, cycle // 2 - through, through, cycle - cycle // 2 - through)
    durations = torch.tensor(times, dtype=torch.float64).reshape(len(PHASES), 1, 1, 1)
    durations = durations.expand(len(PHASES), grid.rows, grid.columns, 1)
    return FixedTime(durations, torch.zeros(grid.rows, grid.columns, 1, dtype=torch.float64))


def eight(grid: Grid) -> dict[str, Maker]:
    """Return the eight reference controllers. Webster's plan knows demand and turns, on sound roads; the others know no task."""
    rules = candidates(grid)

    def plan(sim: Town, seeds: np.ndarray) -> Controller:
        del seeds
        given = sim.conditions
        sound = dataclasses.replace(
            given, saturation=torch.ones_like(given.saturation), lost=torch.zeros_like(given.lost)
        )
        return webster(sim.grid, sound)

    return {
        "random": lambda sim, seeds: Random(seeds),
        "fixed time, 60 s": _always(rules["fixed 60 s"]),
        "Webster, demand known": plan,
        "actuated": _always(rules["actuated max_green=47"]),
        "self-organizing": _always(rules["self-organizing many=6"]),
        "longest queue": _always(rules["longest queue stay=0"]),
        "max-pressure": _always(rules["max-pressure stay=0"]),
        "max-pressure, stay=5": _always(rules["max-pressure stay=5"]),
    }


def controlled(make: Maker) -> Player:
    """Return the player that does what a controller says."""

    def begin(env: TrafficBatch, seeds: np.ndarray) -> Actions:
        controller = make(env.simulator, seeds)
        return lambda seen: controller(env.simulator, env.readings).flatten(0, 1).T.numpy()

    return begin


def played(family: RLFamily, tasks: Tasks, seeds: Sequence[int], player: Player) -> np.ndarray:
    """Return the mean time of a trip, unfinished ones and the warm-up included, s, (tasks, seeds)."""
    rows = tasks.repeat(len(seeds))
    each = np.tile(np.array(seeds, dtype=np.uint32), len(tasks))
    env = family.batch(len(rows), 1)
    if not isinstance(env, TrafficBatch):
        raise TypeError(f"{type(family).__name__} is no family of traffic signals")
    seen = env.reset(rows, each)
    act = player(env, each)
    for _ in range(family.spec.horizon):
        seen = env.step(act(seen)).observations
    spent = env.simulator.time_spent / env.simulator.demanded.clamp(min=1.0)
    return spent.reshape(len(tasks), len(seeds)).numpy()


def mean_times(
    family: RLFamily, tasks: Tasks, controllers: Mapping[str, Controller], seeds: Sequence[int]
) -> np.ndarray:
    """Return the mean time of a trip, unfinished ones included, s, (controllers, tasks, seeds).

    Every controller meets the same arrivals and the same noise.
    """
    return np.stack([played(family, tasks, seeds, controlled(_always(rule))) for rule in controllers.values()])


def _always(rule: Controller) -> Maker:
    return lambda sim, seeds: rule


@dataclasses.dataclass(frozen=True)
class Headroom:
    """What there is to gain.

    Attributes:
        common: number of the controller that is best on the whole.
        own: numbers of the tasks' best controllers, (M,).
        gains: of the tasks, (M,), on seeds that had no say.
    """

    common: int
    own: np.ndarray
    gains: np.ndarray


def headroom(times: np.ndarray) -> Headroom:
    """Compare mean times (controllers, tasks, seeds); the first half of the seeds chooses, the others judge."""
    if times.shape[2] < 2:
        raise ValueError("at least two seeds are needed: one chooses, the other judges")
    half = times.shape[2] // 2
    chosen, judged = times[..., :half].mean(2), times[..., half:].mean(2)
    common, own = int(chosen.mean(1).argmin()), chosen.argmin(0)
    return Headroom(common, own, 1.0 - judged[own, np.arange(len(own))] / judged[common])
