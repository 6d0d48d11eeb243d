"""Half-cheetah against Gymnasium's own environment, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from metarl import families
from metarl.families import SPLITS, EnvFault, Tasks, split_of
from metarl.settings import SettingsError

STEPS = 200
SEEDS = np.array([0, 1, 123, 2**32 - 1], dtype=np.uint32)
VELOCITIES = np.array([[0.0], [0.5], [1.25], [2.0]])


@pytest.fixture(scope="module")
def reference():
    """What Gymnasium's HalfCheetah-v5 does with the same seeds and actions: one environment after another."""
    rng = np.random.default_rng(7)
    actions = rng.normal(scale=0.8, size=(STEPS, len(SEEDS), 6)).astype(np.float32)  # a fifth of them beyond +-1
    assert (np.abs(actions) > 1).mean() > 0.1
    record = {name: [] for name in ("first", "qpos", "qvel", "observations", "x_velocity")}
    for b, seed in enumerate(SEEDS):
        env = gymnasium.make("HalfCheetah-v5").unwrapped
        first, _ = env.reset(seed=int(seed))
        record["first"].append(first)
        rows = []
        for t in range(STEPS):
            # Gymnasium's unwrapped environment does not clip; the engine's own clamp does (ctrllimited)
            clipped = np.clip(actions[t, b].astype(np.float64), -1.0, 1.0)
            observation, _, terminated, _, info = env.step(clipped)
            assert not terminated
            rows.append((env.data.qpos.copy(), env.data.qvel.copy(), observation, info["x_velocity"]))
        for name, column in zip(("qpos", "qvel", "observations", "x_velocity"), zip(*rows, strict=True), strict=True):
            record[name].append(np.array(column))
        env.close()
    return actions, {name: np.stack(values) for name, values in record.items()}


def _tasks():
    return Tasks(("velocity",), VELOCITIES)


def _family(**settings):
    return families.make("halfcheetah-vel", **settings)


@pytest.mark.parametrize("threads", [1, 2])
def test_dynamics_and_reset_are_gymnasiums_to_the_bit(reference, threads):
    """Positions and velocities in float64 over 200 steps; the batch is used twice, so that nothing survives a reset."""
    actions, expected = reference
    env = _family().batch(len(SEEDS), threads)
    env.reset(_tasks(), SEEDS[::-1].copy())
    for t in range(3):
        env.step(actions[t])
    first = env.reset(_tasks(), SEEDS)
    assert np.array_equal(first, expected["first"].astype(np.float32))
    for t in range(STEPS):
        step = env.step(actions[t])
        assert np.array_equal(env._qpos, expected["qpos"][:, t]), f"positions differ at step {t}"
        assert np.array_equal(env._qvel, expected["qvel"][:, t]), f"velocities differ at step {t}"
        assert np.array_equal(step.observations, expected["observations"][:, t].astype(np.float32))


def test_reward_is_its_formula_on_gymnasiums_velocity(reference):
    """-|v - v*| - 0.05 |a|^2 with the clipped action; a wrong time step, sign, task row or an unclipped cost shows."""
    actions, expected = reference
    env = _family().batch(len(SEEDS), 1)
    env.reset(_tasks(), SEEDS)
    for t in range(STEPS):
        rewards = env.step(actions[t]).rewards
        cost = 0.05 * np.sum(np.clip(actions[t].astype(np.float64), -1, 1) ** 2, axis=1)
        wanted = -np.abs(expected["x_velocity"][:, t] - VELOCITIES[:, 0]) - cost
        np.testing.assert_allclose(rewards, wanted, rtol=2e-7, atol=1e-7)
        assert rewards.dtype == np.float32


@pytest.mark.parametrize("frame_skip", [1, 5])
def test_velocity_is_displacement_over_the_whole_control_step(frame_skip):
    """A frame skip that changes the simulation but not the time step makes every velocity wrong by that factor."""
    family = _family(frame_skip=frame_skip, control_cost=0.0)
    assert family.spec.control_step == pytest.approx(0.01 * frame_skip)
    env = family.batch(1, 1)
    env.reset(Tasks(("velocity",), np.array([[2.0]])), SEEDS[:1])
    before = env._qpos[0, 0]
    reward = env.step(np.ones((1, 6), np.float32)).rewards[0]
    assert reward == pytest.approx(-abs((env._qpos[0, 0] - before) / (0.01 * frame_skip) - 2.0), rel=1e-5)


def test_actions_are_clipped_and_the_callers_array_is_not():
    """An action of 5 must act, and cost, like an action of 1."""
    results = []
    for scale in (5.0, 1.0):
        env = _family().batch(1, 1)
        env.reset(_tasks().rows([2]), SEEDS[:1])
        actions = np.full((1, 6), scale, dtype=np.float32)
        actions[0, ::2] *= -1
        copy = actions.copy()
        results.append([env.step(actions) for _ in range(5)])
        assert np.array_equal(actions, copy)
    for wide, narrow in zip(*results, strict=True):
        assert np.array_equal(wide.observations, narrow.observations)
        assert np.array_equal(wide.rewards, narrow.rewards)


@pytest.mark.parametrize("horizon", [1, 7])
def test_the_time_limit_falls_at_exactly_the_horizon(horizon):
    """Off by one, and the last value is bootstrapped at the wrong state; a second episode counts from zero."""
    env = _family(horizon=horizon).batch(2, 1)
    for _ in range(2):
        env.reset(_tasks().rows([0, 1]), SEEDS[:2])
        steps = [env.step(np.zeros((2, 6), np.float32)) for _ in range(horizon)]
        assert [s.truncated.tolist() for s in steps] == [[t == horizon - 1] * 2 for t in range(horizon)]
        assert not any(s.terminated.any() for s in steps)
        assert all(s.truncated.dtype == s.terminated.dtype == np.bool_ for s in steps)


def test_results_may_be_kept():
    """A view of the engine's live state would change under the caller's hands at the next step."""
    env = _family().batch(2, 1)
    first = env.reset(_tasks().rows([0, 1]), SEEDS[:2])
    kept = first.copy()
    step = env.step(np.ones((2, 6), np.float32))
    copies = [np.array(x) for x in step]
    env.step(-np.ones((2, 6), np.float32))
    assert np.array_equal(first, kept)
    assert all(np.array_equal(a, b) for a, b in zip(step, copies, strict=True))


@pytest.mark.parametrize("field", ["_qvel", "_qpos"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e11])
def test_a_broken_state_is_a_fault_that_names_the_simulation(field, value):
    """MuJoCo puts such a body silently back to its start, with finite observations and rewards."""
    env = _family().batch(3, 1)
    env.reset(_tasks().rows([0, 1, 2]), SEEDS[:3])
    env.step(np.zeros((3, 6), np.float32))
    getattr(env, field)[1, 3] = value
    with pytest.raises(EnvFault, match="infinite or not a number") as caught:
        env.step(np.zeros((3, 6), np.float32))
    assert caught.value.envs.tolist() == [1]
    env.reset(_tasks().rows([0, 1, 2]), SEEDS[:3])
    assert np.isfinite(env.step(np.zeros((3, 6), np.float32)).observations).all(), "a reset heals the batch"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_action_never_becomes_a_quiet_result(value):
    """NaN actions are a fault; infinite ones are clipped like all others."""
    env = _family().batch(2, 1)
    env.reset(_tasks().rows([0, 1]), SEEDS[:2])
    actions = np.zeros((2, 6), np.float32)
    actions[1, 2] = value
    if np.isnan(value):
        with pytest.raises(EnvFault) as caught:
            env.step(actions)
        assert caught.value.envs.tolist() == [1]
    else:
        assert np.isfinite(env.step(actions).rewards).all()


PROGRAM = """
import numpy as np
from metarl import families
from metarl.families import EnvFault, Tasks
env = families.make("halfcheetah-vel").batch(2, 2)
env.reset(Tasks(("velocity",), np.ones((2, 1))), np.arange(2, dtype=np.uint32))
env.step(np.zeros((2, 6), np.float32))
env._qvel[0] = np.nan
try:
    env.step(np.zeros((2, 6), np.float32))
except EnvFault as error:
    print("fault", error.envs)
"""


def test_nothing_is_printed_and_no_log_is_written(tmp_path):
    """Gymnasium's file makes MuJoCo warn at every load, and a bad state makes it write MUJOCO_LOG.TXT into the cwd."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "fault [0]\n"
    assert list(tmp_path.iterdir()) == []


def test_compiled_model_is_gymnasiums_to_the_bit():
    """Without the deprecated ``settotalmass`` the masses, inertias and all that follows from them must be the same."""
    import mujoco

    from metarl.envs.locomotion.engine import load_model

    ours, theirs = load_model("half_cheetah.xml"), gymnasium.make("HalfCheetah-v5").unwrapped.model
    compared = 0
    for name in dir(theirs):
        a, b = (getattr(model, name) for model in (ours, theirs)) if not name.startswith("_") else (None, None)
        if isinstance(b, np.ndarray):
            compared += 1
            assert a.dtype == b.dtype, name
            assert a.shape == b.shape, name
            assert a.tobytes() == b.tobytes(), name
        elif isinstance(b, int | float | bytes | str):
            assert a == b, name
    assert compared > 200
    for part in ("opt", "stat"):
        for name in dir(getattr(theirs, part)):
            b = getattr(getattr(theirs, part), name)
            if not name.startswith("_") and isinstance(b, int | float | np.ndarray):
                assert np.array_equal(getattr(getattr(ours, part), name), b), f"{part}.{name}"
    assert ours.opt.timestep == 0.01
    assert mujoco.mj_getTotalmass(ours) == pytest.approx(14.0)


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_belong_to_their_split_and_cover_the_range(split):
    """Every split has every part of U(0, 2): a test split of the fastest tenth would measure something else."""
    values = _family().sample_tasks(4000, split, 3)["velocity"]
    assert {split_of(v / 2.0) for v in values} == {split}
    assert values.min() >= 0.0
    assert values.max() < 2.0
    counts, _ = np.histogram(values, bins=20, range=(0.0, 2.0))
    assert counts.min() > 130  # 200 expected, sd 14
    assert counts.max() < 270
    assert abs(values.mean() - 1.0) < 0.05


def test_tasks_are_a_function_of_seed_split_and_row():
    family = _family()
    ten = family.sample_tasks(10, "train", (5, 0, 2))
    assert family.sample_tasks(10, "train", (5, 0, 2)) == ten
    assert family.sample_tasks(3, "train", (5, 0, 2)) == ten.rows(slice(0, 3))
    for split, seed in (("train", (5, 0, 3)), ("train", (6, 0, 2)), ("validation", (5, 0, 2)), ("test", (5, 0, 2))):
        assert not set(family.sample_tasks(10, split, seed)["velocity"]) & set(ten["velocity"])


@pytest.mark.parametrize("seed", [0, 7])
def test_no_value_occurs_in_two_splits(seed):
    drawn = {split: set(_family().sample_tasks(3000, split, seed)["velocity"]) for split in SPLITS}
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not drawn[a] & drawn[b]


def test_a_range_of_ones_own_is_respected_and_an_empty_one_refused():
    values = _family(velocity_low=1.0, velocity_high=3.0).sample_tasks(500, "test", 1)["velocity"]
    assert 1.0 <= values.min() < 1.1
    assert 2.9 < values.max() < 3.0
    with pytest.raises(SettingsError, match="velocity_low"):
        _family(velocity_low=2.0, velocity_high=2.0)
