"""One task of a family as an ordinary Gymnasium environment: ``gymnasium.make("metarl/halfcheetah-vel-v0")``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces

from metarl import families, settings
from metarl.families import Crediting, Judging, RLFamily, RLSpec, Step, Tasks
from metarl.settings import SettingsError

SIZE = (480, 320)  # of pictures: width and height


@runtime_checkable
class Renderable(Protocol):
    """An :class:`~metarl.families.EnvBatch` that can be drawn."""

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start episodes."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Step all simulations."""
        ...

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one simulation, uint8 (height, width, 3)."""
        ...


def prepare_gl() -> None:
    """Choose off-screen renderers where there is no display and none is chosen: MuJoCo's, and pygame's.

    MuJoCo reads the choice when it is imported, so a process that has imported it makes it read that again.

    Raises:
        SettingsError: if that renderer cannot be loaded.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # which goes to standard output
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if os.environ.get("MUJOCO_GL") is not None:
        return
    os.environ["MUJOCO_GL"] = "egl"
    chosen_at_import = sys.modules.get("mujoco.rendering.classic.gl_context")
    if chosen_at_import is None:
        return
    try:
        importlib.reload(chosen_at_import)
    except Exception as error:  # GL libraries fail in their own ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = "install EGL (Debian: libegl1 libgl1-mesa-dri)"
        raise SettingsError(f"this machine cannot draw ({reason}); {remedy}") from error


def one_task(task: Mapping[str, float] | Tasks, spec: RLSpec, env: str) -> Tasks:
    """Return one row of a family's parameters, in the family's order.

    Args:
        task: one number for every parameter, or one row.
        spec: of the family.
        env: its name, for messages.

    Raises:
        SettingsError: if it is anything else.
    """
    names = tuple(parameter.name for parameter in spec.parameters)
    shown = names if len(names) <= 20 else (*names[:5], f"... {names[-1]} ({len(names)} in all)")
    remedy = f"a task of {env} is one number for each of: {', '.join(shown)}"
    if not isinstance(task, Mapping | Tasks):
        raise SettingsError(f"{type(task).__name__} is no task and no gymnasium.Env; {remedy}")
    rows = task.to_json() if isinstance(task, Tasks) else [dict(task)]
    if len(rows) != 1 or set(rows[0]) != set(names):
        raise SettingsError(f"got {rows if len(rows) != 1 else rows[0]}; {remedy}")
    try:
        values = np.array([[rows[0][name] for name in names]], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"got {rows[0]}; {remedy}") from error
    if not np.isfinite(values).all():
        raise SettingsError(f"got {rows[0]}; {remedy}")
    return Tasks(names, values)


@dataclass(frozen=True)
class Opened:
    """A family with its settings, as an environment needs it.

    Attributes:
        name: of the family.
        family: made with its settings.
        spec: of the family.
        oracle: whether observations end with the task.
    """

    name: str
    family: RLFamily
    spec: RLSpec
    oracle: bool

    @staticmethod
    def of(name: str, given: Mapping[str, Any]) -> Opened:
        """Make a family with the settings that an environment was given.

        Raises:
            SettingsError: for a family that has no environment, and for settings that it has not.
        """
        own, oracle = dict(given), given.get("oracle", False)
        if "oracle" not in settings.fields(families.lookup(name)):  # then it is no setting of the family's, but of ours
            own.pop("oracle", None)
        family = families.make(name, **own)
        if not isinstance(family.spec, RLSpec):
            raise SettingsError(f"'{name}' is a family of labelled shots: it has no environment")
        return Opened(name, family, family.spec, bool(oracle))

    def task(self, task: Mapping[str, float] | Tasks | None, seed: int) -> Tasks:
        """Return the given task, one row; without one, the first of the train split at that seed."""
        if task is None:
            return families.drawn(self.family, 1, "train", seed)
        return one_task(task, self.spec, self.name)

    @property
    def observation_space(self) -> spaces.Box:
        """Numbers without bounds, float32 (O,), of an oracle (O + D,)."""
        size = self.spec.observation_size + (len(self.spec.parameters) if self.oracle else 0)
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Bounded numbers float32 (A,), one choice, or several."""
        spec = self.spec
        if spec.choices is None:
            return spaces.Box(spec.action_low, spec.action_high, (spec.action_size,), np.float32)
        counts = spec.choices.counts
        return spaces.Discrete(counts[0]) if len(counts) == 1 else spaces.MultiDiscrete(list(counts))

    def actions(self, actions: Any, count: int) -> np.ndarray:
        """Return actions of ``count`` simulations as the family takes them, (B, A)."""
        choices, wanted = self.spec.choices, f"{count} actions of {self.action_space}"
        wanted = f"'{self.name}' takes {wanted if count > 1 else f'an action of {self.action_space}'}"
        try:
            given: np.ndarray = np.array(actions, dtype=np.float32 if choices is None else np.int64)
            given = given.reshape(count, self.spec.action_size)
        except ValueError as error:
            raise ValueError(f"got {np.shape(actions)} numbers; {wanted}") from error
        # a choice beyond the last could be a neighbour's first
        if choices is not None and ((given < 0) | (given >= np.array(choices.counts))).any():
            raise ValueError(f"got {actions}; {wanted}")
        return given

    def observe(self, observations: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return what is observed, float32 (B, O): for an oracle with the task, scaled from its range to [-1, 1]."""
        observations = np.array(observations, dtype=np.float32)
        if not self.oracle:
            return observations
        low, high = (np.array([getattr(p, end) for p in self.spec.parameters]) for end in ("low", "high"))
        scaled = (2 * tasks.values - low - high) / np.maximum(high - low, 1e-12)
        return np.concatenate([observations, scaled.astype(np.float32)], axis=1)

    def metadata(self, drawn: bool) -> dict[str, Any]:
        """Return how pictures are made, and how many of them there are in a second."""
        return {"render_modes": ["rgb_array"] if drawn else [], "render_fps": self.spec.frames_per_second}


def checked_mode(mode: str | None, name: str, drawn: bool) -> str | None:
    """Return a render mode that the family has.

    Raises:
        SettingsError: if it has it not.
    """
    if mode is None or (mode == "rgb_array" and drawn):
        return mode
    raise SettingsError(f"render_mode={mode}: '{name}' is drawn {'as rgb_array only' if drawn else 'in no mode'}")


def seed_word(seed: int) -> int:
    """Return the seed of an episode, below 2**32: the seed itself where it is, and otherwise a hash of it."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


class FamilyEnv(gymnasium.Env[np.ndarray, Any]):
    """One task of a family, as Gymnasium has environments; episodes are the family's own to the bit.

    ``reset(seed=s)`` starts the episode that the family starts at seed ``s``; without a seed, one drawn from ``np_random``.
    The task is set here or by ``reset(options={"task": ...})``, stays for all episodes that follow, and is reported in
    ``info["task"]``; where the family judges, ``info["success"]`` says after a step whether the task is solved; where it tells
    what each agent of a team answers for, ``info["agent_rewards"]`` are those rewards, float32 (R,).

    Args:
        family: the family's name.
        task: one number for every task parameter, such as ``{"velocity": 1.5}``; None for one of the train split.
        task_seed: which one, then.
        render_mode: ``"rgb_array"`` or None.
        **own: the family's settings; ``oracle=True`` appends the task, scaled from its range to [-1, 1], to observations.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        family: str,
        task: Mapping[str, float] | None = None,
        task_seed: int = 0,
        render_mode: str | None = None,
        **own: Any,
    ) -> None:
        if render_mode is not None:
            prepare_gl()
        self._opened = Opened.of(family, own)
        self._task = self._opened.task(task, task_seed)
        self._batch = self._opened.family.batch(1, 1)
        self._judge = self._batch if isinstance(self._batch, Judging) else None
        drawn = isinstance(self._batch, Renderable)
        self.metadata = self._opened.metadata(drawn)
        self.render_mode = checked_mode(render_mode, family, drawn)
        self.observation_space = self._opened.observation_space
        self.action_space = self._opened.action_space
        self._elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, of another task where ``options["task"]`` says so."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        if options and options.get("task") is not None:
            self._task = self._opened.task(options["task"], 0)
        observations = self._batch.reset(self._task, np.array([seed_word(seed)], dtype=np.uint32))
        self._elapsed = 0
        return self._opened.observe(observations, self._task)[0], self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action."""
        step = self._batch.step(self._opened.actions(action, 1))
        self._elapsed += 1
        terminated = bool(step.terminated[0])
        truncated = not terminated and (bool(step.truncated[0]) or self._elapsed >= self._opened.spec.horizon)
        observation = self._opened.observe(step.observations, self._task)[0]
        told: dict[str, Any] = {} if self._judge is None else {"success": bool(self._judge.success()[0])}
        if isinstance(self._batch, Crediting):
            told["agent_rewards"] = self._batch.agent_rewards()[0]
        return observation, float(step.rewards[0]), terminated, truncated, self._info() | told

    def render(self) -> np.ndarray | None:
        """Draw the simulation, uint8 (320, 480, 3); None without a render mode."""
        if self.render_mode is None or not isinstance(self._batch, Renderable):
            return None
        return self._batch.render(0, *SIZE)

    def _info(self) -> dict[str, Any]:
        return {"task": self._task.to_json()[0]}
