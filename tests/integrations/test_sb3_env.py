"""Families as Stable-Baselines3 sees them: its own checks, its own vector of single environments, and our sampler's returns."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import metarl
from metarl import families
from metarl.families import RLSpec
from metarl.gym.environment import FamilyEnv
from metarl.integrations.sb3 import FamilyVecEnv
from metarl.rl.simulations import Simulations
from metarl.settings import SettingsError, fields

HORIZON = 6
QUICK = {"halfcheetah-vel", "hopper-params", "navigation-2d"}


def _continuous():
    for name in metarl.names():
        spec = _spec(name)
        if isinstance(spec, RLSpec) and spec.choices is None:
            yield name


def _spec(name):
    try:
        return metarl.make(name).spec
    except SettingsError:  # data that are not there
        return None


def _short(name, horizon=HORIZON):
    return {"horizon": horizon} if "horizon" in fields(families.lookup(name)) else {}


NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in _continuous()]


@pytest.fixture(autouse=True)
def _installed(request):
    if "metaworld" in request.node.name:
        pytest.importorskip("metaworld", reason="the extra metaworld is not installed")


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized Box:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_sb3_runs_on_every_continuous_family(name):
    """A space, dtype or info that SB3 does not take; a task limit or a reset that its algorithms trip over."""
    settings = _short(name)
    check_env(FamilyEnv(name, **settings), skip_render_check=True)
    env = FamilyVecEnv(name, 2, split="train", settings=settings)
    small = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
    ppo = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, **small).learn(32)
    sac = SAC("MlpPolicy", env, learning_starts=4, batch_size=4, buffer_size=100, **small).learn(16)
    for model in (ppo, sac):
        assert model.num_timesteps >= 16
        if not settings:  # hundreds of steps
            continue
        returns, lengths = evaluate_policy(model, VecMonitor(env), 4, return_episode_rewards=True)
        assert np.isfinite(returns).all()
        assert max(lengths) <= HORIZON


@pytest.mark.parametrize("name", ["hopper-vel", "halfcheetah-vel", "navigation-2d"])
def test_returns_are_our_samplers(name):
    """Rewards lost or counted twice at the end of an episode, a task in the wrong row, another episode at the same seed."""
    family, count, horizon = metarl.make(name, horizon=40), 5, 40
    tasks, spec = family.sample_tasks(count, "test", 3), family.spec
    draws = np.random.default_rng(0).uniform(spec.action_low, spec.action_high, (horizon, count, spec.action_size))
    actions = draws.astype(np.float32)
    sampler = Simulations(family, tasks, 1)
    sampler.start(sampler.make(1), np.arange(7, 7 + count, dtype=np.uint32))
    env = FamilyVecEnv(name, count, task=tasks, seed=7, settings={"horizon": horizon})
    env.reset()
    returns, alive = np.zeros(count, dtype=np.float32), np.ones(count, dtype=bool)
    for t in range(horizon):
        if sampler.alive.any():
            sampler.step(actions[t])
        _, rewards, dones, _ = env.step(actions[t])
        returns += np.where(alive, rewards, np.float32(0))
        alive &= ~dones
    assert not alive.any()
    wanted = np.zeros(count, dtype=np.float32)
    for row in sampler.record()["rewards"]:
        wanted += row
    np.testing.assert_array_equal(returns, wanted)
    assert np.ptp(returns) > 0


@pytest.mark.parametrize(("name", "horizon", "steps"), [("hopper-vel", 15, 30), ("tabular-mdp", 3, 10)])
def test_it_is_sb3s_vector_of_single_environments(name, horizon, steps):
    """Every result of SB3's own vector of single environments, through many ends of episodes, at seeds and after them."""
    settings = _short(name, horizon)
    rows = metarl.make(name, **settings).sample_tasks(3, "test", 0).to_json()
    ours = FamilyVecEnv(name, 3, task=rows, settings=settings)
    theirs = DummyVecEnv([lambda row=row: FamilyEnv(name, task=row, **settings) for row in rows])
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    random, ends = np.random.default_rng(0), 0
    for seed in (5, None):
        if seed is not None:
            assert ours.seed(seed) == theirs.seed(seed)
        np.testing.assert_array_equal(ours.reset(), theirs.reset())
        assert ours.reset_infos == theirs.reset_infos
        for _ in range(steps):
            if ours.action_space.shape and ours.action_space.dtype == np.float32:
                actions = random.uniform(-1, 1, (3, *ours.action_space.shape)).astype(np.float32)
            else:
                actions = np.zeros((3, *ours.action_space.shape), dtype=np.int64)
            (o, r, d, i), (o2, r2, d2, i2) = ours.step(actions), theirs.step(actions)
            np.testing.assert_array_equal(o, o2)
            np.testing.assert_array_equal(r, r2)
            np.testing.assert_array_equal(d, d2)
            assert (o.dtype, r.dtype, d.dtype) == (o2.dtype, r2.dtype, d2.dtype)
            for info, info2 in zip(i, i2, strict=True):
                ended = [x.pop("terminal_observation", None) for x in (info, info2)]
                np.testing.assert_array_equal(*ended)
                assert info == info2
            ends += d.sum()
    assert ends >= 6


def test_a_task_is_drawn_for_every_episode():
    """The same task again, another split's, or tasks that the seed does not decide; an observation of the old task."""
    env = FamilyVecEnv("navigation-2d", 3, split="test", seed=4, settings={"horizon": 2, "oracle": True})
    test = {tuple(t.values()) for t in metarl.make("navigation-2d").sample_tasks(3, "test", (4, 0)).to_json()}
    env.reset()
    assert {tuple(task.values()) for task in env.get_attr("task")} == test
    seen, finals = [], []
    for _ in range(6):
        observation, _, dones, infos = env.step(np.zeros((3, 2), dtype=np.float32))
        goals = np.array([list(task.values()) for task in env.get_attr("task")])
        np.testing.assert_allclose(observation[:, -2:], goals * 2, rtol=1e-6)  # -0.5 to 0.5 scaled to -1 to 1
        if dones.all():
            old = np.array([list(info["task"].values()) for info in infos])
            finals.append(np.array([info["terminal_observation"][-2:] for info in infos]) / 2)
            np.testing.assert_allclose(finals[-1], old, rtol=1e-6)
            assert (old != goals).all()
            seen += [tuple(row) for row in goals]
    assert len(set(seen)) == 9
    assert not set(seen) & test
    env.seed(4)
    env.reset()
    assert {tuple(task.values()) for task in env.get_attr("task")} == test
    env.seed(5)
    env.reset()
    assert not {tuple(task.values()) for task in env.get_attr("task")} & test


def test_options_set_tasks_at_the_next_reset():
    """Options that reach an automatic reset, the wrong simulation, or a reset after the next."""
    env = FamilyVecEnv("halfcheetah-vel", 2, task={"velocity": 1.0}, settings={"horizon": 2})
    env.set_options([{}, {"task": {"velocity": 0.5}}])
    action = np.zeros((2, 6), dtype=np.float32)
    for _ in range(2):
        env.step(action)
    assert env.get_attr("task") == [{"velocity": 1.0}] * 2
    for _ in range(2):
        env.reset()
        assert env.get_attr("task") == [{"velocity": 1.0}, {"velocity": 0.5}]
        assert env.reset_infos[1] == {"task": {"velocity": 0.5}}
    assert env.get_attr("task", 1) == [{"velocity": 0.5}]


def test_wrappers_of_sb3_fit():
    """A ``VecNormalize`` that normalises the last observation of an episode with the first of the next."""
    env = VecNormalize(FamilyVecEnv("halfcheetah-vel", 2, settings={"horizon": 3}), norm_reward=False)
    env.reset()
    for _ in range(3):
        observations, _, dones, infos = env.step(np.ones((2, 6), dtype=np.float32))
    assert dones.all()
    last = env.unnormalize_obs(infos[0]["terminal_observation"])
    assert np.abs(last - env.unnormalize_obs(observations[0])).max() > 0.1
    assert infos[0]["TimeLimit.truncated"] is True


def test_pictures():
    """Frames that are not tiled, or no frames."""
    env = FamilyVecEnv("navigation-2d", 2, settings={"horizon": 2})
    assert env.get_images() == [None, None]


def test_what_is_wrong_is_refused():
    """Two ways of choosing tasks at once; a misspelt setting; tasks that are dealt out wrongly; attributes set in vain."""
    with pytest.raises(SettingsError, match="leave one of them out"):
        FamilyVecEnv("halfcheetah-vel", 2, task={"velocity": 1.0}, split="train")
    with pytest.raises(SettingsError, match=r"Did you mean 'env.horizon'"):
        FamilyVecEnv("halfcheetah-vel", settings={"horizn": 2})
    with pytest.raises(SettingsError, match="got 1 tasks for 2"):
        FamilyVecEnv("halfcheetah-vel", 2, task=[{"velocity": 1.0}])
    env = FamilyVecEnv("halfcheetah-vel", 2)
    with pytest.raises(AttributeError, match="set_options"):
        env.set_attr("task", {"velocity": 1.0})
    assert not env.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="one batch"):
        env.env_method("compute_reward")
