"""Walker families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.bodies import Body, Outcome, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.scaling import Ranges, scaled_parts
from metarl.envs.locomotion.tasks import PLANAR, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import setting

_PARTS = scaled_parts(
    bodies=("torso", "thigh", "leg", "foot", "thigh_left", "leg_left", "foot_left"),
    joints=("thigh_joint", "leg_joint", "foot_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint"),
    geoms=(
        "floor",
        "torso_geom",
        "thigh_geom",
        "leg_geom",
        "foot_geom",
        "thigh_left_geom",
        "leg_left_geom",
        "foot_left_geom",
    ),
)


def standing(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Say who has not fallen: torso between 0.8 and 2 m high and within 1 rad of upright, as Walker2d-v5 does."""
    height, angle = positions[:, 1], positions[:, 2]
    return (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0)


def walker2d(reset_noise: float) -> Body:
    """Gymnasium's Walker2d-v5."""
    return Body(
        "walker2d_v5.xml", Start("uniform", reset_noise, "uniform", reset_noise), clip_velocities=10.0, healthy=standing
    )


@dataclasses.dataclass(frozen=True)
class Walker2dVel:
    r"""Move forward at a target velocity that only the reward tells.

    $$ r_t = b - |v_t - v^*| - c \lVert a_t \rVert^2, \qquad v_t = (x_{t+1} - x_t) / \Delta t $$

    Dynamics: Gymnasium's Walker2d-v5 body and reset (uniform +-0.005 on positions and velocities). Observation (17):
    positions without x (m, rad), velocities clipped to +-10 (m/s, rad/s). Action (6): joint torques, clipped to [-1, 1].
    Control step 0.008 s (4 physics steps of 0.002 s), horizon 200 steps. The episode ends
    unless the torso is between 0.8 and 2 m high and within 1 rad of upright.
    Task: ``velocity`` $v^*$ in m/s, uniform on [0, 2].

    Differs from the source: targets of U(0, 10) m/s and a bonus of 15 there.
    The bonus is larger than what a target can cost in both, so that falling never pays.

    Reference: Rothfuss et al. (2019), ProMP, arXiv:1810.06784, and its code (``walker2d_rand_vel``).
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(4, "physics steps of 0.002 s in a control step", low=1)
    velocity_low: float = setting(0.0, "smallest target velocity, m/s")
    velocity_high: float = setting(2.0, "largest target velocity, m/s")
    control_cost: float = setting(0.001, "weight c of the squared action", low=0)
    healthy_reward: float = setting(3.0, "reward b of every step")
    reset_noise: float = setting(0.005, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the target velocity to the observation")

    recommended: ClassVar[Mapping[str, Any]] = PLANAR

    def __post_init__(self) -> None:
        """Check the order of the velocity range."""
        ordered("velocity", self.velocity_low, self.velocity_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, (TaskParameter("velocity", self.velocity_low, self.velocity_high, "m/s"),), 17, 6, 0.002)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw target velocities."""
        return uniform("velocity", self.velocity_low, self.velocity_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, walker2d(self.reset_noise), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        gap = np.abs(outcome.velocity[:, 0] - tasks["velocity"])
        return self.healthy_reward - gap - self.control_cost * squared(outcome.actions)


@dataclasses.dataclass(frozen=True)
class Walker2dParams:
    r"""Move forward with a body of other weights, inertias, damping and friction in every task.

    $$ r_t = v_t - c \lVert a_t \rVert^2 + b, \qquad v_t = (x_{t+1} - x_t) / \Delta t $$

    Task (28 factors of the model's own values, without unit): ``mass_`` and ``inertia_`` of every body, ``damping_`` of every
    joint, ``friction_`` of every surface, floor included. A factor is $1.5^u$, for damping $1.3^u$, $u$ uniform on [-s, s]
    with s = ``spread`` = 3; each is drawn by itself. Nothing but the motion tells the task.

    Dynamics: Gymnasium's Walker2d-v5 body and reset (uniform +-0.005 on positions and velocities). Observation (17):
    positions without x (m, rad), velocities clipped to +-10 (m/s, rad/s). Action (6): joint torques, clipped to [-1, 1].
    Control step 0.008 s (4 physics steps of 0.002 s), horizon 200 steps. The episode ends
    unless the torso is between 0.8 and 2 m high and within 1 rad of upright.

    Differs from the source: it draws a factor for every axis of an inertia and for every kind of friction, and keeps the
    constants that MuJoCo derives from the masses; here a body has one factor for its inertia, a surface one for its
    friction, and derived constants follow (``mj_setConst``). Its bodies are older than v5.

    Reference: Rothfuss et al. (2019), ProMP, arXiv:1810.06784, and Rakelly et al. (2019), PEARL, arXiv:1903.08254, which
    use the package rand_param_envs.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(4, "physics steps of 0.002 s in a control step", low=1)
    spread: float = setting(3.0, "largest exponent s of a factor", above=0, high=6)
    control_cost: float = setting(0.001, "weight c of the squared action", low=0)
    healthy_reward: float = setting(1.0, "reward b of every step")
    reset_noise: float = setting(0.005, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the factors to the observation")

    recommended: ClassVar[Mapping[str, Any]] = PLANAR

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, Ranges(self.spread).parameters(_PARTS), 17, 6, 0.002)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw factors."""
        return Ranges(self.spread).draw(_PARTS, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, walker2d(self.reset_noise), self._reward, num_envs, threads, _PARTS)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        return outcome.velocity[:, 0] - self.control_cost * squared(outcome.actions) + self.healthy_reward
