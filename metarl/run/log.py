"""Where metrics go: one JSON object an iteration, TensorBoard, and a line or a bar for whoever watches."""

from __future__ import annotations

import json
import math
import os
import pathlib
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from metarl.run import metrics as definitions
from metarl.run.command import say
from metarl.run.directory import writing


class MetricsFile:
    """``metrics.jsonl``: appended to after every iteration, cut back to the checkpoint when a run is continued.

    Args:
        path: the file.
        iterations: rows to keep, those of the iterations before the checkpoint.
    """

    def __init__(self, path: pathlib.Path, iterations: int) -> None:
        self._path = path
        with writing(path):
            if path.exists() and not path.is_file():
                raise OSError("it is no regular file")
            kept = _rows(path, iterations) if path.exists() else b""
            with path.open("ab") as file:
                file.truncate(len(kept))
        missing = iterations - kept.count(b"\n")
        if missing:
            warnings.warn(f"{path} lacks the rows of {missing} earlier iterations", RuntimeWarning, stacklevel=2)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; it is on the disk when this returns, or nothing of it is where the disk is full."""
        clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
        line = json.dumps(clean, allow_nan=False).encode() + b"\n"
        with writing(self._path):
            size = self._path.stat().st_size
            try:
                with self._path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, size)
                raise


def _rows(path: pathlib.Path, iterations: int) -> bytes:
    """Return the leading rows whose iteration is below ``iterations``; a half-written or unreadable row ends them."""
    kept = b""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["iteration"] >= iterations:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept += line
    return kept


class Board:
    """TensorBoard events, with the training's environment steps as the horizontal axis.

    Args:
        directory: where the event files go.
        purge_step: environment steps of the checkpoint; later events of a killed run are dropped.
    """

    def __init__(self, directory: pathlib.Path, purge_step: int) -> None:
        from torch.utils.tensorboard import RecordWriter
        from torch.utils.tensorboard.writer import Event, SessionLog  # type: ignore[attr-defined]

        # TensorBoard's own SummaryWriter writes from a thread, where a full disk ends in a traceback and a kill loses
        # what is queued.
        self._directory = directory
        self._event: Any = Event
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        with writing(directory):
            directory.mkdir(exist_ok=True)
            self._records: Any = RecordWriter((directory / name).open("xb"))
            self._add(Event(file_version="brain.Event:2", step=purge_step))
            if purge_step:
                self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))

    def write(self, row: Mapping[str, float]) -> None:
        """Draw one row; it is in the file when this returns."""
        from torch.utils.tensorboard.summary import scalar

        with writing(self._directory):
            for name, value in row.items():
                tag = definitions.tag(name)
                if tag:
                    summary = scalar(tag, value)  # type: ignore[no-untyped-call]
                    self._add(self._event(summary=summary, step=int(row["env_steps"])))
            self._records.flush()

    def close(self) -> None:
        """Close the event file."""
        with writing(self._directory):
            self._records.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class Progress(Protocol):
    """What a person watches."""

    def show(self, row: Mapping[str, float]) -> None:
        """Show one iteration."""
        ...

    def close(self) -> None:
        """Stop showing."""
        ...


def progress(total: int, done: int, metric: str, protocol: str = "") -> Progress:
    """Return a bar on a terminal and plain lines elsewhere.

    Args:
        total: iterations of the run.
        done: those behind it.
        metric: the score to show.
        protocol: how it was taken, shown beside it; empty where that needs no words.
    """
    return Bar(total, done, metric, protocol) if sys.stderr.isatty() else Lines(total, metric, protocol)


def _summary(row: Mapping[str, float], metric: str, protocol: str) -> str:
    label = f"{metric} ({protocol})" if protocol else metric
    text = (
        f"{label} {row[f'pre_{metric}']:.4g} -> {row[f'post_{metric}']:.4g}  {row['env_steps_per_second']:,.0f} steps/s"
    )
    if "post_success" in row:
        text += "  success " + " -> ".join(f"{row[k]:.2f}" for k in ("pre_success", "post_success") if k in row)
    for title, prefix in (("validation", f"validation_{metric}_"), ("success", "validation_success_")):
        steps = [name for name in row if name.startswith(prefix)]
        if steps:
            text += f"  {title} " + " -> ".join(f"{row[name]:.4g}" for name in steps)
    return text


class Bar:
    """A progress bar: returns before and after adapting, steps per second, time left."""

    def __init__(self, total: int, done: int, metric: str, protocol: str) -> None:
        from tqdm import tqdm

        self._metric, self._protocol = metric, protocol
        self._bar: Any = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, smoothing=0.1)

    def show(self, row: Mapping[str, float]) -> None:
        """Advance by one iteration."""
        self._bar.set_postfix_str(_summary(row, self._metric, self._protocol), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Lines:
    """One line an iteration."""

    def __init__(self, total: int, metric: str, protocol: str) -> None:
        self._total = total
        self._metric, self._protocol = metric, protocol
        self._seconds: list[float] = []

    def show(self, row: Mapping[str, float]) -> None:
        """Print the iteration."""
        self._seconds = [*self._seconds[-19:], row["seconds_iteration"] + row.get("seconds_validation", 0.0)]
        done = int(row["iteration"]) + 1
        left = round((self._total - done) * sum(self._seconds) / len(self._seconds))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        say(f"iteration {done}/{self._total}  {_summary(row, self._metric, self._protocol)}  {clock} left")

    def close(self) -> None:
        """Nothing is open."""
