"""Families as vector environments of Stable-Baselines3, and policies as its policies.

    env = FamilyVecEnv("halfcheetah-vel", num_envs=8, task={"velocity": 1.5})
    model = PPO(SB3Policy, env, policy_kwargs=policy_kwargs(policy))   # starts where adapting ended
    copy_weights(policy, model.policy)

SB3's ``VecEnv`` is not Gymnasium's ``VectorEnv``: four results, automatic resets within a step, the last observation of an
episode in ``info``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import Tensor, nn

from metarl import families
from metarl.analysis.agent import AdaptedPolicy
from metarl.families import RLSpec, Split, Tasks
from metarl.gym.environment import Opened
from metarl.gym.vector import FamilyVectorEnv
from metarl.integrations.plain import Front, Inputs, PlainPolicy, plain
from metarl.nets.activations import tanh
from metarl.settings import SettingsError


class FamilyVecEnv(VecEnv):
    """Simulations of a family as SB3 steps them, over the family's own batch; episodes are the family's own to the bit.

    Args:
        family: the family's name.
        num_envs: simulations B.
        task: one task for all, or a list of one for each, which stay; None, without a split, for the first of the train
            split, in all.
        split: draw the task of every episode from this split instead.
        seed: of tasks and episodes, until :meth:`seed` is called: simulation i starts at ``seed + i``.
        threads: that step the simulations, where the family's simulator has threads.
        render_mode: ``"rgb_array"`` or None.
        settings: the family's settings; ``oracle=True`` appends the task, scaled from its range to [-1, 1], to observations.

    ``info`` has ``task``, ``TimeLimit.truncated``, ``terminal_observation`` at the end of an episode, and ``success`` where
    the family judges. ``set_options({"task": ...})`` changes tasks at the next reset.

    Raises:
        SettingsError: for what the family has not, and for both a task and a split.
    """

    def __init__(
        self,
        family: str,
        num_envs: int = 1,
        task: Mapping[str, float] | Sequence[Mapping[str, float]] | Tasks | None = None,
        split: Split | None = None,
        seed: int = 0,
        threads: int = 1,
        render_mode: str | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if task is not None and split is not None:
            raise SettingsError(
                f"split={split} draws a task for every episode, and a task was given; leave one of them out"
            )
        self._family = Opened.of(family, settings).family
        self._envs = FamilyVectorEnv(
            family,
            num_envs,
            task=task,
            render_mode=render_mode,
            threads=threads,
            autoreset_mode="Disabled",
            **settings,
        )
        self._split = split
        self._stream, self._draws = seed, 0
        self._actions = np.zeros(0)
        self._tasks: list[dict[str, float]] = [{} for _ in range(num_envs)]
        super().__init__(num_envs, self._envs.single_observation_space, self._envs.single_action_space)
        self._begun(np.ones(num_envs, dtype=bool), None, None)  # which says what the tasks are
        self.seed(seed)

    def reset(self) -> np.ndarray:
        """Start an episode in every simulation; observations (B, O)."""
        everyone = np.ones(self.num_envs, dtype=bool)
        seeds = None if self._seeds[0] is None else list(self._seeds)
        if self._seeds[0] is not None:
            self._stream, self._draws = self._seeds[0], 0
        tasks = self._drawn(everyone) or list(self._tasks)
        for row, option in enumerate(self._options):
            tasks[row] = option.get("task") or tasks[row]
        self._begun(everyone, tasks, seeds)
        self._reset_seeds()
        self._reset_options()
        return self._observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every simulation, and start those anew whose episode has ended."""
        self._observations, rewards, terminated, truncated, reported = self._envs.step(self._actions)
        ended, solved = terminated | truncated, reported.get("success")
        cut = (truncated & ~terminated).tolist()
        infos: list[dict[str, Any]] = [
            {"task": task, "TimeLimit.truncated": late} for task, late in zip(self._tasks, cut, strict=True)
        ]
        if solved is not None:
            for info, success in zip(infos, solved.tolist(), strict=True):
                info["success"] = success
        if ended.any():
            for row in np.flatnonzero(ended):
                infos[row]["terminal_observation"] = self._observations[row]
            self._begun(ended, self._drawn(ended), None)
        return self._observations.copy(), rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Let the simulations go."""
        self._envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Draw every simulation."""
        return self._envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute for each of the simulations: ``task`` is their own, all others are the batch's."""
        rows = self._get_indices(indices)
        if attr_name == "action_masks":  # by which sb3-contrib asks whether there are masks
            return self.env_method(attr_name, indices=indices)
        if attr_name == "task":
            return [self._tasks[row] for row in rows]
        return [getattr(self._envs, attr_name) for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: a batch has no simulation of which something could be set."""
        raise AttributeError(f"{attr_name} cannot be set: change tasks by set_options({{'task': ...}}) and reset()")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Return ``action_masks``, bool, of each simulation where choices are masked (sb3-contrib); refuse all others."""
        choices, last = self._family.spec.choices, self._family.spec.observation_size
        if method_name == "action_masks" and choices is not None and choices.masked:
            return list(self._observations[list(self._get_indices(indices)), last - sum(choices.counts) : last] > 0.5)
        raise AttributeError(f"{method_name}() cannot be called: the simulations are one batch")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Return that none is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _drawn(self, rows: np.ndarray) -> list[dict[str, float]] | None:
        """Return the tasks of all B simulations, drawn anew for ``rows`` (B,); None where tasks stay."""
        if self._split is None:
            return None
        new = families.drawn(self._family, int(rows.sum()), self._split, (self._stream, self._draws)).to_json()
        self._draws += 1
        tasks = list(self._tasks)
        for row, task in zip(np.flatnonzero(rows), new, strict=True):
            tasks[row] = task
        return tasks

    def _begun(
        self, rows: np.ndarray, tasks: list[dict[str, float]] | None, seeds: Sequence[int | None] | None
    ) -> None:
        """Start an episode in some simulations (B,): at seeds and of tasks of all B, or as they come."""
        options: dict[str, Any] = {"reset_mask": rows} | ({} if tasks is None else {"task": tasks})
        self._observations, reported = self._envs.reset(seed=seeds, options=options)
        columns = {name: column for name, column in reported["task"].items() if f"_{name}" in reported["task"]}
        for row in np.flatnonzero(rows):
            self._tasks[row] = {name: float(column[row]) for name, column in columns.items()}
            self.reset_infos[row] = {"task": self._tasks[row]}


class Tanh(nn.Module):
    """The hyperbolic tangent that our networks have: ``torch.nn.Tanh`` but for the last bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        return tanh(x)


ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU}


class Seen(BaseFeaturesExtractor):
    """What stands before the first layer (:class:`~metarl.integrations.plain.Inputs`), as SB3 has it.

    Args:
        observation_space: of the environment.
        inputs: the constants.
    """

    def __init__(self, observation_space: spaces.Box, inputs: Inputs) -> None:
        super().__init__(observation_space, len(inputs.mean) + len(inputs.context))
        self.front = Front(inputs)

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (B, O) to features (B, F)."""
        features: Tensor = self.front(observations)
        return features


class _Dense(nn.Linear):
    """``torch.nn.Linear`` by the very product that our networks take, weights (in, out): equal to the last bit."""

    @staticmethod
    def of(layer: nn.Module) -> nn.Module:
        """Return a layer with the same parameters; what is no linear layer stays."""
        if not isinstance(layer, nn.Linear):
            return layer
        dense = _Dense(layer.in_features, layer.out_features, device="meta")
        dense.weight, dense.bias = layer.weight, layer.bias
        return dense

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in) to (B, out)."""
        weight = self.weight.t().contiguous()
        return torch.baddbmm(self.bias.view(1, 1, -1), input.unsqueeze(0), weight.unsqueeze(0)).squeeze(0)


class SB3Policy(ActorCriticPolicy):
    """SB3's actor-critic policy whose ``predict`` rounds as our networks do; names of parameters are SB3's own."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # the same Parameters, which the optimiser has already
        actor = self.mlp_extractor.policy_net
        self.mlp_extractor.policy_net = nn.Sequential(*map(_Dense.of, actor))
        self.action_net = _Dense.of(self.action_net)


def policy_kwargs(adapted: AdaptedPolicy) -> dict[str, Any]:
    """Return the arguments with which ``PPO(SB3Policy, env, policy_kwargs=...)`` builds a network of this policy's form.

    Raises:
        SettingsError: if SB3 has no such policy: see :func:`~metarl.integrations.plain.plain`; action masks.
    """
    return _kwargs(_representable(adapted))


def copy_weights(adapted: AdaptedPolicy, into: ActorCriticPolicy) -> None:
    """Give SB3's policy the actor of ours: layers and log standard deviation. The value network stays as it is."""
    source = _representable(adapted)
    linear = [layer for layer in into.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, own in zip([*linear, into.action_net], source.layers, strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.tensor(own.weight).t())
            layer.bias.copy_(torch.tensor(own.bias))
        if source.log_std is not None:
            into.log_std.copy_(torch.tensor(source.log_std))


def to_sb3(adapted: AdaptedPolicy, learning_rate: float = 3e-4) -> SB3Policy:
    """Return an SB3 policy that predicts what ours does, bit for bit where both see as many observations at once.

    Args:
        adapted: from ``agent.adapt(...)`` or ``agent.unadapted()``.
        learning_rate: of the optimiser that an SB3 policy carries.

    Raises:
        SettingsError: if SB3 has no such policy.
    """
    source = _representable(adapted)
    spec = source.spec
    with torch.random.fork_rng(devices=[]):  # SB3 draws weights from torch's global generator
        observations = spaces.Box(-np.inf, np.inf, (spec.observation_size,), np.float32)
        policy = SB3Policy(observations, _action_space(spec), lambda _: learning_rate, **_kwargs(source))
    copy_weights(adapted, policy)
    return policy


def _representable(adapted: AdaptedPolicy) -> PlainPolicy:
    source = plain(adapted)
    if source.mask_at is not None:
        raise SettingsError("SB3's policies have no action masks, which this family has; export to ONNX or safetensors")
    return source


def _kwargs(source: PlainPolicy) -> dict[str, Any]:
    hidden = [len(layer.bias) for layer in source.layers[:-1]]
    return {
        "net_arch": {"pi": hidden, "vf": hidden},
        "activation_fn": ACTIVATIONS[source.activation],
        "features_extractor_class": Seen,
        "features_extractor_kwargs": {"inputs": source.inputs},
    }


def _action_space(spec: RLSpec) -> spaces.Space[Any]:
    if spec.choices is None:
        return spaces.Box(spec.action_low, spec.action_high, (spec.action_size,), np.float32)
    counts = spec.choices.counts
    return spaces.Discrete(counts[0]) if len(counts) == 1 else spaces.MultiDiscrete(list(counts))
