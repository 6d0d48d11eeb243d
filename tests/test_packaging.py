"""The distribution: what the wheel holds, that it works away from the clone, and that README and CI say the same."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_SOURCE = (".git", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs", ".venv", "venv")


def _modules() -> list[str]:
    """Names of all modules of the clone, found by walking files rather than by asking the build."""
    places = {"metarl": ROOT / "metarl", "metarl.envs": ROOT / "envs"}
    found = []
    for package, folder in places.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] != "envs":  # the symlink, where this Python's rglob follows it
                found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return sorted(found)


_IMPORT_ALL = f"import importlib\nfor name in {_modules()!r}:\n    print(importlib.import_module(name).__file__)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Build in a copy of the clone: a build leaves files beside the sources, and finds those of earlier builds."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, clone]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path) -> pathlib.Path:
    """Install the wheel alone into an empty folder, without looking for its dependencies."""
    target = wheel.parent / "target"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    done = subprocess.run([*pip, "--target", target, wheel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def _python(code: str, cwd: pathlib.Path, path: pathlib.Path) -> str:
    """Run code with ``path`` first on the import path; -P keeps the working directory off it."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: pathlib.Path) -> None:
    """Catches a top-level ``envs`` or ``tests`` in users' site-packages, and sub-packages lost for want of __init__."""
    names = zipfile.ZipFile(wheel).namelist()
    info = f"metarl_toolkit-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"metarl", info}
    held = {name for name in names if name.endswith(".py")}
    wanted = {m.replace(".", "/") for m in _modules()}
    assert {re.sub(r"(/__init__)?\.py$", "", name) for name in held} == wanted
    assert "metarl/py.typed" in names
    assert {n for n in names if n.startswith("metarl/pages/")} == {
        str(p.relative_to(ROOT)) for p in ROOT.glob("metarl/pages/**/*") if p.is_file()
    }
    assert "metarl/envs/locomotion/halfcheetah.py" in names
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_every_module_of_the_wheel_imports(inside: bool, installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Catches modules that only work from the clone; inside it, a folder that shadows the installed package."""
    files = _python(_IMPORT_ALL, ROOT if inside else tmp_path, installed).split()
    assert len(files) == len(_modules())
    assert {pathlib.Path(file).is_relative_to(installed) for file in files} == {True}


def test_every_module_imports_from_the_clone() -> None:
    """Catches families that the symlink metarl/envs does not bring, so that a clone works only once installed."""
    files = _python(_IMPORT_ALL, ROOT, ROOT).split()
    assert len(files) == len(_modules())
    assert {pathlib.Path(file).is_relative_to(ROOT / "metarl") for file in files} == {True}


def test_families_come_through_entry_points_of_the_wheel(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Catches built-in families that are known only where the clone is installed editable."""
    code = "import metarl.families as f\nfor name in f.names(): print(name, f.lookup(name).__module__)"
    made = dict(line.split() for line in _python(code, tmp_path, installed).splitlines())
    declared = PROJECT["entry-points"]["metarl.families"]
    assert made == {name: value.partition(":")[0] for name, value in declared.items()}
    assert {"halfcheetah-vel", "sinusoid"} <= set(made)


def test_the_symlink_is_relative_and_points_into_the_clone() -> None:
    """Catches a link that works only on the machine where it was made."""
    link = ROOT / "metarl" / "envs"
    assert link.is_symlink()
    assert os.readlink(link) == "../envs"


def test_every_imported_distribution_is_declared() -> None:
    """Catches an import that works only because some other package happens to install it."""
    imported = set()
    for path in [*(ROOT / "metarl").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    homes = importlib.metadata.packages_distributions()
    third_party = imported - set(sys.stdlib_module_names) - {"metarl"}
    optional = PROJECT["optional-dependencies"]
    extras = [*optional["metaworld"], *optional["sumo"]]
    declared = {canonicalize_name(Requirement(line).name) for line in [*PROJECT["dependencies"], *extras]}
    declared.add("omegaconf")  # hydra's own configuration objects, which it pins
    # extras need not be installed; but for eclipse-sumo's, packages have their distributions' names
    declared.add("sumo")
    missing = {name for name in third_party if not declared & {canonicalize_name(d) for d in homes.get(name, [name])}}
    assert not missing


def test_constraints_are_exact_and_allowed_by_the_declared_ranges() -> None:
    """Catches a constraint that contradicts pyproject.toml, and one that is missing, so that installs drift."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    assert pins[0].name == "torch", "a build for one device satisfies torch's pin only if it has no local version"
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins)
    extras = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert versions["antlr4-python3-runtime"].startswith("4.9.")
    assert versions["omegaconf"] < "2.4"


def test_readme_and_ci_run_the_same_commands() -> None:
    """Catches a README whose commands nobody runs."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = "pip install -c constraints.txt -e '.[dev]'", "python -m pytest -n auto"
    assert f"\n{install}\n" in script
    assert script.endswith(f"\n{test}\n"), "the tests come last, so that their exit code is the script's"
    assert f"{install} && {test}\n" in readme
    assert "pip install -c constraints.txt -e . && python -m metarl.train env=halfcheetah-vel\n" in readme
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
