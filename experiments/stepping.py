"""Every locomotion family against raw physics: the physics steps of the very same episodes, and nothing else.

Ours is ``env.step`` with observation and reward, driven in groups as the learner drives it, until every episode has ended.
Raw is ``mj_step`` in C++ threads (``mujoco.rollout``), from the same starts, with the same actions and as many steps of every
simulation, so that nothing is stepped after a fall; on the model as it was compiled, and as our engine steps it, without the
search for islands. All must end in the same bits.

Shapes: B simulations, T control steps, A action.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import mujoco.rollout
import numpy as np

from experiments.physics import timed
from metarl import families
from metarl.core.parallel import Workers
from metarl.envs.locomotion.engine import LocomotionBatch
from metarl.families import RLFamily
from metarl.rl.groups import groups
from metarl.settings import SettingsError, nearest

ALL = "all"
SECONDS = 0.5  # that a measurement takes at least


@dataclass(frozen=True)
class Size:
    """How much is stepped.

    Attributes:
        tasks: tasks M.
        episodes: simulations of each E; B = M*E.
        horizon: control steps of an episode that does not fall T.
        threads: threads.
    """

    tasks: int
    episodes: int
    horizon: int
    threads: int


@dataclass(frozen=True)
class Tape:
    """What episodes did, for raw physics to repeat.

    Attributes:
        models: one a simulation; the same one for all where bodies do not differ.
        starts: float64 (B, 1 + nq + nv): time, positions, velocities.
        warmstarts: float64 (B, nv), the solver's first guess, which is part of MuJoCo's state.
        controls: float64 (B, T, A), within the actuators' range.
        frame_skip: physics steps of a control step.
        lengths: int64 (B,), control steps until the end of the episode.
        ends: float64 (B, nq + nv).
    """

    models: Sequence[mujoco.MjModel]
    starts: np.ndarray
    warmstarts: np.ndarray
    controls: np.ndarray
    frame_skip: int
    lengths: np.ndarray
    ends: np.ndarray


class Ours:
    """A locomotion family's simulations, grouped and driven as the learner does; actions as an untrained policy's.

    Args:
        name: which family.
        size: how much.
    """

    def __init__(self, name: str, size: Size) -> None:
        family = families.make(name, horizon=size.horizon)
        cuts, threads = groups(size.tasks, Workers(size.threads))
        self._rows = [slice(cut.start * size.episodes, cut.stop * size.episodes) for cut in cuts]
        self._batches: list[LocomotionBatch] = [family.batch(row.stop - row.start, threads) for row in self._rows]
        self._pool, self._frame_skip = Workers(len(cuts)), int(family.frame_skip)
        self._tasks = family.sample_tasks(size.tasks, "train", 0).repeat(size.episodes)
        count = len(self._tasks)
        self._seeds = np.arange(count, dtype=np.uint32)
        shape = (size.horizon, count, family.spec.action_size)
        self._actions = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self._lengths = np.zeros(count, dtype=np.int64)

    def run(self) -> float:
        """Play the episodes of the tape once more; return the seconds that it took, resets left out."""
        for row, batch in zip(self._rows, self._batches, strict=True):
            batch.reset(self._tasks.rows(row), self._seeds[row])
        started = time.perf_counter()
        self._pool.map(self._replay, range(len(self._rows)))
        return time.perf_counter() - started

    def tape(self) -> Tape:
        """Play the episodes once and record them; before anything is timed."""
        for row, batch in zip(self._rows, self._batches, strict=True):
            batch.reset(self._tasks.rows(row), self._seeds[row])
        model = self._batches[0].physics.model
        models = [model] * len(self._tasks)
        if self._batches[0].physics.expanded("body_mass") is not None:
            models = [b.physics.get_model(env) for b in self._batches for env in range(b.physics.nsim)]
        starts, warmstarts = self._state(), self._field("qacc_warmstart")
        self._pool.map(self._play, range(len(self._rows)))
        low, high = model.actuator_ctrlrange.T
        controls = np.clip(self._actions.astype(np.float64), low, high).transpose(1, 0, 2)
        return Tape(
            models,
            np.concatenate([np.zeros((len(starts), 1)), starts], 1),
            warmstarts,
            np.ascontiguousarray(controls),
            self._frame_skip,
            self._lengths.copy(),
            self._state(),
        )

    def _play(self, group: int) -> None:
        row, batch = self._rows[group], self._batches[group]
        lengths, alive = self._lengths[row], np.ones(row.stop - row.start, dtype=bool)
        lengths[:] = 0
        for action in self._actions[:, row]:
            lengths += alive
            alive &= ~batch.step(action).terminated
            if not alive.any():
                break

    def _replay(self, group: int) -> None:
        row, batch = self._rows[group], self._batches[group]
        for action in self._actions[: self._lengths[row].max(), row]:
            batch.step(action)

    def _state(self) -> np.ndarray:
        return np.concatenate([self._field("qpos"), self._field("qvel")], 1)

    def _field(self, name: str) -> np.ndarray:
        return np.concatenate([batch.physics.bind(name) for batch in self._batches])


class Raw:
    """The same physics steps in C++ threads: one simulation after another to its end in each.

    Args:
        tape: what is repeated.
        threads: threads.
    """

    def __init__(self, tape: Tape, threads: int) -> None:
        self._tape = tape
        # simulations of all lengths for every thread; those of one length are one call
        order = np.argsort(-tape.lengths, kind="stable")
        self._shares = [
            [
                np.array(list(rows))
                for _, rows in itertools.groupby(order[i::threads], key=lambda row: tape.lengths[row])
            ]
            for i in range(min(threads, len(order)))
        ]

    def run(self) -> float:
        """Replay; return the seconds that it took, setting up left out.

        Raises:
            AssertionError: if a simulation ends elsewhere than in ours.
        """
        parts = [[self._part(rows) for rows in share] for share in self._shares]

        def play(share: Sequence[tuple[Callable[[], None], np.ndarray]]) -> Callable[[], None]:
            def run() -> None:
                for step, _ in share:
                    step()

            return run

        seconds = timed([play(share) for share in parts])
        for rows, (_, states) in zip(itertools.chain(*self._shares), itertools.chain(*parts), strict=True):
            if not np.array_equal(states[:, -1, 1:], self._tape.ends[rows]):
                raise AssertionError("raw physics must end in the same bits as ours")
        return seconds

    def _part(self, rows: np.ndarray) -> tuple[Callable[[], None], np.ndarray]:
        """Return what steps simulations of one length, and their states (n, physics steps, 1 + nq + nv)."""
        tape, pool = self._tape, mujoco.rollout.Rollout(nthread=0)
        models, steps = [tape.models[row] for row in rows], int(tape.lengths[rows[0]]) * tape.frame_skip
        controls = np.repeat(tape.controls[rows, : tape.lengths[rows[0]]], tape.frame_skip, axis=1)
        starts, warmstarts, data = tape.starts[rows], tape.warmstarts[rows], [mujoco.MjData(models[0])]
        # written once before, so that the system's handing out of memory is not timed
        states = np.ones((len(rows), steps, starts.shape[1]))
        sensors = np.ones((len(rows), steps, models[0].nsensordata))

        def step() -> None:
            pool.rollout(
                models,
                data,
                starts,
                controls,
                nstep=steps,
                initial_warmstart=warmstarts,
                state=states,
                sensordata=sensors,
                skip_checks=True,
            )

        return step, states


def with_islands(tape: Tape) -> Tape:
    """Return the tape on the models as they were compiled: MuJoCo searches for islands, to the same bits and more slowly."""
    flag = int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    models = {id(model): copy.copy(model) for model in tape.models}
    for model in models.values():
        model.opt.disableflags &= ~flag
    return dataclasses.replace(tape, models=[models[id(model)] for model in tape.models])


def chosen(name: str) -> list[str]:
    """Return the families that ``name`` means: one that steps on the batch engine, or all of them.

    Raises:
        SettingsError: for an unknown name, or a family that steps otherwise.
    """
    if name == ALL:
        return [other for other in families.names() if _on_engine(other)]
    if name not in families.names():
        raise SettingsError(f"family={name}: there is no such task family. {nearest(name, [*families.names(), ALL])}")
    if not _on_engine(name):
        known = ", ".join(other for other in families.names() if _on_engine(other))
        raise SettingsError(f"family={name} does not step on MuJoCo; choose one of {known}, or {ALL}")
    return [name]


def _on_engine(name: str) -> bool:
    """Say whether a family steps on the batch engine; foreign families that cannot even be imported do not."""
    try:
        family = families.make(name)
    except SettingsError:
        return False
    return isinstance(family, RLFamily) and isinstance(family.batch(1, 1), LocomotionBatch)
