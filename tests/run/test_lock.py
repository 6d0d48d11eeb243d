"""The lock of a run: one writer at a time, and none once it is dead."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import warnings

import pytest

from metarl.run.lock import RunLock
from metarl.settings import SettingsError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

HOLDER = """
import os, sys
from pathlib import Path
from metarl.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"!")
    elif os.read(read, 1):
        print(os.getpid(), child, "torch" in sys.modules, flush=True)
    sys.stdin.read()
"""


def test_lock_refuses_a_second_process_and_dies_with_the_first(tmp_path):
    """Catches: locks that outlive kill -9, also through a child that the killed process had forked; torch imported."""
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        pid, child, torch_imported = holder.stdout.readline().split()
        assert torch_imported == "False"  # so that a run in use is refused at once
        message = (
            f"Another process \\(pid {pid} on host {socket.gethostname()}\\) is writing {tmp_path}; stop it or choose"
        )
        with pytest.raises(SettingsError, match=message), RunLock(lock):
            pass
        holder.kill()
        holder.wait()
        os.kill(int(child), 0)  # the child is alive
        with RunLock(lock):
            pass


def test_lock_refuses_itself_and_can_be_taken_again(tmp_path, names):
    lock = tmp_path / ".lock"
    for _ in range(2):
        with RunLock(lock), pytest.raises(SettingsError, match=f"pid {os.getpid()} on"), RunLock(lock):
            pass
    with pytest.raises(SettingsError, match="another run_dir"), RunLock(tmp_path / "missing" / ".lock"):
        pass
    assert names(tmp_path) == [".lock"]


def test_lock_of_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="cannot be locked"), RunLock(tmp_path / ".lock"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.undo()
        with RunLock(tmp_path / ".lock"):
            pass
