"""What the tests of checkpoints share: their content, how it is compared, how it is damaged."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch

from metarl.run.checkpoint import CheckpointStore


def content(step, salt=0):
    """Tensors and record of a step: the same in every process."""
    values = torch.arange(30, dtype=torch.float64).reshape(5, 6) + 1000 * step + 0.1 * salt
    tensors = {"w": values, "b": values[0].float(), "count": torch.tensor(step), "flags": torch.tensor([True, False])}
    return tensors, {"iteration": step, "salt": salt, "best": {"score": -1.5 * step}}


def same(left, right):
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in right
    )


def equal(found, step, salt=0):
    tensors, record = content(step, salt)
    return found.step == step and found.record == record and same(found.tensors, tensors)


def saved(directory, *steps, best=(), **options):
    store = CheckpointStore(directory, **options)
    for step in steps:
        store.save(step, *content(step), best=step in best)
    return store


def snapshot(directory):
    """Every file below a directory with its bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def names(directory):
    return sorted(os.listdir(directory))


def forge(path, files=None, **changes):
    """Write a manifest whose checksums are right, as somebody who means harm would; states the format a second time."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["checksum"]
    for name in ("tensors.safetensors", "state.json"):
        data = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"] = files(manifest["files"]) if files else manifest["files"]
    manifest |= changes
    text = json.dumps(manifest, sort_keys=True, indent=1) + "\n"
    manifest["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def _given(function):
    """Make a fixture of this function's name that is the function itself: tests do not import from each other."""
    return pytest.fixture(scope="session", name=function.__name__)(lambda: function)


given_content = _given(content)
given_same = _given(same)
given_equal = _given(equal)
given_saved = _given(saved)
given_snapshot = _given(snapshot)
given_names = _given(names)
given_forge = _given(forge)
given_flip = _given(flip)
