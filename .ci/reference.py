"""Build the API reference with pdoc: ``python .ci/reference.py FOLDER``; a warning is an error.

What pdoc needs help with is done here: names that ``metarl`` imports on first use, annotations of named tuples, formulas that
Markdown would take for emphasis and escapes, and a simulator that starts a process when it is imported, which pdoc forbids.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import sys
import types
import typing
import warnings
from collections.abc import Sequence

# What people build with. Of a package without __all__ every module is meant.
MODULES = (
    "metarl",
    "metarl.algorithms",
    "metarl.analysis",
    "metarl.core",
    "metarl.diagnose",
    "metarl.domain",
    "metarl.envs",
    "metarl.evaluate",
    "metarl.families",
    "metarl.fewshot",
    "metarl.gym",
    "metarl.integrations",
    "metarl.learner",
    "metarl.nets",
    "metarl.pooled",
    "metarl.references",
    "metarl.report",
    "metarl.rl",
    "metarl.rules",
    "metarl.run",
    "metarl.settings",
    "metarl.spaces",
    "metarl.splits",
    "metarl.testing",
    "metarl.train",
)
_FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\w$])\$(?! )[^$\n]+?(?<! )\$(?![\w$])", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def sheltered(markdown: str) -> str:
    """Return a text whose formulas come out of Markdown as they went in, and references without the ``~`` of Sphinx."""

    def escaped(match: re.Match[str]) -> str:
        formula = re.sub(r"([\\*_`\[\]])", r"\\\1", match.group())
        # < is no tag, and a line that starts with - or + no list
        return " ".join(formula.replace("<", "&lt;").split())

    parts = _CODE.split(markdown)
    parts[::2] = [_FORMULA.sub(escaped, part) for part in parts[::2]]
    parts[1::2] = [part.replace("`~", "`", 1) for part in parts[1::2]]
    return "".join(parts)


def ready(module: types.ModuleType) -> None:
    """Import a module's lazy names, and resolve what its named tuples are annotated with."""
    for name in vars(module).get("__all__", ()):
        setattr(module, name, getattr(module, name))
    for name, one in list(vars(module).items()):
        tuples = isinstance(one, type) and issubclass(one, tuple) and "_fields" in vars(one)
        if tuples and not name.startswith("_"):
            one.__new__.__annotations__ = typing.get_type_hints(one)


def build(folder: pathlib.Path, modules: Sequence[str] = MODULES) -> None:
    """Write the reference of some modules into a folder.

    Raises:
        UserWarning: for anything that pdoc warns of.
    """
    os.environ.setdefault("MUJOCO_GL", "disable")
    import pdoc
    import pdoc.extract
    import pdoc.render

    for name in modules:
        importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in pdoc.extract.walk_specs(modules):
            ready(importlib.import_module(name))
        pdoc.render.configure(docformat="google", math=True, show_source=False)
        to_html = pdoc.render.env.filters["to_html"]
        pdoc.render.env.filters["to_html"] = lambda text: to_html(sheltered(text))
        try:
            pdoc.pdoc(*modules, output_directory=folder)
        finally:
            pdoc.render.env.filters["to_html"] = to_html


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name a folder: python .ci/reference.py FOLDER")
    build(pathlib.Path(sys.argv[1]))
    print(f"written: {sys.argv[1]}/index.html")
