"""``python -m metarl.report``: one file that needs nothing else, and says what the files say."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import pathlib
import re
import shlex
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from metarl import diagnose, evaluate, report

RECORDED = pathlib.Path(__file__).parents[2] / "experiments" / "results" / "navigation-2d"
VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """Tags that are closed in order, what they refer to, and their text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.pictures, self.photographs, self.scripts, self.words = [], [], [], [], 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag in ("script", "link", "iframe")
        for name, value in attributes:
            if name in ("src", "href"):
                kind = value.partition(";base64,")[0]
                kinds = {"data:image/svg+xml": self.pictures, "data:image/png": self.photographs}
                kinds.get(kind, self.links).append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(autouse=True)
def _threads():
    """The commands set torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reported(tmp_path):
    """Write a report and read it back."""

    def run(*words):
        # a film takes longer than everything else
        film = [] if "film=true" in words else ["film=false"]
        assert report.main([*map(str, words), *film, f"to={tmp_path / 'r.html'}"]) == 0
        text = (tmp_path / "r.html").read_text(encoding="utf-8")
        return text, Page(text)

    return run


def test_the_recorded_result_is_told_in_one_page(reported):
    """A picture or a style from elsewhere, numbers of one seed for all of them, a command that is missing."""
    names = ["maml-s0", "maml-s1", "maml-s2", "pretrained-s0", "oracle-s0"]
    text, page = reported(*(RECORDED / name for name in names), f"curve={RECORDED / 'curve.json'}", "film=true")
    assert page.links == []
    assert page.scripts == 0
    assert "url(" not in text
    assert len(page.pictures) == 3
    for picture in page.pictures:
        root = xml.etree.ElementTree.fromstring(base64.b64decode(picture.partition(",")[2]))
        assert root.tag.endswith("svg")
        outside = [
            v
            for e in root.iter()
            for k, v in e.attrib.items()
            if k.endswith("href") and not v.startswith(("#", "data:"))
        ]
        assert outside == []
    curve = json.loads((RECORDED / "curve.json").read_text())
    values = np.array([curve["runs"][name]["values"] for name in names[:3]])
    before, after = (stats.trim_mean(values[:, point].ravel(), 0.25) for point in (0, -1))
    gained = int((values[:, -1].mean(0) > values[:, 0].mean(0)).sum())
    assert re.search(rf"maml: after 3 inner updates on 60 rollouts of a task the return is {after:.4g} \[", page.text)
    assert re.search(rf"before it was {before:.4g} \[.*?\]; {gained} of 100 tasks became better", page.text)
    assert "95 % interval over 3 seeds and 100 test tasks" in page.text
    wins = (values[:, None, -1] > np.array(curve["runs"]["pretrained-s0"]["values"][-1])).mean()
    assert f"maml does better than pretrained on a task with probability {wins:.2f} [" in page.text
    assert curve["command"] in page.text
    (strip,) = page.photographs
    with Image.open(io.BytesIO(base64.b64decode(strip.partition(",")[2]))) as image:
        assert image.size == (5 * 240, 2 * 160)
    before, after = map(float, re.search(r"return (\S+) before adapting, (\S+) after 3 updates;", page.text).groups())
    assert before < after < 0
    assert not (RECORDED / "maml-s0" / "evaluation").exists()
    assert "MAML 1 -11.7 ± 2.2" in page.text.split("Published numbers")[1]
    assert "Finn, Abbeel and Levine (2017), arXiv:1703.03400" in page.text
    for name in names:
        session = json.loads((RECORDED / name / "provenance.json").read_text())
        assert session[0]["command"] in page.text
        assert session[-1]["commit"] in page.text


@pytest.fixture
def copied(runs, tmp_path):
    def copy(name, to="run"):
        shutil.copytree(runs[name], tmp_path / to, ignore=shutil.ignore_patterns("evaluation"))
        return tmp_path / to

    return copy


def test_what_is_missing_is_said(copied, reported):
    """A page that looks complete where nothing was evaluated, and one that fails there."""
    run = copied("maml")
    _, page = reported(run)
    assert "Nothing has been evaluated yet" in page.text
    assert len(page.pictures) == 1
    assert "Where the time went" in page.text


def test_diagnostics_are_told_with_their_reading(copied, reported):
    """A warning that is not in sight, sentences without numbers, and a table that lists what was not computed."""
    run = copied("sinusoid")
    assert evaluate.main([f"run={run}", "tasks=4", "steps=1"]) == 0
    assert diagnose.main([str(run), "tasks=4", "far=2"]) == 0
    path = run / "evaluation" / "diagnostics.json"
    found = json.loads(path.read_text())
    found["diagnostics"]["risk"] |= {"overfits": True, "ratio": 3.25}
    left_out = {**found["diagnostics"]["risk"], "ratio": 4.5, "iterations": 9, "tasks": [{}] * 3}
    found["diagnostics"]["left_out"], found["reading"]["left_out"] = left_out, diagnose.READING["left_out"]
    path.write_text(json.dumps(found))
    text, page = reported(run)
    assert re.search(r'class="lead warn">run overfits its training tasks: held-out losses are 3.25 times', text)
    assert re.search(r'class="lead warn">run: trained without one of 3 tasks, its loss there is 4.50 times', text)
    assert "(3 trainings of 9 meta-updates)" in page.text
    for name in found["diagnostics"]:
        assert diagnose.READING[name] in page.text, name
    assert f"cosine {found['diagnostics']['orders']['cosine']:.4f}" in page.text
    assert "rollouts belong to reinforcement learning" in page.text
    assert "after 1 inner updates on 10 examples of a task the mse is" in page.text
    assert found["command"] in page.text


def test_tasks_beyond_training_are_told(copied, reported):
    """Bands that a page leaves out, or the usual tasks' numbers for theirs; a target velocity that nobody looks at."""
    run = copied("pretrained")
    for words in ([], ["band=velocity=2..3"]):
        assert evaluate.main([f"run={run}", "tasks=3", "steps=0", "episodes=1", *words]) == 0
    _, page = reported(run)
    curve, bands = (json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("curve", "bands"))
    for name, place in bands["bands"].items():
        group = place["groups"]["run"]
        (low, high), mean = group["mean_ci95"][0], group["mean"][0]
        assert f"{mean:.4g} [{low:.4g}, {high:.4g}]" in page.text.split("beyond the tasks of training")[-1], name
    assert "env.velocity_low=2.0, env.velocity_high=3.0" in page.text
    assert "Beyond the tasks of training" in page.text
    assert len(page.pictures) == 3
    assert "return by velocity (m/s)" in page.text
    assert all(f"{mean:.4g} [" in page.text for mean in curve["along"]["groups"]["run"]["mean"])
    assert bands["command"] in page.text


def test_names_are_text(copied, reported):
    """A run's name that becomes a tag."""
    text, page = reported(copied("pretrained", "a<b>&c"))
    assert "a<b>&c" in page.text
    assert "a<b>" not in text


def test_everything_by_one_command(copied, reported):
    """An evaluation of other runs than the page names, or one that is not made."""
    run, other = copied("maml"), copied("oracle", "it's")
    _, page = reported(run, other, "make=true", "tasks=3", "steps=1", "best=0")
    curve = json.loads((run / "evaluation" / "curve.json").read_text())
    assert list(curve["runs"]) == ["run", "it's"]
    assert f"compare={other}" in shlex.split(curve["command"])  # no brackets, no quotes of its own
    assert len(curve["tasks"]) == 3
    assert "Diagnosis of run" in page.text
    assert "R = " in page.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs are missing"),
        (["nowhere"], "nowhere does not exist"),
        (["{maml}", "curve=nowhere.json"], "nowhere.json does not exist"),
        (["{maml}", "curve={maml}/config.yaml"], "cannot be read"),
        (["{maml}", "to={maml}/no/such"], "cannot be written"),
        (["{maml}", "mkae=true"], "Did you mean 'make'?"),
        (["{maml}", "{maml}"], "named twice"),
        (["{maml}", "references=2"], "references= without make=true would have no effect"),
        (["{maml}", "make=true", "seeds=2"], "seeds= without make=true references=TASKS would have no effect"),
    ],
)
def test_what_is_wrong_is_one_line(runs, tmp_path, monkeypatch, capsys, words, said):
    """A traceback, or a file that is half a page."""
    monkeypatch.chdir(tmp_path)
    assert report.main([word.format(**runs) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []
