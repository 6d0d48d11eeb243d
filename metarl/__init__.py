"""Meta-reinforcement learning: MAML over batched task families, with few-shot learning on the same core.

Names are imported on first use (PEP 562), so that ``import metarl`` and the check of a command line stay fast. Importing it
registers every installed family with Gymnasium, by name: ``gymnasium.make("metarl/halfcheetah-vel-v0")``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metarl import ids

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent, load
    from metarl.families import RLSpec, ShotSpec, Step, TaskParameter, Tasks, make, names, register
    from metarl.gym.family import gym_family
    from metarl.learner import MetaLearner, MetaState
    from metarl.run.build import build
    from metarl.settings import SettingsError, setting

_HOMES = {
    "Agent": "metarl.analysis.agent",
    "load": "metarl.analysis.agent",
    "RLSpec": "metarl.families",
    "ShotSpec": "metarl.families",
    "Step": "metarl.families",
    "TaskParameter": "metarl.families",
    "Tasks": "metarl.families",
    "make": "metarl.families",
    "names": "metarl.families",
    "register": "metarl.families",
    "gym_family": "metarl.gym.family",
    "MetaLearner": "metarl.learner",
    "MetaState": "metarl.learner",
    "build": "metarl.run.build",
    "SettingsError": "metarl.settings",
    "setting": "metarl.settings",
}

__all__ = [
    "Agent",
    "MetaLearner",
    "MetaState",
    "RLSpec",
    "SettingsError",
    "ShotSpec",
    "Step",
    "TaskParameter",
    "Tasks",
    "build",
    "gym_family",
    "load",
    "make",
    "names",
    "register",
    "setting",
]

ids.register_installed()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metarl' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
