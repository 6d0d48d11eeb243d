"""A run in a notebook: adapted to a task, to the same task as a Gymnasium environment, and to strange environments."""

from __future__ import annotations

import dataclasses
import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl.analysis import environment
from metarl.analysis.curves import with_episodes
from metarl.core.params import ravel
from metarl.families import FamilyError, Tasks
from metarl.run import trainer
from metarl.run.build import build_learner
from metarl.run.checkpoint import CheckpointStore
from metarl.settings import SettingsError

SEED = (1, 2, 3)


@pytest.fixture(scope="module")
def maml(runs):
    return metarl.load(str(runs["maml"]))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Gymnasium's MuJoCo may write a log into the working directory


class Velocity(gymnasium.Wrapper):
    """Gymnasium's own HalfCheetah with the reward of ``halfcheetah-vel``."""

    def __init__(self, velocity):
        super().__init__(gymnasium.make("HalfCheetah-v5"))
        self.velocity = velocity

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.x = info["x_position"]
        return observation, info

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        speed, self.x = (info["x_position"] - self.x) / 0.05, info["x_position"]
        reward = -abs(speed - self.velocity) - 0.05 * np.square(action.astype(np.float64)).sum()
        return observation, reward, terminated, truncated, info


class Counting(gymnasium.Env):
    """Observation (17,) full of n, the number of the step; ends after two to five steps, by the seed, in one of two ways."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (17,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (6,))

    def __init__(self, broken=()):
        self.broken, self.log = broken, []

    def reset(self, *, seed=None, options=None):
        self.length, self.time = 2 + seed % 4, 0
        self.log.append((seed, []))
        return np.full(17, np.nan if "reset" in self.broken else 0.0), {}

    def step(self, action):
        self.log[-1][1].append(action)
        self.time += 1
        over, own = self.time == self.length, self.length % 2 == 0
        reward = np.inf if "reward" in self.broken else float(10 * len(self.log) + self.time)
        observation = np.full(17, np.nan if "observation" in self.broken else self.time / 10)
        return observation, reward, over and own, over and not own, {}


def numpy_mean(params, observations):
    """The policy's mean from its parameters, (B, A): one hidden tanh layer of eight."""
    p = {name: value[0].double().numpy() for name, value in params.items()}
    hidden = np.tanh(observations @ p["0.weight"] + p["0.bias"][None])
    return hidden @ p["1.weight"] + p["1.bias"][None]


def test_a_task_by_any_name_is_the_same_task(maml):
    """Name, row of Tasks and dictionary must adapt to the same parameters, and those must differ from the start's."""
    policy, curve = maml.adapt({"velocity": 1.5}, rollouts=7, seed=4)
    again, twice = maml.adapt(Tasks(("velocity",), np.array([[1.5]])), rollouts=7, seed=4)
    np.testing.assert_array_equal(curve.values, twice.values)
    for name, value in policy.params.items():
        assert torch.equal(value, again.params[name])
        assert value.shape == (1, *maml.meta[name].shape)
        assert (value[0] != maml.meta[name]).any()
    assert (curve.updates, curve.rollouts) == ((0, 1, 2, 3), (0, 3, 6, 7))  # three at an update, the seventh alone
    assert curve.values.shape == (4, 1)
    _, other = maml.adapt({"velocity": 1.5}, rollouts=7, seed=5)
    assert (other.values != curve.values).all()


def test_adapting_is_gradient_steps_by_hand(maml, by_hand):
    """An update that is skipped, taken twice or taken on other data."""
    policy, curve = maml.adapt({"velocity": 0.4}, rollouts=5, seed=4)
    tasks = Tasks.from_json([{"velocity": 0.4}])
    params = {name: value[None].clone() for name, value in maml.meta.items()}
    for step, episodes in enumerate((3, 2)):
        domain = dataclasses.replace(maml.learner.domain, episodes=episodes)
        rollouts, _ = domain.rollout(params, tasks, (4, 2, step))
        assert float(rollouts.rewards.sum(1).mean()) == pytest.approx(curve.values[step, 0], rel=1e-5)
        params = by_hand(domain, params, domain.judge(rollouts), 0.1)
    for name, value in params.items():
        torch.testing.assert_close(policy.params[name], value, rtol=1e-4, atol=1e-5)
    # the last score is that of as many fresh rollouts as in training, however few made the last update
    fresh, _ = maml.learner.domain.rollout(policy.params, tasks, (4, 2, 2))
    assert fresh.rewards.shape[2] == 3
    assert float(fresh.rewards.sum(1).mean()) == pytest.approx(curve.values[2, 0], rel=1e-5)


def test_rates_of_ones_own_hold_update_by_update(maml, by_hand):
    """A rate that is ignored, or taken by another update; one number holds for all."""
    tasks, params = Tasks.from_json([{"velocity": 0.4}]), {n: v[None].clone() for n, v in maml.meta.items()}
    for step, (episodes, lr) in enumerate(((3, 0.3), (2, 0.02))):
        domain = dataclasses.replace(maml.learner.domain, episodes=episodes)
        params = by_hand(domain, params, domain.judge(domain.rollout(params, tasks, (4, 2, step))[0]), lr)
    policy, _ = maml.adapt(tasks, rollouts=5, seed=4, inner_lr=(0.3, 0.02))
    for name, value in params.items():
        torch.testing.assert_close(policy.params[name], value, rtol=1e-4, atol=1e-5)
    one, same = (maml.adapt(tasks, rollouts=5, inner_lr=lr)[1].values for lr in (0.05, (0.05, 0.05)))
    np.testing.assert_array_equal(one, same)
    with pytest.raises(SettingsError, match="inner_lr=0 is too small"):
        maml.adapt(tasks, inner_lr=0)


def test_a_gymnasium_environment_is_the_same_task(maml):
    """The same body, reward, resets and noise through Gymnasium's own environment: the same rollouts and parameters."""
    # 20 episodes are 200 states; on the run's 30 the 38 features of the baseline fit everything, and rounding decides
    maml = dataclasses.replace(maml, learner=with_episodes(maml.learner, 20))
    domain, params = maml.learner.domain, {name: value[None] for name, value in maml.meta.items()}
    family, _ = domain.rollout(params, Tasks.from_json([{"velocity": 1.3}]), SEED)
    gym, _ = environment.rollouts(Velocity(1.3), domain, params, SEED)
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "mask", "final_observations"):
        # contacts make rounding in the policy grow from step to step
        torch.testing.assert_close(getattr(gym, name), getattr(family, name), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(gym.observations[:, :3], family.observations[:, :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gym.rewards.sum(1), family.rewards.sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gym.behaviour, family.behaviour, rtol=1e-2, atol=1e-2)
    policy, curve = maml.adapt({"velocity": 1.3}, rollouts=25, seed=1)
    theirs, same = maml.adapt(Velocity(1.3), rollouts=25, seed=1)
    np.testing.assert_allclose(same.values, curve.values, rtol=1e-2)
    ours, gyms, start = (ravel(params) for params in (policy.params, theirs.params, maml.meta))
    assert (gyms - ours).norm() < 0.05 * (ours - start).norm()
    _, faster = maml.adapt(Velocity(0.3), rollouts=25, seed=1)
    assert (np.abs(faster.values - curve.values) > 0.1).all()


def test_gym_rollouts_of_ragged_episodes(maml):
    """Steps after an episode's end that count, an end of the wrong kind, or actions that are not what was played."""
    domain = dataclasses.replace(maml.learner.domain, episodes=6)
    params = {name: value[None] for name, value in maml.meta.items()}
    env = Counting()
    rollouts, _ = environment.rollouts(env, domain, params, SEED)
    lengths = [2 + seed % 4 for seed, _ in env.log]
    assert len(set(lengths)) > 1
    for e, (_, played) in enumerate(env.log):
        n = lengths[e]
        own = n % 2 == 0
        states = np.repeat(np.arange(10)[:, None] / 10, 17, axis=1) * (np.arange(10) < n)[:, None]
        np.testing.assert_allclose(rollouts.observations[0, :, e], states, rtol=1e-6)
        np.testing.assert_array_equal(rollouts.mask[0, :, e], np.arange(10) < n)
        rewards = [10 * (e + 1) + t + 1 if t < n else 0 for t in range(10)]
        np.testing.assert_array_equal(rollouts.rewards[0, :, e], rewards)
        assert rollouts.terminated[0, :, e].nonzero().flatten().tolist() == ([n - 1] if own else [])
        assert rollouts.truncated[0, :, e].nonzero().flatten().tolist() == ([] if own else [n - 1])
        np.testing.assert_allclose(rollouts.final_observations[0, e], np.full(17, n / 10), rtol=1e-6)
        mean = numpy_mean(params, states[:n])
        np.testing.assert_allclose(rollouts.behaviour.mean[0, :n, e], mean, rtol=1e-4, atol=1e-6)
        assert len(played) == n
        np.testing.assert_array_equal(played, rollouts.actions[0, :n, e].clip(-1, 1))
        assert all(action.dtype == np.float32 for action in played)
    noise = (rollouts.actions - rollouts.behaviour.mean)[rollouts.mask.bool()] / maml.meta["log_std"].exp()
    assert 0.8 < float(noise.std()) < 1.2  # about 120 standard normal draws
    assert len(noise.unique()) == noise.numel()
    policy, curve = maml.adapt(Counting(), rollouts=3)
    assert np.isfinite(curve.values).all()
    assert all(value.isfinite().all() for value in policy.params.values())


@pytest.mark.parametrize("broken", ["reset", "observation", "reward"])
def test_an_environment_that_breaks_is_named(maml, broken):
    """Infinite numbers would make every parameter NaN without a word."""
    with pytest.raises(FamilyError, match=r"the environment's .* is not finite"):
        maml.adapt(Counting((broken,)), rollouts=3)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"speed": 1.0}, "velocity"),
        ({"velocity": 1.0, "slope": 2.0}, "velocity"),
        ({"velocity": "fast"}, "one number for each of: velocity"),
        ({"velocity": float("nan")}, "one number for each of: velocity"),
        (Tasks(("velocity",), np.array([[1.0], [2.0]])), "one number for each of: velocity"),
        (1.5, "float is no task"),
    ],
)
def test_a_wrong_task_is_refused(maml, task, said):
    """A KeyError, or a second task that is dropped without a word."""
    with pytest.raises(SettingsError, match=said):
        maml.adapt(task)


def test_a_task_beyond_the_range_is_taken_with_one_warning(maml):
    """Silence where a typing error gives 15 m/s instead of 1.5; a refusal, which would forbid to study it; a flood."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for _ in range(2):
            policy, curve = maml.adapt({"velocity": 15.0}, rollouts=3)
    (warning,) = heard
    assert str(warning.message).endswith("such a task: velocity=15 is outside [0, 2] m/s")
    assert warning.filename == __file__
    assert np.isfinite(curve.values).all()
    assert policy.act(np.zeros(17)).shape == (6,)
    with warnings.catch_warnings(action="error"):
        for velocity in (0.0, 2.0):
            maml.adapt({"velocity": velocity}, rollouts=1)
        with pytest.raises(RuntimeWarning, match=r"velocity=-0.1 is outside \[0, 2\] m/s"):
            maml.adapt(Tasks(("velocity",), np.array([[-0.1]])), rollouts=1)


def test_a_strange_environment_is_refused(maml, runs):
    """A shape error from deep inside the network; a policy that was told its task in training and is not told now."""
    with pytest.raises(SettingsError, match=r"observations Box.*needs a Box of shape \(17,\)"):
        maml.adapt(gymnasium.make("Pendulum-v1"))
    discrete = Counting()
    discrete.action_space = gymnasium.spaces.MultiDiscrete([2] * 6)
    with pytest.raises(SettingsError, match=r"actions MultiDiscrete.*needs a Box of shape \(6,\)"):
        maml.adapt(discrete)
    with pytest.raises(SettingsError, match="observes its task"):
        metarl.load(runs["oracle"]).adapt(Counting())


def test_what_cannot_adapt_says_so(maml, runs):
    """No rollouts, no rollouts to be had, no such run, no such checkpoint."""
    with pytest.raises(SettingsError, match="rollouts=0 is too small"):
        maml.adapt({"velocity": 1.0}, rollouts=0)
    with pytest.raises(SettingsError, match="labelled shots"):
        metarl.load(runs["sinusoid"]).adapt({"amplitude": 1.0, "phase": 0.0})
    with pytest.raises(SettingsError, match="does not exist"):
        metarl.load(runs["maml"] / "nowhere")
    with pytest.raises(SettingsError, match="checkpoint=lst is not one of last, best"):
        metarl.load(runs["maml"], "lst")
    with pytest.raises(SettingsError, match="no best checkpoint"):
        metarl.load(runs["pretrained"], "best")
    with pytest.raises(SettingsError, match="device=gpu is not one of auto, cpu, cuda"):
        metarl.load(runs["maml"], device="gpu")


def test_act_is_the_mean_by_hand(maml):
    """Shape, type and bounds of actions for one observation and for many, with parameters that are those of the task."""
    policy, _ = maml.adapt({"velocity": 1.5}, rollouts=3)
    observations = np.random.default_rng(0).normal(0, 3, (50, 17))
    actions = policy.act(observations)
    assert actions.dtype == np.float32
    expected = numpy_mean(policy.params, observations)
    np.testing.assert_allclose(actions, expected.clip(-1, 1), rtol=1e-4, atol=1e-5)
    assert (np.abs(expected) > 1).any()  # or the bounds were not tried
    for observation, action in zip(observations, actions, strict=True):
        alone = policy.act(observation)
        assert alone.shape == (6,)
        np.testing.assert_allclose(alone, action, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(policy.act(observations), actions)
    for wrong in (np.zeros(18), np.zeros((2, 3, 17)), np.float64(1.0)):
        with pytest.raises(ValueError, match=r"an observation has shape \(17,\)"):
            policy.act(wrong)


def _bytes(agent):
    return {name: value.numpy().tobytes() for name, value in agent.learner.domain.normalizer.statistics.items()}


def test_normalisation_is_the_checkpoints_and_stays(runs, evaluated):
    """Statistics that are lost between training and loading, or that adapting, foreign environments or evaluation change."""
    path = runs["normalized"]
    agent = metarl.load(path)
    saved = CheckpointStore(path / "checkpoints").latest().tensors
    before = _bytes(agent)
    assert before == {name: saved[f"statistics/{name}"].numpy().tobytes() for name in ("count", "mean", "squares")}
    assert saved["statistics/count"] == 2 * 3 * 3 * 2 * 10  # iterations, tasks, episodes, support and query, steps
    files = {name: name.read_bytes() for name in sorted((path / "checkpoints").rglob("*")) if name.is_file()}
    policy, _ = agent.adapt({"velocity": 1.5}, rollouts=5)
    agent.adapt(Velocity(1.0), rollouts=3)
    evaluated(path, "tasks=2", "steps=1")
    assert _bytes(agent) == before == _bytes(dataclasses.replace(agent, learner=with_episodes(agent.learner, 2)))
    assert policy.normalizer is agent.learner.domain.normalizer
    assert files == {name: name.read_bytes() for name in files}
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    tasks = agent.learner.domain.sample_tasks(2, "validation", (0, 1))
    trail = agent.learner.explore(agent.meta, tasks, (0, 1), 1)
    assert row["validation_return_1"] == float(trail.query.scores.mean())  # as training validated with them


def test_a_warm_start_takes_the_normalisation_along(runs):
    """Parameters learned on standardised observations that start on raw ones, or the other way round."""
    agent = metarl.load(runs["normalized"], device="cpu")
    for normalize, source in ((True, "normalized"), (False, "normalized"), (True, "maml")):
        run = dataclasses.replace(
            agent.config.run, init_from=str(runs[source]), normalize_observations=normalize, seed=7, device="cpu"
        )
        config = dataclasses.replace(agent.config, run=run)
        if normalize == (source == "normalized"):
            state = trainer._warm_started(build_learner(config), config)
            assert (state.iteration, state.seed) == (0, 7)
            assert {name: value.numpy().tobytes() for name, value in state.statistics.items()} == _bytes(agent)
        else:
            trained = str(source == "normalized").lower()
            with pytest.raises(SettingsError, match=f"was trained with normalize_observations={trained}; use the same"):
                trainer._warm_started(build_learner(config), config)


def test_normalisation_folded_into_the_first_layer_acts_alike(runs):
    """By hand: W' = W / std and b' = b - mean W / std, on states that are not clipped; wherever the policy acts."""
    agent = metarl.load(runs["normalized"])
    policy, _ = agent.adapt({"velocity": 1.5}, rollouts=5)
    count, mean, squares = (policy.normalizer.statistics[name] for name in ("count", "mean", "squares"))
    std = (squares / count + 1e-8).sqrt()
    weight = policy.params["0.weight"].double() / std[:, None]
    folded = {
        **policy.params,
        "0.weight": weight.float(),
        "0.bias": (policy.params["0.bias"].double() - (mean @ weight)).float(),
    }
    plain = dataclasses.replace(policy, params=folded, normalizer=None)
    states = mean.numpy() + std.numpy() * np.random.default_rng(0).normal(0, 2, (200, 17)).clip(-9, 9)
    np.testing.assert_allclose(policy.act(states), plain.act(states), rtol=1e-3, atol=1e-4)
    drawn = [each.act(states, deterministic=False) for each in (policy, plain)]
    np.testing.assert_allclose(*drawn, rtol=1e-3, atol=1e-4)
    assert np.abs(policy.act(states) - dataclasses.replace(policy, normalizer=None).act(states)).max() > 0.01
    # rollouts in the family, in an environment of one's own, and what a video is made of
    domain, tasks = agent.learner.domain, Tasks.from_json([{"velocity": 1.5}])
    bare = dataclasses.replace(domain, _normalizer=None)
    for roll in (
        lambda each, params: each.rollout(params, tasks, SEED)[0],
        lambda each, params: environment.rollouts(Velocity(1.5), each, params, SEED)[0],
    ):
        ours, theirs = roll(domain, policy.params), roll(bare, folded)
        torch.testing.assert_close(ours.actions[:, :3], theirs.actions[:, :3], rtol=1e-2, atol=1e-2)
    bent = torch.tensor(states[None], dtype=torch.float32)
    shown = domain.policy.distribution(policy.params, domain.observe(bent, tasks)).mean
    torch.testing.assert_close(shown, domain.policy.distribution(folded, bent).mean, rtol=1e-3, atol=1e-4)


def test_act_draws_from_the_policy(maml):
    """A draw without noise, with the wrong width, beyond the bounds, or that differs between equal calls."""
    policy, _ = maml.adapt({"velocity": 1.5}, rollouts=3)
    zeros = np.zeros((4000, 17), dtype=np.float32)
    wide = policy.act(zeros, deterministic=False)
    assert (np.abs(wide) == 1).any()
    assert (np.abs(wide) <= 1).all()
    narrow = dataclasses.replace(policy, params={**policy.params, "log_std": torch.full((1, 6), -4.0)})
    drawn = narrow.act(zeros, deterministic=False)
    noise = (drawn - narrow.act(zeros)) / np.exp(-4.0)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.08)  # 5 standard errors of 4000 draws
    np.testing.assert_allclose(noise.std(0), 1.0, atol=0.06)
    np.testing.assert_array_equal(narrow.act(zeros, deterministic=False), drawn)
    another = dataclasses.replace(narrow, seed=1)
    assert (another.act(zeros, deterministic=False) != drawn).mean() > 0.99
    rng = np.random.default_rng(0)  # where observations repeat, a generator of one's own goes on
    first, second = (narrow.act(zeros[0], deterministic=False, rng=rng) for _ in range(2))
    assert (first != second).all()


def test_an_oracle_is_told_its_task(runs):
    """The policy of an oracle needs the task beside the observation, scaled from [0, 2] m/s to [-1, 1]."""
    oracle = metarl.load(runs["oracle"])
    observations = np.random.default_rng(0).normal(0, 1, (5, 17))
    for velocity, scaled in ((0.0, -1.0), (1.5, 0.5)):
        policy, _ = oracle.adapt({"velocity": velocity}, rollouts=3)
        seen = np.concatenate([observations, np.full((5, 1), scaled)], axis=1)
        expected = numpy_mean(policy.params, seen).clip(-1, 1)
        np.testing.assert_allclose(policy.act(observations), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(policy.act(observations[0]), expected[0], rtol=1e-4, atol=1e-5)
