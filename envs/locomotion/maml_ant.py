"""Ant with the timing and constants of the MAML paper, for comparison with its published numbers only.

Its control step of 0.02 s and other contacts make returns incomparable with those of the families on Ant-v5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.ant import contact_cost, standing
from metarl.envs.locomotion.bodies import Body, Outcome, Part, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.tasks import FORWARD_BACKWARD, PAPER, forward_backward, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import setting

_TIMESTEP = 0.02  # seconds
_CONTACTS = 14 * 6  # forces and torques on every body, the world included
_POSE = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)


def calibrate(spec: Any) -> None:
    """Give Gymnasium's ant the time step and contacts of the paper's."""
    spec.option.timestep = _TIMESTEP
    for geom in spec.geoms:
        geom.solref[:] = 0.02, 1.0
        geom.solimp[:3] = 0.8, 0.8, 0.01


def paper_ant(reset_noise: float, velocity_noise: float, contact_forces: bool) -> Body:
    """The paper's ant, watched by its centre of mass."""
    contacts = (Part("cfrc_ext", clip=1.0),) if contact_forces else ()
    return Body(
        "ant.xml",
        Start("normal", reset_noise, "normal", velocity_noise, _POSE),
        track="momentary",
        skip_positions=0,
        parts=(*contacts, Part("turn"), Part("centre")),
        healthy=standing,
        edit=calibrate,
    )


@dataclasses.dataclass(frozen=True)
class AntVelMAML:
    r"""Run forward at a target velocity, as in the MAML paper's own code: for comparison with its published numbers.

    $$ r_t = 1 - |v_t - v^*| - c \lVert a_t \rVert^2 + b, \qquad v_t \text{: of the centre of mass, at the end of the step} $$

    Dynamics: Gymnasium's Ant-v5 body with the paper's physics step of 0.02 s and softness of contacts (solimp 0.8 0.8 0.01),
    one physics step to a control step, horizon 200 steps, that is 4 s. Start: the paper's pose with normal noise of 0.01 on
    positions, 0.1 on velocities. Task: ``velocity`` $v^*$ in m/s, uniform on [0, 3]. Observation (41): positions (m,
    quaternion, rad; x and y included, as in the paper), velocities (m/s, rad/s), orientation matrix of the torso, place of
    the centre of mass (m). Action (8): joint torques, clipped to [-1, 1] (the paper's +-150 N m). The episode ends with a
    fall (torso not between 0.2 and 1 m high).

    Differs from the source: MuJoCo 4 instead of 1.31, and neither contact observations nor contact cost $\tfrac12 10^{-3}
    \lVert f \rVert^2$ unless ``contact_forces=true``: then 84 forces clipped to +-1 are observed in front of the orientation
    (125 numbers, the paper's order) and cost, worked out one simulation after another and slower.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3, and its code (``ant_env_rand``).
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(1, "physics steps of 0.02 s in a control step", low=1)
    velocity_low: float = setting(0.0, "smallest target velocity, m/s")
    velocity_high: float = setting(3.0, "largest target velocity, m/s")
    control_cost: float = setting(0.005, "weight c of the squared action", low=0)
    healthy_reward: float = setting(0.05, "reward b of every step")
    reset_noise: float = setting(0.01, "standard deviation of the initial positions", low=0)
    velocity_noise: float = setting(0.1, "standard deviation of the initial velocities", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the target velocity to the observation")

    recommended: ClassVar[Mapping[str, Any]] = PAPER

    def __post_init__(self) -> None:
        """Check the order of the velocity range."""
        ordered("velocity", self.velocity_low, self.velocity_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(
            self,
            (TaskParameter("velocity", self.velocity_low, self.velocity_high, "m/s"),),
            41 + _CONTACTS * self.contact_forces,
            8,
            _TIMESTEP,
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw target velocities."""
        return uniform("velocity", self.velocity_low, self.velocity_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        body = paper_ant(self.reset_noise, self.velocity_noise, self.contact_forces)
        return simulations(self, body, self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = 1.0 - np.abs(outcome.velocity[:, 0] - tasks["velocity"])
        return forward - self.control_cost * squared(outcome.actions) - contact_cost(outcome) + self.healthy_reward


@dataclasses.dataclass(frozen=True)
class AntDirMAML:
    r"""Run forward or backward, as in the MAML paper's own code: for comparison with its published numbers.

    $$ r_t = d\, v_t - c \lVert a_t \rVert^2 + b, \qquad v_t \text{: of the centre of mass, at the end of the step} $$

    Dynamics, start, observation (41), action (8), control step 0.02 s, horizon 200, end with a fall, contact forces and what
    differs from the source are those of :class:`AntVelMAML`. Task: ``direction`` $d$, -1 or +1. There are two tasks only:
    every split has both, nothing is held out.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3, and its code (``ant_env_rand_direc``).
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(1, "physics steps of 0.02 s in a control step", low=1)
    control_cost: float = setting(0.005, "weight c of the squared action", low=0)
    healthy_reward: float = setting(0.05, "reward b of every step")
    reset_noise: float = setting(0.01, "standard deviation of the initial positions", low=0)
    velocity_noise: float = setting(0.1, "standard deviation of the initial velocities", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    contact_forces: bool = setting(False, "contact forces in observation and cost; slower")
    oracle: bool = setting(False, "append the direction to the observation")

    recommended: ClassVar[Mapping[str, Any]] = {**PAPER, "episodes_per_task": 40}

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, FORWARD_BACKWARD, 41 + _CONTACTS * self.contact_forces, 8, _TIMESTEP)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions; every split has both."""
        return forward_backward(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        body = paper_ant(self.reset_noise, self.velocity_noise, self.contact_forces)
        return simulations(self, body, self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        forward = tasks["direction"] * outcome.velocity[:, 0]
        return forward - self.control_cost * squared(outcome.actions) - contact_cost(outcome) + self.healthy_reward
