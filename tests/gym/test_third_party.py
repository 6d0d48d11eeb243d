"""A distribution of somebody else's that brings a family: installed, found and used without touching ours."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).parents[1] / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install it into an empty folder from a copy, because a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", folder / "target", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "target"


@pytest.fixture
def python(installed, tmp_path):
    """Run Python with that folder on its path."""

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_it_is_found_without_being_imported(python):
    """Names and Gymnasium ids from metadata: a plug-in that is broken or slow must not matter to who does not ask for it."""
    code = (
        "import sys, metarl, gymnasium\n"
        "print('pendulum-angle' in metarl.names(), 'metarl/pendulum-angle-v0' in gymnasium.registry)\n"
        "print('swing_families' in sys.modules)\n"
        "env = gymnasium.make('metarl/pendulum-angle-v0', task={'angle': 0.5}, horizon=3)\n"
        "print(env.reset(seed=0)[1], env.observation_space.shape)"
    )
    done = python("-c", code)
    assert done.stdout.splitlines() == ["True True", "False", "{'task': {'angle': 0.5}} (3,)"], done.stderr


def test_it_keeps_the_contract_and_is_listed_with_its_package(python):
    """The public kit, on a family that was installed."""
    done = python("-c", "from metarl.testing import check_family; check_family('pendulum-angle')")
    assert done.returncode == 0, done.stderr
    lines = python("-m", "metarl.families").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("pendulum-angle "))
    assert " ".join(line.split()) == "pendulum-angle 3 1 in -2 to 2 200 0.05 s swing-families angle: -1 to 1 rad"


def test_it_trains_from_the_command_line(python, tmp_path):
    """Its settings, its misspelt name, and a run."""
    small = (
        "env.angle_low=0",
        "env.horizon=5",
        "meta_batch_size=2",
        "episodes_per_task=2",
        "iterations=1",
        "threads=1",
    )
    done = python("-m", "metarl.train", "env=pendulum-angle", *small, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "iteration 1/1" in done.stdout
    done = python("-m", "metarl.train", "env=pendulum-angel")
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "error: Unknown task family 'pendulum-angel'. Did you mean 'pendulum-angle'?",
    )
