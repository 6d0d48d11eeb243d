"""Checkpoints: what is written comes back bit for bit, or the damage is named and the previous one is used."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from metarl.run import checkpoint
from metarl.run.checkpoint import CheckpointError, CheckpointStore, RunLock
from metarl.settings import SettingsError

FILES = ("tensors.safetensors", "state.json", "manifest.json")
# a warning says that something is damaged: only tests that damage something may see one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def content(step, salt=0):
    """Tensors and record of a step: the same in every process."""
    values = torch.arange(30, dtype=torch.float64).reshape(5, 6) + 1000 * step + 0.1 * salt
    tensors = {"w": values, "b": values[0].float(), "count": torch.tensor(step), "flags": torch.tensor([True, False])}
    return tensors, {"iteration": step, "salt": salt, "best": {"score": -1.5 * step}}


def equal(found, step, salt=0):
    tensors, record = content(step, salt)
    return found.step == step and found.record == record and same(found.tensors, tensors)


def same(left, right):
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in right
    )


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


def test_same_content_gives_same_bytes_whatever_the_layout(tmp_path):
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
def test_tensors_of_a_gpu_give_the_same_bytes(tmp_path):
    tensors, record = content(3)
    CheckpointStore(tmp_path / "cpu").save(3, tensors, record)
    CheckpointStore(tmp_path / "gpu").save(3, {name: value.cuda() for name, value in tensors.items()}, record)
    assert snapshot(tmp_path / "cpu") == snapshot(tmp_path / "gpu")
    assert all(value.device.type == "cpu" for value in CheckpointStore(tmp_path / "gpu").latest().tensors.values())


def test_manifest_states_size_and_sha256_of_the_files(tmp_path):
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
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, tensors, record, reason):
    """Catches: NaN in JSON, and ``__metadata__``, which safetensors writes without complaint and cannot read back."""
    with pytest.raises(CheckpointError, match=reason) as caught:
        CheckpointStore(tmp_path / "checkpoints").save(1, tensors, record)
    assert "00000001" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_all_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
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

    monkeypatch.setattr(checkpoint.os, "fsync", record_fsync)
    monkeypatch.setattr(checkpoint.os, "rename", record_rename)
    store.save(2, *content(2))
    temporary = f".tmp-00000002-{os.getpid()}"
    assert events == [*FILES, temporary, (temporary, "00000002"), tmp_path.name]
    events.clear()
    store.save(2, *content(2, salt=1))
    new, old = "00000002.next", ("00000002", f".tmp-removed-00000002-{os.getpid()}")
    assert events[4:] == [(temporary, new), tmp_path.name, old, (new, "00000002"), tmp_path.name]


# ---- which ones stay


def test_newest_steps_and_the_best_stay(tmp_path):
    """Catches: the best pruned with old steps, an old best that stays, leftovers of the removal."""
    store = saved(tmp_path, 1, 2, 3, 4, 5, best=(1, 2))
    assert names(tmp_path) == ["00000004", "00000005", "best-00000002"]
    assert equal(store.best(), 2)
    assert equal(store.latest(), 5)
    store.save(123456789, *content(123456789), best=True)  # nine digits: sorted as numbers
    assert names(tmp_path) == ["00000005", "123456789", "best-123456789"]
    assert equal(store.latest(), 123456789)


def test_an_old_best_that_a_kill_left_is_pruned(tmp_path):
    saved(tmp_path / "other", 1, best=(1,))
    store = saved(tmp_path / "run", 2, best=(2,))
    shutil.copytree(tmp_path / "other" / "best-00000001", tmp_path / "run" / "best-00000001")
    assert equal(store.best(), 2)
    store.save(3, *content(3))
    assert names(tmp_path / "run") == ["00000002", "00000003", "best-00000002"]


def test_what_was_just_saved_is_kept_although_a_higher_damaged_step_exists(tmp_path):
    """Catches: keep=1 counting the damaged step 8 as the newest and pruning the only good one."""
    store = saved(tmp_path, 8, best=(8,), keep=1)
    flip(tmp_path / "00000008" / "tensors.safetensors", -1, 0)
    store.save(7, *content(7))
    assert equal(store.latest(), 7)
    store.save(7, *content(7), best=True)  # the best of the lost future is no longer the best
    assert equal(store.best(), 7)
    assert names(tmp_path) == ["00000007", "best-00000007"]


def test_damaged_looking_steps_do_not_count_as_kept(tmp_path):
    """Catches: keep=2 satisfied by the new step and a hollow one, so that no intact fallback is left."""
    store = saved(tmp_path, 1, 2, 3)
    (tmp_path / "00000003" / "state.json").write_bytes(b"")
    store.save(4, *content(4))
    assert names(tmp_path) == ["00000002", "00000004"]


def test_saving_a_step_again_writes_nothing_or_replaces_it(tmp_path):
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


def test_a_step_that_cannot_be_removed_does_not_fail_the_save(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    store = saved(tmp_path, 1, 2)
    monkeypatch.setattr(checkpoint, "_remove", refuse)
    with pytest.warns(RuntimeWarning, match="00000001: Permission denied"):
        store.save(3, *content(3))
    assert equal(store.latest(), 3)


def test_foreign_files_are_left_alone(tmp_path):
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


def test_nothing_saved_yet(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.clean()
    assert store.latest() is None
    assert store.best() is None
    assert names(tmp_path) == []  # reading makes nothing
    (tmp_path / "checkpoints" / ".tmp-00000001-5").mkdir(parents=True)
    assert store.latest() is None
    saved(tmp_path / "checkpoints", 1)
    assert store.best() is None


# ---- damage


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found_and_the_previous_step_used(tmp_path, name):
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
def test_a_damaged_file_is_named_and_the_previous_step_used(tmp_path, name, damage):
    store = saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "00000003" / name)
    with pytest.warns(RuntimeWarning, match=rf"00000003/{name} .*; using .*00000002"):
        assert equal(store.latest(), 2)


def test_all_damaged_is_an_error_that_names_each(tmp_path):
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


def test_one_renamed_by_hand_is_not_taken_for_another_step(tmp_path):
    store = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000009")
    with pytest.warns(RuntimeWarning, match="belongs to step 1"):
        assert equal(store.latest(), 1)


def test_a_later_schema_is_refused_rather_than_passed_over(tmp_path):
    """Catches: an older step silently taking the place of newer progress, and then overwriting it."""
    store = saved(tmp_path, 1, 2)
    forge(tmp_path / "00000002", schema=2)
    with pytest.raises(CheckpointError, match="schema 2 and this metarl reads 1; install a newer metarl"):
        store.latest()


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "sub/state.json", "state.json\0", "."])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
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
def test_made_up_tensor_files_with_right_checksums_are_refused(tmp_path, data):
    """Catches: exceptions of the parser that reach the user, and memory taken on the word of a header."""
    store = saved(tmp_path, 1, 2)
    (tmp_path / "00000002" / "tensors.safetensors").write_bytes(data)
    forge(tmp_path / "00000002")
    with pytest.warns(RuntimeWarning, match="00000002/tensors.safetensors cannot be decoded"):
        assert equal(store.latest(), 1)


def test_tensors_that_the_manifest_does_not_name_are_refused(tmp_path):
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
def test_a_pickle_under_another_name_is_not_executed(tmp_path, name):
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


# ---- kills: one process imports torch and forks a victim for each case

VICTIMS = (
    "import json, os, resource, signal, sys, time\nimport torch\nfrom pathlib import Path\n"
    "from metarl.run.checkpoint import CheckpointError, CheckpointStore\n"
    + inspect.getsource(content)
    + """
def victim(case):
    store = CheckpointStore(Path(case["directory"]), keep=case.get("keep", 2))
    os.environ["METARL_FAULT"] = case.get("fault", "")
    if case["action"] == "clean":
        store.clean()
    if case["action"] == "save":
        store.save(case["step"], *content(case["step"], case["salt"]), best=True)
    if case["action"] == "loop":
        for step in range(1, 10**6):
            store.save(step, *content(step), best=step % 3 == 0)
    if case["action"] == "fill":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["limit"], case["limit"]))
        try:
            store.save(2, {"w": torch.zeros(case["numbers"])}, {}, best=True)
        except CheckpointError as error:
            return str(error)
    return ""

for line in sys.stdin:
    case = json.loads(line)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, victim(case).encode())
        os._exit(0)
    os.close(write)
    if "seconds" in case:
        time.sleep(case["seconds"])
        os.kill(pid, signal.SIGKILL)
    message = os.read(read, 10**4).decode()
    os.close(read)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message]), flush=True)
"""
)


@pytest.fixture(scope="module")
def victims():
    """Return a function that runs a case in a process of its own and returns exit code and message."""
    with subprocess.Popen(
        [sys.executable, "-c", VICTIMS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(directory, action, **case):
            process.stdin.write(json.dumps({"directory": str(directory), "action": action, **case}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run


POINTS = [
    f"{point}:{count}"
    for point in ("after_tensors", "after_files", "before_rename", "after_rename")
    for count in (1, 2)  # first for the copy that is the best, then for the step
] + ["before_prune"]


@pytest.mark.parametrize("fault", POINTS)
def test_killed_while_saving_a_new_step(tmp_path, victims, fault):
    """Catches: half a checkpoint under a final name, a step that is there while its best is not, temporary litter."""
    saved(tmp_path / "run", 1, 2, best=(1,))
    shutil.copytree(tmp_path / "run", tmp_path / "undisturbed")
    saved(tmp_path / "undisturbed", 3, best=(3,))
    assert victims(tmp_path / "run", "save", step=3, salt=0, fault=fault)[0] == 9
    store = CheckpointStore(tmp_path / "run")
    latest, best = store.latest(), store.best()
    assert equal(latest, 3 if fault in ("after_rename:2", "before_prune") else 2)
    assert equal(best, 3 if fault in ("after_rename:1", "before_rename:2", "after_rename:2", "before_prune") else 1)
    store.clean()
    assert [name for name in names(tmp_path / "run") if ".tmp" in name] == []
    assert (store.latest().step, store.best().step) == (latest.step, best.step)
    store.save(3, *content(3), best=True)
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "undisturbed")
    assert names(tmp_path / "run") == names(tmp_path / "undisturbed")


@pytest.mark.parametrize("fault", [*POINTS[4:], *(f"while_replacing:{count}" for count in (1, 2, 3, 4))])
def test_killed_while_replacing_the_only_step(tmp_path, victims, fault):
    """Catches: a moment at which the old step is gone and the new one not there yet. Nothing else could be used."""
    saved(tmp_path / "run", 2, best=(2,))
    CheckpointStore(tmp_path / "undisturbed").save(2, *content(2, salt=1), best=True)
    assert victims(tmp_path / "run", "save", step=2, salt=1, fault=fault)[0] == 9
    store = CheckpointStore(tmp_path / "run")
    latest, best = store.latest(), store.best()
    assert equal(latest, 2, salt=latest.record["salt"])
    assert equal(best, 2, salt=best.record["salt"])
    # the clean-up after the kill is killed, too, where it has something to finish
    victims(tmp_path / "run", "clean", fault="while_replacing:2")
    assert (store.latest().record, store.best().record) == (latest.record, best.record)
    store.clean()
    assert (store.latest().record, store.best().record) == (latest.record, best.record)
    assert names(tmp_path / "run") == ["00000002", "best-00000002"]
    store.save(2, *content(2, salt=1), best=True)
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "undisturbed")
    assert names(tmp_path / "run") == names(tmp_path / "undisturbed")


@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment(tmp_path, victims, seed):
    """SIGKILL where no fault point is; every third step is a best."""
    assert victims(tmp_path, "loop", keep=1, seconds=random.Random(seed).uniform(0.01, 0.12))[0] == -9
    store = CheckpointStore(tmp_path, keep=1)
    latest, best = store.latest(), store.best()
    step = latest.step if latest else 0
    due = (step + 1 if (step + 1) % 3 == 0 else step) // 3 * 3  # the next step's best may be there before the step
    assert best.step in {step // 3 * 3, due} if best else step < 3
    assert latest is None or equal(latest, step)
    assert best is None or equal(best, best.step)
    store.clean()
    store.save(step + 1, *content(step + 1), best=(step + 1) % 3 == 0)
    bests = [f"best-{(step + 1) // 3 * 3:08d}"] if step + 1 >= 3 else []
    assert names(tmp_path) == [f"{step + 1:08d}", *bests]


def test_a_reader_beside_the_writer_never_sees_damage(tmp_path, victims):
    """Catches: a reader that calls a step damaged, or finds none, because the writer prunes it while it is read."""
    store = saved(tmp_path, 0, best=(0,), keep=1)
    writer = threading.Thread(target=victims, args=(tmp_path, "loop"), kwargs={"keep": 1, "seconds": 1.0})
    writer.start()
    found = []
    while writer.is_alive():
        found += [store.latest(), store.best()]
    writer.join()
    assert all(equal(one, one.step) for one in found)
    assert len({one.step for one in found}) > 5


# ---- disk full


@pytest.mark.parametrize("limit", [100, 5000, 40_000])
def test_a_full_disk_is_one_line_and_leaves_everything_as_it_was(tmp_path, victims, limit):
    """Catches: a partial file left behind, a removed predecessor, an error without the place and the bytes needed."""
    saved(tmp_path / "run", 1, best=(1,))
    before = snapshot(tmp_path / "run")
    code, message = victims(tmp_path / "run", "fill", limit=limit, numbers=10_000)
    assert code == 0
    CheckpointStore(tmp_path / "roomy").save(2, {"w": torch.zeros(10_000)}, {}, best=True)
    needed = sum(map(len, snapshot(tmp_path / "roomy").values()))
    assert needed > 2 * 40_000  # the step and the best
    assert f"{tmp_path / 'run' / '00000002'} ({needed} bytes): File too large" in message
    assert "\n" not in message
    assert snapshot(tmp_path / "run") == before
    assert names(tmp_path / "run") == ["00000001", "best-00000001"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"00000001 .*another run_dir"):
        saved(tmp_path / "checkpoints", 1)
    with pytest.raises(CheckpointError, match="Not a directory"):
        CheckpointStore(tmp_path / "checkpoints").latest()


# ---- the lock

HOLDER = """
import os, sys
from pathlib import Path
from metarl.run.checkpoint import RunLock
with RunLock(Path(sys.argv[1])):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"!")
    elif os.read(read, 1):
        print(os.getpid(), child, "torch" in sys.modules, flush=True)
    sys.stdin.read()
"""


def test_lock_refuses_a_second_process_and_dies_with_the_first(tmp_path):
    """Catches: locks that outlive kill -9, also through a child that the killed process had forked; torch imported."""
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        pid, child, torch_imported = holder.stdout.readline().split()
        assert torch_imported == "False"  # so that a run in use is refused at once
        message = (
            f"Another process \\(pid {pid} on host {socket.gethostname()}\\) is writing {tmp_path}; stop it or choose"
        )
        with pytest.raises(SettingsError, match=message), RunLock(lock):
            pass
        holder.kill()
        holder.wait()
        os.kill(int(child), 0)  # the child is alive
        with RunLock(lock):
            pass


def test_lock_refuses_itself_and_can_be_taken_again(tmp_path):
    lock = tmp_path / ".lock"
    for _ in range(2):
        with RunLock(lock), pytest.raises(SettingsError, match=f"pid {os.getpid()} on"), RunLock(lock):
            pass
    with pytest.raises(SettingsError, match="another run_dir"), RunLock(tmp_path / "missing" / ".lock"):
        pass
    assert names(tmp_path) == [".lock"]


def test_lock_of_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(checkpoint.fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="cannot be locked"), RunLock(tmp_path / ".lock"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.undo()
        with RunLock(tmp_path / ".lock"):
            pass
