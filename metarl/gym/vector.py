"""Tasks of a family as a Gymnasium vector environment over the family's own batch: ``gymnasium.make_vec(...)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from metarl.cohorts import Cohorts
from metarl.families import Tasks
from metarl.gym.environment import SIZE, Opened, Renderable, checked_mode, one_task, prepare_gl, seed_word
from metarl.settings import SettingsError, nearest

_MODES = {mode.value: mode for mode in AutoresetMode}
_Given = Mapping[str, float] | Sequence[Mapping[str, float]] | Tasks  # one task for all simulations, or one each


class FamilyVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Simulations of a family that step together; each is what :class:`~metarl.gym.environment.FamilyEnv` is, to the bit.

    Tasks are set here or by ``reset(options={"task": ...})``, stay for all episodes that follow, automatic ones included,
    and are reported in ``info["task"]``, one array a parameter; ``info["success"]`` says after a step which tasks are solved,
    where the family judges.

    Args:
        family: the family's name.
        num_envs: simulations B.
        task: one task for all, or a list of one for each; None for one of the train split, for all.
        task_seed: which one, then.
        render_mode: ``"rgb_array"`` or None.
        threads: that step the simulations, where the family's simulator has threads.
        autoreset_mode: when a simulation whose episode has ended starts anew: "NextStep", "SameStep" or "Disabled"
            (by ``reset(options={"reset_mask": ...})``), as Gymnasium defines them.
        max_episode_steps: cuts episodes, where the family's horizon does not cut them before.
        **own: the family's settings; ``oracle=True`` appends the task, scaled from its range to [-1, 1], to observations.
    """

    def __init__(
        self,
        family: str,
        num_envs: int = 1,
        task: _Given | None = None,
        task_seed: int = 0,
        render_mode: str | None = None,
        threads: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **own: Any,
    ) -> None:
        if autoreset_mode not in _MODES and not isinstance(autoreset_mode, AutoresetMode):
            raise SettingsError(f"autoreset_mode={autoreset_mode} is none. {nearest(str(autoreset_mode), _MODES)}")
        if render_mode is not None:
            prepare_gl()
        opened = Opened.of(family, own)
        self._opened, self.num_envs = opened, num_envs
        self._task = opened.task(None, task_seed).repeat(num_envs) if task is None else self._tasks(task, num_envs)
        drawn = isinstance(opened.family.batch(1, 1), Renderable) if render_mode else True
        self._mode = AutoresetMode(autoreset_mode)
        self.metadata = {**opened.metadata(drawn), "autoreset_mode": self._mode}
        self.render_mode = checked_mode(render_mode, family, drawn)
        self.single_observation_space, self.single_action_space = opened.observation_space, opened.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._horizon = min(opened.spec.horizon, max_episode_steps or opened.spec.horizon)
        self._simulations = Cohorts(opened.family, threads)
        self._observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.ones(num_envs, dtype=bool)
        self._randoms: list[np.random.Generator | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes: all, or those of ``options["reset_mask"]``; of other tasks where ``options["task"]`` says so.

        Args:
            seed: s for s, s + 1, ..., or one for each simulation.
            options: ``task``, one or a list, for those that start; ``reset_mask``, bool (B,).
        """
        options = options or {}
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be bool, of shape ({self.num_envs},), and not empty")
        whole = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        seeds: Sequence[int | None] = [None] * self.num_envs if whole is None else whole
        if len(seeds) != self.num_envs:
            raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} simulations")
        if options.get("task") is not None:
            new = self._tasks(options["task"], self.num_envs)
            self._task = self._task.replaced(mask, new.rows(mask))
        self._start(np.flatnonzero(mask), seeds)
        return self._observations.copy(), self._info(mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Apply one action in every simulation, but start those anew whose episode has ended (NextStep)."""
        again = np.flatnonzero(self._ended)
        if self._mode is AutoresetMode.DISABLED and len(again):
            raise gymnasium.error.ResetNeeded(f"{len(again)} episodes have ended: reset them by reset_mask")
        fresh, solved = self._ended.copy(), None
        legal = self._opened.actions(actions, self.num_envs)
        if not fresh.all():
            step, solved = self._simulations.step(legal), self._simulations.success(self.num_envs)
            rewards = np.where(fresh, 0.0, step.rewards).astype(np.float64)
            terminated = step.terminated & ~fresh
            self._elapsed += 1
            truncated = (step.truncated | (self._elapsed >= self._horizon)) & ~terminated & ~fresh
            self._observations = self._opened.observe(step.observations, self._task)
        else:
            rewards, terminated, truncated = np.zeros(self.num_envs), np.zeros_like(fresh), np.zeros_like(fresh)
        self._start(again, [None] * self.num_envs)
        self._ended = terminated | truncated
        same = self._mode is AutoresetMode.SAME_STEP  # then a new episode has begun, of which nothing is known yet
        info = self._info(np.ones(self.num_envs, dtype=bool)) | _judged(solved, ~fresh & ~(self._ended & same))
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            ended = np.flatnonzero(self._ended)
            final = np.full(self.num_envs, None, dtype=object)
            for row in ended:
                final[row] = self._observations[row].copy()
            info |= {"final_obs": final, "_final_obs": self._ended.copy()}
            info |= {
                "final_info": self._info(self._ended) | _judged(solved, self._ended),
                "_final_info": self._ended.copy(),
            }
            self._start(ended, [None] * self.num_envs)
        return self._observations.copy(), rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Draw every simulation, uint8 (320, 480, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        frames = []
        for row in range(self.num_envs):
            batch, index = self._simulations.where(row)
            assert isinstance(batch, Renderable)
            frames.append(batch.render(index, *SIZE))
        return tuple(frames)

    def _tasks(self, given: _Given, count: int) -> Tasks:
        opened = self._opened
        if isinstance(given, Mapping):
            return one_task(given, opened.spec, opened.name).repeat(count)
        rows = given.to_json() if isinstance(given, Tasks) else given
        if len(rows) != count:
            raise SettingsError(f"got {len(rows)} tasks for {count} simulations")
        each = [one_task(row, opened.spec, opened.name) for row in rows]
        return Tasks(each[0].names, np.concatenate([one.values for one in each]))

    def _start(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Start an episode in some simulations, each at its seed or at the next number of its own generator."""
        if not len(rows):
            return
        words = [self._seed(row, seeds[row]) for row in rows]
        tasks = self._task.rows(rows)
        first = self._simulations.reset(rows, tasks, np.array(words, dtype=np.uint32))
        self._observations[rows] = self._opened.observe(first, tasks)
        self._elapsed[rows] = 0
        self._ended[rows] = False

    def _seed(self, row: int, seed: int | None) -> int:
        if seed is not None:
            self._randoms[row] = seeding.np_random(int(seed))[0]
            return seed_word(int(seed))
        random = self._randoms[row]
        if random is None:
            random = self._randoms[row] = seeding.np_random()[0]
        return int(random.integers(2**32))

    def _info(self, rows: np.ndarray) -> dict[str, Any]:
        """Report tasks as Gymnasium reports dictionaries: arrays with masks of who has a value."""
        task: dict[str, np.ndarray] = {}
        for name in self._task.names:
            task |= {name: np.where(rows, self._task[name], 0.0), f"_{name}": rows.copy()}
        return {"task": task, "_task": rows.copy()}


def _judged(solved: np.ndarray | None, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Report who of these has solved the task, as Gymnasium reports what some simulations know; nothing if none does."""
    return {} if solved is None or not rows.any() else {"success": solved & rows, "_success": rows.copy()}
