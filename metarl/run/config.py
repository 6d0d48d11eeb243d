"""The settings of a run. Importing this module imports neither torch nor mujoco."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from metarl import algorithms, families
from metarl.settings import SettingsError, check, setting


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings that do not belong to one family or algorithm; the command line gives them as ``key=value``."""

    seed: int = setting(0, "all randomness is a function of it", low=0)
    iterations: int = setting(300, "meta-updates", low=1)
    meta_batch_size: int = setting(20, "tasks of one meta-update", low=1)
    episodes_per_task: int = setting(20, "episodes of one support or query set (RL)", low=1)
    inner_steps: int = setting(1, "inner updates while training; 0 trains without adapting", low=0)
    inner_lr: float = setting(0.1, "step size of an inner update", above=0)
    inner_surrogate: str = setting("lvc", "inner policy-gradient loss (RL)", choices=("lvc", "logp"))
    gamma: float = setting(0.99, "discount (RL)", low=0, high=1)
    gae_lambda: float = setting(1.0, "0: one-step, 1: Monte-Carlo advantages (RL)", low=0, high=1)
    bootstrap: bool = setting(False, "value the state at the time limit instead of a finite horizon (RL)")
    hidden_sizes: tuple[int, ...] = setting((64, 64), "widths of the network's hidden layers", low=1)
    activation: str = setting("tanh", "between the layers", choices=("tanh", "relu"))
    init_std: float = setting(1.0, "standard deviation of the untrained policy (RL)", above=0)
    eval_every: int = setting(25, "iterations between validations; 0 never validates", low=0)
    eval_tasks: int = setting(20, "tasks of a validation", low=1)
    eval_steps: int = setting(1, "inner updates of a validation", low=0)
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


def resolve(
    env: str,
    algo: str | None = None,
    *,
    env_settings: Mapping[str, Any] | None = None,
    algo_settings: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Complete a configuration: what is given here, over the family's, over the algorithm's, over the global settings.

    Args:
        env: family name.
        algo: algorithm name; None takes the family's recommendation, or maml-trpo.
        env_settings: the family's own settings.
        algo_settings: the algorithm's own settings.
        settings: run settings.

    Raises:
        SettingsError: for the first name, type or value that is wrong.
    """
    family = families.lookup(env)
    prefers = dict(getattr(family, "recommended", {}))
    algo = algo or prefers.get("algo", "maml-trpo")
    algorithm = algorithms.lookup(algo)
    tuned = {name.removeprefix("algo."): value for name, value in prefers.items() if name.startswith("algo.")}
    tuned = tuned if algo == prefers.get("algo") else {}
    chosen = {name: value for name, value in prefers.items() if name != "algo" and not name.startswith("algo.")}
    run = {**algorithm.recommended, **chosen, **(settings or {})}
    own = family(**check(family, env_settings or {}, "env."))
    rules = algorithm(**check(algorithm, {**tuned, **(algo_settings or {})}, "algo."))
    return RunConfig(
        env, algo, dataclasses.asdict(own), dataclasses.asdict(rules), RunSettings(**check(RunSettings, run))
    )


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as ``config.yaml`` has it: run settings, then ``env`` and ``algo`` with their names."""
    plain = {name: _plain(value) for name, value in dataclasses.asdict(config.run).items()}
    plain["env"] = {"name": config.env, **{name: _plain(value) for name, value in config.env_settings.items()}}
    plain["algo"] = {"name": config.algo, **{name: _plain(value) for name, value in config.algo_settings.items()}}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)


def from_yaml(text: str) -> RunConfig:
    """Read what :func:`to_yaml` wrote; a setting that has come since then takes its default.

    Raises:
        SettingsError: if the text is no such configuration.
    """
    try:
        plain = yaml.safe_load(text)
        env, algo = dict(plain.pop("env")), dict(plain.pop("algo"))
        names = env.pop("name"), algo.pop("name")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"not a run's configuration ({type(error).__name__}: {error})".replace("\n", " ")) from error
    family, algorithm = families.lookup(names[0]), algorithms.lookup(names[1])
    own = family(**check(family, env, "env."))
    rules = algorithm(**check(algorithm, algo, "algo."))
    run = RunSettings(**check(RunSettings, plain))
    return RunConfig(names[0], names[1], dataclasses.asdict(own), dataclasses.asdict(rules), run)


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the keys that differ: ``env``, ``algo``, ``env.*``, ``algo.*`` and ``run.*``."""
    keys = [name for name in ("env", "algo") if getattr(old, name) != getattr(new, name)]
    groups = (
        ("env", old.env_settings, new.env_settings),
        ("algo", old.algo_settings, new.algo_settings),
        ("run", dataclasses.asdict(old.run), dataclasses.asdict(new.run)),
    )
    for group, before, after in groups:
        keys += [f"{group}.{name}" for name in {**before, **after} if before.get(name) != after.get(name)]
    return keys


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
