"""The ids by which Gymnasium knows task families: ``metarl/NAME-v0``, from metadata alone; nothing is imported for them."""

from __future__ import annotations

import functools
import importlib.metadata
import re

import gymnasium

GROUP = "metarl.families"


@functools.cache
def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return what the installed distributions declare as task families, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def env_id(name: str) -> str:
    """Return the Gymnasium id of a family."""
    return f"metarl/{name}-v0"


def register_id(name: str) -> None:
    """Make a family known to ``gymnasium.make`` and ``gymnasium.make_vec``; it is looked up when one of them is called.

    A name that Gymnasium cannot spell has no id and is still a family.
    """
    if env_id(name) in gymnasium.registry or not re.fullmatch(r"[\w:.-]+", name):
        return
    gymnasium.register(
        id=env_id(name),
        entry_point="metarl.gym.environment:FamilyEnv",
        vector_entry_point="metarl.gym.vector:FamilyVectorEnv",
        kwargs={"family": name},
    )


def register_installed() -> None:
    """Register the ids of all families that are installed."""
    for name in entry_points():
        register_id(name)
