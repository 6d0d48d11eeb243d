"""Full disks: one line names the file, and everything that was complete before is complete afterwards."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from metarl import evaluate, train

BROKEN = pathlib.Path(__file__).parent / "broken.py"
QUICK = ("tasks=2", "steps=1", "device=cpu")


def test_in_a_checkpoint(run, user, tmp_path, rows, point):
    """As a user sees it. 300 units make a checkpoint of 4 kB and more, and nothing else is as long."""
    words = point("hidden_sizes=[300]", "run_dir=run")
    done = user(BROKEN, *words, limit=3000)
    done.refused("Cannot write checkpoint run/checkpoints/00000001", "File too large", "make room")
    assert len(rows(tmp_path / "run")) == 1
    assert run(train, *words, "resume=auto").code == 0
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.parametrize("file", ["metrics.jsonl", "provenance.json", "config.yaml"])
def test_when_a_run_is_continued(run, copy, point, rows, content, small_disk, file):
    """Each in turn is the file that finds no room; what was there stays whole, and the run goes on from it."""
    before = content(copy)
    # the rows are appended to, so their file is the longest; a second session nearly doubles provenance.json
    limit = len(before[file]) + {"metrics.jsonl": 100, "provenance.json": 100, "config.yaml": -100}[file]
    longer = point("iterations=5", f"run_dir={copy}", "resume=auto")
    with small_disk(limit):
        done = run(train, *longer)
    done.refused(str(copy), "cannot be written: File too large", "make room", "resume=auto")
    after = content(copy)
    assert {name for name in before if after[name] != before[name]} <= {".lock", "config.yaml", "provenance.json"} - {
        file
    }
    assert all(name.startswith("tensorboard/") for name in set(after) - set(before))
    assert run(train, *longer).code == 0
    assert [row["iteration"] for row in rows(copy)] == [0, 1, 2, 3, 4]


def test_at_the_first_file(run, tmp_path, point, small_disk):
    """Catches half a configuration in a directory that looks like a run."""
    with small_disk(400):
        run(train, *point("run_dir=run")).refused("run cannot be written: File too large")
    assert not list(tmp_path.iterdir())


def test_in_tensorboard(run, tmp_path, rows, point, small_disk):
    """Events are longer than rows and checkpoints; their writer must not end in a traceback of some thread's."""
    words = point("run_dir=run")
    with small_disk(2500):
        run(train, *words).refused("run/tensorboard cannot be written: File too large", "resume=auto")
    assert max(os.listdir("run/checkpoints")) == f"{len(rows(tmp_path / 'run')):08d}"
    assert run(train, *words, "resume=auto").code == 0


def test_under_standard_output(run, monkeypatch, tmp_path, point):
    """``> log.txt``: the culprit is not the run's directory."""
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        done = run(train, *point("run_dir=run"))
    done.refused("standard output cannot be written: No space left on device")
    assert not list(tmp_path.iterdir())


def test_in_an_evaluation(run, copy, content, small_disk):
    """Catches a new curve.json beside an old picture, and half a table: the files belong together."""
    out = copy / "evaluation"
    with small_disk(500):
        run(evaluate, f"run={copy}", *QUICK).refused(f"{out} cannot be written: File too large")
    assert not out.exists()
    assert run(evaluate, f"run={copy}", *QUICK).code == 0
    before = content(out)
    with small_disk(len(before["curve.png"]) // 2):
        run(evaluate, f"run={copy}", *QUICK, "seed=1").refused(f"{out} cannot be written: File too large")
    assert content(out) == before


def test_in_a_video(run, user, cheetah, tmp_path):
    """The encoder is a process of its own, which dies unheard and leaves a file that nothing can play."""
    assert run(train, *cheetah, "run_dir=run").code == 0
    done = user("-m", "metarl.evaluate", "run=run", "video=true", *QUICK, limit=4000)
    if any("cannot draw" in line for line in done.err):
        pytest.skip("this machine cannot draw")
    done.refused("run/evaluation cannot be written", "is the disk full?")
    assert not (tmp_path / "run" / "evaluation").exists()
