"""The API reference: every cross-reference of a docstring leads somewhere; it builds, and holds every public name and formula."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "reference.py"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
FORMULA = re.compile(r"\$\$.+?\$\$", re.DOTALL)


def sources():
    """Yield (module name, syntax tree) of the package, the families under envs/ as ``metarl.envs``."""
    for folder, package in ((ROOT / "metarl", "metarl"), (ROOT / "envs", "metarl.envs")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] != "envs":  # the symlink, where this Python's rglob follows it
                name = ".".join([package, *(part for part in parts if part != "__init__")])
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree):
    """Yield (name within the module, docstring) of the module, and of its classes, functions and methods."""
    stack = [("", tree)]
    while stack:
        place, node = stack.pop()
        if ast.get_docstring(node):
            yield place, ast.get_docstring(node)
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.ClassDef | ast.FunctionDef)]
        stack += [(f"{place}.{child.name}".lstrip("."), child) for child in inner]


def resolves(module: str, place: str, target: str) -> bool:
    """Tell whether a name means something where it is written: a class's own, the module's, or a full path."""
    scopes = [place.split(".")[:end] for end in range(len(place.split(".")), -1, -1)]
    if any(found(module, [*scope, *target.split(".")]) for scope in scopes):
        return True
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        if spec is not None:
            return found(".".join(parts[:end]), parts[end:])
    return False


def found(module: str, parts: list[str]) -> bool:
    """Tell whether attribute after attribute is there; the fields of a dataclass or a named tuple are, too."""
    value = importlib.import_module(module)
    for part in filter(None, parts):
        fields = getattr(value, "__annotations__", {})
        if part in fields and part not in dir(value):
            return part == parts[-1]
        if part not in dir(value):
            return False
        value = getattr(value, part)
    return True


def test_cross_references_resolve():
    """A name that has moved or never was, and one that this module does not know without its path."""
    wrong, seen = [], 0
    for module, tree in sources():
        for place, text in docstrings(tree):
            targets = ROLE.findall(text)
            seen += len(targets)
            wrong += [f"{module}.{place}: {target}" for target in targets if not resolves(module, place, target)]
    assert seen > 100
    assert wrong == []


def test_the_resolver_sees_what_is_wrong():
    """A resolver that takes any name, or only those that are written in full."""
    assert resolves("metarl.families", "Tasks.from_json", "to_json")
    assert resolves("metarl.families", "", "metarl.cohorts.Restartable.restart")
    assert resolves("metarl.learner", "MetaState", "iteration")
    assert not resolves("metarl.families", "Tasks", "to_jsn")
    assert not resolves("metarl.families", "", "metarl.cohorts.Restartible")
    assert not resolves("metarl.families", "", "metarl.cohort")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build it all, in a process of its own: a warning would end it."""
    pytest.importorskip("pdoc", reason="the reference is built by pdoc, of the extra dev")
    folder = tmp_path_factory.mktemp("reference")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


def script():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_are_sheltered():
    """Stars and backslashes that Markdown takes away, and code that is none of a formula's."""
    change = script().sheltered
    assert change(r"a $x_i^*$ and $y^*$, `~a.B` costs $5") == r"a $x\_i^\*$ and $y^\*$, `a.B` costs $5"
    assert change("$$ a \\\\\n- b $$") == "$$ a \\\\\\\\ - b $$"
    assert change("$j<k$") == "$j&lt;k$"
    assert change("`$x*$`") == "`$x*$`"


@pytest.mark.timeout(900)  # 15 seconds by itself; a machine may be busy
def test_every_public_name_is_documented(site):
    """A name without a docstring or without a place on its page, and a package that the script does not list."""
    pdoc_doc = pytest.importorskip("pdoc.doc")
    listed = script().MODULES
    public = [name for name, tree in sources() if "__all__" in {t.id for t in assigned(tree)} and ".run." not in name]
    assert {"metarl", "metarl.core", "metarl.nets", "metarl.rl", "metarl.fewshot", "metarl.testing"} <= set(public)
    assert set(public) <= set(listed)
    missing = []
    for name in public:
        module = importlib.import_module(name)
        script().ready(module)
        page = (site / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8")
        page_of = pdoc_doc.Module(module)
        for member in module.__all__:
            described = page_of.get(member)
            alias = isinstance(described, pdoc_doc.Variable)  # has no docstring but what its module says of it
            if not described.docstring.strip() and not (alias and f"``{member}``" in module.__doc__):
                missing.append(f"{name}.{member} has no docstring")
            if f'id="{member}"' not in page:
                missing.append(f"{name}.{member} is not on its page")
    assert missing == []


def assigned(tree):
    return [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]


@pytest.mark.timeout(900)  # 15 seconds by itself; a machine may be busy
def test_formulas_come_through(site):
    """A formula that Markdown has changed, on the page of its module or of the package that shows its name, but for spaces."""
    count, lost, pages = 0, [], {}
    for path in site.rglob("*.html"):
        text = re.sub(r"</?[a-z][^>]*>", "", path.read_text(encoding="utf-8"))
        pages[".".join(path.relative_to(site).with_suffix("").parts)] = squeezed(html.unescape(text))
    exported = {
        name: getattr(importlib.import_module(name), "__all__", ()) for name in pages if name.startswith("metarl")
    }
    for name, tree in sources():
        parent = name.rpartition(".")[0]
        for place, text in docstrings(tree):
            top = place.split(".")[0]
            shown = name if name in pages else parent if top in exported.get(parent, ()) else None
            if shown is None or any(part.startswith("_") for part in place.split(".")):
                continue
            for formula in FORMULA.findall(text):
                count += 1
                lost += [] if squeezed(formula) in pages[shown] else [f"{name}.{place}: {formula}"]
    assert count > 40
    assert lost == []


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)
