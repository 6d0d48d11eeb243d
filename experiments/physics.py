"""The floor: the physics of recorded episodes and nothing else, replayed by whatever replays it fastest.

Shapes: B simulations, T control steps, A action.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import mujoco.rollout
import numpy as np
from mujoco.batch import Batch

from metarl.envs.locomotion.engine import load_model, without_islands
from metarl.families import EnvBatch, RLFamily, RLSpec, Split, Step, Tasks

FRAME_SKIP = 5
RESET_NOISE = 0.1


@dataclass(frozen=True)
class Episodes:
    """Where B simulations start and what is done to them.

    Attributes:
        positions: float64 (B, nq).
        velocities: float64 (B, nv).
        warmstarts: float64 (B, nv), the solver's first guess, which is part of MuJoCo's state.
        controls: float64 (B, T, A), within the actuators' range.
    """

    positions: np.ndarray
    velocities: np.ndarray
    warmstarts: np.ndarray
    controls: np.ndarray

    @staticmethod
    def of(seeds: np.ndarray, actions: np.ndarray) -> Episodes:
        """Rebuild what a half-cheetah family does with reset seeds (B,) and actions (T, B, A)."""
        model = load_model("half_cheetah.xml")
        data = mujoco.MjData(model)
        rows = []
        for seed in seeds:
            rng = np.random.default_rng(int(seed))
            mujoco.mj_resetData(model, data)
            data.qpos[:] = model.qpos0 + rng.uniform(-RESET_NOISE, RESET_NOISE, model.nq)
            data.qvel[:] = RESET_NOISE * rng.standard_normal(model.nv)
            mujoco.mj_forward(model, data)
            rows.append((data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()))
        low, high = model.actuator_ctrlrange.T
        controls = np.clip(actions.astype(np.float64), low, high).transpose(1, 0, 2)
        positions, velocities, warmstarts = (np.array(column) for column in zip(*rows, strict=True))
        return Episodes(positions, velocities, warmstarts, np.ascontiguousarray(controls))

    def rows(self, cut: slice) -> Episodes:
        """Return some of the simulations."""
        return Episodes(self.positions[cut], self.velocities[cut], self.warmstarts[cut], self.controls[cut])

    def __len__(self) -> int:
        """Return B."""
        return len(self.positions)


# (episodes, threads) -> (seconds, final positions and velocities (B, nq + nv)); setting up is not timed
Player = Callable[[Episodes, int], tuple[float, np.ndarray]]


def play_rollout(episodes: Episodes, threads: int) -> tuple[float, np.ndarray]:
    """Open loop in C++: ``mujoco.rollout`` runs one simulation after another to its end in every thread."""
    model = load_model("half_cheetah.xml")
    count, steps = episodes.controls.shape[:2]
    time_zero = np.zeros((count, 1))
    starts = np.concatenate([time_zero, episodes.positions, episodes.velocities], 1)
    controls = np.repeat(episodes.controls, FRAME_SKIP, axis=1)
    # written once before, so that the system's handing out of memory is not timed
    states = np.ones((count, steps * FRAME_SKIP, starts.shape[1]))
    with mujoco.rollout.Rollout(nthread=threads) as pool:
        data = [mujoco.MjData(model) for _ in range(threads)]
        started = time.perf_counter()
        pool.rollout(model, data, starts, controls, initial_warmstart=episodes.warmstarts, state=states)
        return time.perf_counter() - started, states[:, -1, 1:].copy()


def play_threads(episodes: Episodes, threads: int) -> tuple[float, np.ndarray]:
    """``mj_step`` from Python threads, one simulation after another to its end in each."""
    model = load_model("half_cheetah.xml")
    ends = np.empty((len(episodes), model.nq + model.nv))

    def play(cut: slice) -> Callable[[], None]:
        data, mine = mujoco.MjData(model), episodes.rows(cut)

        def run() -> None:
            for row in range(len(mine)):
                mujoco.mj_resetData(model, data)
                data.qpos[:], data.qvel[:] = mine.positions[row], mine.velocities[row]
                data.qacc_warmstart[:] = mine.warmstarts[row]
                ctrl = data.ctrl
                for control in mine.controls[row]:
                    ctrl[:] = control
                    mujoco.mj_step(model, data, FRAME_SKIP)
                ends[cut.start + row] = np.concatenate([data.qpos, data.qvel])

        return run

    return timed([play(cut) for cut in _shares(len(episodes), threads)]), ends


def play_batch(episodes: Episodes, threads: int) -> tuple[float, np.ndarray]:
    """Open loop on ``mujoco.batch``, the product's own engine: a batch a thread, all simulations a step at a time."""
    return _play_batch(load_model("half_cheetah.xml"), episodes, threads)


def play_engine(episodes: Episodes, threads: int) -> tuple[float, np.ndarray]:
    """The same on the model as the product steps it, without the search for islands: bit-equal, and faster."""
    return _play_batch(without_islands(load_model("half_cheetah.xml")), episodes, threads)


def _play_batch(model: mujoco.MjModel, episodes: Episodes, threads: int) -> tuple[float, np.ndarray]:
    cuts = _shares(len(episodes), threads)
    batches = [Batch(model, nsim=cut.stop - cut.start, nthread=1) for cut in cuts]
    fields = [[batch.bind(name) for name in ("qpos", "qvel", "qacc_warmstart", "ctrl")] for batch in batches]
    for cut, (qpos, qvel, warmstart, _) in zip(cuts, fields, strict=True):
        mine = episodes.rows(cut)
        qpos[:], qvel[:], warmstart[:] = mine.positions, mine.velocities, mine.warmstarts

    def play(group: int) -> Callable[[], None]:
        batch, ctrl, controls = batches[group], fields[group][3], episodes.controls[cuts[group]]

        def run() -> None:
            for step in range(controls.shape[1]):
                ctrl[:] = controls[:, step]
                batch.step(nstep=FRAME_SKIP)

        return run

    seconds = timed([play(group) for group in range(len(cuts))])
    return seconds, np.concatenate([np.concatenate([qpos, qvel], 1) for qpos, qvel, _, _ in fields])


PLAYERS: Mapping[str, Player] = {
    "mujoco.rollout": play_rollout,
    "mj_step in Python threads": play_threads,
    "mujoco.batch": play_batch,
}


def _shares(count: int, threads: int) -> list[slice]:
    threads = min(threads, count)
    edges = [round(i * count / threads) for i in range(threads + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def timed(jobs: Sequence[Callable[[], None]]) -> float:
    """Run every job in a thread of its own and return the seconds until the last has ended."""
    workers = [threading.Thread(target=job) for job in jobs]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


@dataclass(frozen=True)
class RecordedFamily:
    """A family that keeps what the learner did to its simulations: reset seeds, and copies of the actions.

    A copy takes about a millionth of a second a step, and counts against the learner.

    Attributes:
        family: what is recorded.
        tapes: one a batch of simulations, in the order of their making.
    """

    family: RLFamily
    tapes: list[RecordedBatch] = dataclasses.field(default_factory=list)
    recommended: ClassVar[Mapping[str, object]] = {}

    @property
    def spec(self) -> RLSpec:
        """The family's."""
        return self.family.spec

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the family's tasks."""
        return self.family.sample_tasks(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations that are recorded."""
        tape = RecordedBatch(self.family.batch(num_envs, threads))
        self.tapes.append(tape)
        return tape

    def rewind(self) -> list[Episodes]:
        """Return what was recorded, one a rollout of all simulations, and forget it."""
        recordings = [tape.recorded for tape in self.tapes]
        for tape in self.tapes:
            tape.recorded = []
        return [
            Episodes.of(np.concatenate([s for s, _ in parts]), np.concatenate([np.stack(a) for _, a in parts], 1))
            for parts in zip(*recordings, strict=True)
        ]


class RecordedBatch:
    """One batch of simulations and its recording: (seeds, actions of every step) of each reset."""

    def __init__(self, env: EnvBatch) -> None:
        self._env = env
        self.recorded: list[tuple[np.ndarray, list[np.ndarray]]] = []

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start episodes."""
        self.recorded.append((seeds.copy(), []))
        return self._env.reset(tasks, seeds)

    def step(self, actions: np.ndarray) -> Step:
        """Step."""
        self.recorded[-1][1].append(actions.copy())
        return self._env.step(actions)
