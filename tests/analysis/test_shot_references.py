"""``python -m metarl.references`` of few-shot runs: by hand, on evaluate's own examples, what is refused, what the report says."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.spatial.distance import cdist

import metarl
from metarl import evaluate, references, report, train
from metarl.analysis import shot_references
from metarl.families import ShotSpec, TaskParameter, Tasks
from metarl.fewshot import ShotDomain
from metarl.nets import MLP, ContextNet, Flat
from metarl.run.config import algorithm_of, resolve
from metarl.run.directory import write_config
from metarl.settings import SettingsError

TASKS = 30  # more than are drawn at once


@pytest.fixture(autouse=True)
def _threads():
    """The commands set torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Points:
    """Points of the plane: two of each class, three to classify. In odd tasks the support set's answers are exchanged."""

    last: int = 1

    spec = ShotSpec((TaskParameter("number", 0.0, 99.0, ""),), (2,), 2, "cross_entropy", "accuracy", "fraction")

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("number",), np.arange(num_tasks, dtype=np.float64)[:, None])

    def draw(self, tasks, seeds):
        odd = tasks.values.astype(np.int64) % 2
        support = np.tile(np.float32([[0, 0], [2, 0], [3, 9], [5, 9]]), (len(tasks), 1, 1))
        query = np.tile(np.float32([[2.4, 9], [4, 1], [1, 3]]), (len(tasks), 1, 1))
        answers = np.array([[0, 0, self.last, self.last]]) ^ odd
        return (support, answers), (query, np.tile([1, 0, 1], (len(tasks), 1)))


# a body that sees the first coordinate alone
META = {
    "0.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
    "0.bias": torch.zeros(2),
    "1.weight": torch.full((2, 2), 9.0),
    "1.bias": torch.zeros(2),
}
NAMES = ("nearest-euclidean", "nearest-cosine", "prototypes")


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_accuracies_are_those_by_hand(chunk, monkeypatch):
    """A wrong distance, features of the last layer, tasks that are mixed up, or feature maps of all tasks at once.

    Points (2.4, 9), (4, 1), (1, 3). Nearest are (3, 9), (2, 0), and of (0, 0) and (2, 0), equally far, the first: second class,
    first, first. By the angle (3, 9), (2, 0), (3, 9): second, first, second. First coordinates have the means 1 and 4, from
    which 2.4 is 1.4 and 1.6 away, 4 is 3 and 0, 1 is 0 and 3: first, second, first. Right is second, first, second.
    """
    body, seen = MLP.body, []

    def spied(net, params, inputs, reference):
        seen.append(len(inputs))
        return body(net, params, inputs, reference)

    monkeypatch.setattr(MLP, "body", spied)
    domain = ShotDomain(Points(), MLP((2, 2, 2), "relu"), chunk_tasks=chunk)
    tasks = domain.sample_tasks(TASKS, "test", (0,))
    found = shot_references.accuracies(domain, META, tasks, (0, 1), NAMES)
    even, odd = {name: scores[::2] for name, scores in found.items()}, {n: s[1::2] for n, s in found.items()}
    for name, (plain, exchanged) in zip(NAMES, ((2 / 3, 1 / 3), (1, 0), (0, 1)), strict=True):
        assert found[name].shape == (TASKS,)
        np.testing.assert_allclose(even[name], plain, err_msg=name)
        np.testing.assert_allclose(odd[name], exchanged, err_msg=name)
    assert max(seen) <= (chunk or 25)


def test_a_class_without_an_example_is_no_class():
    """Means of nothing, of which the first would always be the nearest."""
    domain = ShotDomain(Points(last=0), MLP((2, 2, 2), "relu"))
    tasks = domain.sample_tasks(1, "test", (0,))
    with pytest.raises(SettingsError, match="a support set has no example of a class"):
        shot_references.accuracies(domain, META, tasks, (0, 1), ["prototypes"])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """Twenty-five classes of six noisy images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in range(25):
        pattern = rng.integers(0, 2, (16, 16)) * 45
        (root / f"class-{name:02}").mkdir()
        for number in range(6):
            pixels = (pattern + rng.integers(0, 210, (16, 16))).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class-{name:02}" / f"{number}.png")
    return root


def _trained(path, images, *words):
    own = [f"env.root={images}", "env.size=16", "env.colour=grey", "env.ways=3", "env.shots=2", "env.queries=4"]
    more = ["iterations=1", "meta_batch_size=2", "eval_every=0", "threads=1", f"run_dir={path}", *words]
    assert train.main(["env=folder", *own, *more]) == 0
    return path


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> pathlib.Path:
    """A run of a moment with its evaluation and its references."""
    words = ("filters=4", "downsampling=stride", "inner_steps=1", "inner_lr=0.1", "normalization=support")
    path = _trained(tmp_path_factory.mktemp("runs") / "x", images, *words)
    assert evaluate.main([f"run={path}", f"tasks={TASKS}", "steps=2"]) == 0
    assert references.main([str(path), f"tasks={TASKS}", "steps=2"]) == 0
    return path


def _result(run, name="references"):
    return json.loads((run / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))


def test_tasks_and_examples_are_evaluates(run, monkeypatch):
    """Other tasks or examples than those of the curve, a body that has adapted, or queries normalised in another way."""
    drawn, draw = [], ShotDomain.draw

    def recorded(domain, tasks, seeds):
        drawn.append(draw(domain, tasks, seeds))
        return drawn[-1]

    monkeypatch.setattr(ShotDomain, "draw", recorded)
    assert evaluate.main([f"run={run}", f"tasks={TASKS}", "steps=2"]) == 0
    monkeypatch.undo()
    support, query = drawn[-1]  # of the whole evaluation, which draws all tasks at once
    assert support.num_tasks == TASKS
    result, curve = _result(run), _result(run, "curve")
    assert result["tasks"] == curve["tasks"]
    assert result["meta_learner"]["values"] == curve["runs"]["x"]["values"]
    for name, metric in (("nearest-euclidean", "euclidean"), ("nearest-cosine", "cosine")):
        pairs = zip(query.inputs.flatten(2).double(), support.inputs.flatten(2).double(), strict=True)
        apart = np.stack([cdist(asked, shown, metric) for asked, shown in pairs])
        classes = np.take_along_axis(support.targets.numpy(), apart.argmin(-1), 1)
        scores = (classes == query.targets.numpy()).mean(1)
        np.testing.assert_allclose(result["references"][name]["values"], scores)
        assert np.ptp(scores) > 0  # or any task's would do
    agent = metarl.load(run)
    net, own = agent.learner.domain.net, {name: value[None] for name, value in agent.meta.items()}
    for task, score in enumerate(result["references"]["prototypes"]["values"]):
        one = slice(task, task + 1)
        with torch.no_grad():
            shown = net.body(own, support.inputs[one], None)[0].numpy()
            asked = net.body(own, query.inputs[one], support.inputs[one])[0].numpy()
        means = np.stack([shown[support.targets[task].numpy() == way].mean(0) for way in range(3)])
        assert score == np.mean(cdist(asked, means).argmin(1) == query.targets[task].numpy())


def test_differences_are_paired(run):
    """A difference of the wrong sign, to an earlier update, or an interval as if the tasks were others."""
    result = _result(run)
    ours = np.array(result["meta_learner"]["values"][2])
    assert list(result["references"]) == list(NAMES)
    for one in result["references"].values():
        own = np.array(one["values"])
        for values, told in ((own, one), (ours - own, one["difference"])):
            assert told["mean"] == pytest.approx(values.mean())
            assert told["ci95"] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))


def test_files_say_the_same(run):
    """A table with scores of other tasks, a picture that is none, settings that had no part in it."""
    result = _result(run)
    with (run / "evaluation" / "references.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (3 + len(NAMES)) * TASKS
    for row in rows:
        values = (
            result["meta_learner"]["values"][int(row["updates"])]
            if row["method"] == "meta-learner"
            else result["references"][row["method"]]["values"]
        )
        assert float(row["accuracy"]) == values[int(row["task"])]
        assert float(row["class0"]) == result["tasks"][int(row["task"])]["class0"]
    with Image.open(run / "evaluation" / "references.png") as picture:
        assert min(picture.size) > 400
    expected = {"tasks": TASKS, "steps": 2, "inner_lr": [], "tune": False, "checkpoint": "last", "seed": 0}
    assert result["settings"] == {**expected, "run": str(run)}
    assert result["protocol"] == "support normalisation"


def test_the_report_shows_them(run, tmp_path, capsys):
    """A section that is missing, a command that nobody is told or that makes references for another evaluation."""
    page, result = tmp_path / "r.html", _result(run)
    assert report.main([str(run), f"to={page}", "film=false"]) == 0
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert '<img alt="References that do not adapt"' in text
    assert "beyond prototypes, which use its features as they are before adapting" in text
    assert result["command"] in text
    for one in result["references"].values():
        assert f"{one['mean']:.4g} [{one['ci95'][0]:.4g}, {one['ci95'][1]:.4g}]" in text
        assert f"paired difference {one['difference']['mean']:.4g} [" in text
    assert "no references" not in capsys.readouterr().out
    bare = tmp_path / "y"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("references*"))
    assert report.main([str(bare), f"to={page}", "film=false"]) == 0
    made = f"python -m metarl.references run={bare} tasks={TASKS} steps=2"
    assert f"Not made yet. This command does it: {made}<" in page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.count(f"makes them: {made}\n") == 1


def test_the_report_makes_them(run, tmp_path, capsys):
    """References of other tasks, updates or step sizes than those of the evaluation that the same command makes."""
    own, page = tmp_path / "own", tmp_path / "r.html"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("evaluation"))
    words = [f"to={page}", "film=false", "make=true", f"tasks={TASKS}", "steps=2"]
    assert report.main([str(own), *words, f"references={TASKS}"]) == 0
    result, curve = _result(own), json.loads((own / "evaluation" / "curve.json").read_text())
    assert result["tasks"] == curve["tasks"]
    ours = curve["runs"][next(iter(curve["runs"]))]
    assert result["meta_learner"]["values"] == ours["values"]
    assert "Not made yet" not in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert report.main([str(own), *words, f"references={TASKS}", "seeds=2"]) == 2  # nothing is trained here
    told = capsys.readouterr()
    assert "seeds= has no effect here" in told.err
    assert not told.out, "evaluated before the mistake is told"


def test_the_command_is_for_the_evaluation_that_is_shown():
    """References of other step sizes, parameters or seeds than those of the curve beside them."""
    settings = {"split": "test", "tasks": 7, "steps": 2, "checkpoint": "best", "seed": 3, "inner_lr": [0.1, 0.05]}
    words = ["tasks=7", "checkpoint=best", "seed=3", "steps=2"]
    assert shot_references.like({"settings": settings}) == [*words, "inner_lr=[0.1,0.05]"]
    tuned = {**settings, "inner_lr": [], "tune": True}
    assert shot_references.like({"settings": tuned}) == [*words, "tune=true"]
    assert shot_references.like({"settings": tuned}, ("episodes", "seed"), updates=False) == ["seed=3"]
    assert shot_references.like({"settings": {**settings, "split": "train"}}) == []
    assert shot_references.like(None) == []


@pytest.mark.parametrize(
    ("theirs", "said", "warns"),
    [
        ([0.2, 0.3, 0.2], "does better than", False),
        ([1.0, 0.9, 1.0], "does worse than", True),
        ([0.1, 0.6, 1.0], "cannot be told apart by 3 tasks", False),
        ([0.1], "cannot be told apart by 1 task:", False),
    ],
)
def test_a_reference_that_does_better_is_a_warning(theirs, said, warns):
    """A verdict of the wrong sign, or one that chance could have made."""
    ours = np.array([0.5, 0.6, 0.55])[: len(theirs)]
    summary = shot_references.summarise({"prototypes": np.array(theirs)}, ours)
    curve = {"mean": [0.1, float(ours.mean())]}
    result = {"tasks": [{}] * len(ours), "metric": "accuracy", "meta_learner": curve, "references": summary}
    (finding,) = shot_references.findings(result)
    assert said in finding.text
    assert finding.warns is warns


def test_what_a_network_cannot_have_is_left_out(images, tmp_path, capsys):
    """A traceback for networks without a body, or a reference that was asked for and is quietly missing."""
    path = _trained(tmp_path / "x", images, "algo=cavia-adam", "network=mlp", "hidden_sizes=[8]", "inner_steps=1")
    assert references.main([str(path), "tasks=2", "steps=1"]) == 0
    assert "prototypes  left out: Flat of ContextNet has no body" in capsys.readouterr().out
    assert list(_result(path)["references"]) == list(NAMES[:2])
    assert references.main([str(path), "tasks=2", "steps=1", "methods=prototypes"]) == 2
    assert capsys.readouterr().err.startswith("error: methods=prototypes does not fit this run: ")
    whole = ShotDomain(Points(), Flat(ContextNet(MLP((4, 2)), 2)))
    assert list(shot_references.fitting(whole, NAMES)) == ["prototypes"]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Runs of which nothing but the configurations is looked at."""
    parent = tmp_path_factory.mktemp("others")
    configs = {
        "glyphs": resolve("glyphs", algorithm_of("glyphs", None)),
        "sinusoid": resolve("sinusoid", algorithm_of("sinusoid", None)),
        "points": resolve("navigation-2d", "maml-trpo"),
    }
    for name, config in configs.items():
        (parent / name).mkdir()
        write_config(parent / name, config)
    return {name: parent / name for name in configs}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{glyphs}", "seeds=3"], "seeds= has no effect here: glyphs has labelled shots"),
        (["{glyphs}", "sac_steps=9"], "sac_steps= has no effect here"),
        (["{glyphs}", "episodes=2"], "episodes= has no effect here"),
        (["{glyphs}", "pretrain=9", "multiples=10"], "multiples=, pretrain= have no effect here"),
        (["{glyphs}", "methods=[prototypes,ppo]"], "methods=ppo does not fit glyphs: it learns by acting"),
        (["{glyphs}", "methods=nearest-euclidian"], "Did you mean 'nearest-euclidean'?"),
        (["{glyphs}", "tune=true", "inner_lr=0.1"], "inner_lr= has no effect"),
        (["{sinusoid}"], "references of labelled shots are classifiers, and sinusoid predicts numbers"),
        (["{points}", "methods=prototypes"], "methods=prototypes does not fit navigation-2d: it belongs to labelled"),
    ],
)
def test_what_is_wrong_is_one_line(others, words, said, capsys):
    """A setting without effect that is taken, a traceback, or an error after the evaluation."""
    capsys.readouterr()
    assert references.main([word.format(**others) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
