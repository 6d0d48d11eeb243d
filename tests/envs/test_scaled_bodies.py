"""Bodies that differ from task to task, against Gymnasium's environments whose models were edited the same way."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl import families
from metarl.families import SPLITS, Tasks

SEEDS = np.array([0, 9, 2**32 - 1], dtype=np.uint32)
STEPS = 200
PARAMS = {"hopper-params": ("Hopper-v5", 0.05, 16), "walker2d-params": ("Walker2d-v5", 0.1, 28)}


def _edit(model, task):
    """Multiply the numbers that a task names, by hand."""
    for name, factor in task.items():
        kind, _, item = name.partition("_")
        if kind == "mass":
            model.body(item).mass *= factor
        elif kind == "inertia":
            model.body(item).inertia *= factor
        elif kind == "damping":
            model.joint(f"{item}_joint").damping *= factor
        else:
            model.geom(item if item == "floor" else f"{item}_geom").friction *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", PARAMS)
def test_dynamics_are_those_of_an_edited_gymnasium_model(name, threads):
    """Bit for bit until the fall; the tasks change at the second reset, and the first ones must leave no trace."""
    identifier, scale, count = PARAMS[name]
    family = families.make(name)
    env, tasks = family.batch(3, threads), family.sample_tasks(3, "train", 4)
    size = family.spec.action_size
    actions = np.clip(scale * np.random.default_rng(2).normal(size=(STEPS, 3, size)), -1, 1).astype(np.float32)
    assert len(tasks.names) == count
    env.reset(family.sample_tasks(3, "test", 0), SEEDS)
    env.step(actions[0])
    env.reset(tasks, SEEDS)
    rivals = [gymnasium.make(identifier).unwrapped for _ in SEEDS]
    for rival, task, seed in zip(rivals, tasks.to_json(), SEEDS, strict=True):
        _edit(rival.model, task)
        rival.reset(seed=int(seed))
    alive, compared = [True] * 3, 0
    for t in range(STEPS):
        step = env.step(actions[t])
        for b, rival in enumerate(rivals):
            if alive[b]:
                action = actions[t, b].astype(np.float64)
                observation, _, ended, _, info = rival.step(action)
                assert np.array_equal(env._qpos[b], rival.data.qpos), f"simulation {b}, step {t}"
                assert np.array_equal(env._qvel[b], rival.data.qvel), f"simulation {b}, step {t}"
                assert np.array_equal(step.observations[b], observation.astype(np.float32))
                wanted = info["x_velocity"] - 0.001 * np.sum(action**2) + 1.0
                assert step.rewards[b] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
                assert step.terminated[b] == ended
                alive[b], compared = not ended, compared + 1
    assert compared > 60


@pytest.mark.parametrize("name", PARAMS)
def test_a_factor_changes_its_own_number_of_its_own_simulation(name):
    """Catches factors that reach the neighbour, another body, or the model that all batches share."""
    family = families.make(name)
    names = tuple(p.name for p in family.spec.parameters)
    env = family.batch(len(names), 1)
    env.reset(Tasks(names, np.ones((len(names), len(names)))), np.zeros(len(names), dtype=np.uint32))
    plain = env._batch.get_model(0)
    env.reset(
        Tasks(names, np.ones((len(names), len(names))) + np.eye(len(names))), np.zeros(len(names), dtype=np.uint32)
    )
    fields = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
    for row, parameter in enumerate(names):
        mine, wanted = env._batch.get_model(row), env._batch.get_model(row)
        for field in fields:
            getattr(wanted, field)[:] = getattr(plain, field)
        _edit(wanted, {parameter: 2.0})
        for field in (*fields, "body_subtreemass", "dof_M0", "body_invweight0"):
            assert np.array_equal(getattr(mine, field), getattr(wanted, field)), f"{parameter}: {field}"
        assert any(not np.array_equal(getattr(mine, field), getattr(plain, field)) for field in fields), parameter
    assert mujoco.mj_getTotalmass(env._batch.model) == mujoco.mj_getTotalmass(plain)


@pytest.mark.parametrize("name", PARAMS)
def test_factors_are_as_often_below_one_as_above_and_within_their_range(name):
    """1.5^u for masses, inertias and friction, 1.3^u for damping, u uniform on +-3."""
    family = families.make(name)
    for split in SPLITS:
        tasks = family.sample_tasks(2000, split, 1)
        for parameter in family.spec.parameters:
            base = 1.3 if parameter.name.startswith("damping") else 1.5
            assert (parameter.low, parameter.high) == pytest.approx((base**-3, base**3))
            exponents = np.log(tasks[parameter.name]) / np.log(base)
            assert np.abs(exponents).max() <= 3.0
            assert abs(exponents.mean()) < 0.16  # sd of the mean 0.039
            assert exponents.std() == pytest.approx(3 / np.sqrt(3), rel=0.05)
    assert families.make(name, spread=1.0).spec.parameters[0].high == pytest.approx(1.5)
