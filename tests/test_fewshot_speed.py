"""The speed of few-shot learning, in miniature: the ways compute the same, and the tables say what was measured."""

from __future__ import annotations

import pathlib
import sys

import pytest

from experiments import fewshot_speed as speed
from experiments import peak, recording

ROOT = pathlib.Path(__file__).parents[1]


def test_the_whole_in_small(monkeypatch, capsys):
    """Every way at every setting, agreeing with each other; peaks are of processes, above the idle one."""
    peaks = iter([100.0, 300.0, 350.0])
    commands = []
    monkeypatch.setattr(peak, "run", lambda command: commands.append(list(command)) or (0, next(peaks)))
    monkeypatch.setattr(recording, "write", lambda *_: pytest.fail("a tiny one is not recorded"))
    monkeypatch.setattr(sys, "argv", ["x", "tiny=true", "rounds=2", "threads=[1]"])
    assert speed.main() == 0
    shown = capsys.readouterr().out
    rows = {line.split()[1]: line.split("|") for line in shown.splitlines() if line.startswith(("| A", "| B", "| S"))}
    assert rows.keys() == set(speed.SIZES)
    assert all(float(cell.split()[0].replace(",", "")) > 0 for cell in rows["A2"][2:-1]), "no rate or ratio is missing"
    assert "ours 250 MiB, the loop 200 MiB (1.25 times)" in shown
    assert [command[3] for command in commands] == ["hold=idle", "hold=loop", "hold=ours"]


def test_ways_that_disagree_are_refused():
    """Catches a rival that is fast because it does less."""
    assert speed._agree({"ours": (2.0, 1.0), "loop": (2.0, 1.001)}) == pytest.approx(1e-3)
    for other in ((2.0, 1.1), (2.2, 1.0), (2.0, float("nan"))):
        with pytest.raises(AssertionError, match="disagree"):
            speed._agree({"ours": (2.0, 1.0), "loop": (2.0, 1.0), "other": other})


def test_an_unknown_setting_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "only=[A3]"])
    assert speed.main() == 2
    assert "only=[A3] is none of A, A2, B, S" in capsys.readouterr().err


@pytest.mark.parametrize("way", speed.HELD)
def test_what_is_held_runs(way):
    speed.hold(way, 1, tiny=True)


def test_the_mark_is_there():
    assert (ROOT / recording.README).read_text(encoding="utf-8").count(speed.MARK) == 2
