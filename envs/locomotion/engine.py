"""Gymnasium's MuJoCo bodies on ``mujoco.batch``: many simulations of one model, stepped by C++ threads.

Dynamics and reset are bit-equal to Gymnasium's own environment, one simulation at a time; the tests hold them to it.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from metarl.envs.locomotion.bodies import Body, Control, Outcome, Part, Reward, Scaled, measure_centre
from metarl.families import EnvFault, Step, Tasks
from metarl.settings import SettingsError

try:
    import mujoco
    from mujoco.batch import Batch

    from metarl.envs.locomotion.centre import Centre, PlanarCentre, WorkedCentre, is_planar
except Exception as error:  # the graphics library that MUJOCO_GL names is loaded, too, and each fails its own way
    chosen = os.environ.get("MUJOCO_GL")
    if chosen is None:
        raise
    raise SettingsError(
        f"MUJOCO_GL={chosen}: mujoco cannot be imported with that ({type(error).__name__}: {error}); unset MUJOCO_GL"
    ) from error

# A simulation that meets one of these is silently put back to its initial state by MuJoCo.
_FATAL = [
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
    int(mujoco.mjtWarning.mjWARN_BADCTRL),
]


@functools.cache
def load_model(xml: str, *edits: Callable[[Any], None] | None) -> mujoco.MjModel:
    """Compile one of Gymnasium's bodies, e.g. ``"half_cheetah.xml"``, after changes of its specification, if any.

    Gymnasium's file uses the compiler attribute ``settotalmass``, which MuJoCo deprecates with a warning on every load.
    The attribute is taken out of the specification and applied to the compiled model instead, which gives the same model
    to the bit.
    """
    path = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml
    spec = mujoco.MjSpec.from_file(str(path))
    for edit in filter(None, edits):
        edit(spec)
    total_mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1
    model = spec.compile()
    if total_mass > 0:
        mujoco.mj_setTotalmass(model, total_mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        # The compiler fills in these means after scaling; mj_setConst leaves them. The solver's tolerance depends on them.
        # Added in order, as the compiler does, for the same last bit.
        model.stat.meaninertia = functools.reduce(operator.add, model.dof_M0.tolist()) / model.nv
        model.stat.meanmass = functools.reduce(operator.add, model.body_mass[1:].tolist()) / (model.nbody - 1)
    return model


def without_islands(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return the model with MuJoCo's search for constraint islands switched off where it cannot find more than one.

    A single kinematic tree is a single island at most, so the solver sees the same problem and gives the same bits, some
    5 % faster for the half cheetah (measured).
    """
    if model.ntree > 1:
        return model
    model = copy.copy(model)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    return model


def silence_mujoco() -> None:
    """Stop MuJoCo from writing MUJOCO_LOG.TXT into the working directory: its warning counters are read instead."""
    config = mujoco.MjLogConfig.get()
    if config.logto_file or config.logto_console:
        config.logto_file = False
        config.logto_console = False
        mujoco.MjLogConfig.set(config)


class LocomotionBatch:
    """B simulations of one body that share neither task nor random numbers.

    A simulation that has fallen is not stepped until the next reset, which costs and breaks nothing.

    Args:
        body: which body.
        control: how it is stepped.
        reward: the family's reward.
        num_envs: simulations B.
        threads: C++ threads that step them; the result does not depend on it.
        scaled: what of the model a task multiplies.
    """

    def __init__(
        self, body: Body, control: Control, reward: Reward, num_envs: int, threads: int, scaled: Sequence[Scaled] = ()
    ) -> None:
        silence_mujoco()
        self._body, self._control, self._reward = body, control, reward
        model = without_islands(load_model(body.xml, body.edit))
        # contact forces are worked out from what the last physics step left behind, which only a persistent batch keeps
        self._batch = Batch(model, nsim=num_envs, nthread=threads, persistent=control.contacts)
        self._qpos, self._qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._warnings = self._batch.warning
        self._control_step = float(model.opt.timestep) * control.frame_skip
        self._low, self._high = (_alike(bound) for bound in model.actuator_ctrlrange.T)
        # contact forces are those of the new state where the centre of mass is
        late = control.contacts and body.track == "momentary"
        self._stage = int((mujoco.mjtStage.mjSTAGE_ACC if late else mujoco.mjtStage.mjSTAGE_NONE).value)
        self._contacts = np.zeros((num_envs, model.nbody, 6)) if control.contacts else None
        self._data = mujoco.MjData(model) if control.contacts else None
        self._centre = _centre(body, num_envs, threads) if body.track == "momentary" else None
        self._parts = [(self._field(part.field), part) for part in body.parts]
        tracked = {"root": "qpos", "torso": "xpos", "mass": "xipos", "momentary": "centre"}[body.track]
        self._tracked = self._field(tracked)
        self._scaled = [_Factor(self._batch, item) for item in scaled]
        self._tasks = Tasks((), np.zeros((num_envs, 0)))
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._fallen = np.zeros(num_envs, dtype=bool)
        self._renderer: mujoco.Renderer | None = None  # made on first use: training never touches GL

    @property
    def physics(self) -> Batch:
        """The simulations themselves, for whoever measures or compares them."""
        return self._batch

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start every episode as Gymnasium's ``reset(seed=seeds[b])`` does: initial pose plus noise."""
        self._tasks = tasks
        self._start(np.arange(len(tasks)), tasks, seeds)
        return self._observe()

    def restart(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start some episodes likewise; return their observations (k, O)."""
        self._tasks = self._tasks.replaced(envs, tasks)
        self._start(envs, tasks, seeds)
        return self._observe()[envs]

    def _start(self, envs: np.ndarray, tasks: Tasks, seeds: np.ndarray) -> None:
        batch, model, start = self._batch, self._batch.model, self._body.start
        for factor in self._scaled:
            factor.apply(envs, tasks)
        if self._scaled:
            batch.set_const(envs)
        batch.reset(envs, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        pose = model.qpos0 if start.pose is None else np.array(start.pose)
        for row, seed in zip(envs, seeds, strict=True):
            rng = np.random.Generator(np.random.PCG64(int(seed)))
            self._qpos[row] = pose + _noise(rng, start.positions, start.position_scale, model.nq)
            self._qvel[row] = _noise(rng, start.velocities, start.velocity_scale, model.nv)
        batch.forward(envs)
        self._fallen[envs], self._elapsed[envs] = False, 0
        self._refuse_broken()  # here, too, a body that is out of range is reset
        if self._centre is not None:
            self._centre.measure(self._qpos, self._qvel)
        if self._contacts is not None:
            self._contacts[envs] = 0.0  # as Gymnasium, which works them out after steps only

    def step(self, actions: np.ndarray) -> Step:
        """Scale and clip the actions, hold them for ``frame_skip`` physics steps and reward the outcome."""
        actions = actions.astype(np.float64)
        if self._control.action_scale != 1.0:
            actions /= self._control.action_scale
        np.clip(actions, self._low, self._high, out=actions)
        before = self._position().copy() if self._centre is None else None
        self._ctrl[:] = actions
        running = np.flatnonzero(~self._fallen) if self._fallen.any() else None
        self._batch.step(running, self._control.frame_skip, self._stage)
        self._elapsed += 1
        self._refuse_broken()
        if self._centre is not None:
            self._centre.measure(self._qpos, self._qvel)
        if self._contacts is not None:
            self._measure_contacts(range(len(actions)) if running is None else running)
        outcome = self._outcome(before, actions)
        rewards = self._reward(self._tasks, outcome)
        fallen = ~outcome.healthy
        self._fallen |= fallen
        truncated = self._elapsed >= self._control.horizon
        return Step(self._observe(), rewards.astype(np.float32), fallen, truncated)

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one simulation from its tracking camera, uint8 (height, width, 3)."""
        if self._renderer is None or (self._renderer.width, self._renderer.height) != (width, height):
            self._renderer = mujoco.Renderer(self._batch.model, height, width)
        data = self._batch.get_data(env)
        mujoco.mj_forward(self._batch.get_model(env), data)
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render()

    def _refuse_broken(self) -> None:
        if not self._warnings.any():
            return
        broken = self._warnings[:, _FATAL, 1].any(axis=1) & ~self._fallen
        if broken.any():
            raise EnvFault(
                "MuJoCo's state became infinite or not a number, and it reset the body;"
                " lower env.reset_noise or env.frame_skip",
                np.flatnonzero(broken),
            )

    def _field(self, name: str) -> np.ndarray:
        """Return a field's live values, (B, ...)."""
        if name == "cfrc_ext":
            if self._contacts is None:
                raise ValueError("contact forces are observed but not worked out")
            return self._contacts
        if name == "centre":
            if self._centre is None:
                raise ValueError("the centre of mass is observed but not tracked")
            return self._centre.position
        if name == "turn":
            if not isinstance(self._centre, WorkedCentre):
                raise ValueError("the torso's orientation is observed but the centre of mass not tracked")
            return self._centre.turn
        values: np.ndarray = self._batch.bind(name)
        return values

    def _position(self) -> np.ndarray:
        """Return the tracked position, (B, 1) or (B, 2), live where it needs no computing."""
        values = self._tracked
        if self._body.track == "root":
            return values[:, :1]
        if self._body.track == "torso":
            return values[:, 1, :2]
        if self._body.track == "mass":
            mass = self._batch.model.body_mass
            return np.tensordot(values[:, :, :2], mass, (1, 0)) / mass.sum()
        return values[:, :2]

    def _outcome(self, before: np.ndarray | None, actions: np.ndarray) -> Outcome:
        after = self._position()
        if before is not None:
            velocity = (after - before) / self._control_step
        else:
            assert self._centre is not None
            velocity = self._centre.velocity[:, :2]
        healthy = self._body.healthy
        standing = np.ones(len(actions), dtype=bool) if healthy is None else healthy(self._qpos, self._qvel)
        return Outcome(after, velocity, actions, standing, self._contacts)

    def _measure_contacts(self, envs: Sequence[int] | np.ndarray) -> None:
        """Work out contact forces as Gymnasium does after its steps; MuJoCo's batch has no call for that."""
        assert self._contacts is not None
        for env in envs:
            data = self._batch.get_data(int(env), self._data)
            mujoco.mj_rnePostConstraint(self._batch.model, data)
            self._contacts[env] = data.cfrc_ext

    def _observe(self) -> np.ndarray:
        skip, nq, limit = self._body.skip_positions, self._qpos.shape[1], self._body.clip_velocities
        velocities = self._qvel if limit == math.inf else np.clip(self._qvel, -limit, limit)
        pieces = [_piece(values, part) for values, part in self._parts]
        width = nq - skip + velocities.shape[1]
        observations = np.empty((len(self._qpos), width + sum(p.shape[1] for p in pieces)), dtype=np.float32)
        observations[:, : nq - skip] = self._qpos[:, skip:]
        observations[:, nq - skip : width] = velocities
        for piece in pieces:
            observations[:, width : width + piece.shape[1]] = piece
            width += piece.shape[1]
        return observations


class _Factor:
    """One number of the model, multiplied in every simulation by a parameter of its task."""

    def __init__(self, batch: Batch, scaled: Scaled) -> None:
        model = batch.model
        self._parameter = scaled.parameter
        if scaled.field == "dof_damping":
            row = int(model.joint(scaled.item).dofadr[0])
        elif scaled.field == "geom_friction":
            row = model.geom(scaled.item).id
        else:
            row = model.body(scaled.item).id
        self._base = np.copy(getattr(model, scaled.field)[row])
        self._values = batch.expand(scaled.field)[:, row]

    def apply(self, envs: np.ndarray, tasks: Tasks) -> None:
        """Write the values of k tasks, one for each of so many simulations."""
        factors = tasks[self._parameter]
        self._values[envs] = self._base * factors.reshape(-1, *[1] * self._base.ndim)


def _centre(body: Body, num_envs: int, threads: int) -> Centre:
    """Return what measures the centre of mass at the new state: the closed form where it is enough."""
    model = load_model(body.xml, body.edit)
    if is_planar(model) and all(part.field == "centre" for part in body.parts):
        return PlanarCentre(model, num_envs)
    return WorkedCentre(load_model(body.xml, body.edit, measure_centre), num_envs, threads)


def _alike(values: np.ndarray) -> Any:
    """Return the one value that all have in common, which NumPy is faster with, or else the values."""
    return float(values[0]) if (values == values[0]).all() else values.copy()


def _noise(rng: np.random.Generator, kind: str, scale: float, size: int) -> np.ndarray:
    return rng.uniform(-scale, scale, size) if kind == "uniform" else scale * rng.standard_normal(size)


def _piece(values: np.ndarray, part: Part) -> np.ndarray:
    rows = values[:, part.first : part.stop]
    rows = rows if part.clip == math.inf else np.clip(rows, -part.clip, part.clip)
    return rows.reshape(len(rows), -1)
