"""The benchmark at tiny sizes: that it measures what it says. The numbers themselves mean nothing here."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import statistics

import numpy as np
import pytest
import torch

from experiments import benchmark
from experiments.physics import PLAYERS, Episodes, RecordedFamily, play_engine
from metarl import families

TINY = ["tasks=3", "episodes=2", "horizon=7", "repeats=3", "threads=2", "save=true"]
CIRCUMSTANCES = {
    "benchmark",
    "command",
    "settings",
    "threads",
    "device",
    "load_at_start",
    "commit",
    "versions",
    "cpu",
    "cores",
    "platform",
}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", [*sorted(PLAYERS), "without islands"])
def test_the_floor_is_the_same_physics(name: str, threads: int) -> None:
    """Catches a floor that takes fewer steps, other starts or unclipped actions: it must end in the family's bits."""
    horizon, count = 12, 5
    family = RecordedFamily(families.make("halfcheetah-vel", horizon=horizon))
    env = family.batch(count, threads=2)
    actions = 2 * np.random.default_rng(0).standard_normal((horizon, count, 6)).astype(np.float32)
    env.reset(family.sample_tasks(count, "train", 0), np.arange(count, dtype=np.uint32))
    for action in actions:
        observations = env.step(action).observations
    (episodes,) = family.rewind()
    seconds, ends = {**PLAYERS, "without islands": play_engine}[name](episodes, threads)
    assert seconds > 0
    assert np.array_equal(ends[:, 1:].astype(np.float32), observations)
    assert family.rewind() == []


def test_rewind_joins_groups_in_order() -> None:
    """Catches a recording that mixes up rollouts (support, query) and groups of simulations."""
    family = RecordedFamily(families.make("halfcheetah-vel", horizon=2))
    groups = [family.batch(count, threads=1) for count in (1, 2)]
    for rollout in range(2):
        for group, env in enumerate(groups):
            count = group + 1
            seeds = np.arange(count, dtype=np.uint32) + 10 * group + 100 * rollout
            env.reset(family.sample_tasks(count, "train", 0), seeds)
            for step in range(2):
                env.step(np.full((count, 6), (rollout + group / 2 + step / 4) / 2, dtype=np.float32))
    support, query = family.rewind()
    # (rollout + group/2 + step/4) / 2, simulation by simulation: one of group 0, two of group 1
    assert support.controls[:, :, 0].tolist() == [[0, 0.125], [0.25, 0.375], [0.25, 0.375]]
    assert query.controls[:, :, 0].tolist() == [[0.5, 0.625], [0.75, 0.875], [0.75, 0.875]]
    again = Episodes.of(np.array([100, 110, 111]), np.zeros((2, 3, 6)))
    assert np.array_equal(query.positions, again.positions)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_iteration(device: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a changed record, a ratio upside down, and a floor of another number of control steps."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    assert benchmark.main(["iteration", *TINY, "inner_steps=2", f"device={device}"], tmp_path) == 0
    record = json.loads((tmp_path / "benchmark_iteration.json").read_text())
    assert set(record) == CIRCUMSTANCES | {"repeats", "summary"}
    assert record["settings"]["tasks"] == 3
    assert record["threads"] == 2
    assert record["command"].startswith("python -m experiments.benchmark iteration tasks=3")
    assert len(record["repeats"]) == 3
    for repeat in record["repeats"]:
        assert repeat["control_steps"] == 3 * 2 * 7 * 3, "tasks x episodes x horizon x (inner steps + 1)"
        assert repeat["floor"] == min(repeat["floors"].values())
        assert repeat["ratio"] == pytest.approx(repeat["floor"] / repeat["iteration"])
        split = {name: repeat["split"][name] for name in benchmark.SPLIT}
        assert all(seconds >= 0 for seconds in split.values())
        assert split.pop("physics") <= split["sampling"]
        assert sum(split.values()) <= repeat["iteration"]
    ratios = [repeat["ratio"] for repeat in record["repeats"]]
    assert record["summary"]["ratio"] == {
        "median": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }
    assert "floor / iteration" in capsys.readouterr().out


def test_stepping(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a missing rival, a ratio upside down, and a log file in the working directory."""
    before = set(pathlib.Path.cwd().iterdir())
    assert benchmark.main(["stepping", *TINY], tmp_path) == 0
    record = json.loads((tmp_path / "benchmark_stepping.json").read_text())
    assert set(record) == CIRCUMSTANCES | {"repeats", "summary", "fastest_raw"}
    raw = {f"raw: {name}" for name in PLAYERS}
    rivals = {"metarl", "gymnasium sync", "gymnasium async", *raw}
    if importlib.util.find_spec("envpool"):
        rivals.add("EnvPool")
    assert set(record["summary"]) == rivals
    assert record["fastest_raw"] in raw
    for repeat in record["repeats"]:
        assert set(repeat) == rivals
    ours, sync = ([repeat[name] for repeat in record["repeats"]] for name in ("metarl", "gymnasium sync"))
    expected = statistics.median(a / b for a, b in zip(ours, sync, strict=True))
    assert record["summary"]["gymnasium sync"]["ours_over_it"]["median"] == pytest.approx(expected)
    assert "control steps per second" in capsys.readouterr().out
    assert set(pathlib.Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "iteration"),
        (["iterations"], "Did you mean 'iteration'?"),
        (["iteration", "taks=3"], "Did you mean 'tasks'?"),
        (["iteration", "tasks=0"], "at least 1"),
        (["iteration", "tasks"], "key=value"),
        (["stepping", "device=cuda"], "runs on the CPU"),
        (["iteration", "device=tpu"], "cpu, cuda"),
    ],
)
def test_mistakes_end_with_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback where a user's mistake deserves a remedy."""
    assert benchmark.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a measurement on the CPU that says it was on a GPU."""
    assert benchmark.main(["iteration", "device=cuda"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "no CUDA" in captured.err
