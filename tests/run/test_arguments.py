"""The command line before anything heavy: refusals, paths as they stand, several runs, help."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from metarl import families
from metarl.run import arguments, values
from metarl.run.compose import compose, expand
from metarl.run.config import RunSettings, from_yaml, to_yaml
from metarl.settings import SettingsError, setting

CHEETAH = "env=halfcheetah-vel"


@dataclasses.dataclass(frozen=True)
class Plain:
    """A schema of its own, as a second command has."""

    run: str = setting("", "a path")
    compare: tuple[str, ...] = setting((), "paths")
    steps: int = setting(3, "a number", low=0)
    rollouts: tuple[int, ...] | None = setting(None, "numbers")
    where: str | None = setting(None, "a path or none")


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
        (["env=bandit-gaussian", "init_std=0.5"], ["init_std=0.5", "discrete", "leave it out"]),
        (["env=sinusoid", "normalize_observations=true"], ["normalize_observations=true", "leave it out"]),
        ([CHEETAH, "seed=null"], ["seed=null has the wrong type"]),
        ([CHEETAH, "seed=true"], ["seed=true has the wrong type"]),
        ([CHEETAH, "gamma=2e0"], ["gamma=2e0 is too large"]),
        ([CHEETAH, "hidden_sizes=null"], ["hidden_sizes=null must be a list"]),
        ([CHEETAH, "hidden_sizes=[1,null]"], ["hidden_sizes=null has the wrong type"]),
        ([CHEETAH, "hidden_sizes=[8,0]"], ["hidden_sizes=0 is too small"]),
        ([CHEETAH, "hidden_sizes=[1,true]"], ["hidden_sizes=true has the wrong type"]),
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
    assert "bandit-bernoulli, bandit-gaussian, cifar-fs, fc100, folder, glyphs, halfcheetah-dir" in message


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
    assert expand(["-m", *argv]) == [[CHEETAH, f"run_dir={os.path.join(path, '0')}", f"init_from={path}", "seed=1"]]


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


def test_paths_are_written_as_they_are_read() -> None:
    """Catches a name that comes back as another, alone or beside others, and quotes that nobody needs."""
    names = ["a", "a,b", "it's", "'q'", "'a", "b'", '"', "[x]", "[x", "y]", " s ", "a b", "", "null", "''", "c'd,e"]
    for one in names:
        assert values.read_paths(values.write_paths([one])) == (one,)
        for other in names:
            assert values.read_paths(values.write_paths([one, other, "z"])) == (one, other, "z")
    assert values.write_paths([]) == "[]"
    assert values.write_paths(["runs/a"]) == "runs/a"
    assert values.write_paths(["runs/a-s0", "runs/b's"]) == "[runs/a-s0,runs/b's]"


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
    jobs = expand(["env=sinusoid", "--multirun", "seed=0,1", "hidden_sizes=[8,8],[4]", "init_from=a,b", "run_dir=x,y"])
    assert jobs == [
        ["env=sinusoid", "seed=0", "hidden_sizes=[8,8]", "init_from=a,b", "run_dir=x,y/0"],
        ["env=sinusoid", "seed=0", "hidden_sizes=[4]", "init_from=a,b", "run_dir=x,y/1"],
        ["env=sinusoid", "seed=1", "hidden_sizes=[8,8]", "init_from=a,b", "run_dir=x,y/2"],
        ["env=sinusoid", "seed=1", "hidden_sizes=[4]", "init_from=a,b", "run_dir=x,y/3"],
    ]
    assert [compose(job).run.hidden_sizes for job in jobs] == [(8, 8), (4,), (8, 8), (4,)]
    assert expand(["-m", "env=halfcheetah-vel,sinusoid", "hydra.verbose=[a,b]"]) == [
        ["env=halfcheetah-vel", "hydra.verbose=[a,b]"],
        ["env=sinusoid", "hydra.verbose=[a,b]"],
    ]
    assert expand(["-m", "env.label='a,b',\"c,'d\",e"]) == [
        ["env.label='a,b'"],
        ['env.label="c,\'d"'],
        ["env.label=e"],
    ]
    assert expand(["-m", "run_dir=null"]) == [["run_dir=null"]]
    assert expand(["seed=0,1"]) == [["seed=0,1"]]


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
heavy = {"torch", "hydra", "omegaconf", "mujoco"} & set(sys.modules)
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


def test_help_shows_every_key() -> None:
    """Catches a setting without default, range or documentation in the help, and a recommendation that it hides."""
    text = arguments.help_text()
    for name, field in RunSettings.__dataclass_fields__.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {name}="))
        assert field.metadata["doc"] in line
    for part in ("env=halfcheetah-vel", "env=sinusoid", "algo=maml-trpo", "env.horizon=200", "algo.beta1=0.9"):
        assert part in text
    flat = " ".join(text.split())  # the columns are as wide as the longest setting
    assert " gamma=0.99 >= 0 <= 1 discount" in flat
    assert " device=auto auto|cpu|cuda auto, cpu or cuda" in flat
    chosen = arguments.help_text(["--help", "env=sinusoid"])
    assert "  inner_lr=0.01 " in chosen
    assert "  hidden_sizes=[40,40] " in chosen
    assert "algo=maml-adam" in chosen
    assert "env.horizon=200 " not in chosen
    assert "rollouts=null" in arguments.help_for(Plain, "metarl.evaluate")
    assert arguments.wants_help([CHEETAH, "-h"])
    assert not arguments.wants_help([CHEETAH])
