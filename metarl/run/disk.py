"""Files and directories that are either complete on disk or not there: what a kill or a power cut may not halve.

A directory is written under a temporary name, ``.tmp-NAME-PID``, and gets its own by one rename. Where that is taken,
the new one is first called ``NAME.next``; it is complete, so whoever
writes after a kill can put it in place. What the system refuses raises OSError.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a killed writer, sees the old or the new content and nothing between."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        _write_file(unfinished, data)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory and wait until it is on disk; a fault point ``after_STEM`` follows every file."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        _write_file(directory / name, data)
        fault(f"after_{Path(name).stem}")
    fault("after_files")
    fsync_directory(directory)


def publish(path: Path) -> None:
    """Give a complete temporary directory its final name."""
    fault("before_rename")
    if path.exists():  # a directory cannot be renamed onto one that is not empty
        successor = path.with_name(path.name + ".next")
        os.rename(temporary(path), successor)
        fsync_directory(path.parent)
        finish_replacing(successor)
    else:
        os.rename(temporary(path), path)
        fsync_directory(path.parent)
    fault("after_rename")


def finish_replacing(successor: Path) -> None:
    """Put ``NAME.next`` in the place of ``NAME``; one of them is complete at any moment."""
    path = successor.with_suffix("")
    fault("while_replacing")
    if path.exists():
        remove(path)
    fault("while_replacing")
    os.rename(successor, path)
    fsync_directory(path.parent)


def remove(path: Path) -> None:
    """Take the name away, then delete."""
    trash = temporary(path.with_name(f"removed-{path.name}"))
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash)


def temporary(path: Path) -> Path:
    """Return the name under which this process writes or removes ``path``."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


_passages: collections.Counter[str] = collections.Counter()


def fault(point: str) -> None:
    """Die here if a test wants it: ``METARL_FAULT=after_rename:2`` ends the process at the second passage of a point."""
    wanted, _, count = os.environ.get("METARL_FAULT", "").partition(":")
    if wanted == point:
        _passages[point] += 1
        if _passages[point] == int(count or 1):
            os._exit(9)
