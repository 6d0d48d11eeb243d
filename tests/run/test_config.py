"""Configurations: precedence, the two doors, what Hydra leaves behind, and config.yaml."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hydra.core.global_hydra import GlobalHydra

from metarl import algorithms, families
from metarl.run import arguments
from metarl.run.compose import compose
from metarl.run.config import RunConfig, RunSettings, difference, from_yaml, resolve, to_yaml
from metarl.settings import SettingsError, setting

CHEETAH = "env=halfcheetah-vel"


@dataclasses.dataclass(frozen=True)
class Toy:
    """A family that has every type of setting and an opinion on everything.

    Its recommendations differ from the algorithm's and from the defaults, so that each layer shows.
    """

    size: int = setting(3, "a number", low=1)
    ratio: float = setting(0.5, "a number")
    limit: float | None = setting(None, "a number or none")
    label: str = setting("a", "text")
    flags: tuple[str, ...] = setting((), "texts")
    gaps: tuple[float, ...] = setting((0.5, 1.5), "numbers")

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "toy",
        "algo.rate": 20.0,
        "inner_lr": 0.2,
        "hidden_sizes": (8, 4),
    }

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("size 13 brings bad luck")


@dataclasses.dataclass(frozen=True)
class ToyAlgorithm:
    """An algorithm with an opinion."""

    rate: float = setting(10.0, "a rate")
    depth: int = setting(1, "a depth")

    recommended: ClassVar[Mapping[str, Any]] = {"inner_lr": 0.3, "gamma": 0.5}


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families._registered, "toy", Toy)
    monkeypatch.setitem(algorithms.ALGORITHMS, "toy", ToyAlgorithm)


def _python(argv: list[str]) -> RunConfig:
    """The same command line by the Python path, which shares no code with Hydra."""
    given = arguments.read(argv)
    groups = {"env_settings": given.env_settings, "algo_settings": given.algo_settings, "settings": given.settings}
    return resolve(given.env, next((t[5:] for t in argv if t.startswith("algo=")), None), **groups)


@pytest.mark.parametrize(
    ("argv", "key", "wanted"),
    [
        # command line > family (0.2) > algorithm (0.3) > default (0.1)
        (["env=toy", "inner_lr=0.7"], "run.inner_lr", 0.7),
        (["env=toy"], "run.inner_lr", 0.2),
        # ... but an algorithm that the family does not recommend > family
        (["env=sinusoid", "algo=toy"], "run.inner_lr", 0.3),
        (["env=halfcheetah-vel", "algo=toy"], "run.gamma", 0.5),
        (["env=halfcheetah-vel", "algo=toy"], "run.meta_batch_size", 40),
        (["env=toy"], "run.gamma", 0.5),
        (["env=toy", "gamma=0.9"], "run.gamma", 0.9),
        (["env=toy", "algo=maml-sgd"], "run.gamma", 0.99),
        (["env=toy"], "run.iterations", 300),
        # a validation adapts as training does, and shows adaptation even where training has none
        (["env=toy", "inner_steps=3"], "run.eval_steps", 3),
        (["env=toy", "inner_steps=0"], "run.eval_steps", 1),
        (["env=toy", "inner_steps=3", "eval_steps=0"], "run.eval_steps", 0),
        (["env=toy"], "run.hidden_sizes", (8, 4)),
        (["env=toy", "hidden_sizes=[5]"], "run.hidden_sizes", (5,)),
        (["env=toy", "hidden_sizes=[]"], "run.hidden_sizes", ()),
        # the algorithm itself
        (["env=toy"], "algo", "toy"),
        (["env=toy", "algo=maml-adam"], "algo", "maml-adam"),
        (["env=sinusoid"], "algo", "maml-adam"),
        # a family's opinion on an algorithm's settings holds for the recommended algorithm, also where it is named
        (["env=toy"], "algo.rate", 20.0),
        (["env=toy", "algo=toy"], "algo.rate", 20.0),
        (["env=toy", "algo.rate=4"], "algo.rate", 4.0),
        (["env=sinusoid", "algo=toy"], "algo.rate", 10.0),
        (["env=toy"], "algo.depth", 1),
        # the family's own settings
        (["env=toy"], "env.size", 3),
        (["env=toy", "env.size=5"], "env.size", 5),
        (["env.size=5", "env=toy"], "env.size", 5),
    ],
)
def test_precedence(argv: list[str], key: str, wanted: object) -> None:
    """Catches a layer that wins over the one above it, on the command line or in Python."""
    arguments.check(argv)
    for config in (compose(argv), _python(argv)):
        group, _, name = key.partition(".")
        tree = {"run": dataclasses.asdict(config.run), "env": config.env_settings, "algo": config.algo_settings}
        got = tree[group][name] if name else getattr(config, group)
        assert (got, type(got)) == (wanted, type(wanted))


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["seed=7", "threads=null", "bootstrap=TRUE", "chunk_tasks=5", "device=cpu"],
        ["env.limit=2", "env.gaps=[1e-05,-2.5e+3,1]", "env.flags=[a,'b,c',null]", "env.label=${seed}"],
    ],
)
def test_both_doors_give_the_same(tokens: list[str]) -> None:
    """Catches a setting that Hydra's merging and the Python merging treat differently."""
    assert compose(["env=toy", *tokens]) == _python(["env=toy", *tokens])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1e-05", 1e-05), ("1e16", 1e16), (".5", 0.5), ("3", 3.0), ("-0.25", -0.25), ("5e-324", 5e-324), ("0.1", 0.1)]
    + [(str(x), x) for x in (1.7976931348623157e308, 2 / 3, 123456789.12345679, -1e-7)],
)
def test_numbers_arrive_exactly(text: str, wanted: float) -> None:
    """Catches YAML 1.1, which reads 1e-05 as text, and rounding on the way through Hydra's grammar."""
    got = compose(["env=toy", f"env.ratio={text}"]).env_settings["ratio"]
    assert (got, type(got)) == (wanted, float)


@pytest.mark.parametrize(
    "text", ["007", "1e3", "true", "${env.size}", "a=b", "x: y", "[1]", "a\\,b", "\\${x}", "{", "a,b"]
)
def test_text_stays_text(text: str) -> None:
    """Catches text that is read as a number, an interpolation or YAML."""
    assert compose(["env=toy", f"env.label={text}"]).env_settings["label"] == text


def test_quotes_around_text_go() -> None:
    """Catches quotes that stay in the value, and doubled ones that do."""
    config = compose(["env=toy", "env.label='it''s, \"x\"'", "env.flags=[\"a,b\",'',c d]"])
    assert config.env_settings["label"] == 'it\'s, "x"'
    assert config.env_settings["flags"] == ("a,b", "", "c d")


def test_a_family_may_refuse_a_combination() -> None:
    """Catches a plug-in's plain ValueError that reaches the user as a traceback, after torch has been loaded."""
    for refuse in (arguments.check, compose):
        with pytest.raises(SettingsError, match=r"env=toy.*size 13 brings bad luck"):
            refuse(["env=toy", "env.size=13"])


@pytest.mark.parametrize("settings", [{"meta_batch_sise": 4}, {"horizon": 4}])
def test_python_door_refuses_too(settings: dict[str, Any]) -> None:
    """Catches a misspelt name that the Python path ignores."""
    with pytest.raises(SettingsError, match=next(iter(settings))):
        resolve("halfcheetah-vel", settings=settings)
    with pytest.raises(SettingsError, match="env_settings"):
        resolve("halfcheetah-vel", settings={"env": settings})


def test_python_door_takes_path_objects(tmp_path: pathlib.Path) -> None:
    """Catches a notebook's ``run_dir=Path(...)`` being refused as no text."""
    assert resolve("sinusoid", settings={"run_dir": tmp_path}).run.run_dir == str(tmp_path)


def test_composing_leaves_nothing_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches Hydra's output directories, its logging, its messages, and state that the second composition meets."""
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    first = compose([CHEETAH, "seed=1", "hydra.verbose=true"])
    for bad in ("hydra.verbse=true", "hydra.verbose=["):
        with pytest.raises(SettingsError, match=r"^[^\n]*hydra\.verb[^\n]*$"):
            compose([CHEETAH, bad])
    assert compose(["env=toy"]).env == "toy"
    assert compose([CHEETAH, "seed=1"]) == first
    assert not GlobalHydra.instance().is_initialized()
    assert (pathlib.Path.cwd(), list(tmp_path.iterdir())) == (tmp_path, [])
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_a_program_under_hydra_keeps_its_state() -> None:
    """Catches a user's own Hydra application that loses its state when it composes one of ours."""
    import hydra

    with hydra.initialize(version_base="1.3", config_path=None):
        outer = GlobalHydra.instance().hydra
        compose([CHEETAH])
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("recommended", "part"),
    [({"itertions": 3}, "iterations"), ({"seed": "x"}, "whole number"), ({"algo": "toy", "algo.rat": 1}, "algo.rate")],
)
def test_a_wrong_recommendation_names_its_family(
    monkeypatch: pytest.MonkeyPatch, recommended: dict[str, Any], part: str
) -> None:
    """Catches a plug-in's mistake that reads as if the user had made it."""
    monkeypatch.setattr(Toy, "recommended", recommended)
    with pytest.raises(SettingsError, match=rf"^[^\n]*'toy' recommends[^\n]*{part}[^\n]*$"):
        arguments.check(["env=toy"])


def test_yaml_round_trip() -> None:
    """Catches None, tuples, floats and text that come back as something else, and settings that the file hides."""
    argv = ["env=toy", "env.limit=1e-05", "env.flags=[null,'1',a: b]", "env.label=yes", "inner_lr=1e16", "threads=3"]
    for config in (
        compose(argv),
        compose(["env=toy", "hidden_sizes=[]"]),
        compose([CHEETAH]),
        compose(["env=sinusoid"]),
    ):
        text = to_yaml(config)
        back = from_yaml(text)
        assert back == config
        assert [type(value) for value in dataclasses.asdict(back.run).values()] == [
            type(value) for value in dataclasses.asdict(config.run).values()
        ]
        lines = text.splitlines()
        keys = [*RunSettings.__dataclass_fields__, "env", "  name", *(f"  {key}" for key in config.env_settings)]
        keys += ["algo", "  name", *(f"  {key}" for key in config.algo_settings)]
        assert [line.partition(":")[0] for line in lines] == keys
    assert "hidden_sizes: [64, 64]" in to_yaml(compose([CHEETAH]))


def test_yaml_of_an_older_version() -> None:
    """Catches a run that a newly added setting makes unreadable."""
    config = compose(["env=toy", "env.size=5"])
    lines = [line for line in to_yaml(config).splitlines() if not line.startswith(("seed:", "  ratio:", "  depth:"))]
    assert from_yaml("\n".join(lines)) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[1]",
        "seed: 1",
        "env: a\nalgo: b",
        "env: {}\nalgo: {}",
        "env: {name: [1]}\nalgo: {name: b}",
        "a: [",
        "\x00",
        "env: {name: toy}\nalgo: {name: maml-adam}\nseeds: 1",
        "env: {name: toy, size: x}\nalgo: {name: maml-adam}",
        "env: {name: nope}\nalgo: {name: maml-adam}",
        "env: {name: toy}\nalgo: {name: maml-adam}\n1: 2",
        "env: {name: toy, 1: 2}\nalgo: {name: maml-adam}",
    ],
)
def test_other_yaml_is_refused(text: str) -> None:
    """Catches a damaged or foreign file that ends in a traceback or, worse, in defaults."""
    with pytest.raises(SettingsError) as caught:
        from_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ([], []),
        (["seed=1", "hidden_sizes=[8]"], ["run.seed", "run.hidden_sizes"]),
        (["threads=2"], ["run.threads"]),
        (["env.limit=0"], ["env.limit"]),
        (["algo.rate=1", "env.size=4"], ["env.size", "algo.rate"]),
        # the algorithm's name, the run settings that it recommends, its own settings against the other's
        (
            ["algo=reptile"],
            [
                "algo",
                *("algo.rate", "algo.depth", "algo.adapt", "algo.lr", "algo.decay_steps"),
                *("run.inner_steps", "run.gamma", "run.eval_steps"),
            ],
        ),
    ],
)
def test_difference(changed: list[str], wanted: list[str]) -> None:
    """Catches a resumed run that silently takes another setting."""
    old, new = compose(["env=toy"]), compose(["env=toy", *changed])
    assert difference(old, new) == wanted
    assert set(difference(new, old)) == set(wanted)


def test_legal_choices_are_listed_once():
    """Fifty names twice, where none is near."""
    with pytest.raises(SettingsError) as refused:
        families.make("bandit-bernoulli", protocol="zzz")
    assert str(refused.value) == "env.protocol=zzz is not one of fit, trial"
    with pytest.raises(SettingsError, match=r"is not one of fit, trial\. Did you mean 'trial'"):
        families.make("bandit-bernoulli", protocol="trail")
