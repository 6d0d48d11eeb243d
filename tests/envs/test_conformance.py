"""The conformance kit: every registered family passes, and each deliberate flaw is found and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from metarl import families
from metarl.families import RLSpec, Shots, ShotSpec, Step, TaskParameter, Tasks, split_uniform
from metarl.pooled import Picks, Pooled
from metarl.settings import SettingsError
from metarl.testing import check_family

# families of two tasks, which every split must have
TWO_TASKS = {"ant-dir", "ant-dir-maml", "halfcheetah-dir", "halfcheetah-dir-maml"}


# whose goals take a minute to draw
SLOW = {"metaworld-ml45"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in families.names()]
)
def test_every_registered_family_keeps_the_contract(name):
    try:
        family = families.make(name)
        if isinstance(family, Pooled):
            family.pool()
    except SettingsError as error:
        if not any(lack in str(error) for lack in ("needs the extra", "METARL_DATA", "env.root is missing")):
            raise
        pytest.skip(f"{name} {error}")
    check_family(name, disjoint=name not in TWO_TASKS)


HORIZON_TEN = ["bandit-bernoulli", "tabular-mdp", "navigation-2d", "halfcheetah-vel", "hopper-params"]


@pytest.mark.parametrize("name", [*HORIZON_TEN, "traffic-sensor"])
def test_time_limits_are_counted_for_every_simulation(name):
    """One clock for all: who starts anew is cut off with the others, or cuts them off later. One family of every engine."""
    check_family(families.make(name, horizon=10))


@pytest.mark.parametrize("name", [*HORIZON_TEN, "bandit-gaussian", "navigation-2d-sparse"])
@pytest.mark.parametrize("count", [1, 3])
def test_none_or_all_may_start_anew(name, count):
    """Shapes that cannot be worked out from nothing, and whoever starts anew at an end that all share."""
    family = families.make(name)
    tasks, seeds = family.sample_tasks(count, "train", 0), np.arange(count, dtype=np.uint32)
    played, whole = family.batch(count, 1), family.batch(count, 1)
    played.reset(tasks, seeds + 9)
    actions = np.zeros((count, family.spec.action_size), np.float32 if family.spec.choices is None else np.int64)
    played.step(actions)
    none = played.restart(np.zeros(0, dtype=int), tasks.rows(slice(0)), seeds[:0])
    assert none.shape == (0, family.spec.observation_size)
    assert np.array_equal(played.restart(np.arange(count), tasks, seeds), whole.reset(tasks, seeds))
    for ours, theirs in zip(played.step(actions), whole.step(actions), strict=True):
        assert np.array_equal(ours, theirs)


# -- families with a flaw ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Toy:
    """A sound little family (a point, a goal, falling off at +-0.6) that can be told to be flawed."""

    flaw: str = ""
    log: list[int] = dataclasses.field(default_factory=list)

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        high = -3.0 if self.flaw == "bounds" else 2.0
        goal = TaskParameter("goal", 1.0 if self.flaw == "range" else -1.0, 1.0, "m")
        return RLSpec((goal,), 2, 1, -2.0, high, 0 if self.flaw == "horizon" else 12, 0.0)

    def sample_tasks(self, num_tasks, split, seed):
        if self.flaw == "overlap":
            values = np.random.default_rng(seed).uniform(0, 1, (num_tasks, 1)).round(2)
        elif self.flaw == "seedless":
            values = split_uniform(num_tasks, split, 0)
        elif self.flaw == "unrepeatable":
            self.log.append(1)
            values = split_uniform(num_tasks, split, len(self.log))
        elif self.flaw == "half a seed":
            values = split_uniform(num_tasks, split, seed if isinstance(seed, int) else seed[0])
        elif self.flaw == "count":
            values = split_uniform(num_tasks, split, [num_tasks, *np.atleast_1d(seed)])
        else:
            values = split_uniform(num_tasks, split, seed)
        return Tasks(("aim" if self.flaw == "names" else "goal",), 2 * values - 1)

    def batch(self, num_envs, threads):
        batch = ToyBatch(self.flaw, num_envs, threads)
        return RestartableToyBatch(batch) if self.flaw.startswith("restart") else batch


class ToyBatch:
    """Simulations of Toy."""

    def __init__(self, flaw, count, threads):
        self.flaw, self.count, self.threads = flaw, count, threads
        self.x, self.resets = np.zeros(count), 0
        self.live = np.zeros((count, 2), dtype=np.float32)

    def reset(self, tasks, seeds):
        self.tasks, self.time, self.done = tasks, np.zeros(self.count), np.zeros(self.count, dtype=bool)
        self.resets += 1
        start = np.array([np.random.default_rng(int(s)).uniform(-0.1, 0.1) for s in seeds])
        if self.flaw == "one generator":
            start = np.random.default_rng(int(seeds[0])).uniform(-0.1, 0.1, self.count)
        self.x = start + (0.5 * self.x if self.flaw == "memory" else 0.0)
        return self._observe(self.x)

    def step(self, actions):
        clipped = actions if self.flaw == "unclipped" else np.clip(actions, -2.0, 2.0)
        if self.flaw == "writes":
            actions *= 0.5
        self.x = (
            self.x + 0.1 * clipped[:, 0].astype(np.float64) + (0.01 if self.flaw == "threads" else 0.0) * self.threads
        )
        self.time += 1
        goal = 0.3 if self.flaw == "task" else self.tasks["goal"]
        rewards = -np.abs(self.x - goal).astype(np.float32)
        if self.flaw == "neighbours":
            rewards = rewards - rewards.mean()
        if self.flaw == "nan" and self.time[1] == 5:
            rewards[1] = np.nan
        terminated = np.abs(self.x) > 0.6
        truncated = self.time >= 12
        rewards[self.done] = np.nan  # allowed: it is over
        self.done = self.done | terminated | truncated
        observations = self._observe(self.x)
        if self.flaw == "flags":
            terminated = terminated.astype(np.float32)
        if self.flaw == "reward shape":
            rewards = rewards[:, None]
        if self.flaw == "five":
            return observations, rewards, terminated, truncated, {}
        return Step(observations, rewards, terminated, truncated)

    def _observe(self, x):
        rows = np.stack([x, x**2], 1).astype(np.float64 if self.flaw == "float64" else np.float32)
        if self.flaw == "width":
            return rows[:, :1]
        if self.flaw == "live":
            self.live[:] = rows
            return self.live
        return rows


class RestartableToyBatch:
    """Simulations of Toy of which some may start anew."""

    def __init__(self, whole):
        self.whole, self.flaw = whole, whole.flaw.removeprefix("restart").strip()
        self.live = np.zeros((0, 2), dtype=np.float32)

    def reset(self, tasks, seeds):
        self.live = self.whole.reset(tasks, seeds)
        return self.live

    def step(self, actions):
        step = self.whole.step(actions)
        self.live = step.observations
        return step

    def restart(self, envs, tasks, seeds):
        toy = self.whole
        seeds = seeds if self.flaw != "seeds of rows" else np.arange(toy.count, dtype=np.uint32)[envs]
        toy.x[envs] = [np.random.default_rng(int(s)).uniform(-0.1, 0.1) for s in seeds]
        if self.flaw != "keeps the task":
            toy.tasks = toy.tasks.replaced(envs, tasks)
        if self.flaw != "stays over":
            toy.done[envs] = False
        toy.time[... if self.flaw == "one clock" else envs] = 0 if self.flaw != "clock goes on" else toy.time[envs]
        if self.flaw == "disturbs":
            toy.x += 1e-3 * (np.arange(toy.count) == 0)
        if self.flaw == "live":
            self.live[envs] = 0.0
        return toy._observe(toy.x[envs])


RL_FLAWS = {
    "bounds": "action_low is smaller",
    "horizon": "sizes and horizon are at least 1",
    "range": "task values lie in the spec's range",
    "names": "tasks have the spec's parameters",
    "overlap": "splits share no task",
    "seedless": "another seed draws other tasks",
    "half a seed": "another seed draws other tasks",
    "unrepeatable": "the same arguments draw the same tasks",
    "count": "does not depend on how many are drawn",
    "float64": "observations are float32",
    "width": r"observations have shape \(4, 2\); found \(4, 1\)",
    "reward shape": r"rewards have shape \(4,\)",
    "flags": "terminated flags are bool",
    "five": "step returns observations, rewards, terminated, truncated",
    "nan": "rewards are finite",
    "live": "later steps leave them alone",
    "writes": "leaves the caller's actions alone",
    "memory": "a reset with the same tasks and seeds gives the same episode",
    "threads": "do not depend on the batch object or its threads",
    "neighbours": "does not depend on its neighbours",
    "one generator": "does not depend on its neighbours",
    "unclipped": "actions beyond the bounds act like the bounds",
    "task": "a task changes observations or rewards",
    "restart seeds of rows": "some simulations start as in a reset of all",
    "restart keeps the task": "play the episode of a reset of all",
    "restart stays over": "play the episode of a reset of all",
    "restart clock goes on": "play the episode of a reset of all",
    "restart one clock": "starting some simulations anew leaves the others alone",
    "restart disturbs": "starting some simulations anew leaves the others alone",
    "restart live": "starting some simulations anew leaves them alone",
}


def test_the_sound_toy_passes_and_really_ends_early():
    check_family(Toy())
    check_family(Toy("restart"))
    env = Toy().batch(1, 1)
    env.reset(Toy().sample_tasks(1, "train", 0), np.zeros(1, np.uint32))
    assert [bool(env.step(np.full((1, 1), 2.0, np.float32)).terminated[0]) for _ in range(4)] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(("flaw", "rule"), RL_FLAWS.items(), ids=RL_FLAWS)
def test_a_flawed_rl_family_is_caught_by_the_rule_it_breaks(flaw, rule):
    with pytest.raises(AssertionError, match=f"Family Toy breaks a rule: .*{rule}"):
        check_family(Toy(flaw))


@dataclasses.dataclass(frozen=True)
class ToyShots:
    """Sound few-shot classification (is x beyond the threshold?) that can be told to be flawed."""

    flaw: str = ""

    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self):
        threshold = TaskParameter("threshold", 0.0, 1.0, "")
        return ShotSpec((threshold,), (2,), 2, "cross_entropy", "accuracy", "fraction")

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("threshold",), split_uniform(num_tasks, split, seed))

    def draw(self, tasks, seeds):
        if self.flaw == "one generator":
            seeds = 7 * seeds[0] + np.arange(len(seeds))
        elif self.flaw == "seedless":
            seeds = 0 * seeds
        inputs = np.stack([np.random.default_rng(int(s)).uniform(size=(20, 2)) for s in seeds])
        if self.flaw == "leak":
            inputs[:, 19] = inputs[:, 0]
        threshold = 0.5 if self.flaw == "task" else tasks["threshold"][:, None]
        targets = (inputs[..., 0] > threshold).astype(np.int64) + (1 if self.flaw == "classes" else 0)
        inputs = inputs.astype(np.float64 if self.flaw == "float64" else np.float32)
        targets = targets[..., None] if self.flaw == "shape" else targets
        return Shots(inputs[:, :5], targets[:, :5]), Shots(inputs[:, 5:], targets[:, 5:])


SHOT_FLAWS = {
    "one generator": "do not depend on other tasks",
    "seedless": "another seed draws other examples",
    "leak": "support and query share no example",
    "task": "a task changes its examples",
    "classes": "support targets are classes 0 to 1",
    "float64": "support inputs are float32",
    "shape": r"support targets have shape \(4, 5\)",
}


@pytest.mark.parametrize(("flaw", "rule"), SHOT_FLAWS.items(), ids=SHOT_FLAWS)
def test_a_flawed_shot_family_is_caught_by_the_rule_it_breaks(flaw, rule):
    check_family(ToyShots())
    with pytest.raises(AssertionError, match=f"Family ToyShots breaks a rule: .*{rule}"):
        check_family(ToyShots(flaw))


@dataclasses.dataclass(frozen=True)
class ToyPool(ToyShots):
    """ToyShots with classes of random images that lie in a pool."""

    @property
    def spec(self):
        return dataclasses.replace(super().spec, input_shape=(1, 2, 2))

    def pool(self):
        images = POOL.copy() if self.flaw == "copies" else POOL
        return images.astype(np.float32) if self.flaw == "float pool" else images

    def pick(self, tasks, seeds):
        first = np.stack([np.random.default_rng(int(s)).permutation(10)[:6] for s in seeds])
        rows = np.concatenate([first, first + 10], 1) + 20 * (tasks["threshold"][:, None] > 0.5)
        targets = np.broadcast_to(np.repeat([0, 1], 6), rows.shape)
        rows = rows + (1000 if self.flaw == "beyond" else 0)
        half = [np.arange(12) % 6 < 2, np.arange(12) % 6 >= 2]
        return Picks(rows[:, half[0]], targets[:, half[0]]), Picks(rows[:, half[1]], targets[:, half[1]])

    def draw(self, tasks, seeds):
        scale = 256 if self.flaw == "scale" else 255
        return tuple(
            Shots((self.pool()[p.rows % len(POOL)] / np.float32(scale)).astype(np.float32), p.targets)
            for p in self.pick(tasks, seeds)
        )


POOL = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2)).astype(np.uint8)
POOL_FLAWS = {
    "copies": "the same array at every call",
    "float pool": "the pool is a uint8 array",
    "beyond": "support rows lie in the pool",
    "scale": "pick and draw give the same examples; support",
}


@pytest.mark.parametrize(("flaw", "rule"), POOL_FLAWS.items(), ids=POOL_FLAWS)
def test_a_flawed_pool_is_caught_by_the_rule_it_breaks(flaw, rule):
    """A learner never calls ``draw`` of such a family, so that only the kit sees whether it tells the same."""
    check_family(ToyPool())
    with pytest.raises(AssertionError, match=f"Family ToyPool breaks a rule: .*{rule}"):
        check_family(ToyPool(flaw))


def test_few_tasks_and_rounding_can_be_allowed():
    check_family(Toy("overlap"), disjoint=False)
    with pytest.raises(AssertionError, match="threads"):
        check_family(Toy("threads"), tolerance=0.01)
    check_family(Toy("threads"), tolerance=1.0)


def test_a_check_names_a_registered_family_by_its_name():
    with pytest.raises(families.SettingsError, match="halfcheetah-vel"):
        check_family("halfcheeta-vel")


def test_a_notebooks_cell_may_run_twice():
    """The same definition again replaces the old one; another class of the same name is refused."""

    def define(bound):
        @dataclasses.dataclass(frozen=True)
        class Mine:
            size: int = bound

        return Mine

    name, first, second = "defined-in-a-notebook", define(1), define(2)
    try:
        families.register(name)(first)
        assert families.register(name)(second) is second
        assert families.lookup(name) is second
        other = dataclasses.make_dataclass("Other", [("size", int, 3)])
        with pytest.raises(SettingsError, match="exists already"):
            families.register(name)(other)
        with pytest.raises(SettingsError, match="exists already"):
            families.register("sinusoid")(first)
    finally:
        families._registered.pop(name, None)


def test_tasks_keep_their_values_and_leave_the_callers_array_alone():
    """A view would change with the caller's array, and freezing it would break the caller."""
    values = np.array([[1.0], [2.0]])
    tasks = families.Tasks(("v",), values[:1])
    values[0] = 7.0
    assert tasks["v"].tolist() == [1.0]
