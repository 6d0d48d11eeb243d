"""The settings of a run: their schema, how they are completed, and ``config.yaml``.

Precedence: what the user gives > the family's recommendation > the algorithm's > the defaults below; with another
algorithm than the family recommends, the algorithm's > the family's. Importing this module imports neither torch nor mujoco.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import yaml

from metarl import algorithms, families
from metarl.run import refusals
from metarl.settings import SettingsError, check, fields, setting

Tree = dict[str, Any]
# Run settings that are paths: no parser may look into them.
PATHS = frozenset({"run_dir", "init_from"})


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings that do not belong to one family or algorithm; the command line gives them as ``key=value``."""

    seed: int = setting(0, "all randomness is a function of it", low=0, high=2**63 - 1)
    iterations: int = setting(300, "meta-updates", low=1)
    meta_batch_size: int = setting(20, "tasks of one meta-update", low=1)
    episodes_per_task: int = setting(20, "episodes of one support or query set (RL)", low=1)
    inner_steps: int = setting(1, "inner updates while training; 0 trains without adapting", low=0)
    inner_lr: float = setting(0.1, "step size of an inner update", above=0)
    inner_surrogate: str = setting(
        "lvc", "inner policy-gradient loss (RL)", choices=("lvc", "logp", "dice", "loaded-dice")
    )
    dice_decay: float = setting(
        0.9, "loaded-dice: how much an earlier step counts, 0: lvc, 1: dice (RL)", low=0, high=1
    )
    exploration: float = setting(0.0, "weight of E-MAML's term, 1 for the whole of it (RL)", low=0)
    multi_step: int = setting(
        0,
        "meta-updates with a loss after every inner step, fading to the last alone; 0: the last alone (MAML++)",
        low=0,
    )
    first_order_updates: int = setting(0, "meta-updates of first order before those of second order (MAML++)", low=0)
    entropy_bonus: float = setting(
        0.0, "what a nat of entropy earns in the outer loss, in deviations of advantages (RL)", low=0
    )
    gamma: float = setting(0.99, "discount (RL)", low=0, high=1)
    gae_lambda: float = setting(1.0, "0: one-step, 1: Monte-Carlo advantages (RL)", low=0, high=1)
    bootstrap: bool = setting(False, "value the state at the time limit instead of a finite horizon (RL)")
    hidden_sizes: tuple[int, ...] = setting((64, 64), "widths of the network's hidden layers", low=1, high=1_000_000)
    activation: str = setting("tanh", "between the layers", choices=("tanh", "relu"))
    network: str = setting("auto", "auto: conv4 for images, mlp for vectors", choices=("auto", "mlp", "conv4"))
    weight_std: float | None = setting(None, "of untrained weights, normal within two; null: Xavier's (mlp)", above=0)
    filters: int = setting(64, "channels of a convolutional layer (conv4)", low=1, high=1_000_000)
    downsampling: str = setting("stride", "how a layer halves an image (conv4)", choices=("stride", "pool"))
    normalization: str = setting(
        "transductive",
        "whose statistics normalise a query: the query set's, the support set's, both mixed, its own, none (conv4)",
        choices=("transductive", "support", "task", "group", "none"),
    )
    shared_policy: bool = setting(
        True, "one policy for all agents of a team; false sees and acts for all at once (families with agents)"
    )
    local_adaptation: bool = setting(
        False, "agents of a team adapt each for itself, by its own rewards where they are told (families with agents)"
    )
    normalize_observations: bool = setting(False, "standardise observations by their running mean and variance (RL)")
    init_std: float = setting(1.0, "standard deviation of the untrained policy (RL)", above=0)
    eval_every: int = setting(25, "iterations between validations; 0 never validates", low=0)
    eval_tasks: int = setting(20, "tasks of a validation", low=1)
    eval_steps: int | None = setting(None, "updates of a validation; the last picks the best; null: inner_steps", low=0)
    checkpoint_every: int = setting(1, "iterations between checkpoints", low=1)
    chunk_tasks: int | None = setting(None, "tasks differentiated at once; null chooses by the data's size", low=1)
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    threads: int | None = setting(None, "threads; null takes every core", low=1)
    run_dir: str | None = setting(None, "where the run is written; null makes a fresh directory under runs/")
    resume: str = setting("never", "auto continues the run in run_dir", choices=("never", "auto"))
    init_from: str | None = setting(None, "run directory whose parameters to start from")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A resolved configuration: what ``config.yaml`` holds.

    Attributes:
        env: family name.
        algo: algorithm name.
        env_settings: every setting of the family.
        algo_settings: every setting of the algorithm.
        run: everything else.
    """

    env: str
    algo: str
    env_settings: dict[str, Any]
    algo_settings: dict[str, Any]
    run: RunSettings


def algorithm_of(env: str, algo: str | None = None) -> str:
    """Return the algorithm's name: the one given, or the family's recommendation, or maml-trpo.

    A method's name, such as ``imaml``, means its variant with the outer rule of the family's recommendation.

    Raises:
        SettingsError: for an unknown family or algorithm.
    """
    usual = str(getattr(families.lookup(env), "recommended", {}).get("algo", "maml-trpo"))
    name = algorithms.variant(algo or usual, usual)
    algorithms.lookup(name)
    return name


def layers(env: str, algo: str) -> list[Tree]:
    """Return what holds where the user says nothing, lowest precedence first: global, the algorithm's, the family's.

    A family's settings are chosen with the algorithm that it recommends. With another one they come before that algorithm's.

    Args:
        env: family name.
        algo: algorithm name.

    Returns:
        Trees of run settings, with the groups ``env`` and ``algo`` below the keys of these names.

    Raises:
        SettingsError: for an unknown name, or a recommendation that is no legal setting.
    """
    family, algorithm = families.lookup(env), algorithms.lookup(algo)
    prefers = dict(getattr(family, "recommended", {}))
    # settings of an algorithm suit that algorithm only; another one may use the same name for something else
    tuned = {key: prefers.pop(key) for key in list(prefers) if key.startswith("algo.")}
    own = algo == prefers.pop("algo", "maml-trpo")
    tuned = tuned if own else {}
    try:
        rules = check(algorithm, {key.removeprefix("algo."): value for key, value in tuned.items()}, "algo.")
        chosen = check(RunSettings, prefers)
    except SettingsError as error:
        raise SettingsError(f"Task family '{env}' recommends what is no legal setting: {error}") from error
    prefers = dict(getattr(algorithm, "recommended", {}))
    if not own:
        chosen = {key: value for key, value in chosen.items() if key not in prefers}
    return [
        _defaults(RunSettings, ""),
        {**prefers, "algo": _defaults(algorithm, "algo.")},
        {**chosen, "env": _defaults(family, "env."), "algo": rules},
    ]


def finish(env: str, algo: str, tree: Tree) -> RunConfig:
    """Check a complete tree of settings and return it as a configuration.

    Args:
        env: family name.
        algo: algorithm name.
        tree: run settings, with the groups ``env`` and ``algo``.

    Raises:
        SettingsError: for the first name, type, value or combination of values that is wrong.
    """
    groups = {"env": families.lookup(env), "algo": algorithms.lookup(algo)}
    checked = {group: check(schema, tree.get(group, {}), f"{group}.") for group, schema in groups.items()}
    for group, name in (("env", env), ("algo", algo)):
        try:
            groups[group](**checked[group])
        except SettingsError:
            raise
        except Exception as error:  # a family is foreign code, and its check of combinations need not know our error
            reason = str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}"
            raise SettingsError(f"{group}={name} refuses its settings: {reason}") from error
    run = check(RunSettings, {key: value for key, value in tree.items() if key not in groups})
    settings = RunSettings(**run)
    if settings.eval_steps is None:
        settings = dataclasses.replace(settings, eval_steps=max(1, settings.inner_steps))
    config = RunConfig(env, algo, checked["env"], checked["algo"], settings)
    if not refusals.against_local_adaptation(config):
        return config
    return dataclasses.replace(config, run=dataclasses.replace(settings, local_adaptation=False))


def resolve(
    env: str,
    algo: str | None = None,
    *,
    env_settings: Mapping[str, Any] | None = None,
    algo_settings: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Complete a configuration in Python as the command line does, without Hydra.

    Args:
        env: family name.
        algo: algorithm name; None takes the family's recommendation, or maml-trpo.
        env_settings: the family's own settings.
        algo_settings: the algorithm's own settings.
        settings: run settings; a path may be a :class:`pathlib.Path`.

    Raises:
        SettingsError: for the first name, type or value that is wrong.
    """
    algo = algorithm_of(env, algo)
    given = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in (settings or {}).items()
    }
    for group in ("env", "algo"):
        if group in given:
            raise SettingsError(f"'{group}' is no run setting: its settings go into {group}_settings")
    trees = [*layers(env, algo), {**given, "env": dict(env_settings or {}), "algo": dict(algo_settings or {})}]
    merged: Tree = {key: value for tree in trees for key, value in tree.items()}
    for group in ("env", "algo"):
        merged[group] = {key: value for tree in trees for key, value in tree.get(group, {}).items()}
    config = finish(env, algo, merged)
    refusals.refuse_meaningless(config, given)
    return config


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as ``config.yaml`` has it: run settings, then ``env`` and ``algo`` with their names.

    A line a setting, lists in brackets. What a path can hold and text cannot (bytes that are no UTF-8) is escaped.
    """
    plain = {
        **{key: _listed(value) for key, value in dataclasses.asdict(config.run).items()},
        "env": {"name": config.env, **{key: _listed(value) for key, value in config.env_settings.items()}},
        "algo": {"name": config.algo, **{key: _listed(value) for key, value in config.algo_settings.items()}},
    }
    root = yaml.representer.SafeRepresenter(default_flow_style=False, sort_keys=False).represent_data(plain)
    for mapping in [root, *(node for _, node in root.value if isinstance(node, yaml.MappingNode))]:
        for _, node in mapping.value:
            if isinstance(node, yaml.SequenceNode):
                node.flow_style = True
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=1_000_000)
    return text


def from_yaml(text: str) -> RunConfig:
    """Read what :func:`to_yaml` wrote; a setting that has come since then takes its default.

    Raises:
        SettingsError: if the text is no such configuration.
    """
    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"not a run's configuration: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise SettingsError("not a run's configuration: no 'key: value' lines")
    names = {}
    for group in ("env", "algo"):
        settings = plain.get(group)
        if not (isinstance(settings, dict) and isinstance(settings.get("name"), str)):
            raise SettingsError(f"not a run's configuration: no '{group}' with a 'name'")
        names[group] = settings["name"]
        plain[group] = {str(key): value for key, value in settings.items() if key != "name"}
    defaults: Tree = {
        "env": _defaults(families.lookup(names["env"]), "env."),
        "algo": _defaults(algorithms.lookup(names["algo"]), "algo."),
    }
    groups = {group: {**defaults[group], **plain[group]} for group in ("env", "algo")}
    run = {str(key): value for key, value in plain.items()}
    return finish(names["env"], names["algo"], {**run, **groups})


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the keys that differ: ``env``, ``algo``, ``env.*``, ``algo.*`` and ``run.*``."""
    keys = [name for name in ("env", "algo") if getattr(old, name) != getattr(new, name)]
    groups = (
        ("env", old.env_settings, new.env_settings),
        ("algo", old.algo_settings, new.algo_settings),
        ("run", dataclasses.asdict(old.run), dataclasses.asdict(new.run)),
    )
    absent = object()  # None is a value, and differs from no value
    for group, before, after in groups:
        names = {**before, **after}
        keys += [f"{group}.{name}" for name in names if before.get(name, absent) != after.get(name, absent)]
    return keys


def _defaults(schema: type, prefix: str) -> dict[str, Any]:
    defaults = {}
    for name, field in fields(schema).items():
        if name == "name":
            raise SettingsError(f"{schema.__name__} calls a setting 'name', which config.yaml needs; rename it")
        if field.default_factory is not dataclasses.MISSING:
            defaults[name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            defaults[name] = field.default
        else:
            raise SettingsError(f"{prefix}{name} of {schema.__name__} has no default; every setting needs one")
    return defaults


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
