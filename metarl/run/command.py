"""What a command line does with what goes wrong: one line on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

from metarl.families import EnvFault, FamilyError
from metarl.settings import SettingsError

_LESS_MEMORY = "lower meta_batch_size, episodes_per_task (episodes= of an evaluation) or chunk_tasks"


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what the user can correct becomes one line, and so does every warning.

    Returns:
        The command's own exit code; 2 after an error that the user can correct, 130 after Ctrl-C, 141 when the reader of
        its output has gone (``... | head``).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes that are no text; it is shown as it is
            stream.reconfigure(errors="surrogateescape")
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            code = command()
            if sys.stdout is not None:  # a daemon may have none
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            _drop_output()
            return 141
        except SettingsError as error:
            print(f"error: {_line(error)}", file=sys.stderr)
            return 2
        except FamilyError as error:
            print(f"error: {_line(error)}{_hint(error.__cause__)}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            print(f"error: out of memory ({_line(error) or 'no more to be had'}); {_LESS_MEMORY}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


def say(text: str) -> None:
    """Print a line at once; a closed or full standard output is the user's to correct."""
    try:
        print(text, flush=True)
    except OSError as error:
        _drop_output()
        raise SettingsError(
            f"standard output cannot be written: {error.strerror or error}; send it elsewhere (a training continues with"
            " resume=auto)"
        ) from error


def _drop_output() -> None:
    """Send what is left of standard output nowhere: it would fail again when the process ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _out_of_memory(error: BaseException) -> bool:
    """Tell NumPy's MemoryError and PyTorch's two ways of saying the same from every other error."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, line
    print(f"warning: {_line(message)}", file=file or sys.stderr)


def _hint(cause: BaseException | None) -> str:
    """Say where a family's own code raised, and what finds such mistakes sooner; a simulation's fault names itself."""
    if isinstance(cause, EnvFault):
        return ""
    raised = [] if cause is None or isinstance(cause, FamilyError) else traceback.extract_tb(cause.__traceback__)[-1:]
    where = "".join(f" ({frame.filename}:{frame.lineno})" for frame in raised)
    return f"{where}; metarl.testing.check_family tests a family"


def _line(message: object) -> str:
    """Return a message as one line: what a family or a library says may have several."""
    return " ".join(part.strip() for part in str(message).splitlines() if part.strip())
