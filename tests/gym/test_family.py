"""Gymnasium environments as families: the environment's own episodes under the task's change or reward."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import metarl
from metarl import families
from metarl.families import TaskParameter, Tasks, split_of
from metarl.gym.environment import Renderable
from metarl.settings import SettingsError
from metarl.testing import check_family

SEEDS = np.array([0, 3, 2**32 - 1], dtype=np.uint32)
LENGTH = TaskParameter("length", 0.25, 2.0, "m")


class Blank(gymnasium.Env):
    """An environment that draws nothing, or says that it cannot."""

    observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, modes=()):
        self.metadata = {"render_modes": list(modes)}

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, dtype=np.float32), {}

    def render(self):
        return None


def test_an_environment_that_cannot_be_drawn(monkeypatch):
    """``render_mode="rgb_array"`` accepted, and None for a picture."""
    monkeypatch.setitem(gymnasium.registry, "Blank-v0", gymnasium.envs.registration.EnvSpec("Blank-v0", Blank))
    for modes in ([], ["rgb_array"]):
        blank = metarl.gym_family("Blank-v0", [LENGTH], lambda env, task: None, horizon=3, options={"modes": modes})
        batch = blank().batch(1, 1)
        batch.reset(blank().sample_tasks(1, "train", 0), SEEDS[:1])
        assert isinstance(batch, Renderable) == bool(modes)
    with pytest.raises(
        SettingsError, match="'Blank-v0' drew nothing in render_mode=rgb_array; give gym_family options"
    ):
        batch.render(0, 48, 32)


def test_pendulum_keeps_the_contract():
    """Tasks that leak from one episode into the next, splits that meet, actions that are not clipped."""
    check_family("pendulum-dynamics")


def test_cartpole_keeps_the_contract():
    """The same with discrete actions and poles that fall."""
    check_family("cartpole-length")


def _reference(name, change, tasks, actions):
    """Gymnasium's own environments, one after another, changed by hand: observations, rewards and ends."""
    seen, rewards, ends = [], [], []
    for b, (task, seed) in enumerate(zip(tasks, SEEDS, strict=True)):
        env = gymnasium.make(name).unwrapped
        change(env, *map(float, task))  # a NumPy number would make Pendulum compute in float64 and not in float32
        rows, gains, stops = [env.reset(seed=int(seed))[0]], [], []
        for action in actions[:, b]:
            observation, reward, terminated, _, _ = env.step(action)
            rows.append(observation)
            gains.append(reward)
            stops.append(terminated)
            if terminated:
                break
        seen.append(np.array(rows, dtype=np.float32))
        rewards.append(np.array(gains, dtype=np.float32))
        ends.append(stops)
    return seen, rewards, ends


def _compared(family, tasks, actions, reference):
    """The family's batch against the reference, as far as each episode goes; twice, since a task must not stay behind."""
    batch = family.batch(len(SEEDS), 2)
    batch.reset(tasks.rows([2, 0, 1]), SEEDS[::-1].copy())
    batch.step(actions[0])
    observations = [batch.reset(tasks, SEEDS)]
    steps = [batch.step(action) for action in actions]
    observations += [step.observations for step in steps]
    for b, (seen, rewards, ends) in enumerate(zip(*reference, strict=True)):
        count = len(rewards)
        assert np.array_equal([o[b] for o in observations[: count + 1]], seen)
        assert np.array_equal([s.rewards[b] for s in steps[:count]], rewards)
        assert [s.terminated[b] for s in steps[:count]] == ends
        assert not any(s.truncated[b] for s in steps[: count - 1])
    return steps


def test_pendulum_with_gravity_and_mass_is_gymnasiums():
    """A change that reaches the wrapper and not the pendulum; actions in the wrong form or not clipped."""
    values = np.array([[10.0, 1.0], [5.5, 0.6], [14.0, 1.9]])
    actions = np.random.default_rng(0).uniform(-3, 3, (200, 3, 1)).astype(np.float32)

    def change(env, gravity, mass):
        env.g, env.m = gravity, mass

    family = metarl.make("pendulum-dynamics")
    clipped = np.clip(actions, -2, 2)
    reference = _reference("Pendulum-v1", change, values, clipped)
    steps = _compared(family, Tasks(("gravity", "mass"), values), actions, reference)
    assert steps[-1].truncated.all()
    assert len(steps) == family.spec.horizon
    assert not np.array_equal(*(reference[0][b][1:3] for b in (0, 1)))


def test_cartpole_with_pole_length_is_gymnasiums():
    """Discrete actions, poles that fall at different times, and termination that is not the time limit."""
    values = np.array([[0.25], [0.5], [2.0]])
    actions = np.random.default_rng(1).integers(0, 2, (100, 3, 1))

    def change(env, length):
        env.length, env.polemass_length = length, env.masspole * length

    family = metarl.make("cartpole-length")
    assert (family.spec.choices.counts, family.spec.horizon) == ((2,), 100)
    reference = _reference("CartPole-v1", change, values, actions[:, :, 0])
    _compared(family, Tasks(("length",), values), actions, reference)
    lengths = [len(rewards) for rewards in reference[1]]
    assert len(set(lengths)) == 3
    assert max(lengths) < 100


def test_truncation_is_the_horizon_and_nothing_that_ended_before():
    """Both flags at once, or a horizon of Gymnasium's own inside a longer one."""
    family = metarl.make("pendulum-dynamics", horizon=230)
    batch = family.batch(1, 1)
    batch.reset(family.sample_tasks(1, "train", 0), SEEDS[:1])
    flags = [batch.step(np.zeros((1, 1), np.float32)).truncated[0] for _ in range(230)]
    assert flags == [False] * 229 + [True]
    family = metarl.make("cartpole-length", horizon=8)
    batch = family.batch(1, 1)
    batch.reset(Tasks.from_json([{"length": 0.25}]), SEEDS[:1])
    steps = [batch.step(np.ones((1, 1), np.int64)) for _ in range(8)]
    ended = [bool(step.terminated[0]) for step in steps].index(True)
    assert not steps[ended].truncated[0]


def test_a_reward_of_ones_own_sees_the_whole_step():
    """Rewards of tasks in other rows, of the state before, or of actions that were clipped afterwards."""
    seen = []

    def reward(step):
        seen.append(step)
        return step.tasks["angle"] * step.after[:, 2] - step.actions[:, 0]

    family = metarl.gym_family("Pendulum-v1", [TaskParameter("angle", 0.0, 1.0, "rad")], reward=reward)()
    tasks = Tasks(("angle",), np.array([[0.1], [0.5], [0.9]]))
    batch = family.batch(3, 1)
    first = batch.reset(tasks, SEEDS)
    actions = np.array([[9.0], [0.5], [-1.0]], dtype=np.float32)
    step = batch.step(actions)
    np.testing.assert_allclose(step.rewards, [0.1, 0.5, 0.9] * step.observations[:, 2] - [2.0, 0.5, -1.0], rtol=1e-6)
    assert np.array_equal(seen[0].before, first)
    angle = np.arctan2(first[:, 1], first[:, 0])
    own = -(angle**2 + 0.1 * first[:, 2] ** 2 + 0.001 * np.array([2.0, 0.5, -1.0]) ** 2)
    np.testing.assert_allclose(seen[0].rewards, own, rtol=1e-4)
    assert len(seen[0].infos) == 3


class Reporting(gymnasium.Env):
    """Counts its steps, reports them, and ends where it is told to."""

    observation_space, action_space = gymnasium.spaces.Box(0, 99, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.place += 1
        return np.full(1, self.place, np.float32), 0.0, self.place >= self.end, False, {"place": self.place}


def _end(env, task):
    env.end = task["end"]


def test_a_reward_may_read_what_an_ended_episode_reported():
    """Reports that are empty once a simulation has ended: a KeyError in the middle of a run, at a step that counts for nothing."""
    gymnasium.register("Reporting-v0", entry_point=Reporting, max_episode_steps=9)
    reward = lambda step: np.array([info["place"] for info in step.infos])  # noqa: E731
    family = metarl.gym_family("Reporting-v0", [TaskParameter("end", 0.0, 3.0, "")], _end, reward=reward)()
    batch = family.batch(2, 1)
    for _ in range(2):
        batch.reset(Tasks(("end",), np.array([[1.0], [3.0]])), SEEDS[:2])
        steps = [batch.step(np.zeros((2, 1), dtype=np.int64)) for _ in range(3)]
        assert [step.rewards.tolist() for step in steps] == [[1, 1], [1, 2], [1, 3]]
        assert [step.terminated.tolist() for step in steps] == [[True, False], [False, False], [False, True]]


def test_ranges_horizon_and_oracle_are_settings():
    """Ranges that only the author can change."""
    family = metarl.make("pendulum-dynamics", gravity_low=9.0, gravity_high=11.0, horizon=7, oracle=True)
    spec = family.spec
    assert [(p.name, p.low, p.high, p.unit) for p in spec.parameters] == [
        ("gravity", 9.0, 11.0, "m/s^2"),
        ("mass", 0.5, 2.0, "kg"),
    ]
    assert (spec.horizon, spec.oracle, spec.observation_size, spec.action_size) == (7, True, 3, 1)
    assert (spec.action_low, spec.action_high, spec.control_step) == (-2.0, 2.0, 0.05)
    for split in families.SPLITS:
        tasks = family.sample_tasks(300, split, 1)
        assert {split_of((value - 9.0) / 2.0) for value in tasks["gravity"]} == {split}
        assert tasks["mass"].min() < 0.6
        assert tasks["mass"].max() > 1.9
    with pytest.raises(SettingsError, match=r"env\.mass_low=3.0 must be smaller than env\.mass_high=2.0"):
        metarl.make("pendulum-dynamics", mass_low=3.0)
    with pytest.raises(SettingsError, match=r"Did you mean 'env\.gravity_low'"):
        metarl.make("pendulum-dynamics", gravity_lo=3.0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: metarl.gym_family("CartPole-v1", [LENGTH]), "tasks of 'CartPole-v1' change nothing"),
        (lambda: metarl.gym_family("CartPole-v9", [LENGTH], print), "CartPole"),
        (lambda: metarl.gym_family("CartPole-v1", [], print), "at least one task parameter"),
        (lambda: metarl.gym_family("CartPole-v1", [TaskParameter("pole length", 0, 1, "m")], print), "'pole length'"),
        (lambda: metarl.gym_family("CartPole-v1", [LENGTH, LENGTH], print), "two task parameters called 'length'"),
        (lambda: metarl.gym_family("CartPole-v1", [TaskParameter("length", 0, np.inf, "m")], print), "finite"),
        (lambda: metarl.gym_family("CartPole-v1", [LENGTH], print, horizon=0), "horizon=0 .* at least 1"),
    ],
)
def test_what_cannot_be_a_family_is_refused_where_it_is_written(build, said):
    """A family that fails in the middle of a run, far from its definition."""
    with pytest.raises(SettingsError, match=said):
        build()


def test_actions_without_bounds_are_refused():
    """A policy whose actions are clipped to infinity."""
    gymnasium.register("Unbounded-v0", entry_point=Unbounded, max_episode_steps=5)
    family = metarl.gym_family("Unbounded-v0", [LENGTH], print)()
    with pytest.raises(SettingsError, match=r"finite bounds for every component \(gymnasium.wrappers.RescaleAction"):
        _ = family.spec


class Unbounded(gymnasium.Env):
    """As far as it gets."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
