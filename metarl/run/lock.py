"""The lock that keeps a run to one writer. Importing this module does not import torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from metarl.settings import SettingsError


class RunLock:
    """Context manager that lets one process at a time write a run; the kernel frees it however the process ends.

    Args:
        file: the lock, ``RUN/.lock``; RUN must exist.

    Raises:
        SettingsError: on entering, if another process holds the lock or it cannot be made.
    """

    # Locks that are open. A forked child inherits them, and would keep the run locked when its parent is killed.
    _held: ClassVar[set[int]] = set()

    def __init__(self, file: Path) -> None:
        self.file = Path(file)
        self._handle = -1

    def __enter__(self) -> RunLock:
        try:
            self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SettingsError(f"Cannot lock {self.file.parent}: {error.strerror}; choose another run_dir") from error
        self._held.add(self._handle)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid, _, host = os.pread(self._handle, 300, 0).decode(errors="replace").strip().partition(" ")
            holder = f" (pid {pid} on host {host})" if pid else ""
            self._close()
            raise SettingsError(
                f"Another process{holder} is writing {self.file.parent}; stop it or choose another run_dir"
            ) from error
        except OSError as error:  # some cluster file systems have no locks
            text = f"{self.file.parent} cannot be locked ({error.strerror}); let one process at a time write it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, it only has no name
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: were it removed, a process that has it open already could lock what nobody else sees.
        self._close()

    def _close(self) -> None:
        if self._handle in self._held:
            self._held.remove(self._handle)
            os.close(self._handle)


def _forget_locks() -> None:
    while RunLock._held:
        os.close(RunLock._held.pop())


os.register_at_fork(after_in_child=_forget_locks)
