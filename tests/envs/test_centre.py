"""The centre of mass at a new state against MuJoCo's own, worked out state by state."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from metarl.envs.locomotion.bodies import measure_centre
from metarl.envs.locomotion.centre import PlanarCentre, WorkedCentre, is_planar
from metarl.envs.locomotion.engine import load_model
from metarl.envs.locomotion.maml_ant import calibrate

# Everything that the half cheetah does not have: reference angles and places, axes that turn the other way, anchors beside
# the body's origin, bodies that are turned, parts that hang on no hinge or on a slide of their own, a plane that is tilted.
ODD = """
<mujoco><worldbody><body euler="20 30 40">
  <geom size=".1" mass=".3" pos=".2 .3 0"/>
  <body pos="0 0 1"><joint type="slide" axis="1 0 0" ref=".4"/><joint type="slide" axis=".6 0 .8"/>
    <joint axis="0 1 0" pos=".05 .3 .1" ref=".3"/><joint axis="0 -1 0" pos="-.2 0 .1"/>
    <geom type="capsule" size=".05" fromto="0 0 0 .3 .1 .2"/>
    <body pos=".2 .1 -.1" euler="0 35 0"><joint axis="0 -1 0" pos=".1 .2 .03" ref="-.2"/><geom size=".1" pos="0 .2 .1"/>
      <body pos="-.1 0 .3"><geom size=".08" pos=".1 0 0"/></body>
      <body pos="0 -.2 .3"><joint axis="0 1 0"/><geom size=".06" pos=".1 0 0"/></body></body>
    <body pos="-.3 0 0"><joint axis="0 1 0"/><geom size=".07" pos=".02 .01 .1"/></body></body>
  <body pos="0 2 0"><joint type="slide" axis="0 1 0" ref="1"/><geom size=".1"/></body>
</body></worldbody></mujoco>
"""
MODELS = {
    "half_cheetah.xml": lambda: load_model("half_cheetah.xml"),
    "hopper.xml": lambda: load_model("hopper.xml"),
    "walker2d_v5.xml": lambda: load_model("walker2d_v5.xml"),
    "odd": lambda: mujoco.MjModel.from_xml_string(ODD),
}


def _states(model, count):
    rng = np.random.default_rng(0)
    return rng.uniform(-4, 4, (count, model.nq)), rng.uniform(-10, 10, (count, model.nv))


def _mujocos(model, positions, velocities):
    """Return places and velocities of the whole world's centre of mass."""
    data, rows = mujoco.MjData(model), []
    for data.qpos[:], data.qvel[:] in zip(positions, velocities, strict=True):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_subtreeVel(model, data)
        rows.append((data.subtree_com[0].copy(), data.subtree_linvel[0].copy()))
    return (np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_closed_form_is_mujocos_centre(name):
    """Catches a wrong sign, order, anchor, weight or reference, in place and in velocity; the odd body has each of them."""
    model = MODELS[name]()
    assert is_planar(model)
    positions, velocities = _states(model, 200)
    centre = PlanarCentre(model, 200)
    centre.measure(positions[::-1], velocities[::-1])  # nothing of an earlier state may be left
    centre.measure(positions, velocities)
    place, speed = _mujocos(model, positions, velocities)
    np.testing.assert_allclose(centre.position, place, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(centre.velocity, speed, rtol=1e-12, atol=1e-11)


def test_angles_at_which_half_the_tangent_is_huge():
    """At half a turn the tangent of half the angle is about 1e16."""
    model = MODELS["half_cheetah.xml"]()
    angles = np.pi * np.array([-3, -1, -0.5, 0, 0.5, 1, 3])
    positions, velocities = np.zeros((7, 9)), np.ones((7, 9))
    positions[:, 2] = angles
    centre = PlanarCentre(model, 7)
    centre.measure(positions, velocities)
    place, speed = _mujocos(model, positions, velocities)
    np.testing.assert_allclose(centre.position, place, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(centre.velocity, speed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 300])
def test_a_simulations_bits_depend_on_no_other(count):
    """Catches sums whose order depends on how many simulations there are, or a broken one that spoils its neighbours."""
    model = MODELS["half_cheetah.xml"]()
    positions, velocities = _states(model, 301)
    whole, part = PlanarCentre(model, 301), PlanarCentre(model, count)
    broken = positions.copy()
    broken[300] = np.nan
    whole.measure(broken, velocities)
    part.measure(positions[300 - count : 300], velocities[300 - count : 300])
    assert np.array_equal(part.position, whole.position[300 - count : 300])
    assert np.array_equal(part.velocity, whole.velocity[300 - count : 300])
    assert np.isnan(whole.position[300, 0])


@pytest.mark.parametrize("contacts", [False, True])
def test_the_bodies_that_follow_show_mujocos_bits(contacts):
    """Leaving out contacts, limits and motors must not move anything; a state in contact, and one in the air."""
    model = load_model("ant.xml", calibrate, measure_centre)
    rng = np.random.default_rng(1)
    positions = model.qpos0 + rng.uniform(-0.1, 0.1, (20, model.nq))
    positions[:, 2] = 0.2 if contacts else 2.0
    velocities = rng.normal(size=(20, model.nv))
    centre = WorkedCentre(model, 20, 2)
    centre.measure(positions, velocities)
    data = mujoco.MjData(model)
    for row in range(20):
        data.qpos[:], data.qvel[:], data.ctrl[:] = positions[row], velocities[row], 1.0
        mujoco.mj_forward(model, data)
        assert (data.ncon > 0) == contacts
        assert np.array_equal(centre.position[row], data.subtree_com[1])
        assert np.array_equal(centre.velocity[row], data.sensordata[3:6])
        assert np.array_equal(centre.turn[row].ravel(), data.xmat[1])


@pytest.mark.parametrize(
    ("joints", "planar"),
    [
        ('<joint type="slide" axis="1 0 0"/><joint axis="0 1 0"/>', True),
        ('<joint axis="0 1 0"/><joint type="slide" axis="1 0 0"/>', False),
        ('<joint axis="0 1 0"/><joint axis="0 -1 0"/>', True),
        ('<joint axis="0 1 0"/><joint axis="0 1 .01"/>', False),
        ('<joint type="slide" axis="1 0 0"/>', False),
        ("<freejoint/>", False),
    ],
)
def test_what_is_planar(joints, planar):
    """A slide behind a hinge is turned by it, and hinges about several directions do not add up."""
    body = f'<body>{joints}<geom size=".1"/></body>'
    assert is_planar(mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")) == planar


@pytest.mark.parametrize("xml", ["ant.xml", "humanoid.xml"])
def test_bodies_in_space_are_not_planar(xml):
    assert not is_planar(load_model(xml))
