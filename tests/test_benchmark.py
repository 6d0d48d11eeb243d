"""The benchmark at tiny sizes: that it measures what it says. The numbers themselves mean nothing here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import statistics

import mujoco
import numpy as np
import pytest
import torch

from experiments import benchmark, stepping, throughput
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
        (["stepping", "device=cuda"], "run on the CPU"),
        (["iteration", "device=tpu"], "cpu, cuda"),
        (["throughput", "device=cuda"], "run on the CPU"),
        (["stepping", "family=halfchetah-vel"], "Did you mean 'halfcheetah-vel'?"),
        (["stepping", "family=sinusoid"], "choose one of ant-dir,"),
        (["iteration", "family=all"], "stepping has"),
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


def _table(argv: list[str], file: pathlib.Path) -> dict:
    assert (
        benchmark.main(["stepping", *argv, "tasks=2", "episodes=2", "repeats=2", "threads=2", "save=true"], file.parent)
        == 0
    )
    record = json.loads(file.read_text())
    assert set(record) == CIRCUMSTANCES | {"families"}
    return record["families"]


def test_every_locomotion_family_is_in_the_table(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a family left out, a ratio upside down, and a replay that is not ours (which would raise)."""
    rows = _table(["family=all", "horizon=3"], tmp_path / "benchmark_families.json")
    bodies = ("ant", "halfcheetah", "hopper", "humanoid", "walker2d")
    assert sorted(rows) == [name for name in families.names() if name.startswith(bodies)]
    assert len(rows) == 15
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert row["control_steps"] == 2 * 2 * 3, "nobody falls in three steps"
        for ratio, raw in (("ratio", "raw"), ("engine_ratio", "engine_raw")):
            ratios = [seconds[raw] / seconds["ours"] for seconds in row["seconds"]]
            wanted = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            assert row[ratio] == pytest.approx(wanted)
        assert 1 < row["rounds"] <= 20, "so short a measurement is taken many times"
        rates = [row["rounds"] * 12 / seconds["ours"] for seconds in row["seconds"]]
        assert row["ours"]["high"] == pytest.approx(max(rates))
        assert name in printed


def test_steps_after_a_fall_are_not_counted(tmp_path: pathlib.Path) -> None:
    """A fallen hopper costs nothing, and raw physics must not be made to pay for it."""
    (row,) = _table(["family=hopper-params", "horizon=150"], tmp_path / "benchmark_hopper-params.json").values()
    assert 4 * 5 < row["control_steps"] < 4 * 150
    assert row["mean_length"] == row["control_steps"] / 4


def test_raw_physics_that_ends_elsewhere_is_refused() -> None:
    """Catches a floor that steps less, or another body, than ours."""
    ours = stepping.Ours("walker2d-params", stepping.Size(2, 2, 4, 2))
    tape = ours.tape()
    assert stepping.Raw(tape, 2).run() > 0
    assert ours.run() > 0
    with_islands = stepping.with_islands(tape)
    flag = int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    assert {m.opt.disableflags & flag for m in tape.models} == {flag}
    assert {m.opt.disableflags & flag for m in with_islands.models} == {0}
    assert stepping.Raw(with_islands, 2).run() > 0
    others = [tape.models[1], *tape.models[1:]]  # another episode's, of the same task
    assert stepping.Raw(dataclasses.replace(tape, models=others), 1).run() > 0
    others = [tape.models[2], *tape.models[1:]]
    for wrong in ({"models": others}, {"frame_skip": 3}, {"lengths": tape.lengths - 1}, {"controls": -tape.controls}):
        with pytest.raises(AssertionError, match="same bits"):
            stepping.Raw(dataclasses.replace(tape, **wrong), 2).run()


def test_throughput(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a family left out, and a rate that counts other steps than were taken."""
    argv = ["throughput", "batch=5", "steps=20", "repeats=2", "threads=2", "save=true"]
    assert benchmark.main(argv, tmp_path) == 0
    record = json.loads((tmp_path / "benchmark_throughput.json").read_text())
    assert set(record) == CIRCUMSTANCES | {"repeats", "summary"}
    named = {row.split()[0] for row in record["summary"]}
    assert named == {n for n in families.names() if n.startswith(("bandit", "navigation", "tabular"))}
    assert "sampling noise included" in capsys.readouterr().out


@pytest.mark.parametrize(("row", "taken"), [("bandit-gaussian", 20), ("navigation-2d-sparse", 20), ("tabular-mdp", 20)])
def test_throughput_takes_the_steps_that_it_counts(row: str, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps of 6 simulations, in whole episodes of 1, 20 and 10, in two groups; all with noise of their own."""
    measured = throughput.Throughput(row, 6, 20, 2)
    acted = []
    for batch in measured._batches:
        step = batch.step
        monkeypatch.setattr(batch, "step", lambda action, step=step: acted.append(action.copy()) or step(action))
    measured.run()
    assert [len(action) for action in acted] == [3] * 2 * taken
    assert sum(map(len, acted)) == measured.env_steps
    drawn = {action.tobytes() for action in acted}
    # of the 5^3 actions that three simulations have, 40 draws are some 34 different ones
    assert len(drawn) == 2 * taken if row.startswith("navigation") else len(drawn) > 20
