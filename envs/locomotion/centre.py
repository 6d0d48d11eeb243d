"""The centre of mass at the state that a step led to: where it is and how fast it moves.

MuJoCo's derived fields describe the state before the last physics step. To work them all out once more at the new state,
contacts included, costs more than half of a physics step; either way here works out only what is asked for.

Shapes: B simulations, H hinges, S slides.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Protocol

import mujoco
import numpy as np
from mujoco.batch import Batch

_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
# Has no say in where the parts are and how they move.
_IDLE = (
    mujoco.mjtDisableBit.mjDSBL_CONSTRAINT,
    mujoco.mjtDisableBit.mjDSBL_CONTACT,
    mujoco.mjtDisableBit.mjDSBL_SPRING,
    mujoco.mjtDisableBit.mjDSBL_DAMPER,
    mujoco.mjtDisableBit.mjDSBL_ACTUATION,
)


class Centre(Protocol):
    """The centre of mass of each of B simulations."""

    @property
    def position(self) -> np.ndarray:
        """Where it was measured, (B, 3), m."""
        ...

    @property
    def velocity(self) -> np.ndarray:
        """How fast it was measured to move, (B, 3), m/s."""
        ...

    def measure(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Work it out at positions (B, nq) and velocities (B, nv)."""
        ...


class PlanarCentre:
    r"""Closed form for a body of slides and, behind them, hinges that all turn about one direction n.

    $$ c = c_0 + \sum_s d_s q_s + \sum_h \left( u_h \cos \theta_h + n \times u_h \sin \theta_h \right) $$

    $\theta_h$ sums the angles of the hinges from the root to h. For a part that h carries, $u_h$ has the way from h to the next
    hinge towards it, or else to its own centre, across n and in the reference pose; averaged over all mass, the parts that h does
    not carry with 0. $d_s$ is the slide's direction times the share of the mass that it carries. The velocity is the derivative.
    Sums are taken in a fixed order, so that no simulation's bits depend on the others.

    Args:
        model: a compiled model, :func:`is_planar`.
        num_envs: B.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)  # in the reference pose
        hinges, slides = (np.flatnonzero(model.jnt_type == kind) for kind in (_HINGE, _SLIDE))
        normal = data.xaxis[hinges[0]]
        signs = np.sign(data.xaxis @ normal)
        share = model.body_mass / model.body_mass.sum()
        reach, carried = np.zeros((model.njnt, 3)), np.zeros(model.njnt)
        reference, before = (
            np.zeros(model.njnt),
            dict.fromkeys(hinges.tolist(), -1),
        )  # angle, and hinge nearer to the root
        for body, place in enumerate(data.xipos):
            path = _path(model, body)
            turning = [joint for joint in path if joint in hinges]
            stops = [*data.xanchor[turning], place]
            for joint, (start, stop) in zip(turning, itertools.pairwise(stops), strict=True):
                reach[joint] += share[body] * (stop - start)
            before |= {joint: last for last, joint in itertools.pairwise(turning)}
            reference[turning] = np.cumsum((signs * model.qpos0)[turning])
            carried[path] += share[body]
        ahead = (reach - np.outer(reach @ normal, normal))[hinges]
        aside, along = np.cross(normal, ahead), data.xaxis[slides] * carried[slides, None]
        start = share @ data.xipos - ahead.sum(axis=0) - model.qpos0[slides] @ along
        # angles are counted from 0 and not from the reference pose
        cosine, sine = (wave(reference[hinges])[:, None] for wave in (np.cos, np.sin))
        ahead, aside = ahead * cosine - aside * sine, aside * cosine + ahead * sine
        # Rows of what is summed up: cosines, sines, slides, 1; its rates likewise, the first two times the angles' rates.
        places = np.concatenate([ahead, aside, along, start[None]]).T.copy()
        speeds = np.concatenate([aside, -ahead, along, 0 * start[None]]).T.copy()
        # Kept from call to call: memory that is new has to be handed out by the system, which takes longer than the sums.
        # Widened, so that sums always run along the simulations and a simulation's bits depend on no other.
        count, width = len(hinges), 16 * math.ceil(num_envs / 16)
        moved, angles = np.zeros((2, model.njnt, width)), np.zeros((2, count, width))
        terms = np.zeros((2, places.shape[1], width))
        terms[0, -1] = 1.0
        centre = np.zeros((2, 3, width))
        self.position, self.velocity = centre[:, :, :num_envs].swapaxes(1, 2)
        # Views, made once: to make them takes as long as to work with them.
        self._moved = moved[:, :, :num_envs]
        rows = {joint: angles[:, at] for at, joint in enumerate(hinges.tolist())} | {-1: np.zeros((2, width))}
        self._chain = [
            (np.add if signs[joint] > 0 else np.subtract, rows[last], moved[:, joint], rows[joint])
            for joint, last in sorted(before.items())
        ]
        self._slides = [(terms[:, 2 * count + at], moved[:, joint]) for at, joint in enumerate(slides)]
        self._turned, self._turns = angles
        self._waves, self._rates = terms[:, : 2 * count].reshape(2, 2, count, width)
        self._cosine, self._sine = self._waves
        self._half = np.zeros((count, width))
        self._sums = tuple(zip((places, speeds), terms, centre, strict=True))

    def measure(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Work the centre out at positions (B, nq) and velocities (B, nv)."""
        self._moved[0], self._moved[1] = positions.T, velocities.T
        for add, last, own, angle in self._chain:
            add(last, own, out=angle)
        for place, own in self._slides:
            place[:] = own
        # cosine and sine from the tangent of half the angle: one function, and one with vector instructions in NumPy
        cosine, sine, half = self._cosine, self._sine, self._half
        np.multiply(0.5, self._turned, out=half)
        np.tan(half, out=half)
        np.multiply(half, half, out=cosine)
        np.add(cosine, 1.0, out=cosine)
        np.divide(2.0, cosine, out=cosine)
        np.multiply(cosine, half, out=sine)
        np.subtract(cosine, 1.0, out=cosine)
        np.multiply(self._waves, self._turns, out=self._rates)
        for weights, terms, centre in self._sums:  # together they take twice as long
            np.einsum("ak,kb->ab", weights, terms, out=centre)


class WorkedCentre:
    """MuJoCo's own numbers, from simulations that only follow: without contacts, limits, springs and motors.

    Attributes:
        turn: the torso's orientation matrix at the same state, (B, 3, 3).

    Args:
        model: a compiled model that measures its centre of mass, see :func:`metarl.envs.locomotion.bodies.measure_centre`.
        num_envs: B.
        threads: C++ threads.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int) -> None:
        model = copy.copy(model)
        for bit in _IDLE:
            model.opt.disableflags |= int(bit)
        self._batch = Batch(model, nsim=num_envs, nthread=threads)
        # sensors alone: whole fields, with every body, would double what is copied
        measured = self._batch.bind("sensordata")
        self.position, self.velocity = measured[:, :3], measured[:, 3:6]
        self.turn = measured[:, 6:15].reshape(num_envs, 3, 3).swapaxes(1, 2)  # the axes are its columns
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")

    def measure(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Work the centre out at positions (B, nq) and velocities (B, nv)."""
        self._qpos[:], self._qvel[:] = positions, velocities
        self._batch.forward(stage=mujoco.mjtStage.mjSTAGE_VEL.value)


def is_planar(model: mujoco.MjModel) -> bool:
    """Say whether all joints are slides and, behind them, hinges about one direction."""
    if not set(model.jnt_type.tolist()) <= {_HINGE, _SLIDE} or _HINGE not in model.jnt_type:
        return False
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    axes = data.xaxis[model.jnt_type == _HINGE]
    if np.abs(np.cross(axes, axes[0])).max() > 1e-12:
        return False
    kinds = [[int(model.jnt_type[joint]) for joint in _path(model, body)] for body in range(model.nbody)]
    return all(path == sorted(path, key=(_SLIDE, _HINGE).index) for path in kinds)


def _path(model: mujoco.MjModel, body: int) -> list[int]:
    """Return the joints from the root to a body, in the order in which they act."""
    path: list[int] = []
    while body:
        first = int(model.body_jntadr[body])
        path = [*range(first, first + int(model.body_jntnum[body])), *path]
        body = int(model.body_parentid[body])
    return path
