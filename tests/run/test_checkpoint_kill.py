"""Writers that are killed or find the disk full: the previous or the new checkpoint is there, and no litter."""

from __future__ import annotations

import inspect
import json
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from metarl.run.checkpoint import CheckpointError, CheckpointStore

# a warning says that something is damaged: only tests that damage something may see one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

# One process imports torch and forks a victim for each case.
VICTIMS = """
import json, os, resource, signal, sys, time
from pathlib import Path
from metarl.run.checkpoint import CheckpointError, CheckpointStore

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


@pytest.fixture(scope="module")
def victims(content):
    """Return a function that runs a case in a process of its own and returns exit code and message."""
    program = f"import torch\n{inspect.getsource(content)}{VICTIMS}"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
def test_killed_while_saving_a_new_step(tmp_path, victims, fault, content, equal, saved, snapshot, names):
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
def test_killed_while_replacing_the_only_step(tmp_path, victims, fault, content, equal, saved, snapshot, names):
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
def test_killed_at_a_random_moment(tmp_path, victims, seed, content, equal, names):
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


def test_a_reader_beside_the_writer_never_sees_damage(tmp_path, victims, equal, saved):
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
def test_a_full_disk_is_one_line_and_leaves_everything_as_it_was(tmp_path, victims, limit, saved, snapshot, names):
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


def test_a_place_that_cannot_be_written_is_an_error(tmp_path, saved):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"00000001 .*another run_dir"):
        saved(tmp_path / "checkpoints", 1)
    with pytest.raises(CheckpointError, match="Not a directory"):
        CheckpointStore(tmp_path / "checkpoints").latest()
