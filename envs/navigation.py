"""Navigation of a point in the plane; only the reward tells where the goal is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.families import EnvBatch, RLSpec, Split, Step, TaskParameter, Tasks, split_uniform
from metarl.settings import setting

_RECOMMENDED: Mapping[str, Any] = {
    "algo": "maml-trpo",
    # the MAML paper: 0.01, and relu 100-100, with which one seed of three learned to run far away before it adapts
    "algo.max_kl": 0.03,
    "iterations": 180,
    "meta_batch_size": 20,
    "episodes_per_task": 20,
    "inner_steps": 1,
    "inner_lr": 0.5,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}


@dataclasses.dataclass(frozen=True)
class Navigation2D:
    r"""Move a point to a goal in the plane.

    $$ x_{t+1} = x_t + c\, \operatorname{clip}(a_t, -1, 1), \quad x_0 = 0, \qquad r_t = -\lVert x_{t+1} - g \rVert_2 $$

    Task: ``goal_x`` and ``goal_y``, m, uniform on [-0.5, 0.5]^2. Observation (2): position, m. Action (2): step in units of
    its largest size c = 0.1 m (``step_size``), clipped to [-1, 1]. Control step: none (time has no unit); horizon 100.
    Terminates within 0.01 m of the goal in both coordinates.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3, and its code, which scales actions likewise.
    Differs from pytorch-maml-rl, whose actions are metres clipped to +-0.1.
    """

    horizon: int = setting(100, "control steps in an episode", low=1)
    goal_range: float = setting(0.5, "largest goal coordinate, m", above=0)
    step_size: float = setting(0.1, "largest move of a control step in x and in y, m", above=0)
    goal_radius: float = setting(0.01, "the episode ends this near to the goal in x and in y, m; 0 never ends", low=0)
    oracle: bool = setting(False, "append the goal to the observation")

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        goals = tuple(TaskParameter(name, -self.goal_range, self.goal_range, "m") for name in ("goal_x", "goal_y"))
        return RLSpec(goals, 2, 2, -1.0, 1.0, self.horizon, 0.0, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw goals."""
        unit = split_uniform(num_tasks, split, seed, dimensions=2)
        return Tasks(("goal_x", "goal_y"), self.goal_range * (2 * unit - 1))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return PointBatch(self, self.step_size, self.horizon)

    @property
    def reach(self) -> float:
        """Largest goal coordinate, m."""
        return self.goal_range

    def goals(self, tasks: Tasks) -> np.ndarray:
        """Return goals, float32 (2, B)."""
        return tasks.values.T.astype(np.float32)

    def judge(self, away_x: np.ndarray, away_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rewards and whether the episode ends, of the displacements from the goal."""
        there = np.maximum(np.abs(away_x), np.abs(away_y)) < self.goal_radius
        return -np.sqrt(away_x * away_x + away_y * away_y), there


@dataclasses.dataclass(frozen=True)
class Navigation2DSparse:
    r"""Find a goal on a half circle; nothing is paid away from it.

    $$ x_{t+1} = x_t + c\, \operatorname{clip}(a_t, -1, 1), \quad x_0 = 0, \qquad
       r_t = \begin{cases} 1 - d_t & d_t \le \rho \\ 0 & \text{else} \end{cases}, \quad d_t = \lVert x_{t+1} - g \rVert_2 $$

    Task: ``angle`` $\varphi$, rad, uniform on [0, pi]; the goal is $(\cos \varphi, \sin \varphi)$ m. Observation (2): position,
    m. Action (2): as in :class:`Navigation2D`. Control step: none; horizon 20, no termination. $\rho$ = 0.2 m.

    Reference: Rakelly et al. (2019), arXiv:1903.08254, section 6.3. Differs from its code: the sparse reward is the
    reward, in training too, where the code meta-trains on the dense one; angles are drawn, not spaced evenly.
    """

    horizon: int = setting(20, "control steps in an episode", low=1)
    step_size: float = setting(0.1, "largest move of a control step in x and in y, m", above=0)
    goal_distance: float = setting(1.0, "radius of the half circle, m", above=0)
    goal_radius: float = setting(0.2, "rewards are paid this near to the goal, m", above=0)
    oracle: bool = setting(False, "append the angle to the observation")

    recommended: ClassVar[Mapping[str, Any]] = {**_RECOMMENDED, "iterations": 120}

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        angle = TaskParameter("angle", 0.0, float(np.pi), "rad")
        return RLSpec((angle,), 2, 2, -1.0, 1.0, self.horizon, 0.0, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw angles."""
        return Tasks(("angle",), np.pi * split_uniform(num_tasks, split, seed))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they need no threads."""
        del num_envs, threads
        return PointBatch(self, self.step_size, self.horizon)

    @property
    def reach(self) -> float:
        """Largest goal coordinate, m."""
        return self.goal_distance

    def goals(self, tasks: Tasks) -> np.ndarray:
        """Return goals, float32 (2, B)."""
        angle = tasks.values[:, 0]
        return (self.goal_distance * np.stack([np.cos(angle), np.sin(angle)])).astype(np.float32)

    def judge(self, away_x: np.ndarray, away_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rewards and whether the episode ends, of the displacements from the goal."""
        distance = np.sqrt(away_x * away_x + away_y * away_y)
        rewards = np.where(distance <= self.goal_radius, 1 - distance, np.float32(0.0))
        return rewards, np.zeros(len(distance), dtype=bool)


class PointBatch:
    """B points that move together.

    Args:
        family: tells goals and rewards.
        step_size: largest move in x and in y, m.
        horizon: steps of an episode.
    """

    def __init__(self, family: Navigation2D | Navigation2DSparse, step_size: float, horizon: int) -> None:
        self._family, self._step_size, self._horizon = family, np.float32(step_size), horizon
        self._goals = self._positions = np.zeros((2, 0), dtype=np.float32)
        self._elapsed: np.ndarray = np.zeros(0, dtype=np.int64)

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Put every point at the origin; nothing is random."""
        del seeds
        self._goals, self._elapsed = self._family.goals(tasks), np.zeros(len(tasks), dtype=np.int64)
        self._positions = np.zeros((len(tasks), 2), dtype=np.float32)
        return self._positions.copy()

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Put some points at the origin, with goals of their own."""
        del seeds
        self._goals[:, envs], self._elapsed[envs] = self._family.goals(tasks), 0
        self._positions[envs] = 0.0
        return self._positions[envs]

    def step(self, actions: np.ndarray) -> Step:
        """Move every point by an action, float32 (B, 2)."""
        moves = np.clip(actions, np.float32(-1.0), np.float32(1.0))
        moves *= self._step_size
        self._positions = self._positions + moves  # a new array: the old one is the caller's
        away_x, away_y = self._positions[:, 0] - self._goals[0], self._positions[:, 1] - self._goals[1]
        rewards, terminated = self._family.judge(away_x, away_y)
        self._elapsed += 1
        return Step(self._positions.copy(), rewards, terminated, self._elapsed >= self._horizon)

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one point (blue), its start (grey) and its goal (green), uint8 (height, width, 3); what is far off, at the edge."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (width, height), (255, 255, 255))
        pen, scale = ImageDraw.Draw(image), min(width, height) / (2.5 * self._family.reach)
        near = max(5.0, self._family.goal_radius * scale)
        for (x, y), size, colour in (
            (self._goals[:, env], near, (120, 200, 120)),
            ((0.0, 0.0), 3.0, (150, 150, 150)),
            (self._positions[env], 5.0, (0, 114, 178)),
        ):
            across = float(np.clip(width / 2 + x * scale, size, width - size))
            down = float(np.clip(height / 2 - y * scale, size, height - size))
            pen.ellipse((across - size, down - size, across + size, down + size), fill=colour)
        return np.asarray(image)
