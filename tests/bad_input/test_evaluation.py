"""Runs that cannot be evaluated, checkpoints that are damaged, machines that cannot draw."""

from __future__ import annotations

import ctypes.util
import json
import shutil
import sys

import pytest

from metarl import evaluate, train

QUICK = ("tasks=2", "steps=1", "device=cpu")


def flip(file):
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(run, copy):
    """Catches silence, and a warning of several lines with a piece of our source in it."""
    flip(copy / "checkpoints" / "00000003" / "tensors.safetensors")
    done = run(evaluate, f"run={copy}", *QUICK)
    assert done.code == 0, done
    assert len(done.err) == 1, done.err
    assert done.err[0].startswith("warning: Damaged checkpoint")
    assert f"{copy}/checkpoints/00000003/tensors.safetensors" in done.err[0]
    assert done.err[0].endswith("00000002")
    assert json.loads((copy / "evaluation" / "curve.json").read_text())["notes"]["run"]["iteration"] == 2


def test_a_run_without_a_good_checkpoint(run, copy, point, content):
    """Neither evaluated nor trained on from nothing, which would overwrite what can perhaps be restored."""
    run(evaluate, f"run={copy}", "checkpoint=best", *QUICK).refused("has no best checkpoint; use checkpoint=last")
    for step in ("00000002", "00000003"):
        flip(copy / "checkpoints" / step / "tensors.safetensors")
    before = content(copy)
    run(evaluate, f"run={copy}", *QUICK).refused("is damaged", "00000002", "00000003", "Restore")
    run(train, *point(f"run_dir={copy}", "resume=auto")).refused("is damaged", "Restore")
    assert content(copy) | {".lock": b""} == before | {".lock": b""}
    shutil.rmtree(copy / "checkpoints")
    run(evaluate, f"run={copy}", *QUICK).refused(f"{copy} has no last checkpoint")
    assert not (copy / "evaluation").exists()


def test_a_family_without_pictures_has_no_video(run, copy, content):
    """One line, and no empty directory for the film."""
    before = content(copy)
    run(evaluate, f"run={copy}", "video=true", *QUICK).refused("video=true", "cannot be drawn")
    assert content(copy) == before


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are Linux's")
def test_no_graphics_no_crash(run, user, cheetah, content, tmp_path):
    """Graphics libraries that are missing or broken fail when mujoco is imported, or when something is drawn."""
    assert run(train, *cheetah, "run_dir=run").code == 0
    before = content(tmp_path)
    film = ("-m", "metarl.evaluate", "run=run", "video=true", *QUICK)
    user(*film, MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99").refused("video=true", "cannot draw", "install EGL")
    if ctypes.util.find_library("OSMesa") is None:
        user(*film, MUJOCO_GL="osmesa").refused("cannot draw", "MUJOCO_GL=osmesa")
        user("-m", "metarl.train", *cheetah, "run_dir=new", MUJOCO_GL="osmesa").refused("unset MUJOCO_GL")
    assert content(tmp_path) == before
