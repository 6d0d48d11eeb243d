"""Runs that were cut short, moved or tampered with: continued where that is sound, refused in one line where not."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from metarl import evaluate, train
from metarl.run import trainer


def _iterations(path):
    return [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_killed_before_its_first_file_can_be_resumed(run, point, tmp_path):
    """Catches ``holds files of something else`` for what a killed writer of the configuration leaves."""
    (tmp_path / "run").mkdir()
    for name in (".config.yaml.tmp", ".lock"):
        (tmp_path / "run" / name).touch()
    assert run(train, *point("run_dir=run", "resume=auto")).code == 0
    assert _iterations(tmp_path / "run") == [0, 1, 2]


def test_a_validation_that_diverges_does_not_end_the_training(run, point, tmp_path):
    """A reference that never adapts in training need not survive adapting; its run must."""
    done = run(train, *point("eval_every=1", "inner_steps=0", "inner_lr=1e30", "eval_steps=3", "run_dir=run"))
    assert done.code == 0
    assert len(done.err) == 3
    assert all("warning: validation after iteration " in line and "diverged" in line for line in done.err)
    assert _iterations(tmp_path / "run") == [0, 1, 2]


def test_iterations_before_a_failure_are_kept(run, point, tmp_path, monkeypatch):
    """Catches the loss of everything since the last checkpoint: here the fourth reset fails, in the second iteration."""
    monkeypatch.setenv("BROKEN", "step_raises:4")
    run(train, *point("checkpoint_every=3", "run_dir=run")).refused("No space left on device")
    monkeypatch.delenv("BROKEN")
    assert _iterations(tmp_path / "run") == [0]
    assert run(train, *point("init_from=run", "iterations=1", "run_dir=next")).code == 0


def test_the_source_of_a_warm_start_may_go(run, copy, point, tmp_path):
    """Once begun, a run needs it no longer; another spelling of the same path is the same source."""
    words = point(f"init_from={copy}", "run_dir=new", "resume=auto", "iterations=1")
    assert run(train, *words).code == 0
    shutil.rmtree(copy)
    spelt = point(f"init_from={copy.parent}/./{copy.name}", "run_dir=new", "resume=auto", "iterations=2")
    assert run(train, *spelt).code == 0
    assert _iterations(tmp_path / "new") == [0, 1]


@pytest.mark.parametrize("spoilt", [b"", b"garbage\n"], ids=["empty", "garbage"])
def test_lost_rows_are_reported_and_never_doubled(run, copy, point, spoilt):
    """Rows are told by their iteration: counting lines keeps rubbish, and doubles rows after two deaths."""
    (copy / "metrics.jsonl").write_bytes(spoilt)
    done = run(train, *point(f"run_dir={copy}", "resume=auto", "iterations=4"))
    assert done.code == 0
    assert "lacks the rows of 3 earlier iterations" in done.err[0]
    assert _iterations(copy) == [3]


def test_a_run_whose_checkpoints_are_gone_is_not_started_afresh(run, copy, point, content):
    """Its metrics would be erased without a word."""
    shutil.rmtree(copy / "checkpoints")
    before = content(copy)
    run(train, *point(f"run_dir={copy}", "resume=auto")).refused("3 iterations", "no checkpoint to continue from")
    assert content(copy) == before


def test_a_checkpoint_of_another_network_is_refused(run, copy, point):
    """A configuration edited by hand ended in a traceback of torch's."""
    config = copy / "config.yaml"
    edited = re.sub(r"hidden_sizes:\s*\S+ ?4\]?", "hidden_sizes: [5]", config.read_text())
    assert edited != config.read_text()
    config.write_text(edited)
    wrong = ("has another network", "use the same hidden_sizes")
    run(evaluate, f"run={copy}", "tasks=2", "steps=1").refused(*wrong)
    run(train, *point(f"run_dir={copy}", "hidden_sizes=[5]", "iterations=4", "resume=auto")).refused(*wrong)


def test_files_of_the_user_stay_when_a_new_run_fails(run, point, tmp_path, monkeypatch):
    """Of a new run that fails nothing stays, but for what it has not written."""
    monkeypatch.setenv("BROKEN", "step_raises")
    monkeypatch.setattr(trainer, "record_session", lambda path, *_: (path / "notes.txt").write_text("mine"))
    run(train, *point("run_dir=run")).refused("No space left on device")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert set(os.listdir(tmp_path / "run")) == {"notes.txt"}


def test_a_run_inside_a_run_is_refused(run, copy, point, content):
    """Catches ``-m`` with the directory of a run: its jobs would be written between the run's own files."""
    before = content(copy)
    run(train, *point(f"run_dir={copy}/0")).refused("lies inside another run")
    run(train, *point(f"run_dir={copy}", "seed=1,2"), "-m").refused("lies inside another run")
    assert content(copy) == before


def test_a_job_that_fails_does_not_take_the_others_along(run, point, tmp_path):
    """The first job diverges; the second must run, and the exit code tell of the first."""
    done = run(train, *point("inner_lr=1e30,0.1", "run_dir=jobs", "-m"))
    assert done.code == 2
    assert len([line for line in done.err if line.startswith("error: ")]) == 1
    assert "job 1: " in done.out
    assert _iterations(tmp_path / "jobs" / "1") == [0, 1, 2]


@pytest.mark.parametrize("what", ["long", "deep", "pipe"])
def test_a_run_directory_that_cannot_be_read_is_one_line(run, point, tmp_path, what):
    """A name that is too long, a configuration nested beyond any parser, a pipe that nobody writes to."""
    path = tmp_path / ("n" * 300 if what == "long" else "odd")
    if what != "long":
        path.mkdir()
    if what == "deep":
        (path / "config.yaml").write_text("[" * 5000)
    if what == "pipe":
        os.mkfifo(path / "config.yaml")
    run(evaluate, f"run={path}").refused("cannot be read")
    run(train, *point(f"init_from={path}", "run_dir=new")).refused("cannot be read")


def test_no_standard_output_is_no_error(copy, user):
    """A daemon has none: catches an AttributeError after the results are written."""
    code = "import sys; sys.stdout = None; from metarl.evaluate import main; sys.exit(main(sys.argv[1:]))"
    done = user("-c", code, "run=nowhere")
    done.refused("nowhere does not exist")
    done = user("-c", "import sys; sys.stdout = None; from metarl.run.command import guarded; guarded(lambda: 0)")
    assert (done.code, done.err) == (0, [])
