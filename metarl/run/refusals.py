"""What is refused because it would have no meaning: settings that are the user's own, and that a problem cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metarl import families
from metarl.settings import SettingsError

if TYPE_CHECKING:
    from metarl.run.config import RunConfig


def refuse_meaningless(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Refuse what the user has given although this family cannot have it.

    Args:
        config: the resolved configuration.
        given: the run settings that are the user's own.

    Raises:
        SettingsError: for the first of them.
    """
    if "memory_size" in config.algo_settings:
        _refuse_updates(config, given)
    _refuse_without_effect(config, given)
    if "draw" in dir(families.lookup(config.env)) or "network" in given or _CONV & given.keys():
        _refuse_other_network(config, given)
    if given.get("local_adaptation") and against_local_adaptation(config):
        raise SettingsError(f"local_adaptation=true does not fit {against_local_adaptation(config)}; leave it out")
    checked = {"init_std", "normalize_observations", "entropy_bonus", "shared_policy", "local_adaptation"}
    if not checked & given.keys():
        return  # what follows may open a simulator
    try:
        spec = families.make(config.env, **config.env_settings).spec
    except Exception:  # a family is foreign code; building the learner will say what is wrong with it
        return
    if "init_std" in given and isinstance(spec, families.RLSpec) and spec.choices is not None:
        raise SettingsError(
            f"init_std={config.run.init_std} has no meaning for env={config.env}: its actions are discrete, and choices have"
            " no standard deviation; leave it out"
        )
    alone = not (isinstance(spec, families.RLSpec) and spec.agents)
    for name in sorted({"shared_policy", "local_adaptation"} & given.keys()):
        if alone:
            raise SettingsError(
                f"{name}={str(given[name]).lower()} has no meaning for env={config.env}: it has no team of equal agents;"
                " leave it out"
            )
    if config.run.normalize_observations and isinstance(spec, families.ShotSpec):
        raise SettingsError(
            f"normalize_observations=true has no meaning for env={config.env}: labelled shots are no observations;"
            " leave it out"
        )
    if config.run.entropy_bonus and isinstance(spec, families.ShotSpec):
        raise SettingsError(
            f"entropy_bonus={config.run.entropy_bonus:g} has no meaning for env={config.env}: predictions of labelled shots"
            " have no entropy; leave it out"
        )


def against_local_adaptation(config: RunConfig) -> str:
    """Say what keeps the agents of a team from adapting each for itself; empty where nothing does."""
    if not config.run.shared_policy:
        return "shared_policy=false, which has no agents"
    other = "memory_size" in config.algo_settings or "solver_steps" in config.algo_settings or config.algo == "reptile"
    return f"algo={config.algo}, whose inner updates are not gradient steps that it looks through" if other else ""


def _refuse_updates(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Refuse what belongs to inner updates, where the algorithm has none."""
    wrong = [key for key in ("inner_steps", "eval_steps", "exploration") if given.get(key)]
    wrong += [key for key in ("inner_lr", "inner_surrogate", "dice_decay", "bootstrap") if key in given]
    if wrong:
        raise SettingsError(
            f"{wrong[0]}={given[wrong[0]]} has no meaning for algo={config.algo}: it learns a task by memory within trials,"
            " and has no inner updates; leave it out"
        )


def _refuse_without_effect(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Refuse what other settings, or labelled shots, leave without effect."""
    run, reasons = config.run, dict[str, str]()
    if run.inner_surrogate != "loaded-dice":
        reasons["dice_decay"] = f"inner_surrogate={run.inner_surrogate}, which has no decay"
    if "memory_size" in config.algo_settings:
        reasons["weight_std"] = f"algo={config.algo}, whose network is recurrent"
    if "solver_steps" in config.algo_settings and "dice" in run.inner_surrogate:
        reasons["inner_surrogate"] = f"algo={config.algo}: its solver compares losses, and DiCE's are 0 everywhere"
    if run.inner_steps == 0 and run.exploration:
        reasons["exploration"] = "inner_steps=0: nothing is sampled for an update"
    if config.algo == "reptile" and run.entropy_bonus:
        reasons["entropy_bonus"] = "algo=reptile, which takes no gradient of the outer loss"
    if "draw" in dir(families.lookup(config.env)):
        why = f"env={config.env}: labelled shots have neither steps nor actions"
        reasons |= dict.fromkeys(("inner_surrogate", "dice_decay", "gamma", "gae_lambda", "bootstrap", "init_std"), why)
    for key, reason in reasons.items():
        if key in given:
            raise SettingsError(f"{key}={given[key]} has no meaning with {reason}; leave {key}= out")


_CONV, _MLP = {"filters", "downsampling", "normalization"}, {"hidden_sizes", "activation", "weight_std"}


def convolutional(config: RunConfig, spec: object) -> bool:
    """Tell whether a configuration's network is a convolutional one: for images, unless an MLP or a context is asked for."""
    if config.run.network == "auto":
        return _images(spec) and "context_size" not in config.algo_settings
    return config.run.network == "conv4"


def _images(spec: object) -> bool:
    return isinstance(spec, families.ShotSpec) and len(spec.input_shape) == 3


def _refuse_other_network(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Refuse a network that the family's inputs do not fit, and settings of a network that is not built."""
    try:
        spec = families.make(config.env, **config.env_settings).spec
    except Exception:  # a family is foreign code; building the learner will say what is wrong with it
        return
    conv, where = convolutional(config, spec), f"env={config.env} algo={config.algo}"
    if conv and not _images(spec):
        raise SettingsError(f"network=conv4 takes images, and env={config.env} has vectors; leave it out")
    if conv and "context_size" in config.algo_settings:
        raise SettingsError(f"network=conv4 has no context for algo={config.algo} to adapt; use network=mlp")
    wrong = sorted((_MLP if conv else _CONV) & given.keys())
    if wrong:
        built, remedy = ("conv4", "filters=, or network=mlp") if conv else ("mlp", "hidden_sizes=")
        raise SettingsError(
            f"{wrong[0]}={given[wrong[0]]} has no meaning with {where}: its network is network={built}; use {remedy}"
        )
