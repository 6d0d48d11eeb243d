"""Every body against Gymnasium's own environment, to the bit, and every reward against a computation of its own."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl import families
from metarl.envs.locomotion.bodies import measure_centre
from metarl.envs.locomotion.engine import load_model, without_islands
from metarl.envs.locomotion.maml_ant import calibrate
from metarl.families import EnvFault, Tasks
from metarl.settings import fields

STEPS = 200
SEEDS = np.array([0, 1, 123, 2**32 - 1], dtype=np.uint32)
PLAIN = {"include_cfrc_ext_in_observation": False}
# family: (Gymnasium's id, its arguments, settings of ours, scale of the actions)
BODIES = {
    "halfcheetah-dir": ("HalfCheetah-v5", {}, {}, 0.8),
    "hopper-vel": ("Hopper-v5", {}, {}, 0.05),
    "walker2d-vel": ("Walker2d-v5", {}, {}, 0.1),
    "ant-vel": ("Ant-v5", PLAIN, {}, 0.8),
    "ant-dir": ("Ant-v5", {}, {"contact_forces": True}, 0.8),
    "humanoid-direction": ("Humanoid-v5", PLAIN, {}, 0.2),
    "humanoid-direction with contacts": ("Humanoid-v5", {}, {"contact_forces": True}, 0.2),
}


def _make(name, **settings):
    return families.make(name.partition(" ")[0], horizon=STEPS, **settings)


def _tasks(name, count):
    family = _make(name)
    return family.sample_tasks(count, "train", 3)


def _play_gymnasium(env, seed, actions):
    """Reset and step one environment to its end; return rows of (qpos, qvel, observation, reward parts, ended)."""
    first, _ = env.reset(seed=int(seed))
    rows = []
    for action in actions:
        observation, _, terminated, _, info = env.step(action)
        state = env.data.qpos.copy(), env.data.qvel.copy()
        rows.append((*state, observation, info, terminated, env.data.cfrc_ext.copy()))
        if terminated:
            break
    return first, rows


@pytest.fixture(scope="module", params=BODIES)
def played(request):
    """What Gymnasium's environments do, one after another, and what ours is to repeat."""
    identifier, arguments, settings, scale = BODIES[request.param]
    env = gymnasium.make(identifier, **arguments).unwrapped
    low, high = env.model.actuator_ctrlrange.T
    noise = np.random.default_rng(7).normal(size=(STEPS, len(SEEDS), env.model.nu))
    actions = np.clip(scale * noise, low, high).astype(np.float32)
    clipped = np.clip(actions.astype(np.float64), low, high)
    played = [_play_gymnasium(env, seed, clipped[:, b]) for b, seed in enumerate(SEEDS)]
    env.close()
    return request.param, settings, actions, played


@pytest.mark.parametrize("threads", [1, 2])
def test_dynamics_observations_and_ends_are_gymnasiums_to_the_bit(played, threads):
    """Catches a wrong reset, frame skip, layout, clip or range; the batch is used twice, so that nothing survives."""
    name, settings, actions, expected = played
    env, tasks = _make(name, **settings).batch(len(SEEDS), threads), _tasks(name, len(SEEDS))
    env.reset(tasks, SEEDS[::-1].copy())
    for t in range(3):
        env.step(actions[t])
    first = env.reset(tasks, SEEDS)
    for b, (start, _) in enumerate(expected):
        assert np.array_equal(first[b], start.astype(np.float32))
    compared = 0
    for t in range(STEPS):
        step = env.step(actions[t])
        for b, (_, rows) in enumerate(expected):
            if t < len(rows):
                qpos, qvel, observation, _, ended, _ = rows[t]
                assert np.array_equal(env._qpos[b], qpos), f"positions of {b} differ at step {t}"
                assert np.array_equal(env._qvel[b], qvel), f"velocities of {b} differ at step {t}"
                assert np.array_equal(step.observations[b], observation.astype(np.float32))
                assert step.terminated[b] == ended
                assert step.truncated[b] == (t == STEPS - 1)
                compared += 1
    falls = sum(rows[-1][4] for _, rows in expected)
    assert compared == sum(len(rows) for _, rows in expected)
    assert compared >= STEPS or falls
    if name.startswith(("hopper", "walker", "humanoid")):
        assert falls, "the comparison must go through a fall"


def _expected_reward(name, task, info, action, contacts):
    """Rewards from Gymnasium's own velocities, by the formulas of the sources."""
    cost = float(np.sum(action.astype(np.float64) ** 2))
    vx, vy = info["x_velocity"], info.get("y_velocity")
    if name == "halfcheetah-dir":
        return task["direction"] * vx - 0.05 * cost
    if name in ("hopper-vel", "walker2d-vel"):
        return 3.0 - abs(vx - task["velocity"]) - 0.001 * cost
    if name == "ant-vel":
        return 1.0 - abs(vx - task["velocity"]) - 0.005 * cost + 0.05
    if name == "ant-dir":
        clipped = np.clip(contacts, -1, 1)
        assert np.abs(clipped).sum() > 0 or contacts.sum() == 0
        return task["direction"] * vx - 0.005 * cost - 0.0005 * np.sum(clipped**2) + 0.05
    along = np.cos(task["angle"]) * vx + np.sin(task["angle"]) * vy
    touch = min(10.0, 0.5e-6 * np.sum(contacts**2)) if name.endswith("contacts") else 0.0
    return 1.25 * along - 0.1 * cost - touch + 5.0


def test_rewards_are_their_formulas_on_gymnasiums_numbers(played):
    """Catches a wrong sign, weight, task row, velocity or control step, and a cost of forces that were not measured."""
    name, settings, actions, expected = played
    env, tasks = _make(name, **settings).batch(len(SEEDS), 1), _tasks(name, len(SEEDS))
    env.reset(tasks, SEEDS)
    for t in range(STEPS):
        rewards = env.step(actions[t]).rewards
        assert rewards.dtype == np.float32
        for b, (_, rows) in enumerate(expected):
            if t < len(rows):
                *_, info, _, contacts = rows[t]
                wanted = _expected_reward(name, tasks.to_json()[b], info, actions[t, b], contacts)
                assert rewards[b] == pytest.approx(wanted, rel=1e-5, abs=1e-5), f"simulation {b}, step {t}"


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"])
def test_compiled_models_are_gymnasiums_to_the_bit(name):
    """Catches another file of the same body."""
    env = gymnasium.make(name).unwrapped
    ours, theirs = load_model(env.fullpath.rpartition("/")[2]), env.model
    compared = 0
    for field in dir(theirs):
        a, b = (None, None) if field.startswith("_") else (getattr(ours, field), getattr(theirs, field))
        if isinstance(b, np.ndarray):
            compared += 1
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field
        elif isinstance(b, int | float | bytes | str):
            assert a == b, field
    assert compared > 200
    for part in ("opt", "stat"):
        for field in dir(getattr(theirs, part)):
            b = getattr(getattr(theirs, part), field)
            if not field.startswith("_") and isinstance(b, int | float | np.ndarray):
                assert np.array_equal(getattr(getattr(ours, part), field), b), f"{part}.{field}"


def test_only_a_single_tree_loses_the_search_for_islands():
    """Two bodies that do not touch are two islands, and solving them together may give other bits."""
    flag = int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    free = '<body pos="{x} 0 1"><freejoint/><geom size=".1"/></body>'
    trees = [
        mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{''.join(free.format(x=x) for x in range(n))}</worldbody></mujoco>")
        for n in (1, 2)
    ]  # fmt: skip
    assert [without_islands(m).opt.disableflags & flag for m in trees] == [flag, 0]
    assert [m.opt.disableflags & flag for m in trees] == [0, 0], "the caller's model is left alone"


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_fallen_body_stays_where_it_fell_and_breaks_nothing():
    """A body that fell may explode, which must not stop the others; nor may it come back to life before a reset."""
    family = _make("hopper-vel")
    env, tasks = family.batch(3, 1), _tasks("hopper-vel", 3)
    env.reset(tasks, SEEDS[:3])
    env._qpos[1, 2] = 1.0  # lies on its side
    step = env.step(np.zeros((3, 3), np.float32))
    assert step.terminated.tolist() == [False, True, False]
    where = env._qpos[1].copy()
    env._qvel[1] = np.nan
    step = env.step(np.zeros((3, 3), np.float32))
    assert step.terminated.tolist() == [False, True, False]
    assert np.array_equal(env._qpos[1], where)
    env._qvel[0] = np.nan
    with pytest.raises(EnvFault) as caught:
        env.step(np.zeros((3, 3), np.float32))
    assert caught.value.envs.tolist() == [0]
    env.reset(tasks, SEEDS[:3])
    assert not env.step(np.zeros((3, 3), np.float32)).terminated.any()


def test_all_may_have_fallen():
    env = _make("ant-vel").batch(2, 1)
    env.reset(_tasks("ant-vel", 2), SEEDS[:2])
    env._qpos[:, 2] = 1.5  # too high is no walk, either
    for _ in range(3):
        assert env.step(np.zeros((2, 8), np.float32)).terminated.all()


@pytest.mark.parametrize("name", [n for n in families.names() if "action_scale" in fields(families.lookup(n))])
def test_actions_are_divided_by_their_scale(name):
    """With a scale of 10, an action of 10 acts and costs like one of 1; the bounds say so."""
    steps = []
    for scale in (1.0, 10.0):
        family = families.make(name, action_scale=scale)
        env, size = family.batch(2, 1), family.spec.action_size
        env.reset(family.sample_tasks(2, "train", 0), SEEDS[:2])
        actions = np.random.default_rng(0).uniform(-0.4, 0.4, (3, 2, size)).astype(np.float32)
        assert family.spec.action_high == pytest.approx((0.4 if name.startswith("humanoid") else 1.0) * scale)
        assert family.spec.action_low == -family.spec.action_high
        steps.append([env.step(a.astype(np.float64) * scale) for a in actions])
    for one, ten in zip(*steps, strict=True):
        np.testing.assert_allclose(one.observations, ten.observations, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.rewards, ten.rewards, rtol=1e-5, atol=1e-5)


# -- tasks that are places and directions ------------------------------------------------------------------------------


def test_directions_turn_counterclockwise_from_x():
    """Catches sine and cosine exchanged, and degrees."""
    env = _make("ant-direction").batch(4, 1)
    turns = np.array([[0.0], [0.5 * np.pi], [np.pi], [1.5 * np.pi]])
    env.reset(Tasks(("angle",), turns), np.full(4, 5, dtype=np.uint32))
    before = env._batch.bind("xpos")[0, 1, :2].copy()
    action = np.random.default_rng(0).uniform(-1, 1, (1, 8)).astype(np.float32)
    rewards = env.step(np.repeat(action, 4, axis=0)).rewards
    vx, vy = (env._batch.bind("xpos")[0, 1, :2] - before) / 0.05
    rest = 1.0 - 0.5 * np.sum(action.astype(np.float64) ** 2)
    np.testing.assert_allclose(rewards, rest + np.array([vx, vy, -vx, -vy]), rtol=1e-5)


def test_goals_fill_a_disc_and_the_reward_is_the_distance_along_the_axes():
    """Catches goals that crowd at the centre, a Euclidean distance, and x taken for y."""
    family = _make("ant-goal")
    for split in families.SPLITS:
        goals = family.sample_tasks(4000, split, 1).values
        radius = np.hypot(*goals.T)
        assert radius.max() <= 3.0
        assert (radius < 1.5).mean() == pytest.approx(0.25, abs=0.03)
        assert np.abs(goals.mean(axis=0)).max() < 0.1
    env = family.batch(2, 1)
    env.reset(Tasks(("goal_x", "goal_y"), np.array([[2.0, -1.0], [-0.5, 0.25]])), SEEDS[:2])
    step = env.step(np.full((2, 8), 0.5, np.float32))
    place = env._batch.bind("xpos")[:, 1]
    wanted = [
        -abs(place[0, 0] - 2.0) - abs(place[0, 1] + 1.0) - 0.1 * 8 * 0.25,
        -abs(place[1, 0] + 0.5) - abs(place[1, 1] - 0.25) - 0.1 * 8 * 0.25,
    ]
    np.testing.assert_allclose(step.rewards, wanted, rtol=1e-6)
    env._qpos[:, 2] = 0.1
    assert not env.step(np.zeros((2, 8), np.float32)).terminated.any()


@pytest.mark.parametrize("name", ["halfcheetah-dir", "ant-dir", "halfcheetah-dir-maml", "ant-dir-maml"])
def test_every_split_has_both_directions(name):
    for split in families.SPLITS:
        values = _make(name).sample_tasks(400, split, 2)["direction"]
        assert set(values) == {-1.0, 1.0}
        assert abs(values.mean()) < 0.2


# -- the MAML paper's timing and constants -------------------------------------------------------------------------------


def _paper_replay(env, edit, xml, actions, row):
    """Step one simulation with MuJoCo itself; yield data after every step, everything worked out at the new state."""
    model = load_model(xml, edit)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env._qpos[row], env._qvel[row]
    mujoco.mj_forward(model, data)
    for action in actions:
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        now = mujoco.MjData(model)
        now.qpos[:], now.qvel[:] = data.qpos, data.qvel
        mujoco.mj_forward(model, now)
        mujoco.mj_subtreeVel(model, now)
        yield now


@pytest.mark.parametrize("name", ["halfcheetah-vel-maml", "halfcheetah-dir-maml", "ant-vel-maml", "ant-dir-maml"])
def test_the_papers_variants_step_watch_and_reward_as_its_code_does(name):
    """Catches a velocity of the step before, Gymnasium's timing or layout, and a reward of the other family."""
    cheetah = name.startswith("half")
    xml, edit, size = ("half_cheetah.xml", measure_centre, 6) if cheetah else ("ant.xml", calibrate, 8)
    family = _make(name)
    assert family.spec.control_step == (0.01 if cheetah else 0.02)
    env, tasks = family.batch(2, 1), family.sample_tasks(2, "train", 3)
    env.reset(tasks, SEEDS[:2])
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 2, size)).astype(np.float32)
    replay = _paper_replay(env, edit, xml, actions[:, 1], 1)
    for action, data in zip(actions, replay, strict=True):
        step = env.step(action)
        if cheetah:
            wanted = np.concatenate([data.qpos[1:], data.qvel, data.subtree_com[1]])
        else:
            wanted = np.concatenate([data.qpos, data.qvel, data.xmat[1], data.subtree_com[1]])
        np.testing.assert_allclose(step.observations[1], wanted, rtol=1e-6, atol=1e-6)
        speed, task = data.subtree_linvel[1][0], tasks.values[1, 0]
        reward = task * speed if "dir" in name else -abs(speed - task) + (0.0 if cheetah else 1.0)
        cost = np.sum(action[1].astype(np.float64) ** 2)
        reward += -0.05 * cost if cheetah else -0.005 * cost + 0.05
        assert step.rewards[1] == pytest.approx(reward, rel=1e-5, abs=1e-5)
    assert not step.terminated.any()


def test_the_papers_ant_starts_in_its_pose_with_its_noise_and_contacts():
    family = _make("ant-vel-maml")
    env = family.batch(400, 1)
    env.reset(family.sample_tasks(400, "train", 0), np.arange(400, dtype=np.uint32))
    pose = [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    np.testing.assert_allclose(
        env._qpos.mean(axis=0), pose, atol=0.004
    )  # se 0.0005; MuJoCo leaves the quaternion alone
    np.testing.assert_allclose(env._qpos.std(axis=0), 0.01, rtol=0.2)
    np.testing.assert_allclose(env._qvel.std(axis=0), 0.1, rtol=0.2)
    model = env._batch.model
    assert model.opt.timestep == 0.02
    assert np.array_equal(model.geom_solimp[:, :3], np.tile([0.8, 0.8, 0.01], (model.ngeom, 1)))
    assert np.array_equal(model.geom_solref, np.tile([0.02, 1.0], (model.ngeom, 1)))


def test_the_papers_contact_forces_are_those_of_the_new_state():
    """Forces of 14 bodies, clipped, between velocities and orientation, and their cost; none on an ant in the air."""
    costs = []
    for contacts in (False, True):
        family = _make("ant-dir-maml", contact_forces=contacts)
        env = family.batch(2, 1)
        env.reset(family.sample_tasks(2, "train", 0), SEEDS[:2])
        env._qpos[1, 2] = 0.95
        for _ in range(8):
            step = env.step(np.zeros((2, 8), np.float32))
        costs.append(step.rewards)
        assert step.observations.shape == (2, 125 if contacts else 41)
    forces = step.observations[:, 29 : 29 + 84]
    assert np.abs(forces).max() <= 1.0
    np.testing.assert_allclose(costs[0] - costs[1], 0.0005 * np.square(forces).sum(axis=1), atol=1e-6)
    assert np.abs(forces[0]).sum() > 0
    assert np.abs(forces[1]).sum() == 0
