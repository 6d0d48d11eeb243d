"""A policy as plain arrays: what every export is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metarl.analysis.agent import AdaptedPolicy
from metarl.core.params import Params
from metarl.families import RLSpec
from metarl.nets import MLP, ContextNet, Net
from metarl.nets.context import CONTEXT
from metarl.rl.categorical import CategoricalPolicy
from metarl.rl.gaussian import GaussianPolicy
from metarl.rl.normalizer import CLIP
from metarl.settings import SettingsError


@dataclass(frozen=True)
class Layer:
    """One fully connected layer, $y = x W + b$: weight float32 (in, out), bias float32 (out,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Inputs:
    r"""What the first layer is given of an observation $s$ (O,).

    $$ [\operatorname{clip}(([s, \text{task}] - \text{mean}) \cdot \text{scale}, -\text{limit}, \text{limit}), \text{context}] $$

    Attributes:
        task: what an oracle sees of its task, float32 (D,); empty otherwise.
        mean: float32 (O + D,), zeros where nothing is standardised.
        scale: float32 (O + D,), ones there.
        limit: largest size of a standardised number, infinite there.
        context: CAVIA's adapted context, float32 (C,); empty otherwise.
    """

    task: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    limit: float
    context: np.ndarray


class Front(nn.Module):
    """:class:`Inputs` as a module of constants, which are never trained.

    Args:
        inputs: the constants.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._limit = inputs.limit
        for name in ("task", "mean", "scale", "context"):
            self.register_buffer(name, torch.tensor(getattr(inputs, name), dtype=torch.float32))

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (B, O) to what the first layer is given, (B, O + D + C)."""
        count = observations.shape[0]
        seen = torch.cat([observations, self.get_buffer("task").expand(count, -1)], 1)
        if math.isfinite(self._limit):
            seen = ((seen - self.get_buffer("mean")) * self.get_buffer("scale")).clamp(-self._limit, self._limit)
        return torch.cat([seen, self.get_buffer("context").expand(count, -1)], 1)


@dataclass(frozen=True)
class PlainPolicy:
    """A policy of one task without any of this library's types.

    Attributes:
        inputs: what stands before the first layer.
        layers: first to last.
        activation: ``"tanh"`` or ``"relu"``, between the layers.
        log_std: log standard deviation of actions, float32 (A,); None where actions are choices.
        mask_at: column of the observation where the legality of choices begins; None where all are legal.
        spec: sizes and ranges of the family.
    """

    inputs: Inputs
    layers: tuple[Layer, ...]
    activation: str
    log_std: np.ndarray | None
    mask_at: int | None
    spec: RLSpec


def plain(adapted: AdaptedPolicy) -> PlainPolicy:
    """Take a policy apart.

    Raises:
        SettingsError: if its network is not fully connected, or it has a memory.
    """
    if not isinstance(adapted, AdaptedPolicy):
        raise SettingsError(
            f"{type(adapted).__name__} has a memory, which none of the exported forms has; keep it here"
        )
    policy, params = adapted.policy, adapted.params
    if not isinstance(policy, GaussianPolicy | CategoricalPolicy):
        raise SettingsError(
            f"{type(policy).__name__} is a policy of your own; only Gaussian and categorical ones are exported"
        )
    net, context = _network(policy.net, params)
    layers = tuple(Layer(_array(params, f"{i}.weight"), _array(params, f"{i}.bias")) for i in range(len(net.sizes) - 1))
    log_std = None
    if isinstance(policy, GaussianPolicy):
        log_std = policy.clamped(params["log_std"])[0].detach().cpu().numpy().copy()
    mask_at = policy.mask_at if isinstance(policy, CategoricalPolicy) else None
    return PlainPolicy(_inputs(adapted, context), layers, net.activation, log_std, mask_at, adapted.spec)


def _network(net: Net, params: Params) -> tuple[MLP, np.ndarray]:
    """Return the layers, and the context that stands behind their inputs."""
    context = np.zeros(0, dtype=np.float32)
    if isinstance(net, ContextNet):
        net, context = net.net, _array(params, CONTEXT)
    if not isinstance(net, MLP):
        raise SettingsError(
            f"{type(net).__name__} is not fully connected; only MLP networks are exported (agents that share a policy have one"
            " with shared_policy=false)"
        )
    return net, context


def _inputs(adapted: AdaptedPolicy, context: np.ndarray) -> Inputs:
    size = adapted.spec.observation_size + len(adapted.context)
    if adapted.normalizer is None:
        mean, scale, limit = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32), float("inf")
    else:
        mean, scale = (value.cpu().numpy().copy() for value in adapted.normalizer.affine)
        limit = CLIP
    return Inputs(adapted.context.astype(np.float32), mean, scale, limit, context)


def _array(params: Params, name: str) -> np.ndarray:
    """Return the parameter of the one task."""
    array: np.ndarray = params[name][0].detach().cpu().numpy().copy()
    return array
