"""Published scores of a family, with their source and what is different there: ``metarl/pages/published.json``.

Only numbers that were read in the source itself, or worked out from its raw results, stand in that file; a family whose tasks,
timing or rewards are not the source's has none.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from metarl.families import lookup
from metarl.settings import SettingsError, fields


def found(env: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the published numbers of a family as it is set; None where there are none.

    Args:
        env: the family's name.
        settings: its settings; those that are missing are its defaults.

    Returns:
        ``source`` and ``differs`` as sentences, ``metric``, and ``curves`` of ``method``, ``updates``, ``values`` and perhaps
        ``ci95``, half the width of an interval over tasks.
    """
    known = _read()["families"].get(env)
    if known is None:
        return None
    own = {**_defaults(env), **settings}
    for case in _cases(known):
        if all(own.get(key) == value for key, value in case["when"].items()):
            return {
                "source": f"{_cited(known['source'])}, {known['where']}",
                "short": _cited(known["source"], short=True),
                "differs": known["differs"],
                "metric": known["metric"],
                "curves": case["curves"],
            }
    return None


def required(env: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same, or say why there are none.

    Raises:
        SettingsError: if the family has none, or with other settings only.
    """
    numbers = found(env, settings)
    if numbers is not None:
        return numbers
    families = _read()["families"]
    if env not in families:
        raise SettingsError(
            f"published=true: no source has numbers for {env} as it is; those of {', '.join(families)} are known"
        )
    own = {**_defaults(env), **settings}
    wrong = [{key: v for key, v in case["when"].items() if own.get(key) != v} for case in _cases(families[env])]
    nearest = min(wrong, key=len)
    needed = " ".join(f"env.{key}={value}" for key, value in nearest.items())
    had = ", ".join(f"{key}={own.get(key)}" for key in nearest)
    raise SettingsError(f"published=true: the numbers of {env} are for {needed}, and this run has {had}; leave it out")


def beside(curve: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``curve.json`` holds with published numbers, where there are any for its runs and the same metric."""
    runs = [note["env"] for note in curve.get("notes", {}).values() if "env" in note]
    if "published" in curve or not runs or curve.get("family") is None:
        return curve
    numbers = found(curve["family"], {key: value for key, value in runs[0].items() if key != "name"})
    if numbers is None or numbers["metric"] != curve["metric"]:
        return curve
    return {**curve, "published": numbers}


def _cases(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings and curves of a family, one for every kind of task that there are numbers of."""
    cases = known.get("cases", [{"is": {}, "curves": known.get("curves", [])}])
    return [{"when": {**known["when"], **case["is"]}, "curves": case["curves"]} for case in cases]


def _cited(name: str, short: bool = False) -> str:
    source = _read()["sources"][name]
    first = source["authors"].split(",")[0].split(" and ")[0]
    return (
        f"{first} et al. {source['year']}"
        if short
        else f"{source['authors']} ({source['year']}), arXiv:{source['arxiv']}"
    )


def _defaults(env: str) -> dict[str, Any]:
    return {
        name: field.default for name, field in fields(lookup(env)).items() if field.default is not dataclasses.MISSING
    }


def _read() -> dict[str, Any]:
    text = (importlib.resources.files("metarl") / "pages" / "published.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
