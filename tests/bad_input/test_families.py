"""Families that misbehave: one line says which, where and how; finished iterations stay, an unbegun run goes."""

from __future__ import annotations

import os

import pytest

from metarl import train

FAULTS = {
    "spec_raises": ("Family Broken has no spec: ZeroDivisionError: out of oil", "broken.py:"),
    "sample_tasks_raises": ("Family Broken failed drawing 2 train tasks: ZeroDivisionError: out of oil", "broken.py:"),
    "too_few_tasks": ("Family Broken drew 1 of ('goal',) instead of 2 train tasks",),
    "tasks_of_lists": ("Family Broken drew list instead of 2 train tasks",),
    "batch_raises": ("Family Broken failed making the simulations: ZeroDivisionError: out of oil", "broken.py:"),
    "reset_raises": ("Family Broken failed at step 0: ValueError: the simulator says no and why, on a second line",),
    "step_raises": ("Family Broken failed at step 0: OSError: [Errno 28] No space left on device", "broken.py:"),
    "step_of_two": ("Family Broken failed at step 0: ValueError", "metarl.testing.check_family"),
    "step_stops": ("Family Broken failed at step 0: StopIteration",),
    "no_spec": ("Family Broken has a spec of type NoneType, not RLSpec or ShotSpec",),
    "spec_of_text": ("Family Broken has a spec whose observation_size='1' is no positive whole number",),
    "nan_reward": ("Family Broken failed at step 0, task {'goal': ", "rewards are not finite"),
    "nan_observation": ("Family Broken failed at step 0, task {'goal': ", "observations are not finite"),
    "wrong_shape": ("Family Broken failed at step 0: observations have shape (3, 1) instead of (4, 1)",),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("given", [True, False], ids=["run_dir", "fresh"])
def test_a_family_that_never_worked_leaves_nothing(run, monkeypatch, tmp_path, point, fault, given):
    """Catches tracebacks, and directories that hold a configuration and no row of results."""
    monkeypatch.setenv("BROKEN", fault)
    run(train, *point(*(["run_dir=deep/down/run"] if given else []))).refused(*FAULTS[fault])
    assert not list(tmp_path.iterdir())


SHOT_FAULTS = {
    "sample_tasks_raises": ("failed drawing 2 train tasks: ZeroDivisionError: out of oil", "broken.py:"),
    "draw_raises": ("failed drawing examples of 2 tasks: ZeroDivisionError: out of oil", "broken.py:"),
    "no_query": ("support inputs have shape (3, 1)",),
    "nan_target": ("support targets of task {'slope': ", "are not finite"),
    "wrong_inputs": ("support inputs have shape (2, 3)",),
}


@pytest.mark.parametrize("fault", SHOT_FAULTS)
def test_a_family_of_labelled_shots_that_never_worked(run, monkeypatch, tmp_path, point, fault):
    """Catches a loss that is NaN for thousands of iterations because one label was."""
    words = point("env=broken-shots", "run_dir=run")
    monkeypatch.setenv("BROKEN", fault)
    run(train, *words).refused("Family BrokenShots", *SHOT_FAULTS[fault])
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("BROKEN")
    assert run(train, *words).code == 0


def test_an_empty_directory_of_the_users_stays(run, monkeypatch, tmp_path, point):
    """It is not ours to remove. The lock stays in it, since others may wait for that, and is in nobody's way."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("BROKEN", "step_raises")
    run(train, *point("run_dir=mine")).refused("Family Broken")
    assert os.listdir("mine") == [".lock"]
    monkeypatch.delenv("BROKEN")
    assert run(train, *point("run_dir=mine")).code == 0


@pytest.mark.parametrize("fault", ["step_raises", "nan_reward", "reset_raises"])
def test_a_family_that_fails_later_loses_nothing(run, monkeypatch, tmp_path, trained, rows, point, fault):
    """An iteration has two resets: two are done when the fifth reset fails. Continued, the run ends as if undisturbed."""
    monkeypatch.setenv("BROKEN", f"{fault}:5")
    run(train, *point("run_dir=run")).refused(*FAULTS[fault])
    assert rows(tmp_path / "run") == rows(trained)[:2]
    assert sorted(os.listdir("run/checkpoints")) == ["00000001", "00000002"]
    monkeypatch.delenv("BROKEN")
    assert run(train, *point("run_dir=run", "resume=auto")).code == 0
    assert rows(tmp_path / "run") == rows(trained)
    last = "checkpoints/00000003/tensors.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (trained / last).read_bytes()


def test_a_family_that_fails_in_the_first_validation(run, monkeypatch, tmp_path, point):
    """Catches a check that only the training's tasks pass through."""
    monkeypatch.setenv("BROKEN", "validation_tasks_raise")
    words = point("eval_every=1", "run_dir=run")
    run(train, *words).refused("Family Broken failed drawing 20 validation tasks: ValueError: no such tasks")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_the_first_row_leaves_nothing(run, monkeypatch, tmp_path, point):
    """A traceback would be the answer to many a typing mistake."""
    monkeypatch.setenv("BROKEN", "interrupt")
    done = run(train, *point("run_dir=run"))
    assert (done.code, done.err) == (130, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("noise", ["1e3", "1e20"])
def test_unstable_physics(run, cheetah, tmp_path, noise):
    """MuJoCo resets a body that leaves its range, in ``forward`` as well, and only a warning counter tells."""
    done = run(train, *cheetah, f"env.reset_noise={noise}", "run_dir=run")
    done.refused("Family HalfCheetahVel failed at step ", "task {'velocity': ", "MuJoCo", "lower env.reset_noise")
    assert not list(tmp_path.iterdir())
