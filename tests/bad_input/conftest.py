"""Commands run as a user runs them, and what is looked at afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from metarl import families, train
from metarl.run.metrics import is_wall_clock

BROKEN = pathlib.Path(__file__).parent / "broken.py"
SMALL = ("meta_batch_size=2", "episodes_per_task=2", "hidden_sizes=[4]", "eval_every=0", "threads=1", "device=cpu")
# what an unclean end may leave: temporary files, directories that nobody asked for, a simulator's log
LITTER = (".tmp*", ".*.tmp*", "MUJOCO_LOG.TXT", "runs", "outputs", "multirun", ".hydra")


class Outcome(NamedTuple):
    """What a command left behind: exit code, standard output, lines of standard error."""

    code: int
    out: str
    err: list[str]

    def refused(self, *parts):
        """The one line, which must hold ``parts``."""
        assert self.code == 2, self
        assert len(self.err) == 1, self.err
        assert self.err[0].startswith("error: ")
        assert not [part for part in parts if part not in self.err[0]], self.err[0]


def _loaded():
    """The broken families' module. It must be known by name, because settings look up their types there."""
    spec = importlib.util.spec_from_file_location("broken_family", BROKEN)
    module = sys.modules["broken_family"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _family(monkeypatch):
    """The broken families are known. Torch's threads and the environment are afterwards what they were before."""
    monkeypatch.setitem(families._registered, "broken", _loaded().Broken)
    monkeypatch.setitem(families._registered, "broken-shots", _loaded().BrokenShots)
    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Run in an empty directory, and find no litter in it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BROKEN", raising=False)
    yield
    litter = [path for pattern in LITTER for path in tmp_path.rglob(pattern)]
    litter += [path for path in tmp_path.rglob("*") if path.is_dir() and not os.listdir(path)]
    assert not litter


@pytest.fixture(scope="session")
def point():
    """The words of a small run of the broken family, with some given instead."""

    def words(*given):
        keys = {word.partition("=")[0] for word in given}
        return [w for w in ("env=broken", "iterations=3", *SMALL) if w.partition("=")[0] not in keys] + list(given)

    return words


@pytest.fixture
def cheetah():
    """The words of one small iteration on MuJoCo."""
    return ("env=halfcheetah-vel", "env.horizon=5", "iterations=1", *SMALL)


@pytest.fixture
def run(capfd):
    """Run ``main`` of a command in this process, with what it says on both streams (C libraries included)."""

    def call(command, *words):
        capfd.readouterr()
        code = command.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Outcome(code, out, err.splitlines())

    return call


@pytest.fixture
def user():
    """Run a command in a process of its own, with files of at most ``limit`` bytes."""

    def call(*words, limit=resource.RLIM_INFINITY, **environment):
        # mujoco leaves this one behind in a process that has drawn, and with it looks for no graphics library
        inherited = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        return Outcome(done.returncode, done.stdout, done.stderr.splitlines())

    return call


@pytest.fixture
def small_disk():
    """Let no file grow beyond so many bytes (Python ignores the signal, so writing fails as on a full disk)."""

    @contextlib.contextmanager
    def limited(limit):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def trained(tmp_path_factory, point):
    """Three iterations of the broken family while it works."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setitem(families._registered, "broken", _loaded().Broken)
        assert train.main([*point(), f"run_dir={path}"]) == 0
    return path


@pytest.fixture
def copy(trained, tmp_path):
    """A run of one's own, three iterations long."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def content():
    """Every file below a directory, with its bytes."""
    return lambda path: {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def rows():
    """The logged rows of a run, without the clock."""

    def read(path):
        found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if not is_wall_clock(name)} for row in found]

    return read
