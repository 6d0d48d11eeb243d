"""The tutorials are run: every block of Python and of commands as it stands, and what it prints beside what the page shows."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from metarl import evaluate, families, ids, train

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "metarl" / "pages" / "tutorials"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
# Numbers of a short training differ from machine to machine: by this part, or, near 0, by this much. Counts do not.
RELATIVE, ABSOLUTE = 0.4, 0.05
MAINS = {"python -m metarl.train": train.main, "python -m metarl.evaluate": evaluate.main}
INSTALLED = "installed"


class Block(NamedTuple):
    """What stands between two fences: its language, its text, and the file that it is to be, if its first line names one."""

    kind: str
    text: str
    file: str


def blocks(page: str) -> list[Block]:
    """Return a page's blocks in order; ``# name.py`` alone on the first line makes a block a file."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    names = [re.match(r"# ([\w/]+\.\w+)\n", text) for _, text in found]
    return [Block(kind, text, name[1] if name else "") for (kind, text), name in zip(found, names, strict=True)]


def differs(shown: str, printed: str) -> str:
    """Say where an output differs from the one shown, in which ``...`` stands for anything; empty where it does not."""
    parts = re.split(rf"(\.\.\.|{NUMBER})", shown.strip())
    pattern = "".join(
        "(?:.*?)" if part == "..." else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part)
        for part in parts
    )
    match = re.fullmatch(pattern, printed.strip(), flags=re.DOTALL)
    if match is None:
        return f"the page shows\n{shown}\nand it printed\n{printed}"
    wanted = [part for part in parts if re.fullmatch(NUMBER, part)]
    for told, got in zip(wanted, match.groups(), strict=True):
        exact = "." not in told and "." not in got
        if float(told) != float(got) if exact else not np.isclose(float(got), float(told), RELATIVE, ABSOLUTE):
            return f"the page shows {told} where it printed {got}, in\n{printed}"
    return ""


def bash(text: str, folder: pathlib.Path) -> str:
    """Run commands as a reader would, but that pip installs into a folder and from nowhere else; return what they print."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(folder / INSTALLED), str(ROOT)]),
        "PIP_TARGET": str(folder / INSTALLED),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the wrong way round
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


def commands(text: str, folder: pathlib.Path) -> str:
    """Run a block of commands; those of ours in this process, which spares it the seconds of an import each."""
    printed = ""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        main = MAINS.get(" ".join(words[:3]))
        if main is None:
            printed += bash(line, folder)
            ids.entry_points.cache_clear()  # a new process would find what pip has installed
            ids.register_installed()
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(words[3:]) == 0, line
        printed += out.getvalue()
    return printed


def run(page: str, folder: pathlib.Path) -> dict[str, object]:
    """Run a page's blocks in order, in one session and in one folder; return the session's variables."""
    session: dict[str, object] = {"__name__": "tutorial"}
    printed = ""
    for block in blocks(page):
        if block.kind == "text":
            fault = differs(block.text, printed)
            assert not fault, fault
            printed = ""
        elif block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "bash":
            printed = commands(block.text, folder)
        elif block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, "<tutorial>", "exec", dont_inherit=True), session)
            printed = out.getvalue()
    return session


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
    """An empty folder to work in, from which Python imports, with the clone's results beside; nothing stays registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / INSTALLED))
    monkeypatch.setattr(families, "_registered", dict(families._registered))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    threads, modules, known = torch.get_num_threads(), set(sys.modules), set(gymnasium.registry)
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    for name in {path.stem for path in tmp_path.glob("*.py")} & (set(sys.modules) - modules):
        del sys.modules[name]
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]
    ids.entry_points.cache_clear()


def test_the_comparison_of_outputs():
    """A checker that takes anything, one that no other machine passes, and counts that are taken for measurements."""
    assert differs("a 1.00 of 20\n...\nend 5", "a 1.2 of 20\nx\ny\nend 5\n") == ""
    assert "shows 20 where it printed 21" in differs("1.00 of 20", "1.00 of 21")
    assert "shows 1.00 where it printed 1.5" in differs("1.00 of 20", "1.5 of 20")
    assert "it printed\nb 1.0" in differs("a 1.0", "b 1.0")
    assert "it printed" in differs("a", "a\nb")
    assert differs("[-0.01, 2]", "[0.02, 2.3]") == ""


def test_blocks_are_found():
    """A fence that is not seen, and with it everything in it."""
    page = "x\n```python\na = 1\n```\ny\n```toml\n# p/q.toml\nb\n```\n```text\nc\n```\n"
    assert [(b.kind, b.file) for b in blocks(page)] == [("python", ""), ("toml", "p/q.toml"), ("text", "")]
    assert page.count("```") == 6


def test_every_page_is_linked_run_and_leads_on():
    """A page that nobody finds, one without a test, a block that is neither run nor compared, and a dead end."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert PAGES == ["curve", "environment", "images", "rule"]
    for name in PAGES:
        path = FOLDER / f"{name}.md"
        page = path.read_text(encoding="utf-8")
        assert f"](metarl/pages/tutorials/{name}.md)" in readme
        found = blocks(page)
        assert 2 * len(found) == page.count("```")
        assert {block.kind for block in found} <= {"python", "bash", "text", "toml"}
        assert [b.kind for b in found if b.kind == "toml" and not b.file] == []
        assert max(len(line) for block in found if block.kind != "text" for line in block.text.splitlines()) <= 132
        last = page.split("\n## ")[-1]
        assert last.startswith("Next\n")
        assert re.search(r"\]\(\w+\.md\)", last)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    """A file that has moved, and a heading that has another name."""
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", page):
        path, _, anchor = target.partition("#")
        place = (FOLDER / path).resolve()
        assert place.is_file(), target
        heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.timeout(900)  # 20 seconds by itself; a machine may be busy
def test_environment(folder):
    """From an empty folder to an installed family, trained, compared and used; what adapts ends where it was wished."""
    session = run(page("environment"), folder)
    means = session["curve"].mean
    assert means[-1] > means[0] + 10
    assert abs(20 + 5 * session["observation"][0] - 19.0) < 1
    result = json.loads((folder / "runs" / "maml" / "evaluation" / "curve.json").read_text())
    scores = {name: run["mean"] for name, run in result["runs"].items()}
    assert scores["oracle"][0] > scores["maml"][-1] > scores["maml"][0] + 10


def test_rule(folder):
    """The rule in both kinds of learning, where the plain step fails; its own number is learned, and its step bounded."""
    session = run(page("rule"), folder)
    scores = session["scores"]
    returns, errors = ({rule: scores[name, rule] for _, rule in scores} for name in ("navigation-2d", "sinusoid"))
    assert returns["BoundedStep"][1] > returns["BoundedStep"][0] > returns["GradientStep"][1]
    assert errors["BoundedStep"][1] < errors["BoundedStep"][0]
    assert errors["GradientStep"][1] > errors["GradientStep"][0]
    assert session["state"].meta["bound.log"] != math.log(0.1)
    rule = session["BoundedStep"](lambda params, support: (1e6 * params["x"]).sum(1), lr=0.5, bound=2.0)
    start = {"x": torch.zeros(3, 4), "bound.log": torch.full((3,), math.log(2.0))}
    moved = (rule(start, None)["x"] - start["x"]).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((3,), 0.5 * 2.0))  # alpha c, whatever the slope


def test_curve(folder):
    """The numbers of the page, from the file by hand: means, trimmed means, and wins task by task."""
    session = run(page("curve"), folder)
    values = {name: np.array(run["values"]) for name, run in session["result"]["runs"].items()}
    maml = np.stack([values[f"maml-s{seed}"][3] for seed in range(3)])
    text = page("curve")
    for number in (maml.mean(), values["pretrained-s0"][3].mean(), values["oracle-s0"][0].mean()):
        assert f"\N{MINUS SIGN}{-number:.1f}" in text
    summary = session["groups"].summarise(session["result"], session["members"])
    assert summary["maml"]["iqm"][3] == pytest.approx(stats.trim_mean(maml.ravel(), 0.25))
    wins = np.mean([row > values["pretrained-s0"][3] for row in maml])
    (pair,) = (
        p for p in session["groups"].compare(session["result"], session["members"]) if p["against"] == "pretrained"
    )
    assert pair["probability"] == pytest.approx(wins)
    for name in ("curve.png", "tasks.png"):
        with Image.open(folder / name) as image:
            assert np.asarray(image.convert("L")).std() > 10


def test_images(folder):
    """From no image to a classifier of new classes, far better than one answer in five."""
    session = run(page("images"), folder)
    assert session["right"].double().mean() > 0.4
    result = json.loads((folder / "runs" / "signs" / "evaluation" / "curve.json").read_text())
    assert result["runs"]["signs"]["mean"][0] < 0.3 < 0.6 < result["runs"]["signs"]["mean"][1]
