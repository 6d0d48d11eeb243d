"""The architecture as tests: who may import whom, what loads fast, and the house rules that a reader relies on."""

from __future__ import annotations

import ast
import graphlib
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Row by row from the bottom: (rows of ours that it may import, other packages that it may import). A row may always
# import itself. ``metarl`` itself, the lazy door, may name any row.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "settings": (set(), set()),
    "splits": ({"settings"}, {"numpy"}),
    "ids": (set(), {"gymnasium"}),
    "spaces": (set(), set()),
    "families": ({"settings", "splits", "ids", "spaces"}, {"numpy"}),
    "pooled": ({"settings", "families"}, {"numpy"}),
    "listing": ({"settings", "families", "ids"}, set()),
    "cohorts": ({"families"}, {"numpy"}),
    "gym": ({"settings", "families", "cohorts"}, {"numpy", "gymnasium", "PIL"}),
    "envs": (
        {"settings", "families", "pooled"},
        {"numpy", "torch", "mujoco", "gymnasium", "metaworld", "matplotlib", "PIL", "tqdm", "libsumo", "sumo"},
    ),
    "core": (set(), {"torch"}),
    "nets": ({"core"}, {"torch"}),
    "domain": ({"core", "families", "settings"}, {"torch"}),
    "rl": ({"core", "nets", "domain", "families", "cohorts", "settings"}, {"torch", "numpy"}),
    "fewshot": ({"core", "nets", "domain", "families", "pooled", "settings"}, {"torch", "numpy"}),
    "rules": ({"core", "settings"}, set()),
    "algorithms": ({"rules", "core", "settings"}, set()),
}
_BELOW = {"settings", "families", "pooled", "cohorts", "gym", "core", "nets", "domain", "rl", "fewshot", "algorithms"}
_RUN = {"torch", "numpy", "hydra", "omegaconf", "yaml", "safetensors", "tqdm"}
_ANALYSIS = {"jinja2", "torch", "numpy", "scipy", "matplotlib", "imageio", "PIL", "gymnasium", "mujoco"}
LAYERS |= {
    "learner": (_BELOW, {"torch"}),
    "run": ({*_BELOW, "learner"}, _RUN),
    "analysis": ({*_BELOW, "rules", "learner", "run"}, _ANALYSIS),
    "testing": ({*_BELOW, "learner"}, {"torch", "numpy", "safetensors"}),
    "train": ({*_BELOW, "learner", "run", "analysis"}, _RUN),
    "evaluate": ({*_BELOW, "learner", "run", "analysis"}, _RUN),
    "diagnose": ({*_BELOW, "learner", "run", "analysis"}, _RUN),
    "report": ({*_BELOW, "learner", "run", "analysis", "evaluate", "diagnose", "references"}, _RUN),
    "references": ({*_BELOW, "learner", "run", "analysis", "evaluate", "integrations"}, _RUN),
}
LAYERS["metarl"] = (set(LAYERS) - {"envs"}, set())
_ANYTHING = {*_RUN, *_ANALYSIS, "stable_baselines3", "sb3_contrib"}
LAYERS["integrations"] = ((LAYERS["metarl"][0] | {"metarl"}) - {"references"}, _ANYTHING)


def _sources(*folders: str) -> Iterator[tuple[str, pathlib.Path, ast.Module]]:
    """Yield (module name, file, syntax tree); the families under envs/ as ``metarl.envs``, and once."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] == ("metarl", "envs"):  # the symlink, where this Python's rglob follows it
                continue
            parts = ("metarl", *parts) if folder == "envs" else parts
            name = ".".join(part for part in parts if part != "__init__")
            yield name, path, ast.parse(path.read_text(encoding="utf-8"))


PRODUCT = list(_sources("metarl", "envs"))
EVERYTHING = [*PRODUCT, *_sources("experiments", "tests")]
MODULES = {name for name, _, _ in PRODUCT}


def _imports(tree: ast.AST, lazy: bool) -> Iterator[str]:
    """Yield dotted names that a module imports at run time; with ``lazy`` those inside functions, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _imports(other, lazy)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(node, lazy)


def _row(module: str) -> str:
    return [*module.split("."), "metarl"][1] if module.startswith("metarl.") else "metarl"


@pytest.mark.parametrize("row", sorted({_row(name) for name in MODULES} | set(LAYERS)))
def test_imports_point_downwards(row: str) -> None:
    """Catches a row that reaches up or sideways, a library in the wrong row, and a new row without a place."""
    ours, others = LAYERS[row]
    wrong = []
    for name, _, tree in PRODUCT:
        if _row(name) != row:
            continue
        for imported in _imports(tree, lazy=True):
            top = imported.partition(".")[0]
            if top == "metarl":
                allowed = _row(imported) in {row, *ours}
            else:
                allowed = top in sys.stdlib_module_names or top in others
            wrong += [] if allowed else [f"{name} imports {imported}"]
    assert not wrong


def test_nothing_names_the_bundled_families() -> None:
    """Catches a built-in family that comes by a door which a user's family has not, such as import_module."""
    for name, path, tree in PRODUCT:
        if _row(name) == "envs":
            continue
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [s for s in strings if s.startswith("metarl.envs")], path


def test_no_import_cycles() -> None:
    """Catches modules that import only in a lucky order."""
    graph = {name: {i for i in _imports(tree, lazy=False) if i in MODULES and i != name} for name, _, tree in PRODUCT}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "code",
    [
        "import metarl",
        "import metarl.settings, metarl.families, metarl.algorithms",
        "import metarl.run.config",
        "import metarl.run.arguments",
        "import metarl; metarl.names(); metarl.make('halfcheetah-vel'); metarl.make('sinusoid')",
    ],
)
def test_names_and_argument_checks_load_nothing_heavy(code: str) -> None:
    """Catches an import that makes a misspelt key take seconds to be refused."""
    heavy = {"torch", "mujoco", "hydra", "omegaconf", "stable_baselines3", "matplotlib", "scipy", "tensorboard"}
    probe = f"import sys; {code}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_files_are_short() -> None:
    """Catches a file that has grown a second subject."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for _, path, _ in EVERYTHING
    }
    assert not {path: length for path, length in lengths.items() if length > 400}


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if docstring else 0)


def test_functions_fit_a_screen() -> None:
    """Catches a function that does several things."""
    long = [
        f"{name}.{f.name}: {_length(f)}" for name, _, tree in EVERYTHING for f in _functions(tree) if _length(f) > 60
    ]
    assert not long


def _parameters(node: ast.ClassDef) -> list[str]:
    """Public arguments of a class's constructor; none for a settings schema, whose fields are a user's keys."""
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            arguments = function.args
            return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.unparse(f.annotation)]
    if any(f.value is not None and ast.unparse(f.value).startswith("setting(") for f in fields):
        return []
    return [name for f in fields if not (name := ast.unparse(f.target)).startswith("_")]


# Every family, third parties' too, is written against its fields: choices came as a ninth, with a default.
_WIDE = {"metarl.families.RLSpec"}


def test_constructors_take_at_most_eight_arguments() -> None:
    """Catches a class that should be two."""
    classes = [(name, n) for name, _, tree in EVERYTHING for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    wide = {f"{name}.{node.name}" for name, node in classes if len(_parameters(node)) > 8}
    assert wide == _WIDE


def _dotted(node: ast.AST) -> str:
    """``np.random.seed`` as ``numpy.random.seed``; empty where the expression is no plain name."""
    if isinstance(node, ast.Name):
        return {"np": "numpy", "th": "torch"}.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        value = _dotted(node.value)
        return f"{value}.{node.attr}" if value else ""
    return ""


# what of numpy.random makes generators of one's own instead of touching the global one
_GENERATORS = {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox", "BitGenerator"}
_UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "random"}
# Other people's data sets are pickles: the one reader of these lets no name in them lead to a function of Python or NumPy.
_READERS = {"metarl.envs.fewshot.unpickling: import pickle"}
_UNSAFE_NAMES = {"torch.load", "torch.save", "torch.manual_seed", "torch.seed", "torch.set_rng_state", "hasattr"}


def _offences(tree: ast.Module) -> Iterator[str]:
    for imported in _imports(tree, lazy=True):
        if imported.partition(".")[0] in _UNSAFE_MODULES:
            yield f"import {imported}"
    for node in ast.walk(tree):
        name = _dotted(node)
        *owner, last = name.split(".")
        if name in _UNSAFE_NAMES or (owner == ["numpy", "random"] and last not in _GENERATORS):
            yield name
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "bare except"


def test_no_pickle_no_global_randomness_no_guessing() -> None:
    """Catches files that run code when opened, draws that resuming cannot repeat, and swallowed errors."""
    found = {f"{name}: {offence}" for name, _, tree in PRODUCT for offence in _offences(tree)}
    assert found == _READERS


def test_the_rules_see_offences() -> None:
    """Catches a rule that never fires: each line below breaks one."""
    lines = [
        "import pickle",
        "from random import choice",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.manual_seed(0)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.uniform()",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "hasattr(1, 'x')",
        "try:\n    pass\nexcept:\n    pass",
    ]
    assert [len(list(_offences(ast.parse(line)))) for line in lines] == [1] * len(lines)
    allowed = "import numpy as np\nnp.random.default_rng(0)\ntorch.Generator().manual_seed(0)"
    assert not list(_offences(ast.parse(allowed)))
    lazy = "if TYPE_CHECKING:\n    import a\ndef f():\n    import b\nclass C:\n    import c"
    assert [list(_imports(ast.parse(lazy), lazy=x)) for x in (True, False)] == [["b", "c"], ["c"]]
    wide = ast.parse("@dataclass\nclass C:\n" + "".join(f"    x{i}: int\n" for i in range(9))).body[0]
    assert len(_parameters(wide)) == 9
    long = ast.parse("def f():\n" + "".join(itertools.repeat("    pass\n", 60))).body[0]
    assert _length(long) == 61
