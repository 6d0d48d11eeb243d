"""Any Gymnasium environment as a family: its id, a range for every task parameter, and what a task changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from metarl.families import Choices, EnvBatch, RLSpec, Split, Step, TaskParameter, Tasks, split_uniform
from metarl.settings import SettingsError, setting

Env = gymnasium.Env[Any, Any]


class Transitions(NamedTuple):
    """One step of B simulations, for a reward of one's own.

    Attributes:
        tasks: one row a simulation.
        before: float32 (B, O), the observations in which the actions were taken.
        actions: (B, A), as the environments took them.
        after: float32 (B, O), the observations that they led to.
        rewards: float64 (B,), the environments' own.
        infos: what the environments reported, one dictionary each; of an episode that has ended, what it reported last.
    """

    tasks: Tasks
    before: np.ndarray
    actions: np.ndarray
    after: np.ndarray
    rewards: np.ndarray
    infos: Sequence[Mapping[str, Any]]


Change = Callable[[Any, Mapping[str, float]], None]
Reward = Callable[[Transitions], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Base:
    """The environment that a family is made of, and what its tasks are.

    Attributes:
        id: of the environment.
        options: what ``gymnasium.make`` is given for it.
        parameters: what a task is made of.
        change: how a task changes the environment.
        reward: the reward, where it is not the environment's own.
        control_step: simulated seconds between two actions; 0 where time has no unit.
    """

    id: str
    options: Mapping[str, Any]
    parameters: tuple[TaskParameter, ...]
    change: Change | None
    reward: Reward | None
    control_step: float

    def open(self) -> Env:
        """Make one environment without Gymnasium's time limit and checks: the family has its own."""
        return gymnasium.make(self.id, max_episode_steps=-1, disable_env_checker=True, **self.options)

    @functools.cached_property
    def sizes(self) -> tuple[int, spaces.Space[Any]]:
        """Length of an observation, and the space of actions."""
        env = self.open()
        try:
            return spaces.flatdim(env.observation_space), env.action_space
        finally:
            env.close()

    @functools.cached_property
    def choices(self) -> Choices | None:
        """How many choices the actions are, counted from 0; None where they are numbers."""
        space = self.sizes[1]
        if isinstance(space, spaces.Discrete):
            return Choices((int(space.n),))
        if isinstance(space, spaces.MultiDiscrete):
            return Choices(tuple(int(n) for n in space.nvec.ravel()))
        return None

    @functools.cached_property
    def bounds(self) -> tuple[float, float]:
        """Bounds of all action components alike.

        Raises:
            SettingsError: where there are none.
        """
        space = self.sizes[1]
        if isinstance(space, spaces.Box):
            low, high = float(space.low.min()), float(space.high.max())
            if np.isfinite([low, high]).all() and (space.low == low).all() and (space.high == high).all():
                return low, high
        raise SettingsError(
            f"'{self.id}' has actions {space}: a family needs choices, or a Box with the same finite bounds for every"
            " component (gymnasium.wrappers.RescaleAction gives one)"
        )


class GymBatch:
    """B environments of Gymnasium, stepped one after another; a task changes one only before its reset.

    Args:
        base: what they are.
        horizon: control steps of an episode.
        num_envs: B.
    """

    def __init__(self, base: Base, horizon: int, num_envs: int) -> None:
        self._base, self._horizon = base, horizon
        self._envs = [base.open() for _ in range(num_envs)]
        self._space, self._actions = self._envs[0].observation_space, self._envs[0].action_space
        self._tasks = Tasks((), np.zeros((num_envs, 0)))
        self._observations = np.zeros((num_envs, base.sizes[0]), dtype=np.float32)
        self._infos: list[Mapping[str, Any]] = [{} for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Apply every task to its environment, and reset it as ``env.reset(seed=seeds[b])`` does."""
        self._tasks = tasks
        return self._start(np.arange(len(self._envs)), tasks, seeds)

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Do so with some environments; return their observations (k, O)."""
        self._tasks = self._tasks.replaced(envs, tasks)
        return self._start(envs, tasks, seeds)

    def _start(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        for row, task, seed in zip(envs, tasks.to_json(), seeds, strict=True):
            if self._base.change is not None:
                self._base.change(self._envs[row].unwrapped, task)
            self._observations[row] = self._flat(self._envs[row].reset(seed=int(seed))[0])
        self._elapsed[envs], self._ended[envs] = 0, False
        return self._observations[envs]

    def step(self, actions: np.ndarray) -> Step:
        """Step the environments whose episodes have not ended; the others stand still."""
        count = len(self._envs)
        before, rewards = self._observations.copy(), np.zeros(count)
        terminated, truncated = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        taken = actions if self._base.choices else np.clip(actions, *self._base.bounds)
        for row in np.flatnonzero(~self._ended):
            observation, rewards[row], terminated[row], truncated[row], self._infos[row] = self._envs[row].step(
                self._action(taken[row])
            )
            self._observations[row] = self._flat(observation)
        self._elapsed += 1
        truncated = (truncated | (self._elapsed >= self._horizon)) & ~terminated
        self._ended = self._ended | terminated | truncated
        after = self._observations.copy()
        if self._base.reward is not None:
            transitions = Transitions(self._tasks, before, taken, after, rewards, list(self._infos))
            rewards = np.asarray(self._base.reward(transitions))
        return Step(after, rewards.astype(np.float32), terminated, truncated)

    @property
    def drawn(self) -> bool:
        """Whether the environments can draw themselves."""
        return "rgb_array" in self._envs[0].metadata.get("render_modes", ())

    def frame(self, env: int) -> np.ndarray:
        """Let one environment draw itself, uint8 (its own height and width, 3).

        Raises:
            SettingsError: if it draws nothing.
            gymnasium.error.DependencyNotInstalled: if it needs a library for that; it says which.
        """
        inner = self._envs[env].unwrapped
        if inner.render_mode is None:  # not when it is made: drawing is nothing that training should load
            inner.render_mode = "rgb_array"
        picture = self._envs[env].render()
        if not isinstance(picture, np.ndarray):
            remedy = "give gym_family options={'render_mode': 'rgb_array'}"
            raise SettingsError(f"'{self._base.id}' drew nothing in render_mode={inner.render_mode}; {remedy}")
        return picture

    def _action(self, action: np.ndarray) -> Any:
        """Return an action (A,) as the environment takes it."""
        if isinstance(self._actions, spaces.Discrete):
            return self._actions.start + int(action[0])
        shaped = action.reshape(self._actions.shape)
        return shaped + self._actions.start if isinstance(self._actions, spaces.MultiDiscrete) else shaped

    def _flat(self, observation: Any) -> np.ndarray:
        if isinstance(self._space, spaces.Box):
            return np.asarray(observation, dtype=np.float32).reshape(-1)
        return np.asarray(spaces.flatten(self._space, observation), dtype=np.float32)


class DrawnGymBatch:
    """The same of environments that can draw themselves.

    Args:
        whole: these.
    """

    def __init__(self, whole: GymBatch) -> None:
        self.reset, self.restart, self.step = whole.reset, whole.restart, whole.step
        self._frame = whole.frame

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one environment, uint8 (height, width, 3), with black beside a picture of another shape."""
        from PIL import Image, ImageOps  # not needed for anything else here

        return np.asarray(ImageOps.pad(Image.fromarray(self._frame(env)), (width, height)))


def gym_family(
    base: str,
    parameters: Sequence[TaskParameter],
    change: Change | None = None,
    *,
    reward: Reward | None = None,
    horizon: int | None = None,
    control_step: float = 0.0,
    recommended: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Make a family of a Gymnasium environment; see the README's example.

    Args:
        base: the environment's id, ``"Pendulum-v1"`` or ``"module:Name-v0"``.
        parameters: what a task is made of; tasks are uniform on their ranges.
        change: ``change(env.unwrapped, task)`` changes an environment before every reset: it must set values, not scale
            those that are there, since the environment may have had another task before.
        reward: ``reward(transitions)`` gives rewards (B,) from :class:`Transitions`, NumPy on all simulations at once, in
            place of the environment's own.
        horizon: control steps of an episode; None for the environment's own time limit.
        control_step: simulated seconds between two actions; 0 where time has no unit.
        recommended: settings for a good run, such as ``{"inner_lr": 0.1}``.
        options: given to ``gymnasium.make``.

    Returns:
        A class to give to :func:`metarl.register`, or to name in an entry point. Its settings are ``horizon``, ``oracle`` and
        the ends of every range, such as ``gravity_low`` and ``gravity_high``.

    Raises:
        SettingsError: if tasks change nothing, have no finite ranges with names of their own, or there is no time limit.
    """
    if change is None and reward is None:
        raise SettingsError(f"tasks of '{base}' change nothing: give change, reward or both")
    names = [p.name for p in parameters]
    for name in names or [""]:
        if not name.isidentifier():
            raise SettingsError(f"'{base}' needs at least one task parameter, with a Python name; got '{name}'")
        if names.count(name) > 1:
            raise SettingsError(f"'{base}' has two task parameters called '{name}'; give each its own name")
    for p in parameters:
        if not np.isfinite([p.low, p.high]).all():
            raise SettingsError(f"'{base}' has {p.name} from {p.low} to {p.high}: a range needs finite ends")
    if horizon is not None and horizon < 1:
        raise SettingsError(f"horizon={horizon} of '{base}' is too small: it must be at least 1")
    try:
        limit = horizon or gymnasium.spec(base).max_episode_steps
    except gymnasium.error.Error as error:
        raise SettingsError(f"'{base}' is no environment of Gymnasium's: {error}") from error
    if limit is None:
        raise SettingsError(f"'{base}' has no time limit of its own: give horizon")
    whole = Base(base, dict(options or {}), tuple(parameters), change, reward, control_step)
    own: list[tuple[str, Any, Any]] = [
        ("horizon", int, setting(limit, "control steps in an episode", low=1)),
        ("oracle", bool, setting(False, "append the task to the observation")),
    ]
    for p in whole.parameters:
        for end, value in (("low", p.low), ("high", p.high)):
            own.append((f"{p.name}_{end}", float, setting(float(value), f"{end} end of {p.name}, {p.unit}")))
    members = {**_methods(whole), "recommended": dict(recommended or {})}
    family = dataclasses.make_dataclass("GymFamily", own, frozen=True, namespace=members)
    family.__doc__ = f"Gymnasium's {base}; a task is {', '.join(f'{p.name} ({p.unit})' for p in whole.parameters)}."
    family.__name__ = family.__qualname__ = base  # what messages call it
    family.__module__ = getattr(change or reward, "__module__", __name__)
    return family


def _methods(base: Base) -> dict[str, Any]:
    """Return the members of a family's class."""

    def ranges(self: Any) -> tuple[TaskParameter, ...]:
        return tuple(
            TaskParameter(p.name, getattr(self, f"{p.name}_low"), getattr(self, f"{p.name}_high"), p.unit)
            for p in base.parameters
        )

    def post_init(self: Any) -> None:
        """Check the order of the ranges."""
        for p in ranges(self):
            if p.low >= p.high:
                raise SettingsError(f"env.{p.name}_low={p.low} must be smaller than env.{p.name}_high={p.high}")

    def spec(self: Any) -> RLSpec:
        """Sizes, ranges and units."""
        size, space = base.sizes
        if base.choices is not None:
            return RLSpec.discrete(ranges(self), size, base.choices, self.horizon, base.control_step, self.oracle)
        count = int(np.prod(space.shape or (1,)))
        return RLSpec(ranges(self), size, count, *base.bounds, self.horizon, base.control_step, self.oracle)

    def sample_tasks(self: Any, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw tasks, uniform on the ranges."""
        parameters = ranges(self)
        low, high = (np.array([getattr(p, end) for p in parameters]) for end in ("low", "high"))
        unit = split_uniform(num_tasks, split, seed, len(parameters))
        return Tasks(tuple(p.name for p in parameters), low + (high - low) * unit)

    def batch(self: Any, num_envs: int, threads: int) -> EnvBatch:
        """Make environments; they are Python and step one after another, whatever the threads."""
        whole = GymBatch(base, self.horizon, num_envs)
        return DrawnGymBatch(whole) if whole.drawn else whole

    return {"sample_tasks": sample_tasks, "batch": batch, "spec": property(spec), "__post_init__": post_init}
