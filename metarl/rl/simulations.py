"""A family's simulations, watched: what they return is checked and kept, what they raise is named."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from metarl.families import Crediting, EnvBatch, EnvFault, FamilyError, Judging, RLFamily, Tasks
from metarl.rl.trials import bare
from metarl.settings import SettingsError


class Simulations:
    """One episode in each of B = M*E simulations, task-major.

    Args:
        family: whose simulations they are.
        tasks: M rows.
        episodes: E.
        agents: R, whose own rewards are kept; 0 keeps none.

    Attributes:
        alive: bool (B,), whose episode has not ended.
        final: float32 (B, O), the state after each episode's last step.
        seconds: spent in the family so far.
        solved: bool (B,), whose episode has been a success; None where the simulations do not judge.
        agent_rewards: float32 (T, B, R), the agents' own rewards; None where none are kept.
    """

    def __init__(self, family: RLFamily, tasks: Tasks, episodes: int, agents: int = 0) -> None:
        spec, count = family.spec, len(tasks) * episodes
        self._family, self._tasks, self._episodes = family, tasks, episodes
        self._env: EnvBatch | None = None
        self._time = -1
        self.alive = np.ones(count, dtype=bool)
        self.final = np.zeros((count, spec.observation_size), dtype=np.float32)
        self.seconds = 0.0
        self.solved: np.ndarray | None = None
        self._judge: Judging | None = None
        self._rewards = np.zeros((spec.horizon, count), dtype=np.float32)
        self._terminated = np.zeros((spec.horizon, count), dtype=bool)
        self._truncated = np.zeros((spec.horizon, count), dtype=bool)
        self._mask = np.zeros((spec.horizon, count), dtype=np.float32)
        self.agent_rewards = np.zeros((spec.horizon, count, agents), dtype=np.float32) if agents else None

    def make(self, threads: int) -> EnvBatch:
        """Make the simulations."""
        with self._blamed("making the simulations"):
            return self._family.batch(len(self.alive), threads)

    def start(self, env: EnvBatch, seeds: np.ndarray) -> np.ndarray:
        """Reset every simulation; return observations float32 (B, O)."""
        self._env, self._judge = env, env if isinstance(env, Judging) else None
        self.solved = None if self._judge is None else np.zeros_like(self.alive)
        with self._blamed("at step 0"):
            observations = env.reset(self._tasks.repeat(self._episodes), seeds)
            self._time = 0
            return self._observed(observations)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Apply actions float32 (B, A), or int64 choices, and keep what comes of it; return observations float32 (B, O)."""
        if not np.isfinite(actions).all() or (actions.dtype == np.int64 and (actions < 0).any()):
            raise SettingsError(
                f"the policy's actions are not finite at step {self._time}: adaptation diverged; lower inner_lr (a run"
                " goes on with another one from its last checkpoint: init_from=RUN and a new run_dir)"
            )
        assert self._env is not None
        with self._blamed(f"at step {self._time}"):
            observations, rewards, terminated, truncated = self._env.step(actions)
            shape = self.alive.shape
            observations = self._observed(observations)
            rewards = self._checked("rewards", rewards, shape)
            terminated = _shaped("terminated", terminated, shape).astype(bool)
            truncated = _shaped("truncated", truncated, shape).astype(bool)
            if self._judge is not None and self.solved is not None:
                self.solved |= self.alive & _shaped("success", self._judge.success(), shape).astype(bool)
            if self.agent_rewards is not None:
                if not isinstance(self._env, Crediting):
                    raise FamilyError("its spec has agents.credited=True, and its simulations have no agent_rewards()")
                own = self._checked("rewards of agents", self._env.agent_rewards(), self.agent_rewards.shape[1:])
                self.agent_rewards[self._time] = np.where(self.alive[:, None], own, 0.0)
        t, alive = self._time, self.alive
        self._mask[t] = alive
        self._rewards[t] = np.where(alive, rewards, 0.0)
        self._terminated[t] = alive & terminated
        # the last step of the horizon cuts off whatever is still running
        self._truncated[t] = alive & ~self._terminated[t] & (truncated | (t + 1 == len(self._mask)))
        ended = self._terminated[t] | self._truncated[t]
        self.final[ended] = observations[ended]
        self.alive = alive & ~ended
        self._time += 1
        return observations

    def record(self) -> dict[str, np.ndarray]:
        """Return rewards, terminated, truncated and mask, each (T, B)."""
        return {
            "rewards": self._rewards,
            "terminated": self._terminated,
            "truncated": self._truncated,
            "mask": self._mask,
        }

    def _observed(self, observations: np.ndarray) -> np.ndarray:
        observations = self._checked("observations", observations, self.final.shape)
        choices = self._family.spec.choices
        if choices is None or not choices.masked:
            return observations
        first = observations.shape[1] - sum(choices.counts)
        for component, count in enumerate(choices.counts):
            stuck = ~(observations[:, first : first + count] > 0.5).any(axis=1) & self.alive
            if stuck.any():
                raise EnvFault(f"no choice of action component {component} is legal", np.flatnonzero(stuck))
            first += count
        return observations

    def _checked(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        values = _shaped(name, values, shape).astype(np.float32, copy=False)
        finite = np.isfinite(values)
        if finite.all():
            return values
        broken = ~finite.reshape(shape[0], -1).all(axis=1) & self.alive
        if broken.any():
            raise EnvFault(f"{name} are not finite", np.flatnonzero(broken))
        return np.where(finite, values, np.float32(0.0))  # of simulations that ended before

    @contextlib.contextmanager
    def _blamed(self, where: str) -> Iterator[None]:
        """Time the family, and turn whatever it raises into one line that names family, step and task."""
        started = time.perf_counter()
        try:
            yield
        except SettingsError:  # says its remedy itself
            raise
        except Exception as error:  # a family is foreign code and may raise anything
            if isinstance(error, EnvFault) and len(error.envs):
                task = self._tasks.rows([int(error.envs[0]) // self._episodes]).to_json()[0]
                where = f"{where}, task {task} ({len(error.envs)} simulations)"
            own = isinstance(error, FamilyError | EnvFault)
            reason = str(error) if own else f"{type(error).__name__}: {error}"
            raise FamilyError(f"Family {type(bare(self._family)).__name__} failed {where}: {reason}") from error
        finally:
            self.seconds += time.perf_counter() - started


def _shaped(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(values) != shape:
        raise FamilyError(f"{name} have shape {np.shape(values)} instead of {shape}")
    return np.asarray(values)
