"""What the README shows is what happens: its commands, its snippets, its tables and its outputs."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl import algorithms, diagnose, evaluate, families, listing, report, train
from metarl.core.params import ravel
from metarl.run import arguments, metrics

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
# in blocks, after && and between backticks in the text; a comment or a second command ends it
COMMANDS = sorted(set(re.findall(r"python -m (metarl\.[^`\n#&|]+)", README)))
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]
LINE = r"iteration \d+/(\d+)  return -?[\d.]+ -> -?[\d.]+  [\d,]+ steps/s  \d+:\d\d:\d\d left"
SMALL = ("env.horizon=5", "meta_batch_size=2", "episodes_per_task=2", "eval_every=1", "eval_tasks=2", "iterations=1")


@pytest.fixture(autouse=True)
def _threads():
    """The commands set torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The first command, made small: the run's directory as its first line names it, and the lines."""
    monkeypatch.chdir(tmp_path)
    assert train.main(["env=halfcheetah-vel", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    return pathlib.Path(lines[0].removeprefix("run_dir: ")), lines


def test_there_is_something_to_test():
    """Catches a pattern here that no longer finds anything."""
    assert {command.split()[0] for command in COMMANDS} == {
        "metarl.train",
        "metarl.evaluate",
        "metarl.diagnose",
        "metarl.references",
        "metarl.report",
        "metarl.algorithms",
        "metarl.families",
    }
    assert len(COMMANDS) >= 9
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("metarl.train") and "halfchetah" not in c])
def test_training_commands_are_legal(command):
    """Catches a renamed key, family or algorithm, and a value that is no longer in range."""
    arguments.check(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("metarl.evaluate")])
def test_evaluation_commands_are_legal(tmp_path, monkeypatch, capsys, command):
    """Where there are no runs, the first that is missing is all that is wrong."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    named = next(word for word in words if word.startswith("run=")).removeprefix("run=")
    assert evaluate.main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {named} does not exist; ")


def test_the_diagnosis_is_legal_and_described(tmp_path, monkeypatch, capsys):
    """A renamed key, and a diagnostic that the table does not have."""
    monkeypatch.chdir(tmp_path)
    (command,) = (c for c in COMMANDS if c.startswith("metarl.diagnose"))
    assert diagnose.main(shlex.split(command)[1:]) == 2
    assert capsys.readouterr().err.startswith("error: runs/x does not exist; ")
    (command,) = (c for c in COMMANDS if c.startswith("metarl.report"))
    assert report.main(shlex.split(command)[1:]) == 2
    assert capsys.readouterr().err.startswith("error: runs/x does not exist; ")
    table = README[README.index("| | question |") :].split("\n\n")[0]
    assert [name for name in diagnose.READING if f"`{name}`" not in table] == []


def test_algorithms_are_listed():
    """The command exists, and lists every algorithm."""
    done = subprocess.run([sys.executable, "-m", "metarl.algorithms"], capture_output=True, text=True, check=True)
    table, hint = done.stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == algorithms.names()
    assert "\npython -m metarl.algorithms NAME " in hint


def test_the_refusal_is_the_one_shown(capsys):
    """Command and answer stand in one block."""
    block = next(text for _, text in BLOCKS if "halfchetah" in text)
    shown, answer = block.strip().splitlines()
    assert shown.startswith("$ python -m metarl.train ")
    assert train.main(shlex.split(shown)[4:]) == 2
    assert capsys.readouterr().err.strip() == answer


def test_the_output_is_the_one_shown(run):
    """The directory's name, the form of a line and the number of iterations."""
    path, lines = run
    block = next(text for _, text in BLOCKS if "run_dir: " in text).splitlines()
    assert block[1] == f"run_dir: {path}"
    assert re.fullmatch(LINE, block[2])[1] == str(families.lookup("halfcheetah-vel").recommended["iterations"])
    assert re.fullmatch(LINE.replace("steps/s", "steps/s  validation -?[\\d.]+ -> -?[\\d.]+"), lines[1])


def test_a_run_holds_what_the_table_says(run):
    """Every file of the table is there, and no other that is not hidden."""
    table = README[README.index("| in the run directory") :].split("\n\n")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)}
    there = {path.name for path in run[0].iterdir() if not path.name.startswith(".")}
    assert there == named - {"evaluation"}
    assert "evaluation" in named


def test_install_lines():
    """The two commands of a fresh clone, and the files and the extra that they name."""
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    assert "pip install -c constraints.txt -e . && python -m metarl.train env=halfcheetah-vel" in lines
    assert "pip install -c constraints.txt -e '.[dev]' && python -m pytest -n auto" in lines
    assert (ROOT / "constraints.txt").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "dev" in project["optional-dependencies"]


def test_metrics_are_the_defined_ones():
    """``python -m metarl.run.metrics`` prints the table to paste."""
    assert metrics.table() in README


def test_families_are_named():
    """Catches a family that nobody hears of."""
    described = next(line for line in README.splitlines() if line.startswith("Families:"))
    text = README[README.index(described) :].split("\n\n")[0]
    assert [name for name in families._entry_points() if f"`{name}`" not in text] == []


def test_families_are_listed(capsys):
    """The command exists, lists every family, and can be read: a task of 550 numbers once made every line 16,000 wide."""
    done = subprocess.run([sys.executable, "-m", "metarl.families"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    head, *lines = done.stdout.splitlines()
    assert re.split("  +", head) == ["family", "observation", "action", "horizon", "control step", "package", "task"]
    assert [line.split()[0] for line in lines if line[0] != " "] == sorted(families._entry_points())
    assert max(map(len, lines)) < 180
    rows = [re.split("  +", line) for line in lines]
    assert ["halfcheetah-vel", "17", "6 in -1 to 1", "200", "0.05 s", "metarl-toolkit", "velocity: 0 to 2 m/s"] in rows
    at = next(row for row, line in enumerate(lines) if line.startswith("tabular-mdp "))
    assert rows[at][-1] == "reward_0_0 ... reward_9_4 (50): -4 to 6 reward;"
    assert lines[at + 1] == " " * head.index("task") + "to_0_0_0 ... to_9_4_9 (500): 0 to 1 probability"


def test_task_parameters_are_grouped():
    """Catches ranges that are not a parameter's own: neighbours of another kind, end or unit, or the same ones apart."""
    names = [("p0", 0, 1), ("p1", 0, 1), ("q", 0, 1), ("mass_a", 1 / 3, 2), ("mass_b", 1 / 3, 2), ("mass_c", 1 / 3, 2)]
    names += [("mass_d", 1 / 3, 3), ("p2", 0, 1)]
    text = listing.describe([families.TaskParameter(*one, "kg") for one in names])
    assert text == (
        "p0, p1: 0 to 1 kg; q: 0 to 1 kg; mass_a ... mass_c (3): 0.3333 to 2 kg; mass_d: 0.3333 to 3 kg; p2: 0 to 1 kg"
    )
    units = [families.TaskParameter("a", -1, 1, "-1 back, +1 on"), families.TaskParameter("b", 0, 12345.6, "")]
    assert listing.describe(units) == "a: -1 to 1 (-1 back, +1 on); b: 0 to 1.235e+04"


def test_a_family_is_a_gymnasium_environment():
    """The snippet as it stands, after ``import metarl`` as the text says."""
    (text,) = (text for text in SNIPPETS if "gymnasium.make" in text)
    session = {}
    exec("import metarl\n" + text, session)
    assert session["info"]["task"] == {"velocity": 0.5}
    session["env"].reset()
    assert [session["env"].step(np.zeros(6, np.float32))[3] for _ in range(100)].index(True) == 99
    assert session["envs"].reset(seed=0)[0].shape == (100, 17)


def test_a_gymnasium_environment_is_a_family(monkeypatch):
    """The snippet as it stands, in at most fifteen lines, and what the text says of it afterwards."""
    (text,) = (text for text in SNIPPETS if "gym_family" in text)
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    monkeypatch.setattr(families, "_registered", dict(families._registered))
    exec(text, {})
    small = {"meta_batch_size": 2, "episodes_per_task": 2, "env_settings": {"horizon": 5, "gravity_low": 9.0}}
    learner = metarl.build("pendulum-worlds", **small)
    assert learner.iteration(learner.init(seed=0))[1]["env_steps"] == 2 * 2 * 2 * 5
    env = gymnasium.make("metarl/pendulum-worlds-v0", task={"gravity": 9.81, "mass": 1.0})
    assert (env.unwrapped.spec.id, env.reset()[1]["task"]["gravity"]) == ("metarl/pendulum-worlds-v0", 9.81)


def test_snippets_run(run):
    """Both of the text on Python, in one session, as they stand but for the run's name and sizes that take seconds."""
    text = "\n".join(text for text in SNIPPETS if "gymnasium.make" not in text and "gym_family" not in text)
    for shown, small in {
        '"runs/x"': repr(str(run[0])),
        'env_settings={"horizon": 100}': 'env_settings={"horizon": 5}, meta_batch_size=2, episodes_per_task=3',
        'metarl.make("halfcheetah-vel")': 'metarl.make("halfcheetah-vel", horizon=5)',
    }.items():
        assert text.count(shown) == 1, shown
        text = text.replace(shown, small)
    head, tail = text.split("family = ")
    session = {"observation": np.zeros(17, dtype=np.float32)}
    exec(head, session)
    assert session["curve"].rollouts[-1] == 20
    assert session["action"].shape == (6,)
    assert session["state"].iteration == 1
    assert session["learner"].inner_steps == 2
    assert np.isfinite(session["metrics"]["post_return"])
    exec("family = " + tail, session)
    learner = dataclasses.replace(session["learner"], meta_batch_size=2)
    before = learner.init(seed=0)
    after, values = learner.iteration(before)
    assert values["env_steps"] == 2 * 2 * 20 * 5  # support and query, tasks, episodes, steps
    assert values["line_search_accepted"] == float(not torch.equal(ravel(before.meta), ravel(after.meta)))
