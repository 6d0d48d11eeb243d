"""A run that is killed, however often and whenever, must end with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from metarl.run.metrics import is_wall_clock

CHEETAH = (
    "env=halfcheetah-vel",
    "env.horizon=12",
    "meta_batch_size=3",
    "episodes_per_task=3",
    "iterations=40",
    "eval_every=4",
    "eval_tasks=2",
    "hidden_sizes=[8]",
    "normalize_observations=true",  # more state that must not be lost
    "threads=2",
)
SINUSOID = ("env=sinusoid", "iterations=600", "eval_every=50", "checkpoint_every=7", "eval_tasks=5", "threads=2")
FAULTS = ("after_tensors", "after_files", "before_rename", "after_rename", "before_prune")


def start(settings, run, faults=None, **options):
    environment = {**os.environ, **({"METARL_FAULT": faults} if faults else {})}
    command = [sys.executable, "-m", "metarl.train", *settings, f"run_dir={run}", "resume=auto"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run.parent, **options
    )


def finish(settings, run):
    process = start(settings, run)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    return out


def outcome(run: pathlib.Path):
    """All that must not depend on kills: every byte of every checkpoint, and the rows without the clock."""
    files = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file()
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if not is_wall_clock(name)} for row in rows]
    return files, rows


def kill_at_random(settings, run, seed, kills):
    """Kill and resume until ``kills`` kills have hit a living process; then let the run finish."""
    rng = random.Random(seed)
    hits = 0
    while hits < kills:
        if hits % 4 == 3:  # inside the writing of a checkpoint, at a seeded passage
            process = start(settings, run, faults=f"{FAULTS[hits // 4 % len(FAULTS)]}:{rng.randint(1, 3)}")
            process.communicate(timeout=120)
            assert process.returncode in (9, 0)
            hits += process.returncode == 9
        else:
            process = start(settings, run)
            assert process.stdout is not None
            process.stdout.readline()  # run_dir: from here on there is something to lose
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            hits += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            pytest.fail(f"the run was complete after {hits} kills: make it longer")
    finish(settings, run)


@pytest.mark.parametrize(("settings", "kills"), [(CHEETAH, 12), (SINUSOID, 10)], ids=["cheetah", "sinusoid"])
def test_kills_leave_no_trace(tmp_path, settings, kills):
    """Catches state that lives outside checkpoints, rows written twice or lost, and half-written files."""
    finish(settings, tmp_path / "calm")
    kill_at_random(settings, tmp_path / "killed", seed=1, kills=kills)
    calm, killed = outcome(tmp_path / "calm"), outcome(tmp_path / "killed")
    assert killed[1] == calm[1]
    assert killed[0].keys() == calm[0].keys()
    assert killed[0] == calm[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_leave_no_trace(tmp_path, seed):
    """The same with fifty kills."""
    finish(CHEETAH, tmp_path / "calm")
    kill_at_random(CHEETAH, tmp_path / "killed", seed=seed, kills=50)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "calm")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_checkpoint_and_exit(tmp_path, number, code):
    """A polite stop keeps the last iteration, says how to go on, and going on ends as if nothing had happened."""
    process = start(CHEETAH, tmp_path / "run")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    shown = "".join(lines) + out
    done = shown.count("iteration ")
    assert "resume=auto" in shown
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == done
    finish(CHEETAH, tmp_path / "run")
    finish(CHEETAH, tmp_path / "calm")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_extension_equals_one_long_run(tmp_path):
    """Catches a schedule or a final step that depends on the number of iterations."""
    short = tuple(s.replace("iterations=40", "iterations=10") for s in CHEETAH)
    finish(short, tmp_path / "run")
    assert "complete" in finish(short, tmp_path / "run")
    finish(CHEETAH, tmp_path / "run")
    finish(CHEETAH, tmp_path / "calm")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_a_second_writer_is_refused(tmp_path):
    """Two processes in one directory would corrupt it."""
    process = start(CHEETAH, tmp_path / "run")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    try:
        other = start(CHEETAH, tmp_path / "run")
        _, err = other.communicate(timeout=60)
        assert other.returncode == 2
        assert len(err.strip().splitlines()) == 1
        assert str(process.pid) in err
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_changed_setting_is_refused_and_named(tmp_path):
    """Catches a resume that silently mixes two experiments."""
    short = tuple(s.replace("iterations=40", "iterations=3") for s in CHEETAH)
    finish(short, tmp_path / "run")
    before = outcome(tmp_path / "run")
    for change in ("inner_lr=0.2", "env.horizon=13", "algo.max_kl=0.02", "seed=4", "iterations=2"):
        name = change.partition("=")[0]
        changed = [s for s in short if not s.startswith(name + "=")]
        process = start([*changed, change], tmp_path / "run")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert name.split(".")[-1] in err
    assert outcome(tmp_path / "run") == before
