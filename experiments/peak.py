"""The peak of a command's resident memory, whatever the process that asks holds itself.

On Linux a process that is started counts, until it has its own program, the memory of the one that starts it: ``ru_maxrss`` of a
child is at least the peak of its parent. So a small process (this file as a program, without imports beyond Python's own) stands
between the two.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence


def run(command: Sequence[str]) -> tuple[int, float]:
    """Run a command; return its exit status and the peak of its resident memory, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        kept = pathlib.Path(folder) / "peak"
        status = subprocess.run([sys.executable, "-I", __file__, str(kept), *command], check=False).returncode
        return status, float(kept.read_text(encoding="utf-8")) / 1024 if kept.exists() else 0.0


def main(kept: str, *command: str) -> int:
    """Run a command, write its peak in KiB to a file, return its status."""
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the command, too, which ends as it does
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    pathlib.Path(kept).write_text(str(usage.ru_maxrss), encoding="utf-8")
    # killed by a signal: as a shell says it
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
