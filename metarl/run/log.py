"""Where metrics go: one JSON object an iteration, TensorBoard, and a line or a bar for whoever watches."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from metarl.run import metrics as definitions


class MetricsFile:
    """``metrics.jsonl``: appended to after every iteration, cut back to the checkpoint when a run is continued.

    Args:
        path: the file.
        iterations: rows to keep, those of the iterations before the checkpoint.
    """

    def __init__(self, path: pathlib.Path, iterations: int) -> None:
        kept = _rows(path, iterations) if path.exists() else b""
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(len(kept))
        self._file = path.open("ab")

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; it is on the disk when this returns."""
        clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(clean, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: pathlib.Path, iterations: int) -> bytes:
    """Return the leading rows whose iteration is below ``iterations``; a half-written row ends them."""
    kept = b""
    for line in path.read_bytes().splitlines(keepends=True)[:iterations]:
        if not line.endswith(b"\n"):
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
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=purge_step or None)

    def write(self, row: Mapping[str, float]) -> None:
        """Draw one row."""
        for name, value in row.items():
            tag = definitions.tag(name)
            if tag:
                self._writer.add_scalar(tag, value, int(row["env_steps"]))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Progress(Protocol):
    """What a person watches."""

    def show(self, row: Mapping[str, float]) -> None:
        """Show one iteration."""
        ...

    def close(self) -> None:
        """Stop showing."""
        ...


def progress(total: int, done: int, metric: str) -> Progress:
    """Return a bar on a terminal and plain lines elsewhere."""
    return Bar(total, done, metric) if sys.stderr.isatty() else Lines(total, metric)


def _summary(row: Mapping[str, float], metric: str) -> str:
    text = f"{metric} {row[f'pre_{metric}']:.4g} -> {row[f'post_{metric}']:.4g}  {row['env_steps_per_second']:,.0f} steps/s"
    validation = [name for name in row if name.startswith("validation_")]
    if validation:
        text += "  validation " + " -> ".join(f"{row[name]:.4g}" for name in sorted(validation))
    return text


class Bar:
    """A progress bar: returns before and after adapting, steps per second, time left."""

    def __init__(self, total: int, done: int, metric: str) -> None:
        from tqdm import tqdm

        self._metric = metric
        self._bar: Any = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, smoothing=0.1)

    def show(self, row: Mapping[str, float]) -> None:
        """Advance by one iteration."""
        self._bar.set_postfix_str(_summary(row, self._metric), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Lines:
    """One line an iteration."""

    def __init__(self, total: int, metric: str) -> None:
        self._total = total
        self._metric = metric
        self._seconds: list[float] = []

    def show(self, row: Mapping[str, float]) -> None:
        """Print the iteration."""
        self._seconds = [*self._seconds[-19:], row["seconds_iteration"] + row.get("seconds_validation", 0.0)]
        done = int(row["iteration"]) + 1
        left = round((self._total - done) * sum(self._seconds) / len(self._seconds))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        print(f"iteration {done}/{self._total}  {_summary(row, self._metric)}  {clock} left", flush=True)

    def close(self) -> None:
        """Nothing is open."""
