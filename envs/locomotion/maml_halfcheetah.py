"""Half-cheetah with the timing and constants of the MAML paper, for comparison with its published numbers only.

Its control step of 0.01 s makes returns incomparable with those of the families at 0.05 s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.bodies import Body, Outcome, Part, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.tasks import FORWARD_BACKWARD, PAPER, forward_backward, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import setting


def paper_half_cheetah(reset_noise: float, velocity_noise: float) -> Body:
    """HalfCheetah-v5 with normal noise at the start, watched by its centre of mass."""
    return Body(
        "half_cheetah.xml",
        Start("normal", reset_noise, "normal", velocity_noise),
        track="momentary",
        parts=(Part("centre"),),
    )


@dataclasses.dataclass(frozen=True)
class HalfCheetahVelMAML:
    r"""Run at a target velocity, as in the MAML paper's own code: for comparison with its published numbers.

    $$ r_t = -|v_t - v^*| - c \lVert a_t \rVert^2, \qquad v_t \text{: of the centre of mass, at the end of the step} $$

    Dynamics: Gymnasium's HalfCheetah-v5 body, which has the paper's physics, at its control step of 0.01 s (one physics step),
    horizon 200 steps, that is 2 s, no termination. Start: normal noise of 0.01 on positions, 0.1 on velocities. Task:
    ``velocity`` $v^*$ in m/s, uniform on [0, 2]. Observation (20): positions without x (m, rad), velocities (m/s, rad/s),
    place of the centre of mass (m). Action (6): joint torques, clipped to [-1, 1].

    Differs from the source: MuJoCo 4 instead of 1.31.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3, and its code (``half_cheetah_env_rand``).
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(1, "physics steps of 0.01 s in a control step", low=1)
    velocity_low: float = setting(0.0, "smallest target velocity, m/s")
    velocity_high: float = setting(2.0, "largest target velocity, m/s")
    control_cost: float = setting(0.05, "weight c of the squared action", low=0)
    reset_noise: float = setting(0.01, "standard deviation of the initial positions", low=0)
    velocity_noise: float = setting(0.1, "standard deviation of the initial velocities", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the target velocity to the observation")

    recommended: ClassVar[Mapping[str, Any]] = PAPER

    def __post_init__(self) -> None:
        """Check the order of the velocity range."""
        ordered("velocity", self.velocity_low, self.velocity_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, (TaskParameter("velocity", self.velocity_low, self.velocity_high, "m/s"),), 20, 6, 0.01)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw target velocities."""
        return uniform("velocity", self.velocity_low, self.velocity_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        body = paper_half_cheetah(self.reset_noise, self.velocity_noise)
        return simulations(self, body, self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        return -np.abs(outcome.velocity[:, 0] - tasks["velocity"]) - self.control_cost * squared(outcome.actions)


@dataclasses.dataclass(frozen=True)
class HalfCheetahDirMAML:
    r"""Run forward or backward, as in the MAML paper's own code: for comparison with its published numbers.

    $$ r_t = d\, v_t - c \lVert a_t \rVert^2, \qquad v_t \text{: of the centre of mass, at the end of the step} $$

    Dynamics, start, observation (20), action (6), control step 0.01 s and horizon 200 are those of
    :class:`HalfCheetahVelMAML`. Task: ``direction`` $d$, -1 or +1. There are two tasks only: every split has both, nothing
    is held out.

    Differs from the source: MuJoCo 4 instead of 1.31.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3, and its code
    (``half_cheetah_env_rand_direc``).
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(1, "physics steps of 0.01 s in a control step", low=1)
    control_cost: float = setting(0.05, "weight c of the squared action", low=0)
    reset_noise: float = setting(0.01, "standard deviation of the initial positions", low=0)
    velocity_noise: float = setting(0.1, "standard deviation of the initial velocities", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the direction to the observation")

    recommended: ClassVar[Mapping[str, Any]] = {**PAPER, "algo.max_kl": 0.02}

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, FORWARD_BACKWARD, 20, 6, 0.01)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions; every split has both."""
        return forward_backward(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        body = paper_half_cheetah(self.reset_noise, self.velocity_noise)
        return simulations(self, body, self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        return tasks["direction"] * outcome.velocity[:, 0] - self.control_cost * squared(outcome.actions)
