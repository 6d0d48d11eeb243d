"""Vector environments over a family's batch: what Gymnasium's own vector environment does with single ones, to the bit."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import metarl
from metarl.cohorts import Cohorts
from metarl.gym.vector import FamilyVectorEnv
from metarl.settings import SettingsError

COUNT = 4
LENGTHS = [{"length": value} for value in (0.3, 0.9, 1.4, 1.9)]


def _made(name, **settings):
    return gymnasium.make_vec(f"metarl/{name}-v0", **settings)


def _same(ours, theirs, where):
    """Equal in value and form, dictionaries and arrays of objects included."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            _same(ours[key], theirs[key], f"{where}.{key}")
    elif ours.dtype == object:
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None), where
            assert np.array_equal(one, other), where
    else:
        assert ours.dtype == theirs.dtype, where
        assert np.array_equal(ours, theirs), where


def _pair(name, mode, **settings):
    """Ours, and Gymnasium's over single environments."""
    ours = _made(name, num_envs=COUNT, autoreset_mode=mode, **settings)
    kind = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode(mode)}}
    return ours, _made(name, num_envs=COUNT, **kind, **settings)


@pytest.mark.parametrize("name", ["cartpole-length", "cartpole-whole"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_it_is_gymnasiums_vector_of_single_environments(mode, name):
    """Ragged episodes: poles fall at different times, start anew, and fall again; every return value, and seeds that follow.

    The same whether the family's simulations can start anew one by one or only all together.
    """
    ours, theirs = _pair(name, mode, horizon=30, task={"length": 0.5})
    assert isinstance(ours, FamilyVectorEnv)
    for field in ("single_observation_space", "single_action_space", "observation_space", "action_space", "num_envs"):
        assert getattr(ours, field) == getattr(theirs, field), field
    random, ends = np.random.default_rng(0), []
    for seed in (5, [7, 1, None, 2**33]):
        first = [env.reset(seed=seed) for env in (ours, theirs)]
        if seed == 5:
            _same(*({"observations": o, "info": i} for o, i in first), "reset")
        else:  # a generator that was never seeded again goes on where it was, in both
            assert np.array_equal(first[0][0], first[1][0])
        for t in range(120):
            actions = random.integers(0, 2, COUNT)
            results = [dict(enumerate(env.step(actions))) for env in (ours, theirs)]
            _same(*results, f"step {t}")
            done = results[0][2] | results[0][3]
            ends += [(t, row) for row in np.flatnonzero(done)]
            if mode == "Disabled" and done.any():
                again = [env.reset(options={"reset_mask": done.copy()}) for env in (ours, theirs)]
                _same(*({"observations": o, "info": i} for o, i in again), f"reset after {t}")
    assert len({t for t, _ in ends}) > 10, "episodes ended at many different times"


@pytest.mark.parametrize(("name", "batches"), [("cartpole-length", 1), ("cartpole-whole", 4)])
def test_who_starts_anew_stays_in_the_batch_where_that_is_possible(name, batches):
    """A batch for every simulation, stepped one after another, although the family can start one of many."""
    ours, random = _made(name, num_envs=COUNT, horizon=30), np.random.default_rng(0)
    ours.reset(seed=0)
    for _ in range(100):
        ours.step(random.integers(0, 2, COUNT))
    assert len({id(ours._simulations.where(row)[0]) for row in range(COUNT)}) == batches


def test_of_simulations_that_started_apart_the_right_one_starts_anew():
    """Its number taken for its place in the batch: some start first, others later, then one of the first again."""
    family = metarl.make("cartpole-length")
    tasks, simulations = family.sample_tasks(COUNT, "train", 0), Cohorts(family, 1)
    for rows in ([1, 3], [0, 2], [3]):
        seeds = np.array(rows, dtype=np.uint32)
        first = simulations.reset(np.array(rows), tasks.rows(rows), seeds)
        assert np.array_equal(first, family.batch(len(rows), 1).reset(tasks.rows(rows), seeds))
        actions = np.full((COUNT, 1), rows[0] % 2)
        step = simulations.step(actions) if rows != [1, 3] else None
    for row, played in ((0, [0, 1]), (2, [0, 1]), (3, [1])):
        alone = family.batch(1, 1)
        alone.reset(tasks.rows([row]), np.array([row], dtype=np.uint32))
        for action in played:
            wanted = alone.step(np.array([[action]]))
        assert np.array_equal(step.observations[row], wanted.observations[0]), row


def test_a_fixed_horizon_ends_everywhere_at_once():
    """The family's whole batch at every step: float32 actions beyond the bounds, the time limit, the start after it."""
    ours, theirs = _pair("halfcheetah-vel", "NextStep", horizon=6, task={"velocity": 1.0})
    assert np.array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    random = np.random.default_rng(1)
    for t in range(15):
        actions = random.uniform(-1.0, 1.0, (COUNT, 6)).astype(np.float32)
        results = [dict(enumerate(env.step(actions))) for env in (ours, theirs)]
        _same(*results, f"step {t}")
        assert results[0][3].all() == (t in (5, 12))


def test_one_task_each():
    """Tasks in the wrong rows; reports that do not say whose they are."""
    ours = _made("cartpole-length", num_envs=COUNT, task=LENGTHS)
    observations, info = ours.reset(seed=11)
    assert info["task"]["length"].tolist() == [0.3, 0.9, 1.4, 1.9]
    singles = [gymnasium.make("metarl/cartpole-length-v0", task=task) for task in LENGTHS]
    first = [single.reset(seed=11 + i)[0] for i, single in enumerate(singles)]
    assert np.array_equal(observations, first)
    for _ in range(3):
        actions = np.array([1, 0, 1, 0])
        stepped = ours.step(actions)[0]
        assert np.array_equal(stepped, [s.step(int(a))[0] for s, a in zip(singles, actions, strict=True)])


def test_tasks_change_by_options_and_for_those_that_start():
    """A simulation in the middle of its episode gets another task; or one that starts keeps the old one."""
    ours = _made("cartpole-length", num_envs=COUNT, task={"length": 1.0}, autoreset_mode="Disabled")
    ours.reset(seed=0)
    mask = np.array([True, False, True, False])
    _, info = ours.reset(options={"reset_mask": mask, "task": {"length": 0.5}})
    assert info["task"]["_length"].tolist() == mask.tolist()
    info = ours.step(np.zeros(COUNT, dtype=int))[-1]
    assert info["task"]["length"].tolist() == [0.5, 1.0, 0.5, 1.0]
    info = ours.reset()[1]
    assert info["task"]["length"].tolist() == [0.5, 1.0, 0.5, 1.0]
    info = ours.reset(options={"task": LENGTHS})[1]
    assert info["task"]["length"].tolist() == [0.3, 0.9, 1.4, 1.9]


def test_episodes_are_cut_where_gymnasium_is_told_to():
    """``max_episode_steps`` is a wrapper for single environments and reaches ours as an argument."""
    ours = _made("halfcheetah-vel", num_envs=2, max_episode_steps=2)
    ours.reset(seed=0)
    cut = [ours.step(np.zeros((2, 6), dtype=np.float32))[3].tolist() for _ in range(5)]
    assert cut == [[False] * 2, [True] * 2, [False] * 2, [False] * 2, [True] * 2]


def test_without_a_task_all_have_that_of_the_single_environment():
    """One id with the same arguments is the same problem, however it is made."""
    wanted = metarl.make("halfcheetah-vel").sample_tasks(1, "train", 3).to_json()[0]["velocity"]
    info = _made("halfcheetah-vel", num_envs=3, task_seed=3).reset(seed=0)[1]
    assert info["task"]["velocity"].tolist() == [wanted] * 3


def test_results_may_be_kept():
    """A buffer that the next step writes into."""
    ours = _made("cartpole-length", num_envs=2)
    kept = [ours.reset(seed=0)[0]]
    for _ in range(2):
        kept += ours.step(np.zeros(2, dtype=int))[:4]
    copies = [array.copy() for array in kept]
    ours.step(np.ones(2, dtype=int))
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_pictures_of_every_simulation():
    """Frames of one simulation for all."""
    ours = _made("halfcheetah-vel", num_envs=2, render_mode="rgb_array")
    ours.reset(seed=0)
    frames = ours.render()
    assert [frame.shape for frame in frames] == [(320, 480, 3)] * 2
    assert (frames[0] != frames[1]).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": LENGTHS[:3]}, "got 3 tasks for 4 simulations"),
        ({"autoreset_mode": "NextSteps"}, "Did you mean 'NextStep'"),
        ({"horizn": 2}, "Did you mean 'env.horizon'"),
    ],
)
def test_what_is_wrong_is_refused(settings, said):
    """Tasks that are dealt out to the wrong simulations; modes and settings that are silently not there."""
    with pytest.raises(SettingsError, match=said):
        _made("cartpole-length", num_envs=4, **settings)


def test_an_ended_episode_is_not_stepped_on_where_nothing_starts_it():
    """Transitions after the end that a learner takes for its own."""
    ours = _made("halfcheetah-vel", num_envs=2, horizon=1, autoreset_mode="Disabled")
    ours.reset(seed=0)
    ours.step(np.zeros((2, 6), dtype=np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded, match="2 episodes have ended"):
        ours.step(np.zeros((2, 6), dtype=np.float32))
    with pytest.raises(ValueError, match="reset_mask"):
        ours.reset(options={"reset_mask": np.zeros(2, dtype=bool)})
    with pytest.raises(ValueError, match="3 seeds for 2"):
        ours.reset(seed=[1, 2, 3])
    ours.reset()
    with pytest.raises(ValueError, match="2 actions"):
        ours.step(np.zeros((3, 6), dtype=np.float32))
