"""The rules that families keep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from metarl import families
from metarl.cohorts import Cohorts
from metarl.families import SPLITS, Crediting, EnvBatch, Judging, RLFamily, RLSpec, ShotFamily, ShotSpec, Tasks
from metarl.pooled import LEVELS, Pooled
from metarl.rl import agents
from metarl.testing._asserting import require

# Simulations, steps and tasks of one check: enough to tell apart, few enough for a slow simulator.
_ENVS, _STEPS, _TASKS = 4, 25, 200
# Episodes in which a task may show: a reward may be rare, and a bandit's single pull may pay alike in all tasks.
_TRIALS = 50
_BLIND = ("a task changes observations or rewards", "extreme tasks look the same")


def check_family(family: str | RLFamily | ShotFamily, *, disjoint: bool = True, tolerance: float = 0.0) -> None:
    """Hold a task family to its contract (:class:`~metarl.families.RLFamily`, :class:`~metarl.families.ShotFamily`).

    Args:
        family: a registered name, or a family.
        disjoint: whether no task may occur in two splits; False for families of a handful of tasks
            (seeds may then repeat them too).
        tolerance: largest difference between a simulation alone and the same one in a batch, for simulators whose
            rounding depends on the size of the batch.

    Raises:
        AssertionError: on the first broken rule.
    """
    made: Any = families.make(family) if isinstance(family, str) else family
    try:
        require(isinstance(made.recommended, Mapping), "recommended settings are a mapping")
        _check_spec(made.spec)
        _check_tasks(made, disjoint)
        if isinstance(made.spec, RLSpec):
            _check_rl(made, tolerance)
        else:
            _check_shots(made, tolerance)
    except AssertionError as error:
        name = family if isinstance(family, str) else type(family).__name__
        raise AssertionError(f"Family {name} breaks a rule: {error}") from None


def _array(what: str, value: Any, shape: tuple[int, ...], dtype: Any, rows: Any = ...) -> None:
    require(isinstance(value, np.ndarray), f"{what} are a NumPy array", f"found {type(value).__name__}")
    require(value.shape == shape, f"{what} have shape {shape}", f"found {value.shape}")
    require(value.dtype == dtype, f"{what} are {np.dtype(dtype).name}", f"found {value.dtype}")
    require(np.isfinite(value[rows]).all(), f"{what} are finite")


def _gap(a: Iterable[Any], b: Iterable[Any]) -> float:
    """Largest difference between two lists of arrays; not a number where one holds none, which no limit allows."""
    pairs = zip(a, b, strict=True)
    gaps = [np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0.0) for x, y in pairs]
    return float(np.max(gaps))


def _check_spec(spec: Any) -> None:
    require(isinstance(spec, RLSpec | ShotSpec), "spec is an RLSpec or a ShotSpec", f"found {type(spec).__name__}")
    names = [p.name for p in spec.parameters]
    require(names and len(set(names)) == len(names), "a task has parameters, with different names", str(names))
    for p in spec.parameters:
        require(np.isfinite([p.low, p.high]).all() and p.low <= p.high, "task parameters have a finite range", str(p))
    if isinstance(spec, RLSpec):
        sizes: tuple[int, ...] = (spec.observation_size, spec.action_size, spec.horizon)
        if spec.choices is None:
            require(spec.action_low < spec.action_high, "action_low is smaller than action_high", str(spec))
        else:
            sizes += spec.choices.counts
            require(len(spec.choices.counts) == spec.action_size, "action_size is the number of choices", str(spec))
        require(spec.control_step >= 0, "control_step is 0 or a number of seconds", str(spec))
        require(not agents.fault(spec), "agents of a team are equal", agents.fault(spec))
    else:
        sizes = (*spec.input_shape, spec.target_size)
        require(str(spec.loss) in ("mse", "cross_entropy"), "loss is mse or cross_entropy", spec.loss)
    require(min(sizes) >= 1, "sizes and horizon are at least 1", str(spec))


def _check_tasks(family: Any, disjoint: bool) -> None:
    parameters = family.spec.parameters
    low, high = (np.array([getattr(p, end) for p in parameters]) for end in ("low", "high"))
    known: dict[tuple[float, ...], str] = {}
    for split in SPLITS:
        tasks = family.sample_tasks(_TASKS, split, 0)
        require(isinstance(tasks, Tasks) and len(tasks) == _TASKS, "sample_tasks returns as many Tasks as asked for")
        require(tasks.names == tuple(p.name for p in parameters), "tasks have the spec's parameters", str(tasks.names))
        inside = (tasks.values >= low - 1e-9) & (tasks.values <= high + 1e-9)
        require(inside.all(), "task values lie in the spec's range", split)
        require(family.sample_tasks(_TASKS, split, 0) == tasks, "the same arguments draw the same tasks", split)
        few = family.sample_tasks(3, split, 0)
        require(few == tasks.rows(slice(3)), "a task does not depend on how many are drawn", split)
        other = family.sample_tasks(_TASKS, split, (0, 1)) != family.sample_tasks(_TASKS, split, (0, 2))
        require(other or not disjoint, "another seed draws other tasks", split)
        require(Tasks.from_json(json.loads(json.dumps(tasks.to_json()))) == tasks, "tasks survive JSON", split)
        for row in set(map(tuple, tasks.values.tolist())):
            clash = f"{split} and {known.get(row)} share {row}"
            require(known.setdefault(row, split) == split or not disjoint, "splits share no task", clash)


def _extremes(family: Any) -> tuple[Tasks, np.ndarray]:
    """Tasks from one end of the first parameter to the other, and seeds."""
    tasks = family.sample_tasks(_TASKS, "train", 0)
    order = np.lexsort(tasks.values.T[::-1])[np.linspace(0, _TASKS - 1, _ENVS).astype(int)]
    return tasks.rows(order), np.arange(10, 10 + _ENVS, dtype=np.uint32)


def _episode(env: EnvBatch, spec: RLSpec, tasks: Tasks, seeds: np.ndarray, actions: np.ndarray) -> list[np.ndarray]:
    """Run an episode and check every step; return its arrays, with zeros after a simulation's end."""
    count, alive = len(tasks), np.ones(len(tasks), dtype=bool)
    given = [env.reset(tasks, seeds.copy())]
    _array("observations", given[0], (count, spec.observation_size), np.float32)
    copies, masked, last = [given[0].copy()], [given[0].copy()], given[0].copy()
    for action in actions:
        passed = _legal(spec, last, action, alive)
        action = passed.copy()
        step = env.step(passed)
        require(np.array_equal(passed, action), "step leaves the caller's actions alone")
        require(len(step) == 4, "step returns observations, rewards, terminated, truncated", f"found {len(step)}")
        # finished simulations are stepped on and ignored, NaN included
        _array("observations", step[0], (count, spec.observation_size), np.float32, alive)
        _array("rewards", step[1], (count,), np.float32, alive)
        _array("terminated flags", step[2], (count,), np.bool_)
        _array("truncated flags", step[3], (count,), np.bool_)
        if isinstance(env, Judging):
            _array("success flags", env.success(), (count,), np.bool_)
        told = [*step, *_credited(env, spec, alive)]
        last = told[0].copy()
        given += told
        copies += [x.copy() for x in told]
        masked += [np.where(alive.reshape(count, *[1] * (x.ndim - 1)), x, 0) for x in told]
        alive = alive & ~(step[2] | step[3])
    kept = all(np.array_equal(x, y, equal_nan=True) for x, y in zip(given, copies, strict=True))
    require(kept, "returned arrays are the caller's: later steps leave them alone")
    return masked


def _credited(env: EnvBatch, spec: RLSpec, alive: np.ndarray) -> list[np.ndarray]:
    """Return what each agent answers for, where that is told."""
    told, promised = isinstance(env, Crediting), spec.agents is not None and spec.agents.credited
    require(told == promised, "agents.credited is True where simulations have agent_rewards(), and only there")
    if not isinstance(env, Crediting) or spec.agents is None:
        return []
    own = env.agent_rewards()
    _array("rewards of agents", own, (len(alive), spec.agents.count), np.float32, alive)
    return [own]


def _legal(spec: RLSpec, observations: np.ndarray, actions: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Return a copy of the actions in which the next legal choice stands for every illegal one."""
    played = actions.copy()
    if spec.choices is None or not spec.choices.masked:
        return played
    first = spec.observation_size - sum(spec.choices.counts)
    for component, count in enumerate(spec.choices.counts):
        mask = observations[:, first : first + count]
        require(np.isin(mask[alive], (0, 1)).all(), "an action mask is made of 0 and 1")
        stuck = f"none of component {component}"
        require(mask[alive].any(axis=1).all(), "a choice of every component is legal", stuck)
        order = (played[:, component, None] + np.arange(count)) % count
        hit = np.take_along_axis(mask, order, axis=1).argmax(axis=1)
        played[:, component] = order[np.arange(len(order)), hit]
        first += count
    return played


def _actions(spec: RLSpec, unit: np.ndarray) -> np.ndarray:
    """Map numbers in [-1, 1], (T, B, A), to the range of the actions, and others beyond it."""
    if spec.choices is not None:
        counts = np.array(spec.choices.counts)
        return np.minimum((0.5 + 0.5 * unit) * counts, counts - 1).astype(np.int64)
    middle, half = (spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2
    return (middle + half * unit).astype(np.float32)


def _check_rl(family: Any, tolerance: float) -> None:
    spec, (tasks, seeds) = family.spec, _extremes(family)
    shape = (min(_STEPS, spec.horizon), _ENVS, spec.action_size)
    unit = np.random.default_rng(0).uniform(-1.0, 1.0, shape)
    actions = _actions(spec, unit)
    env = family.batch(_ENVS, 1)
    whole = _episode(env, spec, tasks, seeds, actions)
    gap = _gap(whole, _episode(env, spec, tasks, seeds, actions))
    require(gap == 0, "a reset with the same tasks and seeds gives the same episode", f"differs by {gap:g}")
    gap = _gap(whole, _episode(family.batch(_ENVS, 2), spec, tasks, seeds, actions))
    require(gap <= tolerance, "episodes do not depend on the batch object or its threads", f"differs by {gap:g}")
    for i in range(_ENVS):
        row = slice(i, i + 1)
        alone = _episode(family.batch(1, 1), spec, tasks.rows(row), seeds[row], actions[:, row])
        gap = _gap([x[row] for x in whole], alone)
        require(gap <= tolerance, "a simulation does not depend on its neighbours", f"number {i} differs by {gap:g}")
    for middle in sorted({1, len(actions)}):  # simulations that still run, and such as have ended
        _check_restart(family, tasks, seeds, actions, middle, tolerance)
    if spec.choices is None:
        ends = [_actions(spec, scaled) for scaled in (3 * unit, np.clip(3 * unit, -1, 1))]
        gap = _gap(*(_episode(env, spec, tasks, seeds, a) for a in ends))
        require(gap == 0, "actions beyond the bounds act like the bounds", f"differs by {gap:g}")
    require(any(_tells(env, spec, tasks, trial) for trial in range(_TRIALS)), *_BLIND)


def _check_restart(
    family: Any, tasks: Tasks, seeds: np.ndarray, actions: np.ndarray, middle: int, tolerance: float
) -> None:
    """Start every second simulation anew after ``middle`` steps, with another task, and compare with whole episodes."""
    spec, rows, again = family.spec, np.arange(_ENVS), np.arange(1, _ENVS, 2)
    following = (tasks.rows(rows[::-1]), seeds + np.uint32(100), actions[::-1])
    width = 4 + bool(spec.agents is not None and spec.agents.credited)  # arrays of a step
    first = _episode(family.batch(_ENVS, 1), spec, tasks, seeds, actions)
    second = _episode(family.batch(_ENVS, 1), spec, *following)
    simulations, alive = Cohorts(family, 1), np.ones(_ENVS, dtype=bool)
    observations = simulations.reset(rows, tasks, seeds)
    for time in range(middle + len(actions)):
        since = time - middle
        if since == 0:
            before = observations.copy()
            started = simulations.reset(again, following[0].rows(again), following[1][again])
            kept = np.array_equal(observations, before, equal_nan=True)
            require(kept, "returned arrays are the caller's: starting some simulations anew leaves them alone")
            gap = _gap([started], [second[0][again]])
            require(gap <= tolerance, "some simulations start as in a reset of all", f"differs by {gap:g}")
            observations, alive[again] = before, True
            observations[again] = started
        action = actions[min(time, len(actions) - 1)].copy()
        action[again] = following[2][since, again] if since >= 0 else action[again]
        step = simulations.step(_legal(spec, observations, action, alive))
        found = [np.where(alive.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in step]
        observations, alive = step[0], alive & ~(step[2] | step[3])
        for who, whole, at, rule in (
            (again, second, since, "simulations that start anew play the episode of a reset of all"),
            (np.setdiff1d(rows, again), first, time, "starting some simulations anew leaves the others alone"),
        ):
            if middle <= time and at < len(actions):
                gap = _gap([x[who] for x in found], [x[who] for x in whole[1 + width * at : 5 + width * at]])
                require(gap <= tolerance, rule, f"step {time} differs by {gap:g}")


def _tells(env: EnvBatch, spec: RLSpec, tasks: Tasks, trial: int) -> bool:
    """Run the same seed and actions in every task, and tell whether anything differs.

    Actions are drawn anew at every step, or (in odd trials) once and held: a sparse reward must be reached.
    """
    unit = np.random.default_rng(trial).uniform(-1.0, 1.0, (min(_STEPS, spec.horizon), 1, spec.action_size))
    unit = unit[:1].repeat(len(unit), axis=0) if trial % 2 else unit
    actions = _actions(spec, unit).repeat(_ENVS, axis=1)
    arrays = _episode(env, spec, tasks, np.full(_ENVS, 10 + trial, dtype=np.uint32), actions)
    return _gap(arrays, [x[:1].repeat(_ENVS, axis=0) for x in arrays]) > 0


def _check_pool(family: Pooled, tasks: Tasks, seeds: np.ndarray, drawn: list[np.ndarray]) -> None:
    """A learner looks into the pool itself: what it finds there must be what ``draw`` returns."""
    pool, shape = family.pool(), family.spec.input_shape
    require(isinstance(pool, np.ndarray) and pool.dtype == np.uint8, "the pool is a uint8 array")
    require(pool.ndim > 0 and pool.shape[1:] == shape, f"the pool holds inputs of shape {shape}", f"found {pool.shape}")
    require(family.pool() is pool, "the pool is the same array at every call")
    for role, (rows, targets), inputs, classes in zip(
        ("support", "query"), family.pick(tasks, seeds), drawn[::2], drawn[1::2], strict=True
    ):
        _array(f"{role} rows", rows, inputs.shape[:2], np.int64)
        require(((rows >= 0) & (rows < len(pool))).all(), f"{role} rows lie in the pool")
        found = pool[rows].astype(np.float32) / np.float32(LEVELS)
        same = np.array_equal(found, inputs) and np.array_equal(targets, classes)
        require(same, "pick and draw give the same examples", role)


def _check_shots(family: Any, tolerance: float) -> None:
    spec, (tasks, seeds) = family.spec, _extremes(family)

    def draw(tasks: Tasks, seeds: np.ndarray) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        for role, (inputs, targets) in zip(("support", "query"), family.draw(tasks, seeds), strict=True):
            require(np.ndim(inputs) > 1, f"{role} inputs lead with tasks and examples", f"shape {np.shape(inputs)}")
            lead = (len(tasks), max(1, inputs.shape[1]))
            _array(f"{role} inputs", inputs, (*lead, *spec.input_shape), np.float32)
            if spec.loss == "mse":
                _array(f"{role} targets", targets, (*lead, spec.target_size), np.float32)
            else:
                _array(f"{role} targets", targets, lead, np.int64)
                inside = ((targets >= 0) & (targets < spec.target_size)).all()
                require(inside, f"{role} targets are classes 0 to {spec.target_size - 1}")
            arrays += [inputs, targets]
        return arrays

    whole = draw(tasks, seeds)
    require(_gap(whole, draw(tasks, seeds)) == 0, "the same tasks and seeds draw the same examples")
    for i in range(_ENVS):
        row = slice(i, i + 1)
        gap = _gap([x[row] for x in whole], draw(tasks.rows(row), seeds[row]))
        require(gap <= tolerance, "a task's examples do not depend on other tasks", f"task {i} differs by {gap:g}")
        known = {x.tobytes() for x in whole[0][i]}
        require(not known & {x.tobytes() for x in whole[2][i]}, "support and query share no example", f"task {i}")
    if isinstance(family, Pooled):
        _check_pool(family, tasks, seeds, whole)
    require(_gap(whole, draw(tasks, seeds + 100)) > 0, "another seed draws other examples")
    arrays = draw(tasks, seeds[:1].repeat(_ENVS))
    gap = _gap(arrays, [x[:1].repeat(_ENVS, axis=0) for x in arrays])
    require(gap > 0, "a task changes its examples", "extreme tasks draw the same")
