"""What can be known at the start is refused there: in about a second, before torch, with nothing written."""

from __future__ import annotations

import shutil

import pytest
import torch

from metarl import train

# Runs main, and says whether torch was imported and how many seconds of a core it took (the clock depends on others).
PROBE = """
import sys, resource
from metarl.{} import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print("torch" in sys.modules, used.ru_utime + used.ru_stime)
sys.exit(code)
"""
REFUSED = [
    ("train", "env=halfchetah-vel", "'halfchetah-vel'. Did you mean 'halfcheetah-vel'?"),
    ("train", "env=halfcheetah-vel algo=maml-trop", "'maml-trop'. Did you mean 'maml-trpo'?"),
    ("train", "env=halfcheetah-vel iner_lr=0.1", "'iner_lr'. Did you mean 'inner_lr'?"),
    ("train", "env=halfcheetah-vel env.horizn=9", "'env.horizn'. Did you mean 'env.horizon'?"),
    ("train", "env=halfcheetah-vel algo.maxkl=0.1", "'algo.maxkl'. Did you mean 'algo.max_kl'?"),
    ("train", "env=halfcheetah-vel env.horizon=long", "env.horizon=long has the wrong type: it must be a whole number"),
    ("train", "env=halfcheetah-vel gamma=1.5", "gamma=1.5 is too large: it must be at most 1"),
    ("train", "env=bandit-bernoulli init_std=1.0", "init_std=1.0 has no meaning for env=bandit-bernoulli: its actions"),
    (
        "train",
        "env=sinusoid normalize_observations=true",
        "normalize_observations=true has no meaning for env=sinusoid",
    ),
    ("train", "env=halfcheetah-vel device=gpu", "device=gpu is not one of auto, cpu, cuda"),
    ("train", "env=halfcheetah-vel resume=auto", "resume=auto needs run_dir"),
    ("train", "env=halfcheetah-vel init_from=nowhere", "nowhere does not exist; name a directory"),
    ("train", "env=halfcheetah-vel init_from=foreign", "foreign is not a run directory"),
    ("train", "env=halfcheetah-vel run_dir=foreign", "run_dir=foreign holds files of something else"),
    ("train", "env=halfcheetah-vel run_dir=foreign resume=auto", "run_dir=foreign holds files of something else"),
    ("train", "env=halfcheetah-vel run_dir=foreign/notes.txt", "foreign/notes.txt is a file; choose another"),
    ("train", "env=halfcheetah-vel run_dir=foreign/notes.txt/a/b", "foreign/notes.txt is a file; choose another"),
    ("train", "env=halfcheetah-vel run_dir=" + 300 * "n", "File name too long; choose another directory"),
    ("train", "-m env=halfcheetah-vel,sinusoid seed=0,1 run_dir=foreign/notes.txt", "is a file; choose another"),
    ("evaluate", "", "run is missing: name a run directory, run=runs/NAME"),
    ("evaluate", "run=nowhere", "nowhere does not exist; name a directory"),
    ("evaluate", "run=foreign", "foreign is not a run directory: it has no config.yaml"),
    ("evaluate", "run=foreign/notes.txt", "foreign/notes.txt"),
    ("evaluate", "run=foreign step=2", "'step'. Did you mean 'steps'?"),
    ("evaluate", "run=foreign split=tests", "split=tests is not one of train, validation, test"),
]


@pytest.mark.parametrize(("command", "words", "line"), REFUSED, ids=[f"{c} {w[:60]}" for c, w, _ in REFUSED])
def test_refused_at_once(user, tmp_path, content, command, words, line):
    """Catches a check that comes after the import of torch (seconds), and a directory made before the check."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    done = user("-c", PROBE.format(command), *words.split())
    done.refused(line)
    torch_imported, seconds = done.out.split()
    assert torch_imported == "False"
    assert float(seconds) < 1.5
    assert content(tmp_path) == {"foreign/notes.txt": b"mine"}


def test_a_run_is_not_overwritten(run, copy, point, content):
    """Not without resume, and with it not with other settings, nor shorter, nor with a spoilt configuration."""
    before, here = content(copy), f"run_dir={copy}"
    run(train, *point(here)).refused(f"{here} holds a run already", "resume=auto")
    for change, named in (("inner_lr=0.2", "inner_lr=0.2"), ("env.horizon=5", "horizon=5"), ("iterations=2",) * 2):
        run(train, *point(change, here, "resume=auto")).refused(named, str(copy))
    assert content(copy) == before
    (copy / "config.yaml").write_text("env: [")
    run(train, *point(here, "resume=auto")).refused(f"{copy}/config.yaml cannot be read")
    assert content(copy) == before | {"config.yaml": b"env: ["}


def test_a_place_that_only_the_system_refuses(run, point):
    """No permission bit says that nothing can be made in /proc."""
    run(train, *point("run_dir=/proc/run")).refused("run_dir=/proc/run cannot be made", "choose another directory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(run, point, tmp_path):
    """Catches a traceback of torch's, and a directory of a run that never began."""
    run(train, *point("device=cuda", "run_dir=run")).refused("device=cuda", "use device=cpu")
    assert not list(tmp_path.iterdir())


def test_init_from_a_run_that_does_not_fit(run, copy, point, tmp_path):
    """One that fits is taken; another network, and a run without a checkpoint, are refused."""
    here = ("run_dir=new", f"init_from={copy}")
    assert run(train, *point(*here)).code == 0
    shutil.rmtree(tmp_path / "new")
    run(train, *point("hidden_sizes=[5]", *here)).refused(f"init_from={copy} has another network", "hidden_sizes")
    words = point("normalize_observations=true", *here)
    run(train, *words).refused(f"init_from={copy} was trained with normalize_observations=false; use the same here")
    shutil.rmtree(copy / "checkpoints")
    run(train, *point(*here)).refused(f"init_from={copy} has no checkpoint")
    assert not (tmp_path / "new").exists()
