"""Task families: what a task is, how tasks are drawn, and the registry through which every family comes.

A family is a frozen dataclass: its fields are its settings (made with :func:`metarl.settings.setting`), so
``env.horizon=100`` on the command line and ``make(name, horizon=100)`` in Python are the same thing. Built-in families and
a user's come through the same two doors: the decorator :func:`register`, and the entry-point group
``metarl.families`` of any installed distribution. Names are listed from metadata; a family's module is imported only when
it is asked for by name, and its simulator only when it is stepped.
"""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from metarl import ids
from metarl.settings import SettingsError, check, nearest
from metarl.spaces import Agents as Agents
from metarl.spaces import Choices as Choices
from metarl.splits import SPLITS as SPLITS
from metarl.splits import Split as Split
from metarl.splits import split_of as split_of
from metarl.splits import split_uniform as split_uniform

GROUP = ids.GROUP


class FamilyError(Exception):
    """A task family broke its contract while running; the message is one line that names family, task and step."""


class EnvFault(Exception):
    """A simulation broke down in :meth:`EnvBatch.step`; raise it to name the simulations instead of returning nonsense.

    Args:
        reason: what happened.
        envs: indices of the broken simulations.
    """

    def __init__(self, reason: str, envs: np.ndarray) -> None:
        super().__init__(reason)
        self.reason = reason
        self.envs = envs


@dataclasses.dataclass(frozen=True, eq=False)
class Tasks:
    """A batch of tasks as plain numbers: one row a task, one named column a parameter.

    Attributes:
        names: the parameters' names, length D.
        values: float64, shape (M, D).
    """

    names: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        """Check that values are (M, D) and make them read-only."""
        values = np.array(self.values, dtype=np.float64, order="C")  # a copy: the caller's stays writeable
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(f"task values must have shape (M, {len(self.names)}), got {values.shape}")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        """Return the number of tasks M."""
        return len(self.values)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one parameter of all tasks, shape (M,)."""
        return self.values[:, self.names.index(name)]

    def __eq__(self, other: object) -> bool:
        """Equal when names and values are."""
        return isinstance(other, Tasks) and self.names == other.names and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        """Hash of names and values."""
        return hash((self.names, self.values.tobytes()))

    def rows(self, index: slice | Sequence[int] | np.ndarray) -> Tasks:
        """Return a sub-batch of tasks."""
        return Tasks(self.names, self.values[index])

    def repeat(self, times: int) -> Tasks:
        """Repeat every row ``times`` times in place: task-major rows for M x E episodes."""
        return Tasks(self.names, np.repeat(self.values, times, axis=0))

    def replaced(self, index: np.ndarray, rows: Tasks) -> Tasks:
        """Return these tasks with others in some rows."""
        values = self.values.copy()
        values[index] = rows.values
        return Tasks(self.names, values)

    def to_json(self) -> list[dict[str, float]]:
        """Return one dictionary a task."""
        return [dict(zip(self.names, map(float, row), strict=True)) for row in self.values]

    @staticmethod
    def from_json(rows: Sequence[Mapping[str, float]]) -> Tasks:
        """Inverse of :meth:`to_json`; also the way to name tasks of one's own: ``Tasks.from_json([{"velocity": 1.5}])``."""
        if not rows:
            raise ValueError("at least one task is needed")
        names = tuple(rows[0])
        return Tasks(names, np.array([[row[name] for name in names] for row in rows], dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class TaskParameter:
    """The range and unit of one task parameter."""

    name: str
    low: float
    high: float
    unit: str


@dataclasses.dataclass(frozen=True)
class RLSpec:
    """What a learner must know of a reinforcement-learning family.

    Attributes:
        parameters: what a task is made of.
        observation_size: length O of an observation, without the task.
        action_size: length A of an action.
        action_low: lower bound of every action component; actions are clipped to it before they act.
        action_high: upper bound likewise.
        horizon: control steps of an episode.
        control_step: simulated seconds between two actions; 0 where time has no unit.
        oracle: whether the learner appends the task to the observation (the reference that need not adapt).
        choices: for discrete actions (see :meth:`discrete`); None where actions are continuous.
        agents: a team of equals, among whom the learner may share one policy; None where nobody is another's equal.
        at_once: most simulations that should run at once, where each is a process; None where any number may.
    """

    parameters: tuple[TaskParameter, ...]
    observation_size: int
    action_size: int
    action_low: float
    action_high: float
    horizon: int
    control_step: float
    oracle: bool = False
    choices: Choices | None = None
    agents: Agents | None = None
    at_once: int | None = None

    @staticmethod
    def discrete(
        parameters: tuple[TaskParameter, ...],
        observation_size: int,
        choices: Choices,
        horizon: int,
        control_step: float,
        oracle: bool = False,
        agents: Agents | None = None,
    ) -> RLSpec:
        """Describe a family whose actions are choices."""
        high, size = max(choices.counts, default=0) - 1.0, len(choices.counts)
        return RLSpec(parameters, observation_size, size, 0.0, high, horizon, control_step, oracle, choices, agents)

    @property
    def frames_per_second(self) -> int:
        """Control steps that a video shows in a second: real time, but at least 4; 20 where time has no unit."""
        return max(4, round(1 / self.control_step)) if self.control_step else 20


@dataclasses.dataclass(frozen=True)
class ShotSpec:
    """What a learner must know of a supervised family.

    Attributes:
        parameters: what a task is made of.
        input_shape: shape of one input; (channels, height, width) for an image.
        target_size: numbers to predict; for ``"cross_entropy"`` the number of classes.
        loss: ``"mse"`` (targets float32 (M, N, target_size)) or ``"cross_entropy"`` (targets int64 (M, N)).
        metric: what is reported: ``"mse"``, ``"accuracy"``.
        unit: unit of the metric.
    """

    parameters: tuple[TaskParameter, ...]
    input_shape: tuple[int, ...]
    target_size: int
    loss: Literal["mse", "cross_entropy"]
    metric: str
    unit: str


class Step(NamedTuple):
    """What B simulations return for one action each; arrays the caller may keep.

    Attributes:
        observations: float32 (B, O), the state that the step led to (never a reset state).
        rewards: float32 (B,).
        terminated: bool (B,), the task's own end (falling over): the future is worth nothing.
        truncated: bool (B,), the time limit: the future is cut off, not worthless.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class EnvBatch(Protocol):
    """B simulations that step together. A task changes only at :meth:`reset`.

    Two more methods are welcome: ``restart`` starts some simulations anew while the others go on, faster than in batches of
    their own (:class:`metarl.cohorts.Restartable`), ``render`` draws one (:class:`metarl.gym.environment.Renderable`).
    """

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in every simulation.

        Args:
            tasks: one row a simulation, B rows.
            seeds: uint32 (B,); everything random in episode b is a function of ``seeds[b]``.

        Returns:
            Observations, float32 (B, O).
        """
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Apply actions (B, A), float32 or int64 choices; a finished simulation may be stepped on and is ignored."""
        ...


@runtime_checkable
class Judging(EnvBatch, Protocol):
    """An :class:`EnvBatch` that also says whether tasks are solved; an episode is a success if its task ever was."""

    def success(self) -> np.ndarray:
        """Return whether each simulation's last step left its task solved, bool (B,)."""
        ...


@runtime_checkable
class Crediting(EnvBatch, Protocol):
    """An :class:`EnvBatch` of a team that also says what each agent answers for, so that each can learn from that alone.

    The team's reward need not be their sum: what nobody answers for (vehicles that have left the grid's last intersection) may
    be missing.
    """

    def agent_rewards(self) -> np.ndarray:
        """Return every agent's own reward of the last step, float32 (B, R)."""
        ...


class Shots(NamedTuple):
    """Labelled examples of M tasks: inputs float32 (M, N, ...), targets float32 (M, N, ...) or classes int64 (M, N)."""

    inputs: np.ndarray
    targets: np.ndarray


@runtime_checkable
class RLFamily(Protocol):
    """A distribution over Markov decision processes."""

    recommended: ClassVar[Mapping[str, Any]]

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        ...

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw tasks of a split; the same arguments always give the same tasks, the splits share none."""
        ...

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make ``num_envs`` simulations that step on ``threads`` threads."""
        ...


@runtime_checkable
class ShotFamily(Protocol):
    """A distribution over supervised tasks."""

    recommended: ClassVar[Mapping[str, Any]]

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        ...

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw tasks of a split; the same arguments always give the same tasks, the splits share none."""
        ...

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples of every task; row i is a function of ``tasks`` row i and ``seeds[i]`` only."""
        ...


Family = RLFamily | ShotFamily
F = TypeVar("F", bound=type)
_registered: dict[str, type] = {}
_entry_points = ids.entry_points


def stream(seed: Sequence[int], task: int) -> np.random.SeedSequence:
    """Return the randomness of one task of a batch; no two seeds share it, of whatever length they are."""
    return np.random.SeedSequence([len(seed), *seed], spawn_key=(task,))  # NumPy takes (5,) and (5, 0) for the same


def drawn(family: Family, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
    """Draw a family's tasks, and check that they are tasks.

    Raises:
        FamilyError: if the family raises, or returns something else than so many finite rows of its parameters.
    """
    name, wanted = type(family).__name__, tuple(p.name for p in family.spec.parameters)
    try:
        tasks = family.sample_tasks(num_tasks, split, seed)
    except MemoryError:  # of so many tasks: not the family's doing
        raise
    except Exception as error:  # a family is foreign code and may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise FamilyError(f"Family {name} failed drawing {num_tasks} {split} tasks: {reason}") from error
    if not isinstance(tasks, Tasks) or (len(tasks), tasks.names) != (num_tasks, wanted):
        got = f"{len(tasks)} of {tasks.names}" if isinstance(tasks, Tasks) else type(tasks).__name__
        raise FamilyError(f"Family {name} drew {got} instead of {num_tasks} {split} tasks of {wanted}")
    if not np.isfinite(tasks.values).all():
        raise FamilyError(f"Family {name} drew {split} tasks that are not finite")
    return tasks


def register(name: str) -> Callable[[F], F]:
    """Make a family known by ``name`` in this process, and to Gymnasium as ``metarl/NAME-v0``; a class decorator.

    The same class may be registered again, as a notebook's cell does that runs twice: the newer definition counts.

    Raises:
        SettingsError: if the name is taken.
    """

    def registered(family: F) -> F:
        old = _registered.get(name)
        again = old is not None and (old.__module__, old.__qualname__) == (family.__module__, family.__qualname__)
        if name in names() and not again:
            raise SettingsError(f"A family named '{name}' exists already; choose another name")
        if not dataclasses.is_dataclass(family):
            raise SettingsError(f"Family '{name}' must be a dataclass whose fields are its settings")
        _registered[name] = family
        ids.register_id(name)
        return family

    return registered


def names() -> list[str]:
    """Return the names of all families, from metadata alone: no family is imported."""
    return sorted({*_entry_points(), *_registered})


def lookup(name: str) -> type:
    """Return the family class called ``name``, importing its module if need be.

    Raises:
        SettingsError: for an unknown name (with the nearest one) or a family that cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name not in _entry_points():
        raise SettingsError(f"Unknown task family '{name}'. {nearest(name, names())}")
    point = _entry_points()[name]
    try:
        family = point.load()
    except Exception as error:  # a plug-in may fail in any way; the user must learn which one
        raise SettingsError(f"Task family '{name}' ({point.value}) cannot be imported: {error}") from error
    if not (isinstance(family, type) and dataclasses.is_dataclass(family)):
        raise SettingsError(f"Task family '{name}' ({point.value}) must be a dataclass whose fields are its settings")
    return family


def make(name: str, **settings: Any) -> Any:
    """Make a task family: ``make("halfcheetah-vel", horizon=100)``.

    Args:
        name: one of :func:`names`.
        **settings: the family's own settings; unknown or impossible ones are refused with the nearest name.

    Returns:
        An :class:`RLFamily` or a :class:`ShotFamily`.
    """
    family = lookup(name)
    return family(**check(family, settings, prefix="env."))


if __name__ == "__main__":
    # the table stands above this module, and wants the one that everybody imports, not the copy that runs here
    runpy.run_module("metarl.listing", run_name="__main__")
