"""Gaussian policy with a state-independent standard deviation.

Shapes: M tasks, N states, O observation, A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets.net import Net
from metarl.nets.recurrent import acting
from metarl.rl.policy import Actor, Distribution

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """A diagonal normal distribution per state: mean (M, N, A), log standard deviation (M, A)."""

    mean: Tensor
    log_std: Tensor


@dataclass(frozen=True)
class GaussianPolicy:
    r"""$a \sim \mathcal N(\mu_\theta(s), \operatorname{diag}(e^{2 \theta_\sigma}))$; all parameters, the log-std too, are adapted.

    Attributes:
        net: the mean network; its parameters keep their names, the log-std is ``log_std`` (A,).
        action_size: A.
        init_std: standard deviation before training.
        min_std: smallest standard deviation; below it the log-std has no gradient.
        agents: R equal agents with A / R components each, which share their standard deviations: ``log_std`` is (A / R,).
    """

    net: Net
    action_size: int
    init_std: float = 1.0
    min_std: float = 1e-6
    agents: int = 1

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters.

        Raises:
            ValueError: if the network has a parameter called ``log_std``, which is the policy's own.
        """
        weights = self.net.init(generator)
        if "log_std" in weights:
            raise ValueError("the network has a parameter called log_std, which is the policy's own; rename it")
        return {**weights, "log_std": torch.full((self.action_size // self.agents,), math.log(self.init_std))}

    def distribution(self, params: Params, observations: Tensor) -> Gaussian:
        """Return the action distribution at observations (M, N, O)."""
        return Gaussian(self.net(self.weights(params), observations), self.clamped(params["log_std"]))

    def weights(self, params: Params) -> Params:
        """Return the parameters of the mean network."""
        return {name: value for name, value in params.items() if name != "log_std"}

    def clamped(self, log_std: Tensor) -> Tensor:
        """Return the log standard deviation that acts, (M, A)."""
        log_std = log_std.clamp(min=math.log(self.min_std))
        if log_std.dim() == 3:  # every agent's own, (M, R, A / R)
            return log_std.flatten(1)
        return log_std if self.agents == 1 else log_std.repeat(1, self.agents)

    def buffers(self, params: Params, steps: tuple[int, int, int]) -> tuple[Tensor, Gaussian]:
        """Return zeros, actions and means (M, T, E, A), with the log standard deviations that act, (M, A)."""
        log_std = self.clamped(params["log_std"].detach())
        actions, means = (torch.zeros(*steps, self.action_size, device=log_std.device) for _ in range(2))
        return actions, Gaussian(means, log_std)

    def noise(self, generator: np.random.Generator, out: np.ndarray) -> None:
        """Fill ``out`` with standard normal numbers."""
        generator.standard_normal(out=out, dtype=np.float32)

    def actor(self, params: Params) -> Actor:
        """Return a function that adds noise to the mean; weights and standard deviation are worked out once."""
        means = acting(self.net, self.weights(params))
        std = torch.exp(self.clamped(params["log_std"])).unsqueeze(1)

        def act(observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            mean = means(observations)
            return torch.addcmul(mean, std, noise), mean

        return act

    @staticmethod
    def mode(distribution: Distribution) -> Tensor:
        """Return the mean."""
        return distribution[0]

    @staticmethod
    def log_prob(distribution: Distribution, actions: Tensor) -> Tensor:
        """Log-density of actions (M, N, A), summed over the action's components: (M, N), nats."""
        mean, log_std = distribution
        z = (actions - mean) * torch.exp(-log_std).unsqueeze(1)
        return -0.5 * z.square().sum(-1) - (log_std + _HALF_LOG_2PI).sum(-1, keepdim=True)

    @staticmethod
    def log_probs(distribution: Distribution, actions: Tensor, agents: int) -> Tensor:
        """The same of the actions of each of R agents, (M, N, R), who have A / R components one behind the other."""
        mean, log_std = distribution
        z = ((actions - mean) * torch.exp(-log_std).unsqueeze(1)).reshape(*mean.shape[:-1], agents, -1)
        return -0.5 * z.square().sum(-1) - (log_std + _HALF_LOG_2PI).view(len(log_std), 1, agents, -1).sum(-1)

    @staticmethod
    def entropy(distribution: Distribution, weights: Tensor) -> Tensor:
        """Differential entropy of every task, the same in all its states: (M,), nats."""
        del weights
        return (distribution[1] + _HALF_LOG_2PI + 0.5).sum(-1)

    @staticmethod
    def kl(old: Distribution, new: Distribution) -> Tensor:
        r"""KL(old||new) at every state, (M, N), nats.

        $$ \sum_a \log\frac{\sigma'_a}{\sigma_a} + \frac{\sigma_a^2 + (\mu_a - \mu'_a)^2}{2 \sigma_a'^2} - \frac12 $$
        """
        (old_mean, old_log_std), (new_mean, new_log_std) = old, new
        inverse = torch.exp(-2 * new_log_std).unsqueeze(1)
        variance = torch.exp(2 * (old_log_std - new_log_std)).unsqueeze(1)
        shift = (old_mean - new_mean).square() * inverse
        spread = (new_log_std - old_log_std).unsqueeze(1)
        return (spread + 0.5 * (variance + shift - 1.0)).sum(-1)

    @staticmethod
    def fisher(at: Distribution, tangent: Distribution, weights: Tensor) -> Gaussian:
        r"""Multiply a tangent by the Fisher matrix of every state, weighted by (M, N).

        In (mean, log-std) coordinates the matrix is diagonal: $1/\sigma^2$ and 2.
        """
        (_, log_std), (mean_tangent, log_std_tangent) = at, tangent
        mean = mean_tangent * torch.exp(-2 * log_std).unsqueeze(1) * weights.unsqueeze(-1)
        return Gaussian(mean, 2 * log_std_tangent * weights.sum(1, keepdim=True))
