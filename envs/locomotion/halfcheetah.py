"""Half-cheetah families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.locomotion.bodies import Body, Outcome, Start, squared
from metarl.envs.locomotion.making import body_spec, simulations
from metarl.envs.locomotion.tasks import FORWARD_BACKWARD, PLANAR, forward_backward, ordered, uniform
from metarl.families import EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import setting


def half_cheetah(reset_noise: float) -> Body:
    """Gymnasium's HalfCheetah-v5."""
    return Body("half_cheetah.xml", Start("uniform", reset_noise, "normal", reset_noise))


@dataclasses.dataclass(frozen=True)
class HalfCheetahVel:
    r"""Run at a target velocity that only the reward tells.

    $$ r_t = -|v_t - v^*| - c \lVert a_t \rVert^2, \qquad v_t = (x_{t+1} - x_t) / \Delta t $$

    Dynamics: Gymnasium's HalfCheetah-v5 body and reset (uniform +-0.1 on positions, normal 0.1 on velocities).
    Task: ``velocity`` $v^*$ in m/s, uniform on [0, 2]. Observation (17): positions without x (m, rad), velocities (m/s,
    rad/s). Action (6): joint torques, clipped to [-1, 1]. Control step 0.05 s (5 physics steps of 0.01 s), horizon 200
    steps, no termination.

    Differs from the source: Finn et al. step at 0.01 s and read the velocity of the centre of mass, so their returns are
    not comparable with those at 0.05 s.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    velocity_low: float = setting(0.0, "smallest target velocity, m/s")
    velocity_high: float = setting(2.0, "largest target velocity, m/s")
    control_cost: float = setting(0.05, "weight c of the squared action", low=0)
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the target velocity to the observation")

    recommended: ClassVar[Mapping[str, Any]] = {
        **PLANAR,
        "algo.max_kl": 0.03,
        "iterations": 150,
        # on validation tasks after 75 iterations as far as raw observations and a deviation of 1 after 300
        "normalize_observations": True,
        "init_std": 0.3,
        # advantages look some 0.8 s ahead instead of 5; with 1 and 0.1 seed 0 needed 300 iterations for 75
        "gae_lambda": 0.95,
        "inner_lr": 0.05,
    }

    def __post_init__(self) -> None:
        """Check the order of the velocity range."""
        ordered("velocity", self.velocity_low, self.velocity_high)

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, (TaskParameter("velocity", self.velocity_low, self.velocity_high, "m/s"),), 17, 6, 0.01)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw target velocities."""
        return uniform("velocity", self.velocity_low, self.velocity_high, num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, half_cheetah(self.reset_noise), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        return -np.abs(outcome.velocity[:, 0] - tasks["velocity"]) - self.control_cost * squared(outcome.actions)


@dataclasses.dataclass(frozen=True)
class HalfCheetahDir:
    r"""Run forward or backward; only the reward tells which.

    $$ r_t = d\, v_t - c \lVert a_t \rVert^2, \qquad v_t = (x_{t+1} - x_t) / \Delta t $$

    Dynamics, observation (17), action (6), control step 0.05 s and horizon 200 are those of :class:`HalfCheetahVel`; no
    termination. Task: ``direction`` $d$, -1 or +1. There are two tasks only: every split has both, nothing is held out.

    Differs from the source: Finn et al. step at 0.01 s and read the velocity of the centre of mass (see
    ``halfcheetah-dir-maml``).

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.3.
    """

    horizon: int = setting(200, "control steps in an episode", low=1)
    frame_skip: int = setting(5, "physics steps of 0.01 s in a control step", low=1)
    control_cost: float = setting(0.05, "weight c of the squared action", low=0)
    reset_noise: float = setting(0.1, "scale of the noise on the initial state", low=0)
    action_scale: float = setting(1.0, "actions are divided by this before they act", above=0)
    oracle: bool = setting(False, "append the direction to the observation")

    # from a standard deviation of 1 nothing adapted in 93 iterations
    recommended: ClassVar[Mapping[str, Any]] = {**PLANAR, "algo.max_kl": 0.02, "init_std": 0.3, "iterations": 120}

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return body_spec(self, FORWARD_BACKWARD, 17, 6, 0.01)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw directions; every split has both."""
        return forward_backward(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations on the batch engine."""
        return simulations(self, half_cheetah(self.reset_noise), self._reward, num_envs, threads)

    def _reward(self, tasks: Tasks, outcome: Outcome) -> np.ndarray:
        return tasks["direction"] * outcome.velocity[:, 0] - self.control_cost * squared(outcome.actions)
