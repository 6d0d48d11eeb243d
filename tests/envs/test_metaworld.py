"""Meta-World families: without the package one clear line; with it, its own environments, splits, hidden goals and success."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import types
from collections import Counter

import gymnasium
import numpy as np
import pytest

import metarl
from metarl import evaluate, train
from metarl.envs.metaworld import benchmarks, families
from metarl.envs.metaworld.benchmarks import Halves, load, verify
from metarl.envs.metaworld.names import ENVIRONMENTS, ML10_TEST, ML10_TRAIN, ML45_TEST, ML45_TRAIN
from metarl.families import EnvFault, FamilyError, Tasks
from metarl.settings import SettingsError

NAMES = ("metaworld-ml1", "metaworld-ml10", "metaworld-ml45")
REMEDY = "needs the extra metaworld: pip install -c constraints.txt -e .[metaworld]"
REACH = Halves(("reach-v3",), ("reach-v3",))


@pytest.fixture
def package():
    """The package itself, made to start on MuJoCo 4."""
    found = pytest.importorskip("metaworld", reason="needs the extra metaworld")
    benchmarks.follow_mujoco()
    return found


def _made(name="metaworld-ml1", **settings):
    return metarl.make(name, **settings)


# -- without the package -----------------------------------------------------------------------------------------------


@pytest.fixture
def absent(monkeypatch):
    """As if it were not installed."""
    real = families.importlib.util.find_spec
    hidden = lambda name, package=None: None if name == "metaworld" else real(name, package)  # noqa: E731
    monkeypatch.setattr(families.importlib.util, "find_spec", hidden)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_extra_there_is_one_clear_line(absent, capsys, tmp_path, monkeypatch, name):
    """A traceback, or a line only once training has begun."""
    monkeypatch.chdir(tmp_path)
    assert train.main([f"env={name}"]) == 2
    assert capsys.readouterr().err == f"error: {REMEDY}\n"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="needs the extra metaworld"):
        gymnasium.make(f"metarl/{name}-v0")


def test_names_and_the_table_do_not_import_it():
    """A package of a second's import, and of forty megabytes, for the sake of its name."""
    code = (
        "import sys, metarl, metarl.listing as listing\n"
        f"rows = [listing.row(name) for name in metarl.names() if name in {NAMES!r}]\n"
        "print(len(rows), [m for m in ('metaworld', 'mujoco', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("3 []", "")


def test_the_table_says_what_is_missing(absent):
    """A table that ends at the first family without its extra."""
    from metarl import listing

    rows = [[name, "", "", "", "", "metarl-toolkit", f"({REMEDY})"] for name in NAMES]
    assert [listing.row(name) for name in NAMES] == rows


# -- tasks, which need no simulator --------------------------------------------------------------------------------------


@pytest.fixture
def named(monkeypatch):
    """Tasks alone, whether or not the package is there."""
    monkeypatch.setattr(families, "_require_package", lambda: None)


def _pairs(family, split, count, seed=0):
    tasks = family.sample_tasks(count, split, seed)
    return [tuple(int(x) for x in row) for row in tasks.values]


@pytest.mark.parametrize(
    ("name", "train", "test"), [(NAMES[1], ML10_TRAIN, ML10_TEST), (NAMES[2], ML45_TRAIN, ML45_TEST)]
)
def test_classes_of_the_splits_are_the_published_ones(named, name, train, test):
    """Held-out classes in training, unequal shares, goals that validation shares with training."""
    assert set(train) & set(test) == set()
    assert (len(train), len(test)) == ({NAMES[1]: 10, NAMES[2]: 45}[name], 5)
    family = _made(name)
    seen = {}
    for split, classes, goals in (("train", train, 40), ("validation", train, 10), ("test", test, 50)):
        every = _pairs(family, split, len(classes) * goals)
        assert Counter(ENVIRONMENTS[env] for env, _ in every) == dict.fromkeys(classes, goals)
        assert len(set(every)) == len(every), "each goal once before any comes twice"
        for start in range(0, len(every), len(classes)):
            assert len({env for env, _ in every[start : start + len(classes)]}) == len(classes)
        seen[split] = set(every)
    assert not seen["train"] & seen["validation"]
    assert {goal for _, goal in seen["train"]} == set(range(40))
    assert {goal for _, goal in seen["validation"]} == set(range(40, 50))


def test_goals_of_ml1_are_apart(named):
    """Validation carved from test goals."""
    family = _made()
    drawn = {split: [goal for (goal,) in _pairs(family, split, 50)] for split in ("train", "validation", "test")}
    assert {split: set(goals) for split, goals in drawn.items()} == {
        "train": set(range(40)),
        "validation": set(range(40, 50)),
        "test": set(range(50, 100)),
    }
    assert _pairs(family, "train", 7) == _pairs(family, "train", 50)[:7]
    assert _pairs(family, "train", 40, 1) != _pairs(family, "train", 40, 2)


# -- the guard -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """As the package's: a class and pickled data."""

    env_name: str
    data: bytes


def _package(train, test, shift=1000):
    """A benchmark without simulators: goals are numbers, of the test split others."""
    goals = {
        half: [Task(n, bytes(f"{g + s}", "ascii")) for n in names for g in range(50)]
        for half, names, s in (("train", train, 0), ("test", test, shift))
    }
    return types.SimpleNamespace(
        train_classes=dict.fromkeys(train),
        test_classes=dict.fromkeys(test),
        train_tasks=goals["train"],
        test_tasks=goals["test"],
    )


def test_sound_benchmarks_pass():
    """A guard that refuses everything."""
    verify("ML1", _package(("reach-v3",), ("reach-v3",)), REACH)
    verify("ML10", _package(ML10_TRAIN, ML10_TEST), Halves(ML10_TRAIN, ML10_TEST))


def _mixed(package, **fields):
    return types.SimpleNamespace(**{**vars(package), **fields})


ONE, TEN = _package(("reach-v3",), ("reach-v3",)), _package(ML10_TRAIN, ML10_TEST)
ML10 = Halves(ML10_TRAIN, ML10_TEST)


@pytest.mark.parametrize(
    ("name", "package", "halves", "message"),
    [
        ("ML1", _mixed(ONE, test_tasks=ONE.train_tasks), REACH, "same goal of reach-v3 among its train and test tasks"),
        ("ML1", _mixed(ONE, train_tasks=ONE.test_tasks), REACH, "same goal of reach-v3 among its train and test tasks"),
        ("ML1", _mixed(ONE, test_tasks=[*ONE.test_tasks[1:], ONE.train_tasks[7]]), REACH, "among its train and test"),
        ("ML1", _mixed(ONE, train_tasks=[ONE.train_tasks[0]] * 50), REACH, "same goal twice"),
        ("ML1", _mixed(ONE, test_tasks=ONE.test_tasks[:49]), REACH, "test tasks are not 50 of each"),
        ("ML10", _mixed(TEN, test_tasks=TEN.train_tasks), ML10, "test tasks are not 50 of each"),
        ("ML10", _mixed(TEN, train_tasks=TEN.test_tasks), ML10, "train tasks are not 50 of each"),
        ("ML10", _mixed(TEN, test_classes=TEN.train_classes), ML10, "test classes differ from the published ones in"),
        ("ML10", _package(ML10_TEST, ML10_TRAIN), ML10, "train classes differ from the published ones in"),
        ("ML10", _package(ML10_TRAIN, (*ML10_TEST[:4], "sweep-v3")), ML10, "differ from the published ones in lever-pull-v3, sw"),
    ],
)  # fmt: skip
def test_mixed_up_splits_are_refused(name, package, halves, message):
    """Each way in which train tasks can be test tasks."""
    with pytest.raises(FamilyError, match=f"mixes up its splits: {name}.*{message}"):
        verify(name, package, halves)


def test_a_package_that_mixes_up_its_splits_is_not_trained_on(package, monkeypatch, tmp_path, capsys):
    """The package's own ML1 with the seed of its train goals for the test goals: refused before the first step."""
    made = package._make_tasks
    monkeypatch.setattr(package, "_make_tasks", lambda *args, seed: made(*args, seed=7))
    assert train.main(["env=metaworld-ml1", "env.goal_seed=7", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "the installed metaworld mixes up its splits: ML1 has the same goal of reach-v3" in capsys.readouterr().err


def test_the_packages_own_ids_do_mix_them_up(package):
    """Why its ids are not used. If this fails, the package has been mended, and the warning in benchmarks.py can go."""
    own = package.ML1("reach-v3", seed=0)
    envs = gymnasium.make_vec("Meta-World/ML1-train", env_name="reach-v3", seed=0, meta_batch_size=1)
    held = {task.data for task in envs.get_attr("tasks")[0]}
    assert held == {task.data for task in own.test_tasks}
    assert held != {task.data for task in own.train_tasks}


# -- with the package ----------------------------------------------------------------------------------------------------


def _vectors(tasks):
    # the package itself keeps its tasks so; nothing from outside is read
    return {pickle.loads(task.data)["rand_vec"].tobytes() for task in tasks}


def test_tables_are_the_packages(package):
    """Names that another version calls something else, or counts in another order."""
    assert list(ENVIRONMENTS) == package.ML1.ENV_NAMES
    for half, names in (("train", ML10_TRAIN), ("test", ML10_TEST)):
        assert list(package.env_dict.ML10_V3[half]) == list(names)
    assert set(package.env_dict.ML45_V3["train"]) == set(ML45_TRAIN)
    assert set(package.env_dict.ML45_V3["test"]) == set(ML45_TEST)


def test_numbers_of_goals_are_the_packages_own(package):
    """Goals 0 to 49 are its train goals, 50 to 99 its test goals, in its order and of its seed; no two are equal."""
    own, ours = package.ML1("reach-v3", seed=0), load("ML1", REACH, 0).goals["reach-v3"]
    assert [task.data for task in ours] == [task.data for task in [*own.train_tasks, *own.test_tasks]]
    assert len(_vectors(ours)) == 100
    assert not _vectors(ours) & _vectors(load("ML1", REACH, 5).goals["reach-v3"])


def _episode(batch, tasks, actions):
    observations, rewards, wins = [batch.reset(tasks, np.zeros(len(tasks), np.uint32))], [], []
    for action in actions:
        step = batch.step(action)
        observations.append(step.observations)
        rewards.append(step.rewards)
        wins.append(batch.success())
    return np.array(observations), np.array(rewards), np.array(wins)


def test_episodes_are_the_packages_own(package):
    """Its environment, driven by itself through its own vector environment, to the last bit of float32."""
    family = _made("metaworld-ml10")
    envs = gymnasium.make_vec("Meta-World/ML10-test", seed=0, meta_batch_size=5, max_episode_steps=500)
    envs.call("toggle_terminate_on_success", False)
    envs.call("toggle_sample_tasks_on_reset", False)
    first = np.array([o for o, _ in envs.call("sample_tasks")])
    goals = load("ML10", ML10, 0).goals
    dealt = [env.unwrapped._last_rand_vec.tobytes() for env in envs.envs]
    rows = []
    for name, vector in zip(ML10_TEST, dealt, strict=True):
        numbers = [i for i, task in enumerate(goals[name]) if vector in _vectors([task])]
        rows.append({"environment": ENVIRONMENTS.index(name), "goal": numbers[0]})
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 5, 4)).astype(np.float32)
    observations, rewards, wins = _episode(family.batch(5, 1), Tasks.from_json(rows), actions)
    assert np.array_equal(observations[0], first.astype(np.float32))
    for t, action in enumerate(actions):
        o, r, _, _, info = envs.step(action)
        assert np.array_equal(observations[t + 1], o.astype(np.float32)), t
        assert np.array_equal(rewards[t], r.astype(np.float32)), t
        assert np.array_equal(wins[t], info["success"] > 0), t


@pytest.mark.parametrize("environment", ["reach-v3", "push-v3", "drawer-open-v3"])
def test_the_goal_is_hidden(package, environment):
    """In a reset, in steps, in an environment that has shown it before; and shown to the oracle in both."""
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 4)).astype(np.float32)
    tasks = Tasks.from_json([{"goal": 3}, {"goal": 60}])
    hidden, _, _ = _episode(_made(environment=environment).batch(2, 1), tasks, actions)
    assert hidden.shape == (6, 2, 39)
    assert not hidden[..., 36:].any()
    batch = _made(environment=environment, oracle=True).batch(2, 1)
    for _ in range(2):  # once more with environments that have been used
        shown, _, _ = _episode(batch, tasks, actions)
        targets = np.array([env._target_pos for env in batch._envs], dtype=np.float32)
        assert np.array_equal(shown[..., 36:], np.broadcast_to(targets, (6, 2, 3)))
        assert np.array_equal(shown[..., :36], hidden[..., :36]), "the goal is all that differs"
    assert not np.array_equal(targets[0], targets[1])
    assert not np.isclose(hidden[0, :, :36].reshape(2, -1, 1), targets[:, None]).all(1).any()


def test_a_package_that_shows_the_goal_is_refused(package, monkeypatch):
    """Trusting that it hides it."""
    batch = _made().batch(1, 1)
    batch.reset(Tasks.from_json([{"goal": 3}]), np.zeros(1, np.uint32))
    batch._envs[0]._partially_observable = False
    batch._envs[0].__dict__.pop("sawyer_observation_space", None)
    with pytest.raises(EnvFault, match="shows the goal"):
        batch.step(np.zeros((1, 4), np.float32))


def test_what_an_environment_did_before_changes_nothing(package):
    """Environments that go from one class to another and back, and some that start anew alone."""
    rows = [{"environment": ENVIRONMENTS.index(n), "goal": g} for n, g in zip(ML10_TEST[:4], range(4), strict=True)]
    tasks, other = Tasks.from_json(rows), Tasks.from_json(rows[2:] + rows[:2])
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4, 4)).astype(np.float32)
    family, fresh = _made("metaworld-ml10"), _made("metaworld-ml10").batch(4, 1)
    expected = _episode(fresh, tasks, actions)
    used = family.batch(4, 1)
    _episode(used, other, actions)
    for ours, theirs in zip(_episode(used, tasks, actions), expected, strict=True):
        assert np.array_equal(ours, theirs)
    some = np.array([1, 3])
    assert np.array_equal(used.restart(some, tasks.rows(some), np.zeros(2, np.uint32)), expected[0][0, some])
    step = used.step(actions[0])
    assert np.array_equal(step.observations[some], expected[0][1, some])
    assert not np.array_equal(step.observations[[0, 2]], expected[0][1, [0, 2]])


def test_episodes_end_at_the_horizon_and_stand_still_after(package):
    """The package's refusal to step beyond 500; a time limit that is no truncation."""
    batch = _made(horizon=3).batch(2, 1)
    batch.reset(Tasks.from_json([{"goal": 3}, {"goal": 4}]), np.zeros(2, np.uint32))
    steps = [batch.step(np.ones((2, 4), np.float32)) for _ in range(5)]
    assert [step.truncated.all() for step in steps] == [False, False, True, True, True]
    assert not any(step.terminated.any() for step in steps)
    assert np.array_equal(steps[4].observations, steps[2].observations)
    assert not np.array_equal(steps[1].observations, steps[2].observations)
    with pytest.raises(SettingsError, match=r"env.horizon=501 is too large"):
        _made(horizon=501)


def test_tasks_that_are_none_are_refused(package):
    """An IndexError, or silently another task."""
    batch = _made().batch(1, 1)
    for goal in (100, -1, 2.5):
        with pytest.raises(SettingsError, match="reach-v3 has no goal"):
            batch.reset(Tasks.from_json([{"goal": goal}]), np.zeros(1, np.uint32))
    with pytest.raises(SettingsError, match="no environment 2 is in this benchmark"):
        _made("metaworld-ml10").batch(1, 1).reset(
            Tasks.from_json([{"environment": 2, "goal": 0}]), np.zeros(1, np.uint32)
        )


@pytest.mark.parametrize(
    ("environment", "policy"), [("reach-v3", "SawyerReachV3Policy"), ("drawer-open-v3", "SawyerDrawerOpenV3Policy")]
)
@pytest.mark.filterwarnings("ignore:Constant")
def test_the_packages_experts_succeed(package, environment, policy):
    """From task numbers to success rates: another goal than the one that is shown, actions in other units, success unheard."""
    from metaworld import policies

    expert, family = getattr(policies, policy)(), _made(environment=environment, oracle=True)
    tasks = Tasks.from_json([{"goal": goal} for goal in (0, 17, 45, 50, 99)])
    batch = family.batch(len(tasks), 1)
    observations, solved = batch.reset(tasks, np.zeros(5, np.uint32)), np.zeros(5, dtype=bool)
    idle, never = _made(environment=environment).batch(5, 1), np.zeros(5, dtype=bool)
    idle.reset(tasks, np.zeros(5, np.uint32))
    for _ in range(150):
        actions = np.stack([expert.get_action(o.astype(np.float64)) for o in observations]).astype(np.float32)
        observations = batch.step(actions).observations
        solved |= batch.success()
        idle.step(np.zeros((5, 4), np.float32))
        never |= idle.success()
    assert solved.mean() > 0.8
    assert not never.any(), "who does nothing solves nothing"


def test_training_and_evaluation_run(package, tmp_path, capsys):
    """From the command line to a success rate."""
    run = tmp_path / "run"
    small = [
        "env.horizon=5",
        "meta_batch_size=2",
        "episodes_per_task=2",
        "hidden_sizes=[4]",
        "eval_every=2",
        "eval_tasks=2",
    ]
    assert train.main(["env=metaworld-ml1", "iterations=2", *small, f"run_dir={run}"]) == 0
    assert "success 0.00 -> 0.00" in capsys.readouterr().out
    assert evaluate.main([f"run={run}", "tasks=3", "steps=1"]) == 0
    assert "success rate after updates  0: 0 [0, 0]  1: 0 [0, 0]" in capsys.readouterr().out
    result = json.loads((run / "evaluation" / "curve.json").read_text())
    assert result["runs"]["run"]["success"]["values"] == [[0.0] * 3] * 2
    assert all(50 <= task["goal"] < 100 for task in result["tasks"])


def test_loading_is_done_once(package):
    """Seconds for every batch."""
    assert load("ML1", REACH, 0) is load("ML1", REACH, 0)
    assert benchmarks.GOALS == 50
