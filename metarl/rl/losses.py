"""Policy-gradient losses over a batch of judged states. Shapes: M tasks, N states, A action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.adapt import Terms
from metarl.core.params import Params
from metarl.rl.policy import Distribution, Policy

SURROGATES = ("lvc", "logp")


@dataclass(frozen=True)
class Batch:
    """States with the actions taken in them and how good those were.

    Attributes:
        observations: (M, N, O).
        actions: (M, N, A), float32, or int64 where they are choices.
        advantages: (M, N), standardised per task; a constant.
        weights: (M, N), sum to 1 over a task's valid states.
        log_probs: (M, N), of the actions under the distribution that acted, nats.
        behaviour: that distribution, its first tensor (M, N, ...), the others (M, ...).
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    weights: Tensor
    log_probs: Tensor
    behaviour: Distribution

    @property
    def num_tasks(self) -> int:
        """M."""
        return self.observations.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.observations.shape[1]

    def rows(self, tasks: slice) -> Batch:
        """Return the data of some tasks."""
        return Batch(
            self.observations[tasks],
            self.actions[tasks],
            self.advantages[tasks],
            self.weights[tasks],
            self.log_probs[tasks],
            tuple(x[tasks] for x in self.behaviour),
        )

    def samples(self, index: Tensor) -> Batch:
        """Return some of every task's states, with weights that sum to 1 again."""
        index = index.to(self.weights.device)
        weights = self.weights[:, index]
        total = weights.sum(1, keepdim=True)
        return Batch(
            self.observations[:, index],
            self.actions[:, index],
            self.advantages[:, index],
            weights / torch.where(total > 0, total, 1.0),
            self.log_probs[:, index],
            (self.behaviour[0][:, index], *self.behaviour[1:]),
        )


@dataclass(frozen=True)
class PolicyLoss:
    r"""Inner loss of every task, (M,).

    ``lvc`` (the likelihood ratio at the sampling parameters, whose second derivative is that of the expected return up to
    a cross-time term; low variance):
    $$ L = -\sum_n w_n \frac{\pi_\theta(a_n|s_n)}{\pi_{\text{acted}}(a_n|s_n)} \hat A_n $$

    ``logp`` (the classic form; its second derivative lacks the product of scores):
    $$ L = -\sum_n w_n \log \pi_\theta(a_n|s_n) \hat A_n $$

    Reference: Rothfuss et al. (2019), arXiv:1810.06784, equation 6 (LVC); Williams (1992).
    """

    policy: Policy
    surrogate: str = "lvc"

    def __post_init__(self) -> None:
        """Check the surrogate's name."""
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got '{self.surrogate}'")

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Return the losses."""
        log_probs = self.policy.log_prob(self.policy.distribution(params, batch.observations), batch.actions)
        if self.surrogate == "lvc":
            log_probs = torch.exp(log_probs - batch.log_probs)
        return -(batch.weights * log_probs * batch.advantages).sum(1)


@dataclass(frozen=True)
class PolicyQuery:
    """Outer loss: likelihood-ratio surrogate of the post-adaptation return, with the KL to the policy that acted.

    It is at once the :class:`~metarl.core.adapt.Query` and its geometry.
    """

    policy: Policy

    @property
    def geometry(self) -> PolicyQuery:
        """A policy is a distribution: itself."""
        return self

    def __call__(self, params: Params, query: Batch) -> Terms:
        """Return losses and KL(old||new), both (M,)."""
        new = self.policy.distribution(params, query.observations)
        ratio = torch.exp(self.policy.log_prob(new, query.actions) - query.log_probs)
        with torch.no_grad():
            divergence = self.policy.kl(query.behaviour, new)
            kl = (query.weights * divergence).sum(1)
        return Terms(-(query.weights * ratio * query.advantages).sum(1), kl)

    def predict(self, params: Params, query: Batch) -> tuple[Tensor, ...]:
        """Return the action distributions."""
        return self.policy.distribution(params, query.observations)

    def fisher(self, predicted: tuple[Tensor, ...], tangent: tuple[Tensor, ...], query: Batch) -> tuple[Tensor, ...]:
        """Multiply a tangent by the policy's Fisher matrix."""
        return self.policy.fisher(predicted, tangent, query.weights)
