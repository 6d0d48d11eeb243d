"""Ways to step half-cheetahs, for comparison: ours, raw physics, Gymnasium's vector environments, EnvPool."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np

from experiments.physics import PLAYERS, Episodes
from metarl import families
from metarl.core.parallel import Workers
from metarl.rl.groups import groups

GYMNASIUM_ID = "HalfCheetah-v5"
ACTIONS = 6


@dataclass(frozen=True)
class Workload:
    """What every simulator is given: actions drawn once, as an untrained policy draws them, and clipped.

    Attributes:
        tasks: tasks M.
        episodes: simulations a task E.
        horizon: control steps T.
        threads: threads.
    """

    tasks: int
    episodes: int
    horizon: int
    threads: int

    @property
    def simulations(self) -> int:
        """B = M*E."""
        return self.tasks * self.episodes

    @property
    def control_steps(self) -> int:
        """B*T."""
        return self.simulations * self.horizon

    def actions(self) -> np.ndarray:
        """Return float32 (T, B, A)."""
        noise = np.random.default_rng(0).standard_normal((self.horizon, self.simulations, ACTIONS), dtype=np.float32)
        return np.clip(noise, -1, 1)

    def seeds(self) -> np.ndarray:
        """Return reset seeds, (B,)."""
        return np.arange(self.simulations, dtype=np.uint32)


@dataclass(frozen=True)
class Simulator:
    """One way to step.

    Attributes:
        name: what it is.
        detail: its sizes.
        control_steps: control steps of one run.
        run: step so often; returns the seconds, resets left out.
        close: free what it holds.
    """

    name: str
    detail: str
    control_steps: int
    run: Callable[[], float]
    close: Callable[[], None]


def ours(work: Workload) -> Simulator:
    """Build the family's batches, grouped and driven as the learner does, with observations and rewards."""
    family = families.make("halfcheetah-vel", horizon=work.horizon)
    cuts, threads = groups(work.tasks, Workers(work.threads))
    pool = Workers(len(cuts))
    tasks = family.sample_tasks(work.tasks, "train", 0).repeat(work.episodes)
    rows = [slice(cut.start * work.episodes, cut.stop * work.episodes) for cut in cuts]
    batches = [family.batch(row.stop - row.start, threads) for row in rows]
    actions, seeds = work.actions(), work.seeds()

    def step(group: int) -> None:
        for action in actions[:, rows[group]]:
            batches[group].step(action)

    def run() -> float:
        for row, batch in zip(rows, batches, strict=True):
            batch.reset(tasks.rows(row), seeds[row])
        started = time.perf_counter()
        pool.map(step, range(len(cuts)))
        return time.perf_counter() - started

    detail = f"{work.simulations} simulations, {len(cuts)} groups x {threads} threads, observation and reward"
    return Simulator("metarl", detail, work.control_steps, run, _nothing)


def raw(work: Workload) -> list[Simulator]:
    """Return physics without observations and rewards, in each of the ways that may be fastest."""
    episodes = Episodes.of(work.seeds(), work.actions())
    detail = f"{work.simulations} simulations, {work.threads} threads, physics alone"

    def simulator(name: str) -> Simulator:
        player = PLAYERS[name]
        return Simulator(
            f"raw: {name}", detail, work.control_steps, lambda: player(episodes, work.threads)[0], _nothing
        )

    return [simulator(name) for name in PLAYERS]


def gymnasium_vector(work: Workload, mode: str) -> Simulator:
    """Return Gymnasium's vector environment at the best of a few sizes.

    It is some ten times slower and takes a process or a model for every simulation, so it gets fewer simulations and a
    tenth of the control steps.
    """

    def make(num_envs: int) -> Simulator:
        env = gymnasium.make_vec(GYMNASIUM_ID, num_envs=num_envs, vectorization_mode=mode)
        detail = f"{num_envs} simulations, the best of {sizes}"
        run, steps = _loop(env, work, num_envs, 0.1)
        return Simulator(f"gymnasium {mode}", detail, steps, run, lambda: env.close())

    sizes = sorted({min(work.simulations, work.threads * times) for times in (1, 4, 16)})
    return _best([lambda n=n: make(n) for n in sizes])  # type: ignore[misc]


def envpool(work: Workload) -> Simulator | None:
    """Return EnvPool in synchronous mode at the best of a few sizes and thread counts; None if not installed."""
    if importlib.util.find_spec("envpool") is None:
        return None
    module: Any = importlib.import_module("envpool")
    counts = sorted({min(work.simulations, n) for n in (8 * work.threads, 64 * work.threads, work.simulations)})
    options = [(count, threads) for count in counts for threads in (work.threads, 2 * work.threads) if threads <= count]

    def make(num_envs: int, threads: int) -> Simulator:
        env = module.make_gymnasium(GYMNASIUM_ID, num_envs=num_envs, num_threads=threads, seed=0)
        detail = f"{num_envs} simulations, {threads} threads, the best of {len(options)} settings"
        run, steps = _loop(env, work, num_envs, 1.0)
        return Simulator("EnvPool", detail, steps, run, lambda: env.close())

    return _best([lambda o=o: make(*o) for o in options])  # type: ignore[misc]


def quiet() -> None:
    """Keep MuJoCo from writing MUJOCO_LOG.TXT: Gymnasium's body makes it warn at every load, in child processes too."""
    config = mujoco.MjLogConfig.get()
    config.logto_file = False
    config.logto_console = False
    mujoco.MjLogConfig.set(config)


def _loop(env: Any, work: Workload, num_envs: int, share: float) -> tuple[Callable[[], float], int]:
    """Return a run of ``share`` of the workload's control steps on a vector environment, and how many they are."""
    actions = work.actions()[:, :num_envs].astype(env.single_action_space.dtype)
    steps = max(1, round(work.control_steps * share / num_envs))

    def run() -> float:
        env.reset()
        started = time.perf_counter()
        for step in range(steps):
            env.step(actions[step % work.horizon])
        return time.perf_counter() - started

    return run, steps * num_envs


def _best(makers: list[Callable[[], Simulator]]) -> Simulator:
    """Try every size once after a run to warm up, and open the fastest again."""
    rates = []
    for maker in makers:
        simulator = maker()
        try:
            simulator.run()
            rates.append(simulator.control_steps / simulator.run())
        finally:
            simulator.close()
    return makers[int(np.argmax(rates))]()


def _nothing() -> None:
    """Close what holds nothing."""
