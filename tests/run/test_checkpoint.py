"""Checkpoints: what is written comes back bit for bit, and of many the right ones stay."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarl.run import disk
from metarl.run.checkpoint import CheckpointError, CheckpointStore

FILES = ("tensors.safetensors", "state.json", "manifest.json")
# a warning says that something is damaged: only tests that damage something may see one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


# ---- writing and reading


def test_round_trip_keeps_bits_types_shapes_and_order(tmp_path):
    """Catches: safetensors' own order (a parameter vector depends on it), lost dtypes, empty and scalar shapes."""
    tensors = {
        "z": torch.tensor([1.0, float("nan"), -0.0, float("inf")]),
        "a": torch.tensor(3),
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "k": torch.tensor([True, False]),
        "": torch.zeros(1, dtype=torch.uint8),
    }
    record = {"float": 0.1 + 0.2, "big": 2**70, "text": "\udcff\n€", "none": None, "list": [1, [2.5]], "a": {"b": {}}}
    path = CheckpointStore(tmp_path / "run" / "checkpoints").save(7, tensors, record)
    found = CheckpointStore(tmp_path / "run" / "checkpoints").latest()
    assert path == found.path == tmp_path / "run" / "checkpoints" / "00000007"
    assert found.record == record
    assert list(found.tensors) == list(tensors)
    for name, value in tensors.items():
        got = found.tensors[name]
        assert (got.dtype, got.shape, got.device.type) == (value.dtype, value.shape, "cpu")
        assert got.reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
        assert got.data_ptr() % 64 == 0  # as torch allocates: vectorised sums may round otherwise elsewhere


def test_same_content_gives_same_bytes_whatever_the_layout(tmp_path, same, snapshot):
    """Catches: dictionary order in JSON, strides, views, shared memory, graphs or conjugate bits reaching the file."""
    value = torch.arange(12.0).reshape(3, 4)
    numbers = torch.complex(torch.arange(4.0), torch.ones(4))
    plain = {"t": value.t().contiguous(), "v": value[1].clone(), "c": torch.complex(torch.arange(4.0), -torch.ones(4))}
    plain |= {"e": torch.full((5,), 2.0), "n": -torch.ones(4)}
    odd = {
        "t": value.t(),
        "v": value[1],
        "c": numbers.conj(),
        "e": torch.tensor(2.0).expand(5),
        "n": numbers.conj().imag,
    }
    CheckpointStore(tmp_path / "a").save(1, plain, {"x": 1, "y": {"p": 2, "q": 3}})
    CheckpointStore(tmp_path / "b").save(
        1, {name: v.requires_grad_() if v.is_leaf else v for name, v in odd.items()}, {"y": {"q": 3, "p": 2}, "x": 1}
    )
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    tied = {"one": value, "two": value}  # safetensors alone refuses these
    CheckpointStore(tmp_path / "c").save(1, tied, {})
    assert same(CheckpointStore(tmp_path / "c").latest().tensors, tied)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_give_the_same_bytes(tmp_path, content, snapshot):
    tensors, record = content(3)
    CheckpointStore(tmp_path / "cpu").save(3, tensors, record)
    CheckpointStore(tmp_path / "gpu").save(3, {name: value.cuda() for name, value in tensors.items()}, record)
    assert snapshot(tmp_path / "cpu") == snapshot(tmp_path / "gpu")
    assert all(value.device.type == "cpu" for value in CheckpointStore(tmp_path / "gpu").latest().tensors.values())


def test_manifest_states_size_and_sha256_of_the_files(tmp_path, saved, snapshot, forge):
    path = saved(tmp_path, 12).directory / "00000012"
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert (manifest["schema"], manifest["step"], manifest["tensors"]) == (1, 12, ["w", "b", "count", "flags"])
    for name in FILES[:2]:
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    before = snapshot(path)
    forge(path)  # what the other tests forge with states the same format
    assert snapshot(path) == before


@pytest.mark.parametrize(
    ("tensors", "record", "reason"),
    [
        ({}, {"kl": float("nan")}, "finite"),
        ({}, {"nested": [float("inf")]}, "finite"),
        ({}, {"what": {1, 2}}, "set is not JSON"),
        ({"x": torch.zeros(2, dtype=torch.complex128)}, {}, "complex128"),
        ({"x": torch.eye(2).to_sparse()}, {}, "sparse"),
        ({"x": torch.zeros(2, device="meta")}, {}, "meta"),
        ({"__metadata__": torch.zeros(2)}, {}, "__metadata__"),
        ({3: torch.zeros(2)}, {}, "str"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, tensors, record, reason, names):
    """Catches: NaN in JSON, and ``__metadata__``, which safetensors writes without complaint and cannot read back."""
    with pytest.raises(CheckpointError, match=reason) as caught:
        CheckpointStore(tmp_path / "checkpoints").save(1, tensors, record)
    assert "00000001" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_all_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch, content, saved):
    """Catches: a missing fsync, which no kill shows but a power cut does: a name with empty files behind it."""
    store = saved(tmp_path, 1)
    events = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def record_rename(source, target):
        events.append((Path(source).name, Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    store.save(2, *content(2))
    temporary = f".tmp-00000002-{os.getpid()}"
    assert events == [*FILES, temporary, (temporary, "00000002"), tmp_path.name]
    events.clear()
    store.save(2, *content(2, salt=1))
    new, old = "00000002.next", ("00000002", f".tmp-removed-00000002-{os.getpid()}")
    assert events[4:] == [(temporary, new), tmp_path.name, old, (new, "00000002"), tmp_path.name]


# ---- which ones stay


def test_newest_steps_and_the_best_stay(tmp_path, content, equal, saved, names):
    """Catches: the best pruned with old steps, an old best that stays, leftovers of the removal."""
    store = saved(tmp_path, 1, 2, 3, 4, 5, best=(1, 2))
    assert names(tmp_path) == ["00000004", "00000005", "best-00000002"]
    assert equal(store.best(), 2)
    assert equal(store.latest(), 5)
    store.save(123456789, *content(123456789), best=True)  # nine digits: sorted as numbers
    assert names(tmp_path) == ["00000005", "123456789", "best-123456789"]
    assert equal(store.latest(), 123456789)


def test_an_old_best_that_a_kill_left_is_pruned(tmp_path, content, equal, saved, names):
    saved(tmp_path / "other", 1, best=(1,))
    store = saved(tmp_path / "run", 2, best=(2,))
    shutil.copytree(tmp_path / "other" / "best-00000001", tmp_path / "run" / "best-00000001")
    assert equal(store.best(), 2)
    store.save(3, *content(3))
    assert names(tmp_path / "run") == ["00000002", "00000003", "best-00000002"]


def test_what_was_just_saved_is_kept_although_a_higher_damaged_step_exists(
    tmp_path, content, equal, saved, names, flip
):
    """Catches: keep=1 counting the damaged step 8 as the newest and pruning the only good one."""
    store = saved(tmp_path, 8, best=(8,), keep=1)
    flip(tmp_path / "00000008" / "tensors.safetensors", -1, 0)
    store.save(7, *content(7))
    assert equal(store.latest(), 7)
    store.save(7, *content(7), best=True)  # the best of the lost future is no longer the best
    assert equal(store.best(), 7)
    assert names(tmp_path) == ["00000007", "best-00000007"]


def test_damaged_looking_steps_do_not_count_as_kept(tmp_path, content, saved, names):
    """Catches: keep=2 satisfied by the new step and a hollow one, so that no intact fallback is left."""
    store = saved(tmp_path, 1, 2, 3)
    (tmp_path / "00000003" / "state.json").write_bytes(b"")
    store.save(4, *content(4))
    assert names(tmp_path) == ["00000002", "00000004"]


def test_saving_a_step_again_writes_nothing_or_replaces_it(tmp_path, content, equal, saved, snapshot, names, flip):
    store = saved(tmp_path, 1, 2, best=(2,))
    inodes = [(tmp_path / "00000002" / name).stat().st_ino for name in FILES]
    before = snapshot(tmp_path)
    saved(tmp_path, 2, best=(2,))
    assert [(tmp_path / "00000002" / name).stat().st_ino for name in FILES] == inodes
    assert snapshot(tmp_path) == before
    flip(tmp_path / "00000002" / "state.json", 5, 3)
    saved(tmp_path, 2, best=(2,))  # a damaged one is written anew
    assert snapshot(tmp_path) == before
    store.save(2, *content(2, salt=1))
    assert equal(store.latest(), 2, salt=1)
    assert equal(store.best(), 2)
    assert names(tmp_path) == ["00000001", "00000002", "best-00000002"]


def test_a_step_that_cannot_be_removed_does_not_fail_the_save(tmp_path, monkeypatch, content, equal, saved):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    store = saved(tmp_path, 1, 2)
    monkeypatch.setattr(disk, "remove", refuse)
    with pytest.warns(RuntimeWarning, match="00000001: Permission denied"):
        store.save(3, *content(3))
    assert equal(store.latest(), 3)


def test_foreign_files_are_left_alone(tmp_path, content, saved, names):
    """Catches: a clean-up by a loose pattern that deletes what a user has put there."""
    store = saved(tmp_path, 1, 2, 3, best=(1,))
    for name in ("00000001.bak", "notes.next", "best", "0000001", ".tmp-00000001-99", ".tmp-best-00000001-99"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".tmp-file").write_text("x")
    store.clean()
    store.save(4, *content(4))
    kept = [".tmp-file", "00000001.bak", "00000003", "00000004", "0000001", "best", "best-00000001", "notes.next"]
    assert names(tmp_path) == kept


def test_nothing_saved_yet(tmp_path, saved, names):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.clean()
    assert store.latest() is None
    assert store.best() is None
    assert names(tmp_path) == []  # reading makes nothing
    (tmp_path / "checkpoints" / ".tmp-00000001-5").mkdir(parents=True)
    assert store.latest() is None
    saved(tmp_path / "checkpoints", 1)
    assert store.best() is None


def test_importing_does_not_import_torch():
    """Catches: a command that only names checkpoints and takes seconds to start."""
    code = "import sys, metarl.run.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
