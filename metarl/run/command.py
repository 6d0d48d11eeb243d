"""What a command line does with what goes wrong: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

from metarl.families import EnvFault, FamilyError
from metarl.settings import SettingsError


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what the user can correct becomes one line, and so does every warning.

    Returns:
        The command's own exit code; 2 after an error that the user can correct, 130 after Ctrl-C.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            return command()
        except SettingsError as error:
            print(f"error: {_line(error)}", file=sys.stderr)
            return 2
        except FamilyError as error:
            print(f"error: {_line(error)}{_hint(error.__cause__)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


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
