"""Humanoid families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.bodies import Body, Outcome, Part, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.tasks import SPATIAL, TURN, along, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import setting

_BODIES = 13  # without the world
_LIMIT = 0.4  # of every motor


def standing(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Say whose torso is at a height of 1 to 2 m, as Humanoid-v5 does."""
    return (positions[:, 2] > 1.0) & (positions[:, 2] < 2.0)


def humanoid(reset_noise: float, contact_forces: bool) -> Body:
    """Gymnasium's Humanoid-v5."""
    parts = (Part("cinert", 1), Part("cvel", 1), Part("qfrc_actuator", 6))
    return Body(
        "humanoid.xml",
        Start("uniform", reset_noise, "uniform", reset_noise),
        track="mass",
        skip_positions=2,
        parts=(*parts, Part("cfrc_ext", 1)) if contact_forces else parts,
        healthy=standing,
    )


@dataclasses.dataclass(frozen=True)
class HumanoidDirection:
    r"""Run in a direction of the plane that only the reward tells.

    $$ r_t = 1.25 \left( v^x_t \cos\varphi + v^y_t \sin\varphi \right) - c \lVert a_t \rVert^2 + b $$

    Dynamics: Gymnasium's Humanoid-v5 body and reset (uniform +-0.01 on positions and velocities); $v$ is the displacement of
    the centre of mass over the control step. Task: ``angle`` $\varphi$ in rad, uniform on [0, 2 pi]. Observation (270):
    positions without x and y (m, quaternion, rad), velocities (m/s, rad/s), and of each body inertia (kg, kg m, kg m2) and
    velocity about the centre of mass, and the actuators' torques (N m). Action (17): joint torques, clipped to [-0.4,
    0.4]. Control step 0.015 s (5 physics steps of 0.003 s), horizon 200 steps. The episode ends with a fall (torso not
    between 1 and 2 m high).

    MuJoCo's batch does not work out contact forces, so there are neither contact observations nor the source's contact cost
    $\min(10, \tfrac12 10^{-6} \lVert f \rVert^2)$ unless ``contact_forces=true``: then 78 forces are observed (348 numbers)
    and cost, as in Gymnasium, one simulation after another and slower.

    Reference: Rakelly et al. (2019), PEARL, arXiv:1903.08254, and its code.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.003 s in a control step", low=1)
    angle_low: float = setting(0.0, "smallest direction, rad")
    angle_high: float = setting(TURN, "largest direction, rad")
    control_cost: float = setting(0.1, "weight c of the squared action", low=0)
    healthy_reward: float = setting(5.0, "reward b of every step")
    reset_noise: float = setting(0.01, "scale of the noise on the initial state", low=0)
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
            45 + 17 + (10 + 6 + 6 * self.contact_forces) * _BODIES,
            17,
            0.003,
            limit=_LIMIT,
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions."""
        return uniform("angle", self.angle_low, self.angle_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, humanoid(self.reset_noise, self.contact_forces), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = 1.25 * along(tasks["angle"], outcome.velocity)
        cost = self.control_cost * squared(outcome.actions)
        if outcome.contacts is not None:
            cost += np.minimum(10.0, 0.5e-6 * np.square(outcome.contacts).sum(axis=(1, 2)))
        return forward - cost + self.healthy_reward
