"""The command line: precedence, refusals, paths as they stand, and config.yaml."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hydra.core.global_hydra import GlobalHydra

from metarl import algorithms, families
from metarl.run import arguments, values
from metarl.run.compose import compose, expand
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


@dataclasses.dataclass(frozen=True)
class Plain:
    """A schema of its own, as a second command has."""

    run: str = setting("", "a path")
    compare: tuple[str, ...] = setting((), "paths")
    steps: int = setting(3, "a number", low=0)
    rollouts: tuple[int, ...] | None = setting(None, "numbers")
    where: str | None = setting(None, "a path or none")


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families._registered, "toy", Toy)
    monkeypatch.setitem(algorithms.ALGORITHMS, "toy", ToyAlgorithm)


def _python(argv: list[str]) -> RunConfig:
    """The same command line by the Python path, which shares no code with Hydra."""
    given = arguments.read(argv)
    groups = {"env_settings": given.env_settings, "algo_settings": given.algo_settings, "settings": given.settings}
    return resolve(given.env, next((t[5:] for t in argv if t.startswith("algo=")), None), **groups)


def _refusal(argv: list[str]) -> str:
    """The one line that the check before torch prints; composing must refuse the same."""
    with pytest.raises(SettingsError) as caught:
        arguments.check(argv)
    with pytest.raises(SettingsError) as again:
        [compose(job) for job in expand(argv)]
    message = str(caught.value)
    assert message == str(again.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("argv", "key", "wanted"),
    [
        # command line > family (0.2) > algorithm (0.3) > default (0.1)
        (["env=toy", "inner_lr=0.7"], "run.inner_lr", 0.7),
        (["env=toy"], "run.inner_lr", 0.2),
        (["env=sinusoid", "algo=toy"], "run.inner_lr", 0.01),
        (["env=halfcheetah-vel", "algo=toy"], "run.gamma", 0.99),
        (["env=toy"], "run.gamma", 0.5),
        (["env=toy", "gamma=0.9"], "run.gamma", 0.9),
        (["env=toy", "algo=maml-sgd"], "run.gamma", 0.99),
        (["env=toy"], "run.iterations", 300),
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


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["env=halfchetah-vel"], ["halfchetah-vel", "Did you mean 'halfcheetah-vel'?"]),
        (["halfcheetah-vel"], ["Did you mean 'env=halfcheetah-vel'?"]),
        (["enb=halfcheetah-vel"], ["'enb'", "Did you mean 'env'?"]),
        ([CHEETAH, "algo=trpo"], ["'trpo'", "Did you mean 'maml-trpo'?"]),
        ([CHEETAH, "iner_lr=0.1"], ["'iner_lr'", "Did you mean 'inner_lr'?"]),
        ([CHEETAH, "horizon=100"], ["'horizon'", "Did you mean 'env.horizon'?"]),
        ([CHEETAH, "horizn=100"], ["Did you mean 'env.horizon'?"]),
        ([CHEETAH, "env.horizn=100"], ["Did you mean 'env.horizon'?"]),
        ([CHEETAH, "env.inner_lr=1"], ["Did you mean 'inner_lr'?"]),
        ([CHEETAH, "max_kl=1"], ["Did you mean 'algo.max_kl'?"]),
        (["env=sinusoid", "lr=1"], ["Did you mean 'algo.lr'?"]),
        ([CHEETAH, "algo.lr=1"], ["'algo.lr'", "maml-adam", "maml-sgd", "not of algo=maml-trpo"]),
        ([CHEETAH, "env.shots=1"], ["'env.shots'", "sinusoid", "not of env=halfcheetah-vel"]),
        ([CHEETAH, "qwertyzuiop=1"], ["'qwertyzuiop'", "--help"]),
        ([CHEETAH, "seed"], ["'seed' is not key=value", "seed=VALUE"]),
        ([CHEETAH, "seed=1", "seed=1"], ["seed is given twice"]),
        ([CHEETAH, "env=sinusoid"], ["env is given twice"]),
        ([CHEETAH, "seed="], ["seed= has no value"]),
        ([CHEETAH, "run_dir="], ["run_dir= has no value"]),
        ([CHEETAH, "--seed=3"], ["write seed=3"]),
        ([CHEETAH, "--inner-lr=3"], ["write inner_lr=3"]),
        ([CHEETAH, "--cfg", "job"], ["'--cfg'", "--help"]),
        ([CHEETAH, "+seed=3"], ["without '+'"]),
        ([CHEETAH, "++seed=3"], ["without '+'"]),
        ([CHEETAH, "~seed"], ["without '~'"]),
        ([CHEETAH, "hydra/launcher=joblib"], ["hydra/launcher=joblib", "-m"]),
        ([CHEETAH, "device=c\nuda"], ["must not hold a line break"]),
        ([CHEETAH, "seed=0,1"], ["add -m"]),
        ([CHEETAH, "device=cpu,cuda"], ["add -m"]),
        (["env=halfcheetah-vel,sinusoid"], ["add -m"]),
        ([CHEETAH, "hidden_sizes=32,32"], ["hidden_sizes=[32,32]"]),
        ([CHEETAH, "hidden_sizes=[32,[3]]"], ["whole number"]),
        ([CHEETAH, "hidden_sizes=[32"], ["must be a list"]),
        ([CHEETAH, "hidden_sizes=[8,x]"], ["hidden_sizes=x", "whole number"]),
        ([CHEETAH, "hidden_sizes=[8,0]"], ["hidden_sizes=0", "at least 1"]),
        ([CHEETAH, "seed=1.5"], ["seed=1.5", "whole number"]),
        ([CHEETAH, "seed=true"], ["whole number"]),
        ([CHEETAH, "seed=" + "9" * 5000], ["seed="]),
        ([CHEETAH, "seed=" + "9" * 250], ["too large"]),
        ([CHEETAH, "inner_lr=" + "9" * 250 + "e99"], ["finite"]),
        ([CHEETAH, "inner_lr=fast"], ["inner_lr=fast", "a number"]),
        ([CHEETAH, "inner_lr=nan"], ["finite"]),
        ([CHEETAH, "bootstrap=yes"], ["true or false"]),
        ([CHEETAH, "inner_lr=0"], ["greater than 0"]),
        ([CHEETAH, "gamma=1.01"], ["at most 1"]),
        ([CHEETAH, "iterations=0"], ["at least 1"]),
        ([CHEETAH, "iterations=null"], ["whole number"]),
        ([CHEETAH, "activation=gelu"], ["tanh, relu", "Did you mean 'relu'?"]),
        ([CHEETAH, "env.horizon=0"], ["env.horizon=0", "at least 1"]),
        ([CHEETAH, "env.velocity_low=5"], ["env.velocity_low=5", "smaller than"]),
        (["env=toy", "env.size=13"], ["env=toy", "size 13 brings bad luck"]),
        (["-m", CHEETAH, "seed=0,x"], ["seed=x", "whole number"]),
        (["-m", CHEETAH, "env.velocity_low=0,5"], ["env.velocity_low=5"]),
    ],
)
def test_refusals(argv: list[str], parts: list[str]) -> None:
    """Catches a mistake that passes, and a message without its culprit or its remedy."""
    message = _refusal(argv)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("argv", [[], ["seed=3"], ["env.horizon=3", "algo=maml-trpo"]])
def test_missing_env_lists_the_families(argv: list[str]) -> None:
    """Catches a first try without arguments that ends in a riddle."""
    message = _refusal(argv)
    assert "env=NAME" in message
    assert "halfcheetah-vel, sinusoid" in message


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


NASTY = [
    "a b",
    " a ",
    "a,b",
    "k=v,k2=[x] y",
    "[a]",
    "[a,b]",
    "(a){b}",
    "it's",
    "'quoted'",
    '"double"',
    "'open",
    "${seed}",
    "${oc.env:HOME}",
    "${",
    "\\${x}",
    "$HOME/{x}",
    "back\\slash\\",
    "--help",
    "-m",
    "+x",
    "~/runs",
    "naïve/日本/🐆",
    "a\nb\t",
    "\u2028\x85\ufeff",
    "#x",
    "a: b",
    "null ",
    "true",
    "007",
    "1e3",
    "hydra.run.dir=x",
    "?!*&%@`|<>;",
    os.fsdecode(b"\xff\xfe"),
    "env=x",
    "\x07\x1b[31m",
    "=",
]


@pytest.mark.parametrize("path", NASTY)
def test_paths_are_verbatim(path: str) -> None:
    """Catches a parser, an interpolation or a YAML reader that changes a path."""
    argv = [CHEETAH, f"run_dir={path}", f"init_from={path}", "seed=1"]
    assert not arguments.wants_help(argv)
    arguments.check(argv)
    assert expand(argv) == [argv]
    config = compose(argv)
    assert (config.run.run_dir, config.run.init_from, config.run.seed) == (path, path, 1)
    text = to_yaml(config)
    text.encode()
    assert from_yaml(text) == config
    jobs = expand(["-m", *argv])
    assert [compose(job).run.run_dir for job in jobs] == [os.path.join(path, "0")]


def test_null_is_no_path() -> None:
    """Catches runs in a directory called null."""
    run = compose([CHEETAH, "run_dir=null", "init_from=null"]).run
    assert (run.run_dir, run.init_from) == (None, None)


@pytest.mark.parametrize("path", [path for path in NASTY if not path.startswith("[")])
def test_path_lists_keep_every_name(path: str) -> None:
    """Catches a name in ``compare`` that is split, stripped or unquoted where it was quoted to prevent that."""
    single = arguments.parse(
        [f"run={path}", f"compare={path}", f"where={path}"], Plain, paths={"run", "where"}, path_lists={"compare"}
    )
    assert single == {"run": path, "compare": (path,), "where": path}
    for quote in "'\"":
        inside = quote + path.replace(quote, quote * 2) + quote
        several = arguments.parse([f"compare=[x,{inside},y]"], Plain, path_lists={"compare"})
        assert several == {"compare": ("x", path, "y")}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("runs/a", ("runs/a",)),
        ("a,b", ("a,b",)),
        ("[a]", ("a",)),
        ("[a,b]", ("a", "b")),
        ("[a, b c]", ("a", "b c")),
        ("[it's,b's]", ("it's", "b's")),
        ("['a,b',\"c,d\",e]", ("a,b", "c,d", "e")),
        ("[x[1],y]", ("x[1]", "y")),
        ("[[x,y],z]", ("[x", "y]", "z")),
        ("[]", ()),
        ("./[x]", ("./[x]",)),
    ],
)
def test_path_lists(text: str, wanted: tuple[str, ...]) -> None:
    """Catches a comma that splits where it should not, and the reverse."""
    assert values.read_paths(text) == wanted


def test_other_schemas_share_the_parser() -> None:
    """Catches a second command that knows types, ranges or nearest names less well than the first."""
    assert arguments.parse(["steps=0", "rollouts=[0,1,5]"], Plain) == {"steps": 0, "rollouts": (0, 1, 5)}
    assert arguments.parse(["rollouts=null", "where=null"], Plain, paths={"where"}) == {"rollouts": None, "where": None}
    for token, part in {
        "stebs=1": "Did you mean 'steps'?",
        "steps=-1": "at least 0",
        "rollouts=[a]": "whole number",
        "halfcheetah-vel": "not key=value",
        "-m": "metarl.train only",
        "env=x": "Unknown setting 'env'",
    }.items():
        with pytest.raises(SettingsError, match=part.replace("?", r"\?")):
            arguments.parse([token], Plain)


def test_multirun_expands_to_every_combination() -> None:
    """Catches lost combinations, split lists, quotes or Hydra settings, and two jobs in one directory."""
    jobs = expand(["env=toy", "--multirun", "seed=0,1", "hidden_sizes=[8,8],[4]", "env.label='a,b'", "run_dir=x,y"])
    fixed = ["env.label='a,b'"]
    assert jobs == [
        ["env=toy", "seed=0", "hidden_sizes=[8,8]", *fixed, "run_dir=x,y/0"],
        ["env=toy", "seed=0", "hidden_sizes=[4]", *fixed, "run_dir=x,y/1"],
        ["env=toy", "seed=1", "hidden_sizes=[8,8]", *fixed, "run_dir=x,y/2"],
        ["env=toy", "seed=1", "hidden_sizes=[4]", *fixed, "run_dir=x,y/3"],
    ]
    assert [compose(job).run.hidden_sizes for job in jobs] == [(8, 8), (4,), (8, 8), (4,)]
    assert expand(["-m", "env=toy,sinusoid", "hydra.verbose=[a,b]"]) == [
        ["env=toy", "hydra.verbose=[a,b]"],
        ["env=sinusoid", "hydra.verbose=[a,b]"],
    ]
    assert expand(["seed=0,1"]) == [["seed=0,1"]]


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


_PROBE = """
import json, sys, time
from metarl.run import arguments
from metarl.settings import SettingsError
messages = []
for argv in json.loads(sys.argv[1]):
    try:
        arguments.check(argv)
        messages.append("")
    except SettingsError as error:
        messages.append(str(error))
arguments.help_text()
heavy = {"torch", "hydra", "omegaconf", "mujoco", "gymnasium"} & set(sys.modules)
print(json.dumps([messages, sorted(heavy), time.process_time()]))
"""


def test_check_is_light() -> None:
    """Catches an import that makes a misspelt key take seconds: processor time, so that a busy machine does not fail it."""
    commands = [
        [CHEETAH, "env.horizon=100", "algo.max_kl=0.02", "run_dir=x"],
        ["env=sinusoid", "-m", "seed=0,1,2"],
        [CHEETAH, "iner_lr=0.1"],
        [CHEETAH, "env.shots=1"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    messages, heavy, seconds = json.loads(done.stdout)
    assert [bool(message) for message in messages] == [False, False, True, True]
    assert heavy == []
    assert seconds < 1.0


def test_a_broken_plugin_harms_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one broken distribution that keeps every other family from running or being listed."""
    broken = importlib.metadata.EntryPoint("broken", "no_such_module:Family", families.GROUP)
    points = {**families._entry_points(), "broken": broken}
    monkeypatch.setattr(families, "_entry_points", lambda: points)
    assert compose([CHEETAH]).env == "halfcheetah-vel"
    assert "no_such_module" in _refusal(["env=broken"])
    text = arguments.help_text()
    assert "no_such_module" in text
    assert "env.shots=10" in text


@pytest.mark.parametrize(
    ("recommended", "part"),
    [({"itertions": 3}, "iterations"), ({"seed": "x"}, "whole number"), ({"algo": "toy", "algo.rat": 1}, "algo.rate")],
)
def test_a_wrong_recommendation_names_its_family(
    monkeypatch: pytest.MonkeyPatch, recommended: dict[str, Any], part: str
) -> None:
    """Catches a plug-in's mistake that reads as if the user had made it."""
    monkeypatch.setattr(Toy, "recommended", recommended)
    message = _refusal(["env=toy"])
    assert "'toy' recommends" in message
    assert part in message


def test_help_shows_every_key() -> None:
    """Catches a setting without default, range or documentation in the help, and a recommendation that it hides."""
    text = arguments.help_text()
    for name, field in RunSettings.__dataclass_fields__.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {name}="))
        assert field.metadata["doc"] in line
    for part in ("env=halfcheetah-vel", "env=sinusoid", "algo=maml-trpo", "env.horizon=200", "algo.beta1=0.9"):
        assert part in text
    assert "  gamma=0.99            >= 0 <= 1 " in text
    assert "  device=auto           auto|cpu|cuda" in text
    chosen = arguments.help_text(["--help", "env=toy"])
    assert "  inner_lr=0.2 " in chosen
    assert "  algo.rate=20.0 " in chosen
    assert "  hidden_sizes=[8,4] " in chosen
    assert "env.shots" not in chosen
    assert "rollouts=null" in arguments.help_for(Plain, "metarl.evaluate")
    assert arguments.wants_help([CHEETAH, "-h"])
    assert not arguments.wants_help([CHEETAH])


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
        (["algo=maml-sgd"], ["algo", "algo.rate", "algo.depth", "algo.lr", "algo.first_order", "run.gamma"]),
    ],
)
def test_difference(changed: list[str], wanted: list[str]) -> None:
    """Catches a resumed run that silently takes another setting."""
    old, new = compose(["env=toy"]), compose(["env=toy", *changed])
    assert difference(old, new) == wanted
    assert set(difference(new, old)) == set(wanted)
