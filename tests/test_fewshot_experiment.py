"""The few-shot experiment: its plans and tables by hand, and all of it from training to table in miniature."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import metarl
from experiments import algorithms, fewshot, fewshot_references, fewshot_report, normalizations, recording, sinusoids
from metarl import families, train
from metarl.analysis.agent import load
from metarl.analysis.shots import shot_domain
from metarl.envs.fewshot import classes
from metarl.run import arguments
from metarl.settings import SettingsError
from tests.fewshot.conftest import COUNT, EACH, IMAGES, SIDE, Patterns

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Trainings in this process, in an empty directory."""

    def trained(path, words):
        assert train.main([*words, f"run_dir={path}", "resume=auto", "threads=1"]) == 0
        recording.write(path / "memory.json", {"peak_mib": 1.0})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(algorithms, "train", trained)
    threads = torch.get_num_threads()
    yield tmp_path / "runs" / "tiny" / "fewshot"
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Faint(Patterns):
    """The toy with twelve examples of a class, each of them a third of its pattern and the rest noise."""

    def pick(self, tasks, seeds):
        return classes.pick(self.shape, tasks.values.astype(int), np.full(COUNT, 12), seeds)

    def pool(self):
        return _FAINT


_FAINT = np.concatenate([IMAGES.reshape(COUNT, EACH, -1)] * 2, axis=1)[:, :12] // 3
_FAINT = _FAINT + np.random.default_rng(1).integers(0, 170, _FAINT.shape)
_FAINT = _FAINT.astype(np.uint8).reshape(-1, 1, SIDE, SIDE)


def _run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["x", *words])
    return fewshot.main()


def test_from_training_to_table(small, monkeypatch, capsys):
    """Two methods, one of them trained on other tasks than it is tested on, and references; then one more seed beside them."""
    monkeypatch.setitem(families._registered, "glyphs", Faint)
    only = "only=[maml-adam,reptile,transfer,prototypes]"
    assert _run(monkeypatch, "env=glyphs", "tiny=true", only, "evaluate=false") == 0
    assert not (small / "results").exists()
    assert _run(monkeypatch, "env=glyphs", "tiny=true", "only=[maml]", "seeds=2") == 0
    text = capsys.readouterr().out
    shown = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith(("| maml", "| reptile"))]
    assert shown == ["maml-adam", "reptile"]
    result = json.loads((small / "results" / "glyphs-5w1s.json").read_text())
    pixels = ["nearest neighbour, euclidean", "nearest neighbour, cosine"]
    assert list(result["rows"]) == [
        *("maml-adam", "reptile", *pixels, "prototypical network", "transfer, frozen", "transfer, fine-tuned")
    ]
    row = result["rows"]["maml-adam"]
    assert len(row["commands"]) == len(row["selected"]) == 2
    assert row["selected"] == [load(small / "glyphs-5w1s" / f"maml-adam-s{seed}", "best").iteration for seed in (0, 1)]
    assert row["updates"] == 1 + int(np.argmax(row["validation"][1:]))
    assert list(row["protocols"]) == ["transductive", "support", "one-by-one"]
    assert row["protocols"]["support"]["updates"] == [0, 1, 2, 3]
    assert row["protocols"]["one-by-one"]["updates"] == [row["updates"]]
    assert result["rows"]["reptile"]["protocols"]["support"]["updates"] == list(range(7))
    names = {"glyphs-5w1s.json", "glyphs-5w1s.png", "glyphs-5w1s-tasks.png"}
    assert {path.name for path in (small / "results").iterdir()} == names
    assert [path.name for path in small.parents[2].iterdir()] == ["runs"]


@pytest.mark.parametrize("name", [*fewshot.METHODS, *fewshot.VARIANTS])
@pytest.mark.parametrize("ways", [5, 20])
def test_plans_are_legal(name, ways):
    """Catches a training of hours that is refused, and a schedule that does not end with the training."""
    settings = fewshot.Settings(ways=ways, iterations=123, words=("env.queries=3", "inner_lr=0.25"))
    words = fewshot.plan(settings, name)
    arguments.check(words)
    assert {"algo.decay_steps=123", "iterations=123", "env.queries=3", "inner_lr=0.25", f"env.ways={ways}"} <= set(
        words
    )
    keys = [word.partition("=")[0] for word in words]
    assert len(set(keys)) == len(keys), "a key twice is refused"


def test_a_schedule_ends_with_the_iterations_that_the_user_gives():
    settings = fewshot.completed(fewshot.Settings(words=("iterations=77",)))
    assert {"iterations=77", "algo.decay_steps=77"} <= set(fewshot.plan(settings, "maml-adam"))


def test_the_table_by_hand():
    """Catches the accuracy after another number of updates, a whole interval for half of it, and fractions for %."""
    curve = {"updates": [0, 1, 2], "mean": [0.2, 0.9, 0.95], "ci95": [[0.1, 0.3], [0.88, 0.92], [0.94, 0.96]]}
    alone = {"updates": [1], "mean": [0.75], "ci95": [[0.7, 0.8]]}
    row = {"updates": 1, "trained": "transductive", "protocols": {"transductive": curve, "one-by-one": alone}}
    row |= {"iterations": [10, 10], "selected": [5, 9], "minutes": [1.2, 3.4], "commands": ["a", "b"], "commits": ["c"]}
    row |= {"judged": {"command": "z", "commit": "d"}}
    other = row | {"protocols": {"group": curve}, "trained": "group"}
    origin = {"cpu": "x", "cores": 1, "versions": {}, "commit": "d"}
    result = {"env": "e", "ways": 5, "shots": 1, "queries": 15, "tasks": 600, "alone": 200, "command": "z"}
    text = fewshot_report.report(result | {"rows": {"one": row, "two": other}, "provenance": origin})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| method | updates | transductive | one query at a time | group | trained with |")
    assert lines[2] == "| one | 1 | 90.00 ± 2.00 | 75.00 ± 5.00 |  | transductive | 10 | 5 to 9 | 1 to 3 | 2 |"
    assert lines[3].startswith("| two | 1 |  |  | 90.00 ± 2.00 | group |")
    assert "evaluation d.\nHardware: x, 1 cores. Versions: {}." in text


def test_rows_that_were_judged_elsewhere_say_so(tmp_path):
    """A row that was kept has its own commit, hardware and versions, not those of the others; nor need it say any."""
    row = {
        "updates": 0,
        "trained": "",
        "protocols": {},
        "iterations": [],
        "selected": [],
        "minutes": [],
        "commands": [],
    }
    row |= {"commits": ["c"]}
    usual = {"env": "e", "ways": 5, "shots": 1, "queries": 15, "tasks": 600, "alone": 0}
    before = usual | {
        "rows": {"old": row},
        "command": "then",
        "provenance": {"commit": "d", "cpu": "x", "cores": 1, "versions": 1},
    }
    assert "evaluation d.\nHardware: x, 1 cores. Versions: 1." in fewshot_report.report(before)
    file = tmp_path / "x.json"
    settings = fewshot.Settings(env="omniglot", queries=15, alone=0)
    file.write_text(json.dumps(before | {"env": "omniglot"}))
    rows = fewshot.joined({"new": row}, fewshot.earlier(file, settings))
    now = {"commit": "f", "cpu": "y", "cores": 2, "versions": 2}
    text = fewshot_report.report(usual | {"rows": rows, "command": "now", "provenance": now})
    assert "\nthen\nnow\n" in text
    assert "evaluation d (old); f (new).\n" in text
    assert "Hardware: x, 1 cores. Versions: 1 (old); y, 2 cores. Versions: 2 (new).\n" in text


def test_rows_of_runs_that_are_gone_stay_in_the_table(tmp_path):
    """Trainings of hours are not lost with their checkpoints; but tasks of another kind are another table."""
    settings, file = fewshot.completed(fewshot.Settings()), tmp_path / "x.json"
    assert fewshot.earlier(file, settings) == {}
    same = {key: getattr(settings, key) for key in fewshot.SHARED}
    table = {"rows": {"anil-adam": {"n": 2}, "a": {"n": 3}}, "command": "z", "provenance": {"commit": "d"}}
    file.write_text(json.dumps(same | table))
    found = fewshot.joined({"a": {"n": 1}, "maml-adam": {"n": 4}}, fewshot.earlier(file, settings))
    assert list(found) == ["maml-adam", "anil-adam", "a"]
    assert found["a"] == {"n": 1}, "what was judged now is newer"
    assert found["anil-adam"] == {"n": 2, "judged": {"command": "z", "commit": "d"}}
    file.write_text(json.dumps(same | table | {"tasks": 7}))
    with pytest.raises(SettingsError, match=r"rows of other test tasks \(tasks=7\): give the same, or move"):
        fewshot.earlier(file, settings)


def test_what_diverges_is_never_the_best(tmp_path):
    """``argmax`` takes what is no number for the greatest, and JSON has no word for it: an evaluation of minutes would be lost."""
    nan = float("nan")
    assert fewshot.best_updates([0.9, 0.3, nan, 0.5, nan]) == 3
    assert fewshot.best_updates([0.9, nan]) == 1
    curve = {"updates": [0, 1], "mean": [0.2, nan], "ci95": [[0.1, 0.3], [nan, nan]]}
    assert fewshot_report._cell({"updates": 1, "protocols": {"support": curve}}, "support") == "diverged"
    fewshot_report.draw({"rows": {"a": {"protocols": {"support": curve}}}}, tmp_path / "x.png")
    scores = {0.1: {"support": np.full((2, 3, 4), 0.5)}, 0.2: {"support": np.full((2, 3, 4), nan)}}
    scores[0.2]["support"][:, 0] = 0.6
    assert fewshot_references._best(scores, "support") == (0.2, 0)


def test_the_picture_by_hand(monkeypatch, tmp_path):
    """Catches curves in another protocol's panel, levels that are missing or curves that became levels, and colours that change."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))

    def curve(*means):
        return {"updates": list(range(len(means))), "mean": list(means), "ci95": [[m - 0.1, m + 0.1] for m in means]}

    rows = {
        "a": {"protocols": {"transductive": curve(0.2, 0.7), "one-by-one": curve(0.6)}},
        "pixels": {"protocols": {"": curve(0.4)}},
        "b": {"protocols": {"support": curve(0.2, 0.3, 0.5), "transductive": curve(0.8)}},
    }
    fewshot_report.draw({"rows": rows}, tmp_path / "x.png")
    found = [
        {line.get_label(): (list(map(float, line.get_ydata())), line.get_color()) for line in axes.lines}
        for axes in figures[0].axes
    ]
    assert [axes.get_title() for axes in figures[0].axes] == ["transductive", "support statistics"]
    level = ([0.4, 0.4], "C1")
    assert found[0] == {"a": ([0.2, 0.7], "C0"), "pixels": level, "b": ([0.8, 0.8], "C2")}
    assert found[1] == {"pixels": level, "b": ([0.2, 0.3, 0.5], "C2")}


@pytest.mark.parametrize("mark", [*map(fewshot.mark, fewshot.RECORDED), sinusoids.MARK, normalizations.MARK])
def test_the_marks_are_there(mark):
    """A training of hours must not end in a refusal."""
    assert (ROOT / recording.README).read_text(encoding="utf-8").count(mark) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=[promp]"], "only=[promp] is none of this experiment's: "),
        (["only=[nope]"], "Unknown algorithm 'nope'. "),
        (["words=[5]"], "words=[5] is no key=value"),
        (["env=sinusoid", "ways=3"], "ways= has no effect with env=sinusoid"),
        (["env=glyphs", "train=false"], "no run under runs/tiny/fewshot/glyphs-5w1s has come to its end"),
    ],
)
def test_mistakes_end_with_one_line(small, monkeypatch, capsys, words, said):
    assert _run(monkeypatch, "tiny=true", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_reinforcement_learning_has_no_protocols():
    """Catches a traceback in the middle of an evaluation."""
    with pytest.raises(SettingsError, match="labelled shots"):
        shot_domain(metarl.build("navigation-2d"))


def test_tasks_that_diverge_are_counted_and_left_out_of_a_mean_of_their_own():
    """One of 600 tasks makes a mean of billions, which hides what happens to the other 599."""
    good = [[4.0, 2.0, 1.0], [6.0, 4.0, 3.0]]
    seeds = np.array([[*good, [1.0, 5.0, 1e9]], [*good, [1.0, 5.0, np.nan]], [*good, [1.0, 5.0, 10.0]]]).swapaxes(1, 2)
    found = sinusoids.divergence(seeds)
    assert found["diverged"] == [1, 1, 0]
    np.testing.assert_allclose(
        found["without_diverged"], [(5 + 5 + 11 / 3) / 3, (3 + 3 + 11 / 3) / 3, (2 + 2 + 14 / 3) / 3]
    )
    assert sinusoids.divergence(np.full((1, 3, 2), np.nan))["without_diverged"] == []


def test_sinusoids_from_training_to_table(small, monkeypatch, capsys):
    """MAML's seeds, both references, the paper's numbers; the fits are those of the evaluation's parameters."""
    monkeypatch.setattr(recording, "python", lambda module, *words: train.main(list(words)))
    assert _run(monkeypatch, "env=sinusoid", "tiny=true", "seeds=2") == 0
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert [line[:2] for line in lines[2:]] == [
        *(["maml", "5"], ["maml, the paper's", "5"], ["maml", "10"]),
        *(
            ["pretrained", "5"],
            ["pretrained, the paper's", "5"],
            ["pretrained", "10"],
            ["oracle", "5"],
            ["oracle", "10"],
        ),
    ]
    assert lines[3][3:6] == ["0.67", "0.38", "0.35"]
    assert lines[-1][3:] == ["", "", "", "1", "not adapted"]
    result = json.loads((small / "results" / "sinusoid.json").read_text())
    assert len(result["rows"]["maml"]["5"]["each_seed"]) == 2
    assert len(result["rows"]["maml"]["5"]["mean"]) == 11
    assert {path.name for path in (small / "results").iterdir()} == {
        "sinusoid.json",
        "sinusoid.png",
        "sinusoid-fits.png",
    }
    agent = load(small / "sinusoid" / "maml-s0", "best")
    learner = sinusoids._shaped(agent, 5)
    tasks = learner.domain.sample_tasks(4, "test", (0, 2))
    drawn = sinusoids.fits(agent, learner, tasks, (), 3)
    judged = sinusoids._judged("maml", [agent], 5, sinusoids.Scale(1, 1, 4, 2))
    assert judged["rates"] == [[]]
    support, query = learner.domain.draw(tasks, learner.domain.seeds((0, 2, 1), 4))
    errors = np.zeros((4, 4))
    for task in range(4):
        params = {name: value.clone().requires_grad_() for name, value in agent.meta.items()}
        for step in range(4):
            errors[task, step] = (_wave(params, query.inputs[task]) - query.targets[task]).square().mean().item()
            if step == 3:
                break
            loss = (_wave(params, support.inputs[task]) - support.targets[task]).square().mean()
            gradients = torch.autograd.grad(loss, list(params.values()))
            stepped = {n: v - 0.001 * g for (n, v), g in zip(params.items(), gradients, strict=True)}
            params = {name: value.detach().requires_grad_() for name, value in stepped.items()}
        found = _wave(params, torch.linspace(-5, 5, 200)[:, None])[:, 0].detach().numpy()
        np.testing.assert_allclose(drawn[task], found, rtol=1e-3, atol=1e-4)
    assert judged["mean"][:4] == pytest.approx(errors.mean(0), rel=1e-4)


def _wave(params, x):
    """The little network by hand, of layers in the order of its parameters."""
    values = list(params.values())
    for weight, bias in zip(values[:-2:2], values[1:-2:2], strict=True):
        x = torch.relu(x @ weight + bias)
    return x @ values[-2] + values[-1]
