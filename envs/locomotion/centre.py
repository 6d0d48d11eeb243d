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
        sums = np.zeros((model.njnt, model.njnt))  # which coordinates add up to a hinge's angle, or are a slide's place
        for body, place in enumerate(data.xipos):
            path = _path(model, body)
            turning = [joint for joint in path if joint in hinges]
            stops = [*data.xanchor[turning], place]
            for joint, (start, stop) in zip(turning, itertools.pairwise(stops), strict=True):
                reach[joint] += share[body] * (stop - start)
                sums[joint, turning[: turning.index(joint) + 1]] = signs[turning[: turning.index(joint) + 1]]
            carried[path] += share[body]
        sums[slides, slides] = 1.0
        ahead = (reach - np.outer(reach @ normal, normal))[hinges]
        aside, along = np.cross(normal, ahead), data.xaxis[slides] * carried[slides, None]
        start, turned = share @ data.xipos - ahead.sum(axis=0), np.zeros_like(ahead)
        # Rows of what is summed up: cosines, sines, angles, slides, 1; its rates likewise, times the angles' rates.
        self._places = np.concatenate([ahead, aside, turned, along, start[None]]).T.copy()
        self._speeds = np.concatenate([aside, -ahead, turned, along, 0 * start[None]]).T.copy()
        # The reference pose is taken off by a last column, which is multiplied by 1.
        order, size = np.concatenate([hinges, slides]), model.njnt
        self._sums = np.zeros((size + 1, size + 1))
        self._sums[:size, :size], self._sums[:size, size] = sums[order], -sums[order] @ model.qpos0
        self._sums[size, size] = 1.0
        # Kept from call to call: memory that is new has to be handed out by the system, which takes longer than the sums.
        # Widened, so that sums always run along the simulations and a simulation's bits depend on no other.
        width = 16 * math.ceil(num_envs / 16)
        self._moved = np.zeros((2, size + 1, width))
        self._moved[0, size] = 1.0
        self._factors = np.zeros((2, 2 * len(hinges) + size + 1, width))
        self._centre = np.zeros((2, 3, width))
        self.position, self.velocity = self._centre[:, :, :num_envs].swapaxes(1, 2)

    def measure(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Work the centre out at positions (B, nq) and velocities (B, nv)."""
        (envs, size), (factors, rates) = positions.shape, self._factors
        turned = len(factors) - len(self._sums)
        hinges = turned // 2
        self._moved[0, :size, :envs] = positions.T
        self._moved[1, :size, :envs] = velocities.T
        np.einsum("hj,tjb->thb", self._sums, self._moved, out=self._factors[:, turned:])
        angles, speeds = self._factors[:, turned : turned + hinges]
        # cosine and sine from the tangent of half the angle: one function, and one with vector instructions in NumPy
        half = np.tan(0.5 * angles)
        two = 2.0 / (half * half + 1.0)
        np.subtract(two, 1.0, out=factors[:hinges])
        np.multiply(two, half, out=factors[hinges:turned])
        waves = (2, hinges, -1)
        np.multiply(factors[:turned].reshape(waves), speeds, out=rates[:turned].reshape(waves))
        np.einsum("ak,kb->ab", self._places, factors, out=self._centre[0])
        np.einsum("ak,kb->ab", self._speeds, rates, out=self._centre[1])


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
