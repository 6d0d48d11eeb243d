"""Checkpoints that survive ``kill -9``, power cuts and flipped bits.

A checkpoint is a directory with ``tensors.safetensors``, ``state.json`` and ``manifest.json``; the manifest holds size
and SHA-256 of the other two, the order of the tensors and a checksum of itself. In ``RUN/checkpoints``::

    00000123/         a step
    best-00000100/    the best so far, a copy of its own; the highest step counts
    00000123.next/    complete successor of a step that was saved before; exists only until the old one is gone
    .tmp-*/           being written or removed

A directory gets its final name by one rename when all of it is on disk, and loses it by one rename before it is
deleted: under a final name there is never half a checkpoint. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.run import disk
from metarl.settings import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"(?P<best>best-)?(?P<step>[0-9]{8,})(?P<next>\.next)?")
_MANIFEST_LIMIT = 1 << 24  # bytes; with 100 000 tensors it has less


class CheckpointError(SettingsError):
    """A checkpoint cannot be written or read; the message is one line that names the file and the remedy."""


class _Damage(Exception):
    """What is wrong with one checkpoint."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint read from disk.

    Attributes:
        path: its directory.
        step: the number that it was saved under.
        tensors: on the CPU, in the order in which they were given (a parameter vector depends on it).
        record: what else was saved, as JSON gives it back (tuples as lists).
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run: any number of readers, one writer (see :class:`metarl.run.lock.RunLock`).

    Args:
        directory: usually ``RUN/checkpoints``; made by the first save.
        keep: steps that are kept, besides the best.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.directory = Path(directory)
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint so that a kill at any moment leaves the previous or the new one.

        The same arguments give the same bytes. A step that exists already is replaced, and higher ones are removed:
        they are damaged, or they would not be written again. So what was saved last is the latest.

        Args:
            step: its number, not negative.
            tensors: of any device and memory layout; graphs are cut.
            record: JSON values with string keys; numbers must be finite.
            best: make it the best so far, too.

        Returns:
            The directory of the step.

        Raises:
            CheckpointError: if it cannot be written; the checkpoints that were there are untouched.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        target = self.directory / f"{step:08d}"
        files = _pack(target, step, tensors, record)
        # The best comes first: were the step first, a kill between them would leave a run that continues after the step
        # and never learns that it was the best.
        targets = [self.directory / f"best-{target.name}", target] if best else [target]
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True)
                disk.fsync_directory(self.directory.parent)
            self._finish_replacements()
            pending = [path for path in targets if not _holds(path, files)]
            for path in pending:
                disk.write_directory(disk.temporary(path), files)
            for path in targets:
                if path in pending:
                    disk.publish(path)
                if path != target:
                    # a higher one may be there, too: of a future that was lost with damaged steps
                    self._remove(other for other in self._paths(best=True) if other != path)
            disk.fault("before_prune")
            self._prune(target)
        except OSError as error:
            needed = len(targets) * sum(map(len, files.values()))
            raise CheckpointError(
                f"Cannot write checkpoint {target} ({needed} bytes): {error.strerror or error}; make room there, allow"
                " writing or choose another run_dir. Earlier checkpoints are untouched"
            ) from error
        finally:
            for path in targets:
                shutil.rmtree(disk.temporary(path), ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest intact step; damaged ones are named in a warning and passed over.

        Returns:
            None if nothing was ever saved.

        Raises:
            CheckpointError: if there are some and all are damaged, or the newest has another schema.
        """
        return self._newest(best=False)

    def best(self) -> Checkpoint | None:
        """Return the step last saved with ``best=True``; otherwise like :meth:`latest`."""
        return self._newest(best=True)

    def clean(self) -> None:
        """Remove what a killed writer left behind. Only the writer calls this, once, holding the lock.

        Raises:
            CheckpointError: if the directory cannot be read or written.
        """
        try:
            self._finish_replacements()
            for path in self.directory.glob(".tmp-*/"):
                shutil.rmtree(path)
        except OSError as error:
            raise CheckpointError(
                f"Cannot clean {self.directory}: {error.strerror or error}; allow writing there"
            ) from error

    def _paths(self, best: bool) -> list[Path]:
        """List the checkpoints, newest first; a successor stands before what it replaces."""
        try:
            names = [match for name in os.listdir(self.directory) if (match := _NAME.fullmatch(name))]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"Cannot read {self.directory}: {error.strerror}; name a run whose checkpoints you may read"
            ) from error
        chosen = [match for match in names if bool(match["best"]) == best]
        chosen.sort(key=lambda match: (int(match["step"]), bool(match["next"])), reverse=True)
        return [self.directory / match.string for match in chosen]

    def _newest(self, best: bool) -> Checkpoint | None:
        damaged: dict[Path, str] = {}
        while paths := [path for path in self._paths(best) if path not in damaged]:
            try:
                found = _load(paths[0])
            except _Damage as damage:
                if paths[0].exists():  # otherwise the writer has removed it meanwhile: list again
                    damaged[paths[0]] = str(damage)
                continue
            for text in damaged.values():
                warnings.warn(f"Damaged checkpoint: {text}; using {found.path}", RuntimeWarning, stacklevel=3)
            return found
        if damaged:
            which = "best checkpoint" if best else "checkpoint"
            raise CheckpointError(
                f"Every {which} in {self.directory} is damaged: {'; '.join(damaged.values())}."
                " Restore the files from a copy, or start again in another run_dir"
            )
        return None

    def _finish_replacements(self) -> None:
        for path in [*self._paths(best=False), *self._paths(best=True)]:
            if path.suffix == ".next":
                if _looks_intact(path):
                    disk.finish_replacing(path)
                else:
                    self._remove([path])

    def _prune(self, saved: Path) -> None:
        """Keep what was just saved, the newest earlier steps that look intact, and the newest best."""
        steps, bests = self._paths(best=False), self._paths(best=True)
        earlier = [path for path in steps[steps.index(saved) + 1 :] if _looks_intact(path)]
        kept = {saved, *earlier[: self.keep - 1], *bests[:1]}
        self._remove(path for path in [*steps, *bests] if path not in kept)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                disk.remove(path)
            except OSError as error:  # not worth stopping a run
                warnings.warn(f"Cannot remove old checkpoint {path}: {error.strerror}", RuntimeWarning, stacklevel=4)


# ---- the format


def _pack(target: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the three files of a checkpoint."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        if "__metadata__" in tensors:  # safetensors writes that and cannot read it
            raise ValueError("no tensor can be called __metadata__")
        # copy_ settles device, strides, conjugate bits and shared memory (which safetensors refuses) all at once
        copies = {
            name: torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value.detach())
            for name, value in tensors.items()
        }
        files = {TENSORS: save(copies), STATE: _json(dict(record))}
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Cannot save checkpoint {target}: {_line(error)};"
            " tensors must be dense, and the record JSON with finite numbers"
        ) from error
    entries = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    # the order is said here because safetensors sorts by type and name
    manifest = {"schema": SCHEMA, "step": step, "tensors": list(tensors), "files": entries}
    return {**files, MANIFEST: _json({**manifest, "checksum": _sha256(_json(manifest))})}


def _load(path: Path) -> Checkpoint:
    """Read one checkpoint; the bytes that are decoded are the very bytes that were verified."""
    from safetensors.torch import load

    manifest = _manifest(path)
    data = {}
    for name in (TENSORS, STATE):
        with _naming(path / name):
            data[name] = _read(path / name)
            if manifest["files"][name]["sha256"] != _sha256(data[name]):
                raise _Damage(f"{path / name} is not what was written (SHA-256 differs)")
    with _naming(path / STATE):
        record = dict(json.loads(data[STATE]))
    with _naming(path / TENSORS):
        loaded = load(data.pop(TENSORS))
        # clone moves them to memory with torch's own alignment, on which the rounding of vectorised sums may depend
        tensors = {name: loaded.pop(name).clone() for name in manifest["tensors"]}
        if loaded:
            raise _Damage(f"{path / TENSORS} holds tensors that its manifest does not name")
    return Checkpoint(path, manifest["step"], tensors, record)


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and compare the directory with it, all but the contents of the files."""
    file = path / MANIFEST
    with _naming(file):
        manifest = dict(json.loads(_read(file, limit=_MANIFEST_LIMIT)))
        if manifest.pop("checksum") != _sha256(_json(manifest)):
            raise _Damage(f"{file} is not what was written (checksum differs)")
        if manifest["schema"] != SCHEMA:  # not damage: an older step must not silently take its place
            raise CheckpointError(
                f"{file} has schema {manifest['schema']} and this metarl reads {SCHEMA}; install a newer metarl"
            )
        name = _NAME.fullmatch(path.name)
        if name is None or manifest["step"] != int(name["step"]):
            raise _Damage(f"{file} belongs to step {manifest['step']}")
        if set(manifest["files"]) != {TENSORS, STATE}:  # so none can lead out of the directory
            raise _Damage(f"{file} names the files {sorted(manifest['files'])} instead of {[STATE, TENSORS]}")
        for name, entry in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                raise _Damage(f"{path / name} has {size} bytes instead of {entry['bytes']}")
    return manifest


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong with bytes from a disk into :class:`_Damage` that names the file."""
    try:
        yield
    except (_Damage, CheckpointError):
        raise
    except OSError as error:
        raise _Damage(f"{error.filename or file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that somebody made up may fail in the parsers in any way
        raise _Damage(f"{file} cannot be decoded: {_line(error)}") from error


def _looks_intact(path: Path) -> bool:
    """Tell whether manifest and sizes are right; contents are verified when they are loaded."""
    try:
        _manifest(path)
    except (_Damage, CheckpointError):
        return False
    return True


def _holds(path: Path, files: Mapping[str, bytes]) -> bool:
    """Tell whether a directory has these very contents already."""
    try:
        return all(_read(path / name) == data for name, data in files.items())
    except (OSError, _Damage):
        return False


def _read(path: Path, limit: int | None = None) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise _Damage(f"{path} is not a regular file")
    if limit is not None and status.st_size > limit:
        raise _Damage(f"{path} has {status.st_size} bytes, more than {limit}")
    return path.read_bytes()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
