"""Damaged and forged checkpoints: the damage is named, and the previous one is used."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest

from metarl.run.checkpoint import CheckpointError

FILES = ("tensors.safetensors", "state.json", "manifest.json")
# a warning says that something is damaged: only tests that damage something may see one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found_and_the_previous_step_used(tmp_path, name, equal, saved, flip):
    """Catches: bytes that no checksum covers, the manifest's own among them (safetensors loads a flipped weight)."""
    store = saved(tmp_path, 1, 2)
    path = tmp_path / "00000002" / name
    intact = path.read_bytes()
    rng = random.Random(FILES.index(name))
    for _ in range(20):
        position, bit = rng.randrange(len(intact)), rng.randrange(8)
        flip(path, position, bit)
        with pytest.warns(RuntimeWarning, match="00000002") as caught:
            assert equal(store.latest(), 1), (position, bit)
        assert len(caught) == 1
        path.write_bytes(intact)
    assert equal(store.latest(), 2)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _append(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever


def _empty(path):
    path.write_bytes(b"")


def _directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_truncate, _append, _empty, _pipe, _directory, Path.unlink])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.timeout(20)
def test_a_damaged_file_is_named_and_the_previous_step_used(tmp_path, name, damage, equal, saved):
    store = saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "00000003" / name)
    with pytest.warns(RuntimeWarning, match=rf"00000003/{name} .*; using .*00000002"):
        assert equal(store.latest(), 2)


def test_all_damaged_is_an_error_that_names_each(tmp_path, equal, saved):
    store = saved(tmp_path, 1, 2, best=(2,))
    shutil.rmtree(tmp_path / "00000002")
    (tmp_path / "00000002").mkdir()
    (tmp_path / "00000001" / "state.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"00000002/manifest.json .*00000001/state.json .*another run_dir"
    ) as caught:
        store.latest()
    assert "\n" not in str(caught.value)
    assert equal(store.best(), 2)
    (tmp_path / "best-00000002" / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="best"):
        store.best()


def test_one_renamed_by_hand_is_not_taken_for_another_step(tmp_path, equal, saved):
    store = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000009")
    with pytest.warns(RuntimeWarning, match="belongs to step 1"):
        assert equal(store.latest(), 1)


def test_a_later_schema_is_refused_rather_than_passed_over(tmp_path, saved, forge):
    """Catches: an older step silently taking the place of newer progress, and then overwriting it."""
    store = saved(tmp_path, 1, 2)
    forge(tmp_path / "00000002", schema=2)
    with pytest.raises(CheckpointError, match="schema 2 and this metarl reads 1; install a newer metarl"):
        store.latest()


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "sub/state.json", "state.json\0", "."])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name, equal, saved, forge):
    store = saved(tmp_path, 1, 2)
    outside = b"{}\n"
    (tmp_path / "x").write_bytes(outside)
    entry = {"bytes": len(outside), "sha256": hashlib.sha256(outside).hexdigest()}
    for files in (lambda old: {**old, name: entry}, lambda old: {FILES[0]: old[FILES[0]], name: entry}):
        forge(tmp_path / "00000002", files)
        with pytest.warns(RuntimeWarning, match="00000002/manifest.json names the files"):
            assert equal(store.latest(), 1)


def _header(**entry):
    text = json.dumps({"w": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        _header(dtype="F32", shape=[1 << 40], data_offsets=[0, 1 << 42]),
        _header(dtype="F32", shape=[0, 1 << 63], data_offsets=[0, 0]),
        _header(dtype="O", shape=[1], data_offsets=[0, 0]),
        _header(dtype="F32", shape=[0], data_offsets=[0, 0]),  # in order, but without the tensors of the manifest
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
    ],
    ids=["empty", "short", "oversize", "overflow", "huge", "huge-empty", "object", "other-names", "nested"],
)
def test_made_up_tensor_files_with_right_checksums_are_refused(tmp_path, data, equal, saved, forge):
    """Catches: exceptions of the parser that reach the user, and memory taken on the word of a header."""
    store = saved(tmp_path, 1, 2)
    (tmp_path / "00000002" / "tensors.safetensors").write_bytes(data)
    forge(tmp_path / "00000002")
    with pytest.warns(RuntimeWarning, match="00000002/tensors.safetensors cannot be decoded"):
        assert equal(store.latest(), 1)


def test_tensors_that_the_manifest_does_not_name_are_refused(tmp_path, equal, saved, forge):
    store = saved(tmp_path, 1, 2)
    forge(tmp_path / "00000002", tensors=["b", "w"])
    with pytest.warns(RuntimeWarning, match="00000002/tensors.safetensors holds tensors"):
        assert equal(store.latest(), 1)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_pickle_under_another_name_is_not_executed(tmp_path, name, equal, saved, forge):
    store = saved(tmp_path / "checkpoints", 1, 2)
    path = tmp_path / "checkpoints" / "00000002"
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    (path / name).write_bytes(bomb)
    if name != "manifest.json":
        forge(path)
    with pytest.warns(RuntimeWarning, match="00000002"):
        assert equal(store.latest(), 1)
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists()  # it would have worked
