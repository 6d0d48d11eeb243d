"""What a command does with errors that are nobody's typing mistake, and with a reader who has gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from metarl.run import provenance
from metarl.run.build import build_learner
from metarl.run.command import guarded
from metarl.run.config import resolve


def test_running_out_of_memory_is_one_line_with_the_remedy(capsys):
    """Catches a traceback where NumPy, or PyTorch's own way of saying it, finds no memory; the sizes exceed any machine."""
    for allocate in (lambda: np.zeros(2**58), lambda: torch.zeros(2**58)):
        assert guarded(lambda make=allocate: make() is None) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: out of memory (")
        assert error.count("\n") == 1
        assert "lower meta_batch_size" in error


def test_other_runtime_errors_are_not_swallowed():
    """Catches a net so wide that a bug in the code looks like a lack of memory."""

    def fail() -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        guarded(fail)


@pytest.mark.parametrize("command", ["metarl.train", "metarl.evaluate"])
def test_a_reader_that_leaves_early_gets_no_traceback(command):
    """Catches ``--help | head -1`` ending in a BrokenPipeError."""
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -m "$1" --help | true', sys.executable, command],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_a_path_that_is_no_text_is_printed_as_it_is(tmp_path):
    """Catches a UnicodeEncodeError for a run directory whose name no encoding has."""
    name = os.fsencode(tmp_path) + b"/r\xffn"
    small = ["meta_batch_size=2", "iterations=1", "eval_every=0", "threads=1", "env=sinusoid"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "metarl.train", *small, b"run_dir=" + name]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"run_dir: " + name in done.stdout


@pytest.mark.parametrize("content", [b"{]", b"{}", b"\xff"], ids=["no JSON", "no list", "no text"])
def test_a_damaged_record_does_not_stop_a_run(tmp_path, content):
    """Catches a traceback on resume, and the loss of what can still be read of the record."""
    file = tmp_path / provenance.PROVENANCE
    file.write_bytes(content)
    config = resolve("sinusoid")
    learner = build_learner(config)
    with pytest.warns(RuntimeWarning, match="is damaged; it is kept as provenance.json.damaged"):
        provenance.record_session(tmp_path, "again", config, learner, 3)
    assert file.with_name("provenance.json.damaged").read_bytes() == content
    assert [session["from_iteration"] for session in json.loads(file.read_text())] == [3]
