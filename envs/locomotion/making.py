"""What every locomotion family does alike: its specification and its simulations, from settings that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from metarl.envs.locomotion.bodies import Body, Control, Reward, Scaled
from metarl.families import EnvBatch, RLSpec, TaskParameter


class Settings(Protocol):
    """The settings of every locomotion family (see the families for their meaning)."""

    @property
    def horizon(self) -> int:
        """Control steps of an episode."""
        ...

    @property
    def frame_skip(self) -> int:
        """Physics steps of a control step."""
        ...

    @property
    def action_scale(self) -> float:
        """Actions are divided by this."""
        ...

    @property
    def oracle(self) -> bool:
        """Whether the task is appended to the observation."""
        ...


def body_spec(
    family: Settings,
    parameters: tuple[TaskParameter, ...],
    observation_size: int,
    action_size: int,
    timestep: float,
    limit: float = 1.0,
) -> RLSpec:
    """Return the specification of a family whose motors take +-``limit``; ``timestep`` is that of the physics, s."""
    return RLSpec(
        parameters=parameters,
        observation_size=observation_size,
        action_size=action_size,
        action_low=-limit * family.action_scale,
        action_high=limit * family.action_scale,
        horizon=family.horizon,
        control_step=timestep * family.frame_skip,
        oracle=family.oracle,
    )


def simulations(
    family: Settings, body: Body, reward: Reward, num_envs: int, threads: int, scaled: Sequence[Scaled] = ()
) -> EnvBatch:
    """Make a family's simulations of a body; contact forces are worked out where the body's ``contacts`` says so."""
    from metarl.envs.locomotion.engine import LocomotionBatch  # loads the simulator

    control = Control(family.frame_skip, family.horizon, family.action_scale, body.contacts)
    return LocomotionBatch(body, control, reward, num_envs, threads, scaled)
