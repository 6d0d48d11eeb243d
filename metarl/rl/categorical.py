"""Categorical and multi-discrete policy, with action masks.

Shapes: M tasks, N states, O observation, A components of an action, K choices of all components together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets.net import Net
from metarl.nets.recurrent import acting
from metarl.rl.policy import Actor, Distribution

# Stands in for the logit of an illegal choice: its probability is exactly 0 in float32 and float64, and, unlike minus
# infinity, times 0 it is 0.
_ILLEGAL = -1e9


@dataclass(frozen=True)
class CategoricalPolicy:
    r"""$\pi_\theta(a|s) = \prod_j \operatorname{softmax}(z_{\theta,j}(s))_{a_j}$; the components of an action are independent.

    The distribution is one tensor: normalised log-probabilities (M, N, K), component after component. Illegal choices have
    probability exactly 0: they are never drawn, and add nothing to the KL, to the Fisher product or to any gradient.
    Where no choice of a component is legal (padding), all are taken as equally likely.

    Attributes:
        net: the network of the logits, with K outputs.
        counts: choices of every component, length A.
        mask_at: column of the observations where K numbers begin, 1 where a choice is legal and 0 elsewhere; None where
            everything is legal. The network sees them too.
    """

    net: Net
    counts: tuple[int, ...]
    mask_at: int | None = None

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.counts)

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        return self.net.init(generator)

    def distribution(self, params: Params, observations: Tensor) -> Distribution:
        """Return log-probabilities at observations (M, N, O)."""
        return self._of(self.net(params, observations), observations)

    def _of(self, logits: Tensor, observations: Tensor) -> Distribution:
        if self.mask_at is not None:
            legal = observations[..., self.mask_at : self.mask_at + sum(self.counts)] > 0.5
            logits = torch.where(legal, logits, _ILLEGAL)
        return (torch.cat([part.log_softmax(-1) for part in self._parts(logits)], -1),)

    def buffers(self, params: Params, steps: tuple[int, int, int]) -> tuple[Tensor, Distribution]:
        """Return zeros: actions int64 (M, T, E, A), log-probabilities (M, T, E, K)."""
        device = next(iter(params.values())).device
        actions = torch.zeros(*steps, self.action_size, dtype=torch.int64, device=device)
        return actions, (torch.zeros(*steps, sum(self.counts), device=device),)

    def noise(self, generator: np.random.Generator, out: np.ndarray) -> None:
        """Fill ``out`` with uniform numbers in [0, 1)."""
        generator.random(out=out, dtype=np.float32)

    def actor(self, params: Params) -> Actor:
        """Return a function that draws by inversion: the first choice at which the cumulated probability exceeds the noise.

        A choice of -1 says that the probabilities are not finite.
        """
        logits = acting(self.net, params)

        def act(observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            (log_probs,) = self._of(logits(observations), observations)
            return self._drawn(log_probs, noise), log_probs

        return act

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut (..., K) into one tensor for every component."""
        return torch.split(values, list(self.counts), -1)

    def _drawn(self, log_probs: Tensor, noise: Tensor) -> Tensor:
        picks = []
        # float64: noise has 24 bits, so noise * total stays below total and some choice always exceeds it
        for component, probs in enumerate(self._parts(log_probs.double().exp())):
            cumulated = probs.cumsum(-1)
            level = noise[..., component : component + 1] * cumulated[..., -1:]
            # "& (probs > 0)": a parallel sum on a GPU may round a choice of probability 0 upwards
            exceeds = (cumulated > level) & (probs > 0)
            picks.append(torch.where(exceeds.any(-1), exceeds.to(torch.uint8).argmax(-1), -1))
        return torch.stack(picks, -1)

    def mode(self, distribution: Distribution) -> Tensor:
        """Return the likeliest choice of every component."""
        return torch.stack([part.argmax(-1) for part in self._parts(distribution[0])], -1)

    def log_prob(self, distribution: Distribution, actions: Tensor) -> Tensor:
        """Log-probability of choices int64 (M, N, A), summed over components: (M, N), nats."""
        return self.log_probs(distribution, actions, 1).squeeze(-1)

    def log_probs(self, distribution: Distribution, actions: Tensor, agents: int) -> Tensor:
        """The same of the choices of each of R agents, (M, N, R), who have A / R components one behind the other."""
        starts = [sum(self.counts[:component]) for component in range(self.action_size)]
        columns = actions + torch.tensor(starts, device=actions.device)
        return distribution[0].gather(-1, columns).view(*actions.shape[:-1], agents, -1).sum(-1)

    def entropy(self, distribution: Distribution, weights: Tensor) -> Tensor:
        """Mean entropy of every task under weights (M, N) that sum to 1: (M,), nats."""
        (log_probs,) = distribution
        return -(weights * (log_probs.exp() * log_probs).sum(-1)).sum(1)

    def kl(self, old: Distribution, new: Distribution) -> Tensor:
        r"""$\sum_k p_k (\log p_k - \log p'_k)$ at every state, (M, N), nats."""
        return (old[0].exp() * (old[0] - new[0])).sum(-1)

    def fisher(self, at: Distribution, tangent: Distribution, weights: Tensor) -> Distribution:
        r"""Multiply a tangent of the logits by $\operatorname{diag}(p) - p p^T$ of every component and state."""
        parts = []
        for log_probs, t in zip(self._parts(at[0]), self._parts(tangent[0]), strict=True):
            probs = log_probs.exp()
            parts.append(probs * (t - (probs * t).sum(-1, keepdim=True)))
        return (torch.cat(parts, -1) * weights.unsqueeze(-1),)
