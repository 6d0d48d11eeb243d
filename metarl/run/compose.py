"""From a checked command line to a configuration, by Hydra's composition.

Hydra is a thin shell: it merges the layers and the overrides. It makes no directory, sets up no logging, and its
messages do not reach the user. Text and paths do not pass through it, because its grammar and OmegaConf's interpolation
would read meaning into ``=``, ``,`` or ``${}``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarl.run import refusals
from metarl.run.arguments import Arguments, expand, read
from metarl.run.config import RunConfig, Tree, finish, layers
from metarl.settings import SettingsError

__all__ = ["compose", "expand"]

_ROOT = "metarl_run"
# Options of the groups ``env`` and ``algo``. A fixed name, since a family's may hold what Hydra's grammar cannot.
_CHOSEN = "metarl_chosen"


def compose(argv: Sequence[str]) -> RunConfig:
    """Return the configuration of one training.

    Args:
        argv: the command line of one job (see :func:`expand`).

    Raises:
        SettingsError: for the first thing that is wrong.
    """
    given = read(argv)
    groups = {"": given.settings, "env.": given.env_settings, "algo.": given.algo_settings}
    overrides = list(given.hydra)
    verbatim = []
    for prefix, values in groups.items():
        for name, value in values.items():
            if _is_text(value):
                verbatim.append((prefix.removesuffix("."), name, value))
            else:
                overrides.append(f"{prefix}{name}={_literal(value)}")
    tree = _composed(given, overrides)
    for group, name, value in verbatim:
        (tree[group] if group else tree)[name] = value
    config = finish(given.env, given.algo, tree)
    refusals.refuse_meaningless(config, given.settings)
    return config


def _composed(given: Arguments, overrides: list[str]) -> Tree:
    store = ConfigStore.instance()
    root, algo, env = layers(given.env, given.algo)
    store.store(_ROOT, {"defaults": ["_self_", {"algo": _CHOSEN}, {"env": _CHOSEN}], **root})
    store.store(_CHOSEN, algo, group="algo", package="_global_")
    store.store(_CHOSEN, env, group="env", package="_global_")
    # a program of the user's that runs under Hydra itself gets its state back
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        # Hydra reports a broken Hydra plug-in, which is none of ours, as a warning
        with warnings.catch_warnings(action="ignore"), hydra.initialize(version_base="1.3", config_path=None):
            composed = hydra.compose(_ROOT, overrides)
        tree: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        culprit = " ".join(given.hydra) or type(error).__name__
        raise SettingsError(f"the settings cannot be composed: {culprit!r} is refused; leave hydra.* out") from error
    finally:
        GlobalHydra.instance().hydra = outer
    return {str(key): value for key, value in tree.items()}


def _is_text(value: Any) -> bool:
    return any(isinstance(item, str) for item in (value if isinstance(value, tuple) else (value,)))


def _literal(value: Any) -> str:
    """Return a number, truth value, None or tuple of these in Hydra's grammar."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_literal, value))}]"
    return "null" if value is None else str(value)
