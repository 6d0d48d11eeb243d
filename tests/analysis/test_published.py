"""Published numbers: whole, of the family as it is set, shown with their source, and never where they do not belong."""

from __future__ import annotations

import json
import pathlib
import shutil

import matplotlib as mpl
import pytest

import metarl
from metarl import evaluate
from metarl.analysis import plots, published
from metarl.families import lookup, names
from metarl.settings import SettingsError, check

RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results"
DATA = json.loads((pathlib.Path(metarl.__file__).parent / "pages" / "published.json").read_text())


@pytest.mark.parametrize("env", DATA["families"])
def test_every_number_has_a_source_and_a_place(env):
    """A family or setting that was renamed, a value without its update, a number that nobody could look up."""
    own = DATA["families"][env]
    source = DATA["sources"][own["source"]]
    assert env in names()
    assert own["differs"].endswith(".")
    for case in published._cases(own):
        checked = check(lookup(env), case["when"], "env.")
        assert checked == case["when"]
        told = published.found(env, checked)
        assert f"{source['authors']} ({source['year']}), arXiv:{source['arxiv']}, " in told["source"]
        assert told["curves"] == case["curves"] != []
        for curve in told["curves"]:
            assert sorted(set(curve["updates"])) == curve["updates"]
            assert len(curve["updates"]) == len(curve["values"]) == len(curve.get("ci95", curve["values"]))
            assert all(half > 0 for half in curve.get("ci95", []))
            if own["metric"] == "accuracy":
                assert all(0.2 < value < 1 for value in curve["values"])  # a fraction, as our own scores are
            elif env != "sinusoid":
                assert (curve["method"] == "oracle") == (curve["updates"] == [0])


def test_numbers_are_those_of_the_tables():
    """A digit that was mistyped: the same numbers, copied at another time into a recorded result; and where a case is another's."""
    recorded = json.loads((RESULTS / "fewshot" / "sinusoid.json").read_text())["paper"]
    curves = published.found("sinusoid", {"shots": 5})["curves"]
    assert {curve["method"].lower(): curve["values"] for curve in curves} == recorded
    table = {(5, 1): (3, 0.987), (5, 5): (3, 0.999), (20, 1): (5, 0.958), (20, 5): (5, 0.989)}
    for (ways, shots), (updates, value) in table.items():
        (curve,) = published.found("omniglot", {"ways": ways, "shots": shots})["curves"]
        assert (curve["updates"], curve["values"]) == ([updates], [value])


@pytest.mark.parametrize(
    ("env", "settings", "said"),
    [
        (
            "halfcheetah-vel",
            {},
            "no source has numbers for halfcheetah-vel as it is",
        ),  # its control step is five times theirs
        ("sinusoid", {}, "are for env.shots=5, and this run has shots=10"),
        ("omniglot", {"ways": 10}, "are for env.ways=5, and this run has ways=10"),
        ("navigation-2d", {"horizon": 50}, "are for env.horizon=100, and this run has horizon=50"),
    ],
)
def test_numbers_of_another_task_are_refused(env, settings, said):
    """The paper's numbers beside scores of other tasks, as if one could compare them."""
    assert published.found(env, settings) is None
    with pytest.raises(SettingsError) as refusal:
        published.required(env, settings)
    assert said in str(refusal.value)
    curve = {"family": env, "metric": "return", "notes": {"run": {"env": {"name": env, **settings}}}}
    assert published.beside(curve) == curve


def test_an_evaluation_shows_them(tmp_path, capsys):
    """Marks without a source, at another update than they belong to, or joined to our own curve."""
    run = tmp_path / "maml"
    shutil.copytree(RESULTS / "navigation-2d" / "maml-s0", run)
    words = [f"run={run}", "tasks=2", "steps=1", "episodes=2"]
    assert evaluate.main([*words, "published=true"]) == 0
    shown = capsys.readouterr().out
    assert "published, MAML  return after updates  0: -40.4  1: -11.7  2: -3.3  3: -3.2\n" in shown
    assert "published: Finn, Abbeel and Levine (2017), arXiv:1703.03400, figures 4 and 5" in shown
    result = json.loads((run / "evaluation" / "curve.json").read_text())
    assert result["published"] == published.found("navigation-2d", {})
    assert published.beside({key: value for key, value in result.items() if key != "published"}) == result
    axes = plots._axes(1)
    plots._published(axes[0], result["published"], [0, 1])
    lines = {container.get_label(): container[0].get_xydata().tolist() for container in axes[0].containers}
    assert lines["MAML, Finn et al. 2017 (published)"] == [[0.15, -40.4], [1.15, -11.7]]
    assert lines["oracle, Finn et al. 2017 (published)"] == [[pytest.approx(1.15), -2.3]]
    assert {container[0].get_linestyle() for container in axes[0].containers} == {"None"}
    with mpl.rc_context({"svg.fonttype": "none"}):
        plots.adaptation(result, tmp_path / "u.svg")
        plots.adaptation(result, tmp_path / "r.svg", "rollouts")
    assert "random, Finn et al. 2017 (published)" in (tmp_path / "u.svg").read_text()
    assert "published" not in (tmp_path / "r.svg").read_text()
    assert evaluate.main([*words, "published=true", "rollouts=[0,1]"]) == 2
    assert "published= has no effect here: published numbers are after inner updates" in capsys.readouterr().err
