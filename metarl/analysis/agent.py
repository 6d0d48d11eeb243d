"""A trained run in a notebook: load it, adapt it to a task or to an environment of your own, act."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

from metarl import families
from metarl.analysis import environment
from metarl.analysis.curves import Curve, parts, with_episodes, with_rates
from metarl.analysis.remembering import MemoryPolicy, remember
from metarl.core.params import Params, expand
from metarl.domain import Domain
from metarl.families import RLSpec, Tasks
from metarl.gym.environment import FamilyEnv, one_task
from metarl.learner import TEST, MetaLearner
from metarl.rl.domain import RLDomain
from metarl.rl.normalizer import Normalizer
from metarl.rl.policy import Policy
from metarl.rl.rollouts import to_device
from metarl.rl.trials import bare
from metarl.run.build import build_learner
from metarl.run.checkpoint import CheckpointStore
from metarl.run.config import RunConfig
from metarl.run.directory import CHECKPOINTS, read_config
from metarl.run.trainer import restored
from metarl.settings import SettingsError, check


@dataclass(frozen=True)
class AdaptedPolicy:
    """The policy of one task.

    Attributes:
        policy: the network's form.
        params: parameters with a leading task dimension of 1.
        spec: sizes and action range of the family.
        context: what an oracle sees of its task beside the observation, float32 (D,); empty otherwise.
        seed: of the noise of :meth:`act`.
        normalizer: what standardises both; None where nothing does.
    """

    policy: Policy
    params: Params
    spec: RLSpec
    context: np.ndarray
    seed: int = 0
    normalizer: Normalizer | None = None

    def act(
        self, observation: np.ndarray, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Choose an action.

        Args:
            observation: (O,) or (B, O).
            deterministic: the likeliest action; otherwise a draw.
            rng: where draws come from. Without it every call starts a generator anew from the seed and the observation, so
                that equal calls give equal actions: give one where observations repeat.

        Returns:
            (A,) or (B, A): float32 clipped to the legal range, or int64 choices.

        Raises:
            ValueError: if the observation has another shape.
        """
        value = np.asarray(observation, dtype=np.float32)
        size = self.spec.observation_size
        if value.ndim not in (1, 2) or value.shape[-1] != size:
            raise ValueError(f"an observation has shape ({size},), a batch of them (B, {size}); got {value.shape}")
        rows = np.atleast_2d(value)
        seen = np.concatenate([rows, np.broadcast_to(self.context, (len(rows), len(self.context)))], axis=1)
        device = next(iter(self.params.values())).device
        with torch.no_grad():
            states = to_device(seen, device).unsqueeze(0)
            states = states if self.normalizer is None else self.normalizer(states)
            if deterministic:
                actions = self.policy.mode(self.policy.distribution(self.params, states))
            else:
                if rng is None:
                    words = np.frombuffer(value.tobytes(), dtype=np.uint32)
                    rng = np.random.default_rng([self.seed, *words.tolist()])
                noise = np.empty((1, len(rows), self.policy.action_size), dtype=np.float32)
                self.policy.noise(rng, noise)
                actions, _ = self.policy.actor(self.params)(states, to_device(noise, device))
        action = actions[0].cpu().numpy()
        action = np.clip(action, self.spec.action_low, self.spec.action_high).astype(action.dtype)
        return action[0] if value.ndim == 1 else action


@dataclass(frozen=True)
class Agent:
    """A meta-trained run.

    Attributes:
        learner: its learner, with the statistics of the checkpoint.
        meta: its meta-parameters.
        config: its settings.
        iteration: meta-updates behind it.
    """

    learner: MetaLearner
    meta: Params
    config: RunConfig
    iteration: int

    def adapt(
        self,
        task: Mapping[str, float] | Tasks | gymnasium.Env[Any, Any],
        rollouts: int = 20,
        seed: int = 0,
        inner_lr: float | Sequence[float] = (),
    ) -> tuple[AdaptedPolicy | MemoryPolicy, Curve]:
        """Adapt to one task from a few rollouts.

        Args:
            task: a task of the run's family, ``{"velocity": 1.5}`` or one row of :class:`~metarl.families.Tasks`, or any
                Gymnasium environment with the same observations and actions, whose episodes are cut at the family's
                horizon. A task beyond the ranges of the family is taken, with a warning that names them.
            rollouts: episodes to learn from; one update for every ``episodes_per_task`` of them, at least one.
            seed: of resets and actions.
            inner_lr: step size of each update, the last for all that follow; nothing keeps training's. Fewer rollouts than
                in training give a noisier gradient, for which a smaller one is better. Learned rates are scaled by it over
                training's.

        Returns:
            The adapted policy, and the returns before each update and after the last (on fresh rollouts). A run that
            learns by memory (algo=rl2) has no updates: its policy has seen one trial of so many episodes, whose returns
            are the curve, and goes on learning where it is told what its actions pay (``policy.saw``).

        Raises:
            SettingsError: if the run cannot adapt to this.
        """
        domain = self.learner.domain
        if not isinstance(domain, RLDomain):
            raise SettingsError("adapt() needs a reinforcement-learning run; this one learns from labelled shots")
        if rollouts < 1:
            raise SettingsError(f"rollouts={rollouts} is too small: it must be at least 1")
        spec = bare(domain.family).spec
        context = np.zeros(0, dtype=np.float32)
        if isinstance(task, gymnasium.Env):
            environment.check_spaces(task, spec)
        else:
            task = one_task(task, spec, self.config.env)
            _warn_beyond(task, spec)
            context = _told(domain, task)
        if domain.memory is not None:
            if inner_lr != ():
                raise SettingsError(
                    "inner_lr has no meaning for algo=rl2: it learns by memory and has no inner updates"
                )
            remembering = MemoryPolicy(domain, expand(self.meta, 1), context, seed)
            own = {key: value for key, value in self.config.env_settings.items() if key != "oracle"}
            env = task if isinstance(task, gymnasium.Env) else FamilyEnv(self.config.env, task.to_json()[0], **own)
            return remembering, remember(remembering, env, domain, rollouts, (seed, TEST))
        sizes = parts(rollouts, domain.episodes)
        rates = (inner_lr,) if isinstance(inner_lr, int | float) else tuple(inner_lr)
        if any(not rate > 0 for rate in rates):
            raise SettingsError(f"inner_lr={inner_lr} is too small: it must be greater than 0")
        rated = with_rates(self.learner, len(sizes), rates)
        params, scores = expand(self.meta, 1), []
        for step, episodes in enumerate([*sizes, domain.episodes]):
            learner = with_episodes(self.learner, episodes)
            batch, score = _collect(learner.domain, task, params, (seed, TEST, step))
            scores.append(score)
            if step < len(sizes):
                params = rated[step].adapt(params, batch, step)
        seen = tuple(sum(sizes[:step]) for step in range(len(scores)))
        policy = AdaptedPolicy(domain.policy, params, spec, context, seed, domain.normalizer)
        return policy, Curve(tuple(range(len(scores))), seen, np.array(scores)[:, None])

    def unadapted(self, task: Mapping[str, float] | Tasks | None = None) -> AdaptedPolicy:
        """Return the policy that adapting starts from.

        Args:
            task: what a policy that observes its task (env.oracle=true) is told of it; None for all others.

        Raises:
            SettingsError: if the run has no such policy: it learns from labelled shots, or by memory.
        """
        domain = self.learner.domain
        if not isinstance(domain, RLDomain) or domain.memory is not None:
            raise SettingsError(
                "unadapted() needs a run of inner updates; labelled shots and algo=rl2 have no such policy"
            )
        spec = domain.family.spec
        if spec.oracle and task is None:
            raise SettingsError("this run observes its task (env.oracle=true): say which, unadapted({...})")
        context = np.zeros(0, dtype=np.float32)
        if task is not None:
            context = _told(domain, one_task(task, spec, self.config.env))
        return AdaptedPolicy(domain.policy, expand(self.meta, 1), spec, context, normalizer=domain.normalizer)


def load(
    run: str | os.PathLike[str],
    checkpoint: str = "last",
    device: str = "auto",
    env_settings: Mapping[str, Any] | None = None,
) -> Agent:
    """Load a run directory: ``agent = metarl.load("runs/x")``.

    Args:
        run: a directory made by ``python -m metarl.train``.
        checkpoint: ``"last"``, or ``"best"`` on the validation tasks.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        env_settings: settings of the family that are to be others than in training, such as a larger grid for the policy of
            a team: ``{"rows": 4, "columns": 4}``.

    Raises:
        SettingsError: if there is no such run, or no such checkpoint, or its parameters do not fit the family as it is
            to be.
    """
    if checkpoint not in ("last", "best"):
        raise SettingsError(f"checkpoint={checkpoint} is not one of last, best")
    if device not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"device={device} is not one of auto, cpu, cuda")
    path = pathlib.Path(run)
    config = read_config(path)
    own = check(families.lookup(config.env), {**config.env_settings, **(env_settings or {})}, "env.")
    config = dataclasses.replace(config, env_settings=own, run=dataclasses.replace(config.run, device=device))
    learner = build_learner(config)
    store = CheckpointStore(path / CHECKPOINTS)
    found = store.best() if checkpoint == "best" else store.latest()
    if found is None:
        remedy = "use checkpoint=last" if checkpoint == "best" else "wait for the first iteration"
        raise SettingsError(f"{path} has no {checkpoint} checkpoint; {remedy}")
    state, _ = restored(found, learner)
    return Agent(learner.at(state), state.meta, config, state.iteration)


def _told(domain: RLDomain, task: Tasks) -> np.ndarray:
    """Return what an oracle sees of a task beside the observation, float32 (D,); empty otherwise."""
    size = bare(domain.family).spec.observation_size
    blank = torch.zeros(1, 1, size, device=domain.workers.device)
    told: np.ndarray = domain.told(blank, task)[0, 0, size:].cpu().numpy()
    return told


def _warn_beyond(task: Tasks, spec: RLSpec) -> None:
    """Say so where a task is none that the run can have been trained on; to try one may well be what is wanted."""
    beyond = []
    for parameter, value in zip(spec.parameters, task.values[0], strict=True):
        slack = 1e-9 * (parameter.high - parameter.low)  # of rounding
        if not parameter.low - slack <= value <= parameter.high + slack:
            limits = f"[{parameter.low:g}, {parameter.high:g}] {parameter.unit}".rstrip()
            beyond.append(f"{parameter.name}={value:g} is outside {limits}")
    if beyond:
        more = f", and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        message = f"the run was not trained on such a task: {', '.join(beyond[:3])}{more}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _collect(
    domain: Domain, task: Tasks | gymnasium.Env[Any, Any], params: Params, seed: tuple[int, ...]
) -> tuple[Any, float]:
    """Return a support set of the task and the mean return in it."""
    if isinstance(task, Tasks):
        sample = domain.collect(params, task, seed, "support")
        return sample.data, float(sample.scores[0])
    assert isinstance(domain, RLDomain)
    own, each = environment.rollouts(task, domain, params, seed)
    return domain.judge(own, agent_rewards=each), float(own.returns.mean())
