"""From a resolved configuration to a learner."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from metarl import algorithms, families
from metarl.core.descent import Reptile
from metarl.core.inner import GradientStep
from metarl.core.parallel import Workers
from metarl.core.schedule import Schedule
from metarl.domain import Domain
from metarl.families import Choices, FamilyError, RLFamily, RLSpec, ShotFamily, ShotSpec
from metarl.fewshot import ShotDomain
from metarl.fewshot.executors import convolves, tasks_at_once
from metarl.fewshot.losses import LOSSES
from metarl.learner import MetaLearner
from metarl.nets import GRU, MLP, ContextNet, Conv4, Flat, Net, Recurrent, Shared, SharedRecurrent
from metarl.nets.shared import Columns
from metarl.rl import CategoricalPolicy, GaussianPolicy, Policy, RLDomain, Surrogate, Trial, agents
from metarl.run.config import RunConfig, RunSettings, resolve
from metarl.run.refusals import convolutional
from metarl.settings import SettingsError


def build(
    env: str,
    algo: str | None = None,
    *,
    env_settings: Mapping[str, Any] | None = None,
    algo_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> MetaLearner:
    """Build a learner by name: ``build("halfcheetah-vel", inner_steps=2, env_settings={"horizon": 100})``.

    Args:
        env: family name.
        algo: algorithm name; None takes the family's recommendation.
        env_settings: the family's own settings.
        algo_settings: the algorithm's own settings.
        **settings: run settings (:class:`metarl.run.config.RunSettings`); what is not given is the family's
            recommendation.
    """
    config = resolve(env, algo, env_settings=env_settings or {}, algo_settings=algo_settings or {}, settings=settings)
    return build_learner(config)


def build_learner(config: RunConfig) -> MetaLearner:
    """Build the learner that a configuration describes."""
    run = config.run
    domain = _domain(config, Workers(run.threads or cores(), device(run.device)))
    algorithm = algorithms.make(config.algo, **config.algo_settings)
    names = list(domain.init(torch.Generator().manual_seed(run.seed)))
    inner, outer = algorithm.rules(domain.inner_loss, run.inner_lr, names)
    team = domain.team if isinstance(domain, RLDomain) else None
    if isinstance(domain, RLDomain) and team is not None and run.local_adaptation:
        if not isinstance(inner, GradientStep) or isinstance(outer, Reptile):
            raise SettingsError(
                f"local_adaptation=true does not fit algo={config.algo}, whose inner updates are not gradient steps that its outer"
                " rule looks through; use local_adaptation=false"
            )
        domain, inner = domain.localising(), dataclasses.replace(inner, copies=len(team.columns))
    trained = config.algo_settings.get("rates_steps", 1)
    if trained > max(1, run.inner_steps):
        raise SettingsError(
            f"algo.rates_steps={trained} is more than inner_steps={run.inner_steps}: rates of later steps would never be"
            " learned; raise inner_steps or lower algo.rates_steps"
        )
    chunk_tasks = run.chunk_tasks
    if chunk_tasks is None and isinstance(domain, ShotDomain):
        adapting = inner.adapting(names) if isinstance(inner, GradientStep) else names
        chunk_tasks = _tasks_at_once(domain, domain.once(adapting) is not None)
    sizes = (run.inner_steps, run.meta_batch_size, chunk_tasks)
    schedule = Schedule(run.multi_step, run.first_order_updates)
    return MetaLearner(domain, inner, outer, *sizes, exploration=run.exploration, schedule=schedule)


def device(name: str) -> torch.device:
    """Return ``auto``'s choice (CUDA where there is one), or the device by name.

    Raises:
        SettingsError: for ``cuda`` where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "device=cuda: this machine or this build of torch has no CUDA; use device=cpu or device=auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def _domain(config: RunConfig, workers: Workers) -> Domain:
    run, algo = config.run, config.algo_settings
    family = families.make(config.env, **config.env_settings)
    try:
        spec = family.spec
    except SettingsError:  # such as of a directory that is none
        raise
    except Exception as error:  # a family is foreign code and may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise FamilyError(f"Family {type(family).__name__} has no spec: {reason}") from error
    fault = _fault(spec)
    if fault:
        raise FamilyError(f"Family {type(family).__name__} has a spec {fault}")
    memory = algo.get("memory_size", 0)
    if isinstance(spec, RLSpec):
        if memory:
            family = Trial(family, algo["trial_episodes"])
        domain = RLDomain(
            family,
            _policy(family, run, functools.partial(_net, run, algo.get("context_size", 0), memory)),
            episodes=run.episodes_per_task,
            gamma=run.gamma,
            gae_lambda=run.gae_lambda,
            surrogate=Surrogate(run.inner_surrogate, run.dice_decay),
            bootstrap=run.bootstrap,
            workers=workers,
        )
        domain = domain.encouraging(run.entropy_bonus)
        return domain.normalizing() if run.normalize_observations else domain
    if memory:
        raise SettingsError(
            f"algo={config.algo} belongs to reinforcement learning; {config.env} has labelled shots; choose algo=maml-adam"
        )
    return _shot_domain(config, family, spec, workers)


def _shot_domain(config: RunConfig, family: ShotFamily, spec: ShotSpec, workers: Workers) -> ShotDomain:
    """Build a supervised domain, load its data, and choose how many tasks are judged at once."""
    run = config.run
    net: Net
    if convolutional(config, spec):
        try:
            channels, height, width = spec.input_shape
            image = (channels, height, width)
            net = Conv4(image, spec.target_size, run.filters, run.downsampling, run.normalization)
        except ValueError as error:
            raise SettingsError(f"network=conv4 does not fit env={config.env}: {error}") from error
    else:
        context = config.algo_settings.get("context_size", 0)
        net = _net(run, context, 0, math.prod(spec.input_shape), spec.target_size, 1)
        net = net if len(spec.input_shape) == 1 else Flat(net)
    domain = ShotDomain(family, net, workers, run.chunk_tasks)
    domain.pool()
    if run.chunk_tasks is not None:
        return domain
    return dataclasses.replace(domain, chunk_tasks=_tasks_at_once(domain, shared=False))


def _tasks_at_once(domain: ShotDomain, shared: bool) -> int | None:
    if not convolves(domain.net):
        return None
    task = domain.sample_tasks(1, "train", (0,))
    images = sum(shots.num_samples for shots in domain.draw(task, np.zeros(1, dtype=np.uint32)))
    return tasks_at_once(domain.net, images, domain.workers.device, shared)


def _policy(family: RLFamily, run: RunSettings, net: Callable[[int, int, int], Net]) -> Policy:
    spec = family.spec
    inputs, choices = spec.observation_size + (len(spec.parameters) if spec.oracle else 0), spec.choices
    outputs = spec.action_size if choices is None else sum(choices.counts)
    columns = agents.columns(family) if run.shared_policy else None
    made = net(inputs, outputs, spec.horizon) if columns is None else _shared(columns, outputs, spec.horizon, net)
    if choices is None:
        return GaussianPolicy(made, spec.action_size, run.init_std, agents=len(columns) if columns else 1)
    # behind the mask an oracle's observation has the task
    mask_at = spec.observation_size - outputs if choices.masked else None
    return CategoricalPolicy(made, choices.counts, mask_at)


def _shared(columns: Columns, outputs: int, steps: int, net: Callable[[int, int, int], Net]) -> Net:
    own = net(len(columns[0]), outputs // len(columns), steps)
    return SharedRecurrent(own, columns) if isinstance(own, Recurrent) else Shared(own, columns)


def _net(run: RunSettings, context: int, memory: int, inputs: int, outputs: int, steps: int) -> Net:
    if memory:
        return GRU(inputs, memory, (*run.hidden_sizes, outputs), steps, run.activation)
    net = MLP((inputs + context, *run.hidden_sizes, outputs), run.activation, run.weight_std)
    return ContextNet(net, context) if context else net


def _fault(spec: object) -> str:
    """Say what no learner can be built from; empty where there is nothing."""
    if isinstance(spec, RLSpec):
        sizes = {name: getattr(spec, name) for name in ("observation_size", "action_size", "horizon")}
        if spec.choices is not None:
            return _choices_fault(spec, spec.choices) or agents.fault(spec)
        if _positive(spec.observation_size) and _positive(spec.action_size) and agents.fault(spec):
            return agents.fault(spec)
        if not spec.action_low < spec.action_high:
            return f"whose action_low={spec.action_low} is not smaller than action_high={spec.action_high}"
    elif isinstance(spec, ShotSpec):
        sizes = {"target_size": spec.target_size, **{f"input_shape[{i}]": n for i, n in enumerate(spec.input_shape)}}
        loss: str = spec.loss
        if loss not in LOSSES:
            return f"whose loss='{loss}' is not one of {', '.join(LOSSES)}"
    else:
        return f"of type {type(spec).__name__}, not RLSpec or ShotSpec"
    wrong = [f"whose {name}={n!r} is no positive whole number" for name, n in sizes.items() if not _positive(n)]
    return wrong[0] if wrong else ""


def _choices_fault(spec: RLSpec, choices: Choices) -> str:
    sizes = {"observation_size": spec.observation_size, "horizon": spec.horizon}
    sizes |= {f"choices.counts[{i}]": n for i, n in enumerate(choices.counts)}
    wrong = [f"whose {name}={n!r} is no positive whole number" for name, n in sizes.items() if not _positive(n)]
    if wrong or not choices.counts:
        return wrong[0] if wrong else "whose choices.counts are empty"
    if spec.action_size != len(choices.counts):
        return f"whose action_size={spec.action_size} is not the number of choices.counts={choices.counts}"
    if choices.masked and spec.observation_size < sum(choices.counts):
        return f"whose observation_size={spec.observation_size} has no room for a mask of {sum(choices.counts)}"
    return ""


def _positive(size: Any) -> bool:
    return isinstance(size, int) and size > 0
