"""Ant families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.bodies import Body, Outcome, Part, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.tasks import FORWARD_BACKWARD, SPATIAL, TURN, along, forward_backward, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks, split_uniform
from metarl.settings import setting

_CONTACTS = 13 * 6  # forces and torques on every body but the world


def standing(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Say whose torso is at a height of 0.2 to 1 m, as Ant-v5 does."""
    return (positions[:, 2] >= 0.2) & (positions[:, 2] <= 1.0)


def ant(reset_noise: float, contact_forces: bool, falls: bool = True) -> Body:
    """Gymnasium's Ant-v5; ``falls`` says whether an episode ends with a fall."""
    return Body(
        "ant.xml",
        Start("uniform", reset_noise, "normal", reset_noise),
        track="torso",
        skip_positions=2,
        parts=(Part("cfrc_ext", 1, clip=1.0),) if contact_forces else (),
        healthy=standing if falls else None,
    )


def contact_cost(outcome: Outcome) -> np.ndarray | float:
    """Return the cost of contact forces clipped to +-1, (B,); nothing where they are not worked out."""
    if outcome.contacts is None:
        return 0.0
    return 0.5e-3 * np.square(np.clip(outcome.contacts, -1.0, 1.0)).sum(axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class AntVel:
    r"""Run forward at a target velocity that only the reward tells.

    $$ r_t = 1 - |v_t - v^*| - c \lVert a_t \rVert^2 + b $$

    Dynamics: Gymnasium's Ant-v5 body and reset (uniform +-0.1 on positions, normal 0.1 on velocities); $v$ is the torso's
    displacement over the control step. Observation (27): positions without x and y (m, quaternion, rad), velocities (m/s,
    rad/s). Action (8): joint torques, clipped to [-1, 1]. Control step 0.05 s (5 physics steps of 0.01 s), horizon 200
    steps. Task: ``velocity`` $v^*$ in m/s, uniform on [0, 3]. The episode ends with a fall (torso not between 0.2 and 1 m high).

    MuJoCo's batch does not work out contact forces, so there are neither contact observations nor the source's contact cost
    $\tfrac12 10^{-3} \lVert f \rVert^2$ unless ``contact_forces=true``: then 78 forces clipped to +-1 are observed (105
    numbers) and cost, as in Gymnasium, one simulation after another and slower.

    Differs from the source: Finn et al. step a differently calibrated ant at 0.02 s and read the velocity of the centre of
    mass (see ``ant-vel-maml``).

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    velocity_low: float = setting(0.0, "smallest target velocity, m/s")
    velocity_high: float = setting(3.0, "largest target velocity, m/s")
    control_cost: float = setting(0.005, "weight c of the squared action", low=0)
    healthy_reward: float = setting(0.05, "reward b of every step")
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the target velocity to the observation")

    recommended: ClassVar[Mapping[str, Any]] = SPATIAL

    def __post_init__(self) -> None:
        """Check the order of the velocity range."""
        ordered("velocity", self.velocity_low, self.velocity_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(
            self,
            (TaskParameter("velocity", self.velocity_low, self.velocity_high, "m/s"),),
            27 + _CONTACTS * self.contact_forces,
            8,
            0.01,
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw target velocities."""
        return uniform("velocity", self.velocity_low, self.velocity_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, ant(self.reset_noise, self.contact_forces), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = 1.0 - np.abs(outcome.velocity[:, 0] - tasks["velocity"])
        return forward - self.control_cost * squared(outcome.actions) - contact_cost(outcome) + self.healthy_reward


@dataclasses.dataclass(frozen=True)
class AntDir:
    r"""Run forward or backward; only the reward tells which.

    $$ r_t = d\, v_t - c \lVert a_t \rVert^2 + b $$

    Dynamics, observation (27), action (8), control step 0.05 s, horizon 200, end with a fall and contact forces are those of
    :class:`AntVel`. Task: ``direction`` $d$, -1 or +1. There are two tasks only: every split has both, nothing is held out.

    Differs from the source: Finn et al. step a differently calibrated ant at 0.02 s and read the velocity of the centre of
    mass (see ``ant-dir-maml``). ProMP's variant is ``env.control_cost=0.5 env.healthy_reward=1``.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    control_cost: float = setting(0.005, "weight c of the squared action", low=0)
    healthy_reward: float = setting(0.05, "reward b of every step")
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the direction to the observation")

    recommended: ClassVar[Mapping[str, Any]] = SPATIAL

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, FORWARD_BACKWARD, 27 + _CONTACTS * self.contact_forces, 8, 0.01)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions; every split has both."""
        return forward_backward(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, ant(self.reset_noise, self.contact_forces), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = tasks["direction"] * outcome.velocity[:, 0]
        return forward - self.control_cost * squared(outcome.actions) - contact_cost(outcome) + self.healthy_reward


@dataclasses.dataclass(frozen=True)
class AntDirection:
    r"""Run in a direction of the plane that only the reward tells.

    $$ r_t = v^x_t \cos\varphi + v^y_t \sin\varphi - c \lVert a_t \rVert^2 + b $$

    Dynamics, observation (27), action (8), control step 0.05 s, horizon 200, end with a fall and contact forces are those of
    :class:`AntVel`. Task: ``angle`` $\varphi$ in rad, uniform on [0, 2 pi].

    Differs from the source: ProMP's ant may lie as low as 0 m before its episode ends, and pays for contact.

    Reference: Rothfuss et al. (2019), ProMP, arXiv:1810.06784, and its code.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    angle_low: float = setting(0.0, "smallest direction, rad")
    angle_high: float = setting(TURN, "largest direction, rad")
    control_cost: float = setting(0.5, "weight c of the squared action", low=0)
    healthy_reward: float = setting(1.0, "reward b of every step")
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the angle to the observation")

    recommended: ClassVar[Mapping[str, Any]] = SPATIAL

    def __post_init__(self) -> None:
        """Check the order of the angle range."""
        ordered("angle", self.angle_low, self.angle_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(
            self,
            (TaskParameter("angle", self.angle_low, self.angle_high, "rad"),),
            27 + _CONTACTS * self.contact_forces,
            8,
            0.01,
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions."""
        return uniform("angle", self.angle_low, self.angle_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, ant(self.reset_noise, self.contact_forces), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = along(tasks["angle"], outcome.velocity)
        return forward - self.control_cost * squared(outcome.actions) - contact_cost(outcome) + self.healthy_reward


@dataclasses.dataclass(frozen=True)
class AntGoal:
    r"""Walk to a place that only the reward tells.

    $$ r_t = -|x_{t+1} - g_x| - |y_{t+1} - g_y| - c \lVert a_t \rVert^2 $$

    Dynamics, observation (27), action (8), control step 0.05 s, horizon 200 and contact forces are those of :class:`AntVel`;
    (x, y) is the torso's place in m. Task: ``goal_x`` and ``goal_y`` in m, uniform on the disc of radius 3 m. No termination:
    every reward is negative, so that an ant that may end its episode by falling learns to fall.

    Differs from the source: it pays for contact.

    Reference: Rothfuss et al. (2019), ProMP, arXiv:1810.06784, and its code.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    goal_radius: float = setting(3.0, "radius of the disc of goals, m", above=0)
    control_cost: float = setting(0.1, "weight c of the squared action", low=0)
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the goal to the observation")

    recommended: ClassVar[Mapping[str, Any]] = SPATIAL

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(
            self,
            tuple(TaskParameter(f"goal_{axis}", -self.goal_radius, self.goal_radius, "m") for axis in "xy"),
            27 + _CONTACTS * self.contact_forces,
            8,
            0.01,
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw goals: the direction decides the split, so every split has near and far ones."""
        unit = split_uniform(num_tasks, split, seed, 2)
        angle, radius = TURN * unit[:, 0], self.goal_radius * np.sqrt(unit[:, 1])
        return Tasks(("goal_x", "goal_y"), np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(
            self, ant(self.reset_noise, self.contact_forces, falls=False), self._reward, num_envs, threads
        )

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        distance = np.abs(outcome.position - tasks.values).sum(axis=1)
        return -distance - self.control_cost * squared(outcome.actions) - contact_cost(outcome)
