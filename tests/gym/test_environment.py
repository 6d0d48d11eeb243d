"""Families as Gymnasium environments: their own episodes to the bit, and tasks that change only when told."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import metarl
from metarl import families
from metarl.families import Tasks
from metarl.gym import environment
from metarl.settings import SettingsError

PYGAME = importlib.util.find_spec("pygame") is not None
NAMES = ("halfcheetah-vel", "pendulum-dynamics", "cartpole-length")
TASKS = {
    "halfcheetah-vel": {"velocity": 1.5},
    "pendulum-dynamics": {"gravity": 7.0, "mass": 0.75},
    "cartpole-length": {"length": 1.75},
}


def _made(name, **settings):
    return gymnasium.make(f"metarl/{name}-v0", **settings)


def _actions(name, steps):
    """Half as wide again as is legal, where actions are numbers."""
    random, spec = np.random.default_rng(3), metarl.make(name).spec
    if spec.choices is not None:
        return random.integers(spec.choices.counts[0], size=(steps, 1))
    return (1.5 * spec.action_high * random.uniform(-1, 1, (steps, spec.action_size))).astype(np.float32)


def _played(env, actions, seed, **options):
    """One episode of an environment, up to its end: observations, rewards, terminated, truncated."""
    observation, _ = env.reset(seed=seed, **options)
    seen, rest = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(observation)
        rest.append((reward, terminated, truncated))
        if terminated or truncated:
            break
    return np.array(seen), np.array(rest)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("oracle", [False, True])
def test_gymnasiums_and_stable_baselines_checkers_pass(name, oracle):
    """With and without the task in the observation; in a process that has imported MuJoCo before a picture is asked for."""
    with warnings.catch_warnings(action="ignore"):  # of infinite bounds, as Gymnasium's own bodies have
        env = _made(name, task=TASKS[name], oracle=oracle).unwrapped
        drawn = name == "halfcheetah-vel" or PYGAME  # the others need it
        check_env(env, skip_render_check=not drawn)
        sb3_check_env(env, warn=False)


@pytest.mark.parametrize("name", NAMES)
def test_episodes_are_the_familys_own_to_the_bit(name):
    """Another seed, task row, clipping or time limit; a second episode that continues the first."""
    family, horizon = metarl.make(name, horizon=60), 60
    env, batch = _made(name, task=TASKS[name], horizon=horizon), family.batch(1, 1)
    for seed in (0, 5, 2**32 - 1):
        actions = _actions(name, horizon)
        seen, rest = _played(env, actions if name != "cartpole-length" else actions[:, 0], seed)
        wanted = [batch.reset(Tasks.from_json([TASKS[name]]), np.array([seed], dtype=np.uint32))[0]]
        for t in range(len(rest)):
            step = batch.step(actions[t : t + 1])
            wanted.append(step.observations[0])
            assert rest[t].tolist() == [float(step.rewards[0]), step.terminated[0], step.truncated[0]]
        assert np.array_equal(seen, wanted)
        assert seen.dtype == np.float32
        assert rest[-1][1:].sum() == 1  # an end, and of one kind


def test_one_that_ends_by_itself_says_so():
    """Termination taken for the time limit: the value of a fallen pole would be bootstrapped."""
    _, rest = _played(_made("cartpole-length"), [1] * 100, 0)
    assert rest[-1].tolist() == [1.0, True, False]
    _, rest = _played(_made("cartpole-length", horizon=3), [1] * 100, 0)
    assert rest[-1].tolist() == [1.0, False, True]
    assert len(rest) == 3


def test_a_task_changes_only_by_options():
    """A task drawn anew at every reset is no task but noise; options are kept for the episodes that follow."""
    env = _made("halfcheetah-vel", task={"velocity": 0.5})
    seen = []
    for options in (None, {}, {"task": {"velocity": 1.25}}, None, {"other": 1}):
        _, info = env.reset(seed=1, options=options)
        seen += [info["task"], env.step(env.action_space.sample())[-1]["task"]]
    assert [task["velocity"] for task in seen] == [0.5] * 4 + [1.25] * 6
    seen[-1]["velocity"] = 9.0
    assert env.reset()[1]["task"] == {"velocity": 1.25}, "what is reported is a copy"


def test_without_a_task_it_is_one_of_the_train_split():
    """A test task that a baseline trains on; one that differs from process to process."""
    family = metarl.make("halfcheetah-vel", velocity_high=3.0)
    for seed in (0, 4):
        env = _made("halfcheetah-vel", task_seed=seed, velocity_high=3.0)
        assert env.reset(seed=9)[1]["task"] == family.sample_tasks(1, "train", seed).to_json()[0]


def test_reward_and_dynamics_follow_the_task():
    """A task that is reported and not played."""
    actions = _actions("halfcheetah-vel", 1)
    slow, fast = (_played(_made("halfcheetah-vel", task={"velocity": v}), actions, 0) for v in (0.5, 2.0))
    assert np.array_equal(slow[0], fast[0])
    assert abs(slow[1][0, 0] - fast[1][0, 0]) > 0.1
    light, heavy = (
        _played(_made("pendulum-dynamics", task={"gravity": 10.0, "mass": m}), _actions("pendulum-dynamics", 1), 0)
        for m in (0.5, 2.0)
    )
    assert not np.array_equal(light[0][1], heavy[0][1])


def test_only_an_oracle_observes_the_task():
    """Two tasks, one seed: the same first observation, and for an oracle the task, scaled to [-1, 1], behind it."""
    for oracle, tail in ((False, []), (True, [[-0.5], [1.0]])):
        env = _made("halfcheetah-vel", oracle=oracle)
        seen = [env.reset(seed=0, options={"task": {"velocity": v}})[0] for v in (0.5, 2.0)]
        assert np.array_equal(seen[0][:17], seen[1][:17])
        assert [list(observation[17:]) for observation in seen] == (tail or [[], []])


def test_seeds_of_any_size_and_none():
    """A seed beyond 32 bits wraps around or fails; no seed twice starts the same episode twice."""
    env = _made("halfcheetah-vel")
    first = [env.reset(seed=seed)[0] for seed in (7, 2**32 + 7, 2**40)]
    assert len({observation.tobytes() for observation in first}) == 3
    env.reset(seed=7)
    later = [env.reset()[0] for _ in range(2)]
    env.reset(seed=7)
    assert [np.array_equal(env.reset()[0], again) for again in later] == [True, True]
    assert not np.array_equal(*later)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": {"speed": 1.0}}, "one number for each of: velocity"),
        ({"task": {"velocity": float("nan")}}, "one number for each of: velocity"),
        ({"horizn": 3}, "Did you mean 'env.horizon'"),
        ({"horizon": 0}, "at least 1"),
        ({"render_mode": "ansi"}, "rgb_array"),
    ],
)
def test_what_is_wrong_is_refused(settings, said):
    """A task or a setting that is silently not there."""
    with warnings.catch_warnings(action="ignore"), pytest.raises(SettingsError, match=said):
        _made("halfcheetah-vel", **settings)


@pytest.mark.parametrize("arms", [[5, 0, 0], [0, 0, -1], [-1, 0, 0]])
def test_a_choice_that_is_none_is_refused(arms):
    """The sixth of five arms was the first of the next simulation's bandit, and the one before the first the last of its own."""
    task = [{f"p{arm}": float(arm == 0) for arm in range(5)}] * 3
    envs = gymnasium.make_vec("metarl/bandit-bernoulli-v0", num_envs=3, task=task)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"takes 3 actions of Discrete\(5\)"):
        envs.step(np.array(arms))
    env = gymnasium.make("metarl/bandit-bernoulli-v0", task=task[0], disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"takes an action of Discrete\(5\)"):
        env.step(min(arms) or max(arms))
    assert env.step(0)[1] == 1.0


def test_a_task_of_many_numbers_is_not_recited():
    """A refusal of 550 names, six thousand letters long."""
    with pytest.raises(SettingsError, match=r"reward_0_0, .*\.\.\. to_9_4_9 \(550 in all\)$") as refused:
        gymnasium.make("metarl/tabular-mdp-v0", task={"mass": 1.0})
    assert len(str(refused.value)) < 200


def test_a_family_of_labelled_shots_is_no_environment():
    """Its id is registered without importing it, so the refusal must come here."""
    with pytest.raises(SettingsError, match="'sinusoid' is a family of labelled shots"):
        gymnasium.make("metarl/sinusoid-v0")


def test_pictures():
    """Frames of the right form; one that does not follow the simulation."""
    env = _made("halfcheetah-vel", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((*environment.SIZE[::-1], 3), np.uint8)
    for _ in range(10):
        env.step(np.ones(6, dtype=np.float32))
    assert (env.render() != first).mean() > 0.005
    plain = _made("halfcheetah-vel")
    assert plain.unwrapped.render() is None
    assert plain.metadata["render_fps"] == 20


@pytest.mark.skipif(not PYGAME, reason="pygame is not installed: pip install 'gymnasium[classic-control]'")
@pytest.mark.parametrize("name", ["pendulum-dynamics", "cartpole-length"])
def test_pictures_of_gymnasiums_environments(name):
    """Stretched or foreign-sized frames, frames of one simulation for all, or of an environment that was not stepped."""
    envs = gymnasium.make_vec(f"metarl/{name}-v0", num_envs=2, task=TASKS[name], render_mode="rgb_array")
    envs.reset(seed=1)
    first = envs.render()
    assert {(frame.shape, frame.dtype) for frame in first} == {((*environment.SIZE[::-1], 3), np.dtype(np.uint8))}
    assert (first[0] != first[1]).any()
    base = gymnasium.make("Pendulum-v1" if "pendulum" in name else "CartPole-v1", render_mode="rgb_array").unwrapped
    base.reset(seed=1)
    if name == "pendulum-dynamics":  # square: 320 x 320 in the middle
        assert not first[0][:, :79].any()
        assert not first[0][:, -79:].any()
        np.testing.assert_allclose(first[0][:, 80:400].mean((0, 1)), base.render().mean((0, 1)), atol=0.5)
    else:
        base.length, base.polemass_length = 1.75, 1.75 * base.masspole
        np.testing.assert_allclose(first[0].mean((0, 1)), base.render().mean((0, 1)), atol=0.5)
    for _ in range(8):
        envs.step(envs.action_space.sample())
    assert all((later != sooner).mean() > 0.001 for later, sooner in zip(envs.render(), first, strict=True))


@pytest.mark.skipif(not PYGAME, reason="pygame is not installed: pip install 'gymnasium[classic-control]'")
def test_drawing_needs_no_display_and_says_nothing():
    """A machine without a screen; a greeting in the standard output of a program."""
    code = (
        "import gymnasium, metarl; from metarl.families import TaskParameter\n"
        "poles = metarl.gym_family('Pendulum-v1', [TaskParameter('gravity', 5.0, 15.0, '')], lambda env, task: None)\n"
        "metarl.register('p')(poles); env = gymnasium.make('metarl/p-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0); print(env.render().shape)"
    )
    bare = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "SDL_VIDEODRIVER", "XDG_RUNTIME_DIR")
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=bare)
    assert (done.stdout, done.stderr) == ("(320, 480, 3)\n", "")


def test_what_drawing_lacks_is_named(monkeypatch):
    """A picture that is None, or a traceback that says nothing of what to install."""
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = _made("pendulum-dynamics", render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match="pygame is not installed, run `pip install"):
        env.render()


@pytest.mark.parametrize(
    "code", ["import metarl, gymnasium as g; g.make('{}')", "import gymnasium as g; g.make('metarl:{}')"]
)
def test_ids_are_there_after_import_and_by_the_modules_name(code):
    """Registered by ``import metarl`` alone, or by Gymnasium's own module:id."""
    done = subprocess.run([sys.executable, "-c", code.format("metarl/halfcheetah-vel-v0")], env=os.environ, check=False)
    assert done.returncode == 0


def test_importing_registers_every_family_and_imports_none():
    """Catches an import of torch, of a simulator or of a family's own module for the sake of its name."""
    code = (
        "import sys, metarl, gymnasium; names = metarl.names()\n"
        "assert {f'metarl/{name}-v0' for name in names} <= set(gymnasium.registry), names\n"
        "print([m for m in sys.modules if m in ('torch', 'mujoco') or m.startswith('metarl.envs.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_names_that_gymnasium_cannot_spell_are_still_families():
    """An import of metarl that fails because somebody's family has a blank in its name."""
    from metarl import ids

    ids.register_id("two words")
    assert "metarl/two words-v0" not in gymnasium.registry
    assert "metarl/halfcheetah-vel-v0" in gymnasium.registry
    assert families.names()
