"""Bands of a family's tasks beyond those that a run was trained on, as a user names them; torch is not needed.

``heavy`` is a choice of the family's setting ``band``, ``velocity=2..3`` the range of a task parameter with settings
``velocity_low`` and ``velocity_high``, anything else overrides settings: ``goal_range=1 step_size=0.05``. Another simulator
(``backend=``) is such a setting as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metarl.families import lookup, make
from metarl.run.config import RunConfig
from metarl.run.values import read_value
from metarl.settings import SettingsError, check, fields, hints, nearest

# The name of the tasks that are like those of training, which every band stands beside.
USUAL = "in distribution"
_NAMED = "band"


class Band(NamedTuple):
    """Tasks of other settings: how the user calls them, and the settings of the family that are others than the run's."""

    name: str
    settings: dict[str, Any]


def read(words: Sequence[str], config: RunConfig) -> list[Band]:
    """Return what each word means for a run's family.

    Raises:
        SettingsError: for a word that the family does not understand, that is given twice or changes nothing.
    """
    schema = lookup(config.env)
    own = check(schema, config.env_settings, "env.")
    found: list[Band] = []
    for word in words:
        name = " ".join(word.split())
        if name in [band.name for band in found] or name == USUAL:
            raise SettingsError(f"band={name} is named twice; name every band once")
        told = check(schema, _overrides(name, config.env, schema), "env.")
        made = make(config.env, **{**own, **told}).spec
        del made  # a range that is empty, say, is refused before anything is loaded
        changed = {key: value for key, value in told.items() if own.get(key, fields(schema)[key].default) != value}
        if not changed:
            raise SettingsError(
                f"band={name} is what the run was trained on, which is shown beside every band; leave it out"
            )
        found.append(Band(name, changed))
    return found


def _overrides(name: str, env: str, schema: type) -> dict[str, Any]:
    """Return the settings that a band's words name, not yet checked."""
    known, kinds, found = fields(schema), hints(schema), dict[str, Any]()
    for part in name.split():
        key, equals, text = part.removeprefix("env.").partition("=")
        if not equals:
            found[_NAMED] = _named(part, env, known)
        elif ".." in text:
            low, _, high = text.partition("..")
            ends = _ranges(known)
            if key not in ends:
                raise SettingsError(f"band={part}: {env} has no range '{key}'. {nearest(key, ends)}")
            for end, number in zip(ends[key], (low, high), strict=True):
                found[end] = read_value(number, kinds[end])
        else:
            found[key] = read_value(text, kinds[key]) if key in known else text
    return found


def _named(word: str, env: str, known: Mapping[str, Any]) -> str:
    """Return the name of a band that the family has."""
    if _NAMED not in known:
        ranges = [f"{name}=LOW..HIGH" for name in _ranges(known)]
        remedy = (
            f"give a range, band={ranges[0]}" if ranges else f"override a setting of it, band={next(iter(known))}=VALUE"
        )
        raise SettingsError(f"band={word}: {env} has no bands by name; {remedy}")
    choices = known[_NAMED].metadata["choices"]
    if word not in choices:
        raise SettingsError(f"band={word} is not one of {', '.join(choices)}. {nearest(word, choices)}")
    return word


def _ranges(known: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the two settings of each range."""
    names = [name.removesuffix("_low") for name in known if name.endswith("_low")]
    return {name: (f"{name}_low", f"{name}_high") for name in names if f"{name}_high" in known}


def in_backend(backend: str, config: RunConfig) -> RunConfig:
    """Return a run's configuration in another simulator.

    Raises:
        SettingsError: if its family has no such one.
    """
    known = fields(lookup(config.env)).get("simulator")
    if known is None:
        raise SettingsError(
            f"backend={backend} needs a family with several simulators (env.simulator=), as those of traffic signals are;"
            f" {config.env} has one"
        )
    choices = known.metadata["choices"]
    if backend not in choices:
        raise SettingsError(f"backend={backend} is not one of {', '.join(choices)}")
    return dataclasses.replace(config, env_settings={**config.env_settings, "simulator": backend})


def suffix_of(backend: str | None, config: RunConfig) -> str:
    """Return what the stems of an evaluation's files end with: the simulator, where it is not the run's own."""
    own = config.env_settings.get("simulator")
    return f"-{backend}" if backend and backend != own else ""
