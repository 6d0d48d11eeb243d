"""Descriptions of bodies: what the engine must know to start, steer, watch and judge one. No simulator is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from metarl.families import Tasks

# positions (B, nq) and velocities (B, nv) -> bool (B,), who has not fallen
Healthy = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Start:
    """The noise on a body's initial state: positions are drawn before velocities, as Gymnasium draws them.

    Attributes:
        positions: noise on positions: uniform within +-, or normal.
        position_scale: its half width or standard deviation, rad or m.
        velocities: noise on velocities likewise.
        velocity_scale: its half width or standard deviation, rad/s or m/s.
        pose: the pose that noise is added to; None for the model's own.
    """

    positions: Literal["uniform", "normal"]
    position_scale: float
    velocities: Literal["uniform", "normal"]
    velocity_scale: float
    pose: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A piece of the observation behind positions and velocities.

    Attributes:
        field: a derived field of MuJoCo's data, such as ``"cinert"``; ``"cfrc_ext"`` needs :attr:`Control.contacts`.
            Of bodies that track ``"momentary"`` and of them only: ``"centre"``, the centre of mass in space, and ``"turn"``, the
            torso's orientation matrix.
        first: first row of it.
        stop: end of the rows; None for all.
        clip: values are clipped to +- this.
    """

    field: str
    first: int = 0
    stop: int | None = None
    clip: float = math.inf


@dataclass(frozen=True)
class Body:
    """A body and how it is watched.

    Attributes:
        xml: file name among Gymnasium's assets.
        start: noise of the initial state.
        track: whose position and velocity a reward is told. ``"root"``: the first coordinate, by displacement; ``"torso"``:
            the torso's frame in the plane, by displacement; ``"mass"``: the centre of mass in the plane, by
            displacement; ``"momentary"``: the centre of mass, its velocity at the end of the step.
        skip_positions: how many leading positions the observation leaves out.
        clip_velocities: observed velocities are clipped to +- this.
        parts: what the observation has behind positions and velocities.
        healthy: who has not fallen; None for bodies that cannot.
        edit: changes the specification (``mujoco.MjSpec``) before it is compiled.
    """

    xml: str
    start: Start
    track: Literal["root", "torso", "mass", "momentary"] = "root"
    skip_positions: int = 1
    clip_velocities: float = math.inf
    parts: tuple[Part, ...] = ()
    healthy: Healthy | None = None
    edit: Callable[[Any], None] | None = None

    @property
    def contacts(self) -> bool:
        """Whether contact forces are observed, and so must be worked out."""
        return any(part.field == "cfrc_ext" for part in self.parts)


@dataclass(frozen=True)
class Control:
    """How a body is steered.

    Attributes:
        frame_skip: physics steps to one control step.
        horizon: control steps of an episode.
        action_scale: actions are divided by this before they act.
        contacts: whether contact forces are worked out after every control step, one simulation after another.
    """

    frame_skip: int
    horizon: int
    action_scale: float = 1.0
    contacts: bool = False


@dataclass(frozen=True)
class Scaled:
    """A number of the model that a task multiplies.

    Attributes:
        parameter: the task parameter with the factor.
        field: the model's field: ``body_mass``, ``body_inertia``, ``dof_damping`` or ``geom_friction``.
        item: name of the body, joint or geom.
    """

    parameter: str
    field: str
    item: str


class Outcome(NamedTuple):
    """What a control step led to, for B simulations.

    Attributes:
        position: (B, 1) or (B, 2), m, of what the body tracks.
        velocity: likewise, m/s.
        actions: (B, A), as they acted: scaled and clipped.
        healthy: bool (B,).
        contacts: contact forces on every body, (B, bodies, 6), torque before force; None unless asked for.
    """

    position: np.ndarray
    velocity: np.ndarray
    actions: np.ndarray
    healthy: np.ndarray
    contacts: np.ndarray | None


Reward = Callable[[Tasks, Outcome], np.ndarray]


def squared(actions: np.ndarray) -> np.ndarray:
    """Return the squared length of every action, (B,)."""
    squares: np.ndarray = np.square(actions.T, order="C").sum(axis=0)  # along simulations: less than half the time
    return squares


def measure_centre(spec: Any) -> None:
    """Add sensors for position and velocity of the whole body's centre of mass, and for the torso's three axes."""
    import mujoco

    body, frame = mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_XBODY
    kinds = {mujoco.mjtSensor.mjSENS_SUBTREECOM: body, mujoco.mjtSensor.mjSENS_SUBTREELINVEL: body}
    kinds |= {getattr(mujoco.mjtSensor, f"mjSENS_FRAME{axis}AXIS"): frame for axis in "XYZ"}
    for kind, what in kinds.items():
        spec.add_sensor(type=kind, objtype=what, objname="torso")
