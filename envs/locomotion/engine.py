"""Gymnasium's MuJoCo bodies on ``mujoco.batch``: many simulations of one model, stepped by C++ threads.

Dynamics and reset are bit-equal to Gymnasium's own environment, one simulation at a time; the tests hold them to it.
"""

from __future__ import annotations

import copy
import functools
import operator
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np

from metarl.families import EnvFault, Step, Tasks
from metarl.settings import SettingsError

try:
    import mujoco
    from mujoco.batch import Batch
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
def load_model(xml: str) -> mujoco.MjModel:
    """Compile one of Gymnasium's bodies, e.g. ``"half_cheetah.xml"``.

    Gymnasium's file uses the compiler attribute ``settotalmass``, which MuJoCo deprecates with a warning on every load.
    The attribute is taken out of the specification and applied to the compiled model instead, which gives the same model
    to the bit.
    """
    path = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml
    spec = mujoco.MjSpec.from_file(str(path))
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


def _silence_mujoco() -> None:
    """Stop MuJoCo from writing MUJOCO_LOG.TXT into the working directory: its warning counters are read instead."""
    config = mujoco.MjLogConfig.get()
    if config.logto_file or config.logto_console:
        config.logto_file = False
        config.logto_console = False
        mujoco.MjLogConfig.set(config)


@dataclass(frozen=True)
class Body:
    """What a locomotion batch needs of a body.

    Attributes:
        xml: file name among Gymnasium's assets.
        frame_skip: physics steps to one control step.
        reset_noise: scale of the uniform noise on positions (+-, rad or m) and of the normal noise on velocities.
        horizon: control steps of an episode.
        skip_positions: how many leading positions the observation leaves out.
    """

    xml: str
    frame_skip: int
    reset_noise: float
    horizon: int
    skip_positions: int = 1


# (tasks, root x before, root x after, actions, control step) -> rewards, all with leading dimension B
Reward = Callable[[Tasks, np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


class LocomotionBatch:
    """B simulations of one body that share neither task nor random numbers.

    Args:
        body: which body and how it is stepped.
        reward: the family's reward.
        num_envs: simulations B.
        threads: C++ threads that step them; the result does not depend on it.
    """

    def __init__(self, body: Body, reward: Reward, num_envs: int, threads: int) -> None:
        _silence_mujoco()
        self._body = body
        self._reward = reward
        model = without_islands(load_model(body.xml))
        self._batch = Batch(model, nsim=num_envs, nthread=threads)
        self._qpos, self._qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._counts = self._batch.warning[:, :, 1]
        self._control_step = float(model.opt.timestep) * body.frame_skip
        self._low, self._high = model.actuator_ctrlrange.T.copy()
        self._tasks = Tasks((), np.zeros((num_envs, 0)))
        self._elapsed = 0
        self._renderer: mujoco.Renderer | None = None  # made on first use: training never touches GL

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start every episode as Gymnasium's ``reset(seed=seeds[b])`` does: initial pose plus noise."""
        batch, model, scale = self._batch, self._batch.model, self._body.reset_noise
        batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        for row, seed in enumerate(seeds):
            rng = np.random.Generator(np.random.PCG64(int(seed)))
            self._qpos[row] = model.qpos0 + rng.uniform(-scale, scale, model.nq)
            self._qvel[row] = scale * rng.standard_normal(model.nv)
        batch.forward()
        self._refuse_broken()  # here, too, a body that is out of range is reset
        self._tasks = tasks
        self._elapsed = 0
        return self._observe()

    def step(self, actions: np.ndarray) -> Step:
        """Clip the actions, hold them for ``frame_skip`` physics steps and reward the outcome."""
        actions = np.clip(actions.astype(np.float64), self._low, self._high)
        before = self._qpos[:, 0].copy()
        self._ctrl[:] = actions
        self._batch.step(nstep=self._body.frame_skip)
        self._elapsed += 1
        self._refuse_broken()
        rewards = self._reward(self._tasks, before, self._qpos[:, 0], actions, self._control_step)
        count = len(actions)
        return Step(
            self._observe(),
            rewards.astype(np.float32),
            np.zeros(count, dtype=bool),
            np.full(count, self._elapsed >= self._body.horizon),
        )

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one simulation from its tracking camera, uint8 (height, width, 3)."""
        if self._renderer is None or (self._renderer.width, self._renderer.height) != (width, height):
            self._renderer = mujoco.Renderer(self._batch.model, height, width)
        data = self._batch.get_data(env)
        mujoco.mj_forward(self._batch.model, data)
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render()

    def _refuse_broken(self) -> None:
        if self._counts.any() and self._counts[:, _FATAL].any():
            raise EnvFault(
                "MuJoCo's state became infinite or not a number, and it reset the body;"
                " lower env.reset_noise or env.frame_skip",
                np.flatnonzero(self._counts[:, _FATAL].any(axis=1)),
            )

    def _observe(self) -> np.ndarray:
        skip, nq = self._body.skip_positions, self._qpos.shape[1]
        observations = np.empty((len(self._qpos), nq - skip + self._qvel.shape[1]), dtype=np.float32)
        observations[:, : nq - skip] = self._qpos[:, skip:]
        observations[:, nq - skip :] = self._qvel
        return observations
