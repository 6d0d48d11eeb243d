"""Videos: their frames and returns without a GL library, and the whole command with and without one."""

from __future__ import annotations

import ctypes.util
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import metarl
from metarl import evaluate
from metarl.analysis import video
from metarl.core import SGD, GradientStep
from metarl.families import RLSpec, Step, TaskParameter, Tasks
from metarl.gym import environment
from metarl.nets import MLP
from metarl.rl import CategoricalPolicy, GaussianPolicy, RLDomain
from metarl.settings import SettingsError

TASK = Tasks.from_json([{"goal": 1.0}])


@dataclasses.dataclass(frozen=True)
class Lamp:
    """Reward is minus the distance of the action from the goal; the picture is as bright as the action is large.

    An episode ends by itself when the action is below ``floor``.
    """

    floor: float = -np.inf
    recommended: ClassVar[Mapping[str, Any]] = {}
    spec = RLSpec((TaskParameter("goal", 0.0, 2.0, ""),), 1, 1, -4.0, 4.0, horizon=8, control_step=0.1)

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("goal",), np.ones((num_tasks, 1)))

    def batch(self, num_envs, threads):
        return LampBatch(self, num_envs)


class LampBatch:
    def __init__(self, family, count):
        self.family, self.count, self.brightness = family, count, 0

    def reset(self, tasks, seeds):
        self.goal, self.time = tasks["goal"], 0
        return np.ones((self.count, 1), dtype=np.float32)

    def step(self, actions):
        self.time += 1
        self.brightness = int(60 + 60 * np.clip(actions[0, 0], -1, 3))
        over = actions[:, 0] < self.family.floor
        rewards = -np.abs(actions[:, 0] - self.goal).astype(np.float32)
        return Step(np.ones((self.count, 1), np.float32), rewards, over, np.full(self.count, self.time >= 8))

    def render(self, env, width, height):
        return np.full((height, width, 3), self.brightness, dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class Dark(Lamp):
    def batch(self, num_envs, threads):
        return DarkBatch(LampBatch(self, num_envs))


class DarkBatch:
    def __init__(self, lamp):
        self.reset, self.step = lamp.reset, lamp.step


def lamp(family):
    """A learner whose policy has mean 0 before adapting, and whose one weight then goes up."""
    policy = GaussianPolicy(MLP((1, 1)), action_size=1, init_std=0.5)
    domain = RLDomain(family, policy, episodes=20)
    learner = metarl.MetaLearner(domain, GradientStep(domain.inner_loss, lr=0.3), SGD(0.1))
    return learner, {**learner.init(0).meta, "0.weight": torch.zeros(1, 1)}


def test_both_sides_show_their_policy(tmp_path):
    """Sides exchanged, the adapted policy not adapted, a frame too many or too few, or the wrong speed."""
    learner, meta = lamp(Lamp())
    returns = video.record(learner, meta, TASK, tmp_path / "v.mp4", (0, 2), 2, (0.3, 0.1))
    frames = imageio.imread(tmp_path / "v.mp4")
    assert frames.shape == (8, 320, 960, 3)
    assert imageio.immeta(tmp_path / "v.mp4")["fps"] == 10
    adapted, _ = video.adapt(video.with_rates(learner, 2, (0.3, 0.1)), meta, TASK, (0, 2))
    mean = float(adapted["0.weight"] + adapted["0.bias"])
    assert mean > 0.2
    assert returns == pytest.approx((-8.0, -8 * abs(mean - 1)), rel=1e-4)
    left, right = (frames[:, 100:, side].mean() for side in (slice(0, 480), slice(480, 960)))
    assert left == pytest.approx(60, abs=4)  # what the codec leaves of it
    assert right == pytest.approx(60 + 60 * mean, abs=4)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_an_episode_that_ends_early_stands_still(tmp_path):
    """A video that stops with the shorter side: here the policy falls over at once before adapting, not after."""
    learner, meta = lamp(Lamp(floor=0.05))
    returns = video.record(learner, {**meta, "0.bias": torch.zeros(1)}, TASK, tmp_path / "v.mp4", (0, 3), 3)
    frames = imageio.imread(tmp_path / "v.mp4")
    assert returns[0] == pytest.approx(-1.0)  # one step
    assert len(frames) == 8
    assert frames[-1, 100:, :480].mean() == pytest.approx(60, abs=4)


def test_what_cannot_be_drawn_says_so(tmp_path, runs):
    """An AttributeError instead of a line; a file that nobody can play."""
    learner, meta = lamp(Dark())
    with pytest.raises(SettingsError, match="Dark cannot be drawn"):
        video.record(learner, meta, TASK, tmp_path / "v.mp4", (0, 2), 1)
    agent = metarl.load(runs["sinusoid"])
    with pytest.raises(SettingsError, match="labelled shots"):
        video.record(agent.learner, agent.meta, TASK, tmp_path / "v.mp4", (0, 2), 1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_films_what_it_was_told(runs, evaluated, monkeypatch):
    """Another task than that of ``curve.json``, or adapted by training's settings in place of the command's."""
    told = []
    monkeypatch.setattr(environment, "prepare_gl", lambda: None)
    monkeypatch.setattr(video, "record", lambda *words: told.append(words) or (-2.0, -1.0))
    words = ("split=validation", "steps=2", "episodes=2", "inner_lr=[0.05,0.01]")
    assert evaluate.main([f"run={runs['pretrained']}", "video=true", "task=2", *words]) == 0
    ((learner, meta, task, path, _, steps, rates),) = told
    assert (learner.domain.episodes, steps, rates) == (2, 2, (0.05, 0.01))
    assert all(torch.equal(meta[name], value) for name, value in metarl.load(runs["pretrained"]).meta.items())
    assert path == runs["pretrained"] / "evaluation" / "task2.mp4"
    assert task.to_json() == evaluated(runs["pretrained"], "tasks=3", *words)["tasks"][2:]


def command(run, cwd, **environment):
    """Film in a process of its own: MuJoCo chooses its renderer once."""
    words = [sys.executable, "-m", "metarl.evaluate", f"run={run}", "video=true", "steps=1", "task=2", "inner_lr=0.05"]
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": cwd}
    return subprocess.run(words, env={**inherited, **environment}, check=False, **options)


def test_the_command_films_a_task(runs, tmp_path):
    """``video=true`` from beginning to end, on a machine that can draw."""
    done = command(runs["pretrained"], tmp_path)
    if "this machine cannot draw" in done.stderr:
        pytest.skip(f"no off-screen OpenGL here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"video: {runs['pretrained']}/evaluation/task2.mp4  (return -")
    film = runs["pretrained"] / "evaluation" / "task2.mp4"
    frames = imageio.imread(film)
    assert frames.shape == (10, 320, 960, 3)  # one frame a control step, horizon 10
    assert imageio.immeta(film)["fps"] == 20
    assert np.abs(frames[0, 40:].astype(int) - frames[-1, 40:]).max() > 50  # something moves
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_an_environment_draws_with_is_named(monkeypatch):
    """The remedy for MuJoCo's renderer given for pygame's absence."""
    monkeypatch.setitem(sys.modules, "pygame", None)
    poles = metarl.gym_family("CartPole-v1", [TaskParameter("length", 0.5, 1.0, "m")], lambda env, task: None)()
    domain = RLDomain(poles, CategoricalPolicy(MLP((4, 4, 2)), (2,)), episodes=1)
    with pytest.raises(SettingsError, match=r"^video=true: pygame is not installed, run `pip install"):
        video.opened(domain, Tasks.from_json([{"length": 0.5}]))


@pytest.mark.parametrize("library", ["osmesa", "nonsense"])
def test_a_machine_without_gl_says_so(runs, tmp_path, library):
    """A traceback from inside a GL library, or an empty directory left behind."""
    if library == "osmesa" and ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is installed here")
    run = pathlib.Path(runs["longer"])
    done = command(run, tmp_path, MUJOCO_GL=library)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: video=true: this machine cannot draw (")
    assert f"MUJOCO_GL={library} does not work here" in line
    assert not (run / "evaluation").exists()
    assert list(tmp_path.iterdir()) == []
