"""Policy-gradient losses over a batch of judged states. Shapes: M tasks, N states, A action."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from metarl.core.adapt import Terms
from metarl.core.params import Params
from metarl.core.solvers import spread
from metarl.rl.policy import Distribution, Policy, TeamPolicy

SURROGATES = ("lvc", "logp", "dice", "loaded-dice")


class Credit(NamedTuple):
    """How good the actions of each of R agents were, by the rewards that it answers for.

    Attributes:
        advantages: (M, N, R), standardised per task and agent; a constant.
        log_probs: (M, N, R), of every agent's actions under the distribution that acted, nats.
    """

    advantages: Tensor
    log_probs: Tensor


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
        credit: (M,), how much better than those of the other tasks the episodes were, in the unit of the loss: the
            difference of the discounted returns, over the scale of the advantages and the mean length; 0 for one task alone.
        horizon: T, where the states are all those of E episodes, step after step: N = T*E, and row t*E + e is step t of
            episode e. None where they are in no order.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    weights: Tensor
    log_probs: Tensor
    behaviour: Distribution
    credit: Tensor | None = None
    horizon: int | None = None

    @property
    def num_tasks(self) -> int:
        """M."""
        return self.observations.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.observations.shape[1]

    def rows(self, tasks: slice) -> Self:
        """Return the data of some tasks."""
        return dataclasses.replace(
            self,
            observations=self.observations[tasks],
            actions=self.actions[tasks],
            advantages=self.advantages[tasks],
            weights=self.weights[tasks],
            log_probs=self.log_probs[tasks],
            behaviour=tuple(x[tasks] for x in self.behaviour),
            credit=None if self.credit is None else self.credit[tasks],
        )

    def samples(self, index: Tensor) -> Self:
        """Return some of every task's states, with weights that sum to 1 again.

        Of a batch that is in order, as many whole episodes as come nearest to that many states, at least one.
        """
        index = self.kept(index)
        weights = self.weights[:, index]
        total = weights.sum(1, keepdim=True)
        return dataclasses.replace(
            self,
            observations=self.observations[:, index],
            actions=self.actions[:, index],
            advantages=self.advantages[:, index],
            weights=weights / torch.where(total > 0, total, 1.0),
            log_probs=self.log_probs[:, index],
            behaviour=(self.behaviour[0][:, index], *self.behaviour[1:]),
        )

    def kept(self, index: Tensor) -> Tensor:
        """Return which states :meth:`samples` takes."""
        if self.horizon is not None:
            episodes = self.num_samples // self.horizon
            kept = spread(episodes, max(1, round(len(index) / self.horizon)))
            index = (torch.arange(self.horizon).unsqueeze(1) * episodes + kept).flatten()
        return index.to(self.weights.device)


@dataclass(frozen=True, kw_only=True)
class TeamBatch(Batch):
    """States of a team each of whose agents is to learn from its own rewards.

    Attributes:
        each: how good the agents' own actions were.
    """

    each: Credit

    def rows(self, tasks: slice) -> Self:
        """Return the data of some tasks."""
        return dataclasses.replace(super().rows(tasks), each=Credit(*(x[tasks] for x in self.each)))

    def samples(self, index: Tensor) -> Self:
        """Return some of every task's states."""
        kept = self.kept(index)
        return dataclasses.replace(super().samples(index), each=Credit(*(x[:, kept] for x in self.each)))


@dataclass(frozen=True)
class PolicyLoss:
    r"""Inner loss of every task, (M,). All four have the policy gradient; they differ in what its derivative is.

    ``lvc`` (the likelihood ratio at the sampling parameters, whose second derivative is that of the expected return but
    for the products of scores of different steps; low variance):
    $$ L = -\sum_n w_n \frac{\pi_\theta(a_n|s_n)}{\pi_{\text{acted}}(a_n|s_n)} \hat A_n $$

    ``logp`` (the classic form; its second derivative lacks all products of scores):
    $$ L = -\sum_n w_n \log \pi_\theta(a_n|s_n) \hat A_n $$

    ``dice`` (unbiased second derivative, whose variance grows with the horizon), with the magic box
    $\square_t = \exp(x_t - \bot(x_t))$, $x_t = \sum_{u \le t} \log \pi_\theta(a_u|s_u)$, where $\bot$ stops gradients:
    $$ L = -\sum_n w_n (\square_{t} - \square_{t-1}) \hat A_n $$

    ``loaded-dice`` (between the two): the same, where step u counts in $x_t$ with $\lambda^{t-u}$. At lambda = 1 it is
    ``dice``, at 0 it has the derivatives of ``lvc``.

    Where a batch tells what each agent of a team answers for (:class:`TeamBatch`), the loss is the sum of the agents' own, each of
    its own actions and advantages: with parameters of its own an agent learns from its part alone. What its own
    rewards owe to others' actions is then in their advantages only: no surrogate's second derivative has the products of two
    agents' scores, and ``dice``'s is not unbiased for such a batch.

    Attributes:
        policy: who acts.
        surrogate: one of these names.
        decay: lambda of ``loaded-dice``, in [0, 1].

    Reference: Rothfuss et al. (2019), arXiv:1810.06784, equation 6 (LVC); Williams (1992); Foerster et al. (2018),
    arXiv:1802.05098 (DiCE); Mao et al. (2019), ICML, and Farquhar et al. (2019), arXiv:1909.10549 (the form
    with advantages, which has the baseline in all derivatives, and the decay). Differs from them: states are weighted
    equally, not by gamma^t, as is usual.
    """

    policy: Policy
    surrogate: str = "lvc"
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Check the surrogate's name and the decay."""
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got '{self.surrogate}'")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1]")

    @property
    def ordered(self) -> bool:
        """Whether whole episodes are needed, step after step."""
        return self.surrogate in ("dice", "loaded-dice")

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Return the losses."""
        acting = self.policy.distribution(params, batch.observations)
        if not isinstance(batch, TeamBatch):
            log_probs = self.policy.log_prob(acting, batch.actions)
            return -(batch.weights * self._score(log_probs, batch.log_probs, batch.horizon) * batch.advantages).sum(1)
        assert isinstance(self.policy, TeamPolicy), "credit belongs to a team"
        earned, agents = batch.each, batch.each.advantages.shape[-1]
        log_probs = self.policy.log_probs(acting, batch.actions, agents)
        score = self._score(_apart(log_probs), _apart(earned.log_probs), batch.horizon)
        gains = batch.weights.repeat_interleave(agents, 0) * score * _apart(earned.advantages)
        return -gains.sum(1).view(-1, agents).sum(1)

    def _score(self, log_probs: Tensor, acted: Tensor, horizon: int | None) -> Tensor:
        """Return what advantages are multiplied by, of log-probabilities (M, N), now and when the actions were taken."""
        if self.surrogate == "lvc":
            return torch.exp(log_probs - acted)
        return self._magic(log_probs, horizon) if self.ordered else log_probs

    def _magic(self, log_probs: Tensor, horizon: int | None) -> Tensor:
        """Return box_t - box_{t-1}, (M, N): 0, with the derivatives of DiCE."""
        if horizon is None:
            raise ValueError(f"surrogate {self.surrogate} needs batches of whole episodes, with their horizon")
        # what is padded comes after all that counts, so no sum over earlier steps has it
        by_time = (log_probs - log_probs.detach()).view(len(log_probs), horizon, -1)
        decay = self.decay if self.surrogate == "loaded-dice" else 1.0
        before = _decayed(by_time, decay).flatten(1, 2)
        return torch.exp(before + by_time.flatten(1, 2)) - torch.exp(before)


def _apart(values: Tensor) -> Tensor:
    """Put agents (M, N, R) beneath each other, (M * R, N)."""
    return values.transpose(1, 2).flatten(0, 1)


def _decayed(steps: Tensor, decay: float) -> Tensor:
    """Sums over earlier steps u < t of decay^(t-u) x_u, along the second of the dimensions (M, T, E)."""
    if decay == 1.0:
        return steps.cumsum(1) - steps
    lag = torch.arange(steps.shape[1], device=steps.device)
    lag = (lag.unsqueeze(1) - lag).to(steps.dtype)
    kernel = torch.where(lag > 0, decay ** lag.clamp_min(0), 0.0)
    return torch.einsum("tu,mue->mte", kernel, steps)


@dataclass(frozen=True)
class PolicyQuery:
    """Outer loss: likelihood-ratio surrogate of the post-adaptation return, with the KL to the policy that acted.

    It is at once the :class:`~metarl.core.adapt.Query`, its geometry, and its ratio.

    Attributes:
        policy: who acts.
        clip: epsilon, beyond which from 1 a ratio earns nothing more (:meth:`clipped`); None clips nothing.
        entropy_bonus: what a nat of the policy's mean entropy earns, in standard deviations of the advantages.
    """

    policy: Policy
    clip: float | None = None
    entropy_bonus: float = 0.0

    @property
    def geometry(self) -> PolicyQuery:
        """A policy is a distribution: itself."""
        return self

    @property
    def ratio(self) -> PolicyQuery:
        """The loss is made of likelihood ratios: itself."""
        return self

    def __call__(self, params: Params, query: Batch) -> Terms:
        """Return losses and KL(old||new), both (M,)."""
        new = self.policy.distribution(params, query.observations)
        ratio = torch.exp(self.policy.log_prob(new, query.actions) - query.log_probs)
        gain = ratio * query.advantages
        if self.clip is not None:
            gain = torch.minimum(gain, ratio.clamp(1 - self.clip, 1 + self.clip) * query.advantages)
        with torch.no_grad():
            kl = self._kl(new, query)
        loss = -(query.weights * gain).sum(1)
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * self.policy.entropy(new, query.weights)
        return Terms(loss, kl)

    def predict(self, params: Params, query: Batch) -> tuple[Tensor, ...]:
        """Return the action distributions."""
        return self.policy.distribution(params, query.observations)

    def fisher(self, predicted: tuple[Tensor, ...], tangent: tuple[Tensor, ...], query: Batch) -> tuple[Tensor, ...]:
        """Multiply a tangent by the policy's Fisher matrix."""
        return self.policy.fisher(predicted, tangent, query.weights)

    def clipped(self, epsilon: float) -> PolicyQuery:
        r"""Return the loss $-\sum_n w_n \min(r_n \hat A_n, \mathrm{clip}(r_n, 1-\epsilon, 1+\epsilon) \hat A_n)$.

        Reference: Schulman et al. (2017), arXiv:1707.06347, equation 7.
        """
        return dataclasses.replace(self, clip=epsilon)

    def divergence(self, params: Params, data: Batch) -> Tensor:
        """Return KL(acted||params) of every task, (M,), differentiable in ``params``."""
        return self._kl(self.policy.distribution(params, data.observations), data)

    def _kl(self, new: Distribution, data: Batch) -> Tensor:
        return (data.weights * self.policy.kl(data.behaviour, new)).sum(1)


@dataclass(frozen=True)
class Exploration:
    r"""E-MAML's term: what was sampled before adapting earns what adapting to it led to, (M,).

    $$ -c \sum_{n \in \text{support}} \log \frac{\pi_\theta(a_n|s_n)}{\pi_{\text{acted}}(a_n|s_n)}\;
       \frac{R_i - \frac{1}{M-1}\sum_{j \ne i} R_j}{\sigma_i \bar T_i} $$

    R is the mean discounted return of the query episodes, sigma the scale by which their advantages were divided, and the
    mean length turns a return into a mean over states: with c = 1 the term has the unit of the outer loss, and the sum of
    both gradients is that of the expected return after adapting to a finite sample, which MAML's alone is not. The sum
    is over all support states, not a mean; its variance grows with their number.

    Attributes:
        policy: who acts.
        coefficient: c.

    Reference: Stadie et al. (2018), arXiv:1803.01118, equation 4; Al-Shedivat et al. (2018), arXiv:1710.03641. Differs
    from the former: the baseline, which leaves the task itself out and so adds no bias.
    """

    policy: Policy
    coefficient: float = 1.0

    def __call__(self, params: Params, support: Batch, query: Batch, step: int) -> Tensor:
        """Return the terms of one inner step, from the parameters that sampled it; 0 in value where they are the same."""
        del step
        if query.credit is None:
            raise ValueError("the exploration term needs a query batch with credit")
        log_probs = self.policy.log_prob(self.policy.distribution(params, support.observations), support.actions)
        taken = torch.where(support.weights > 0, log_probs - support.log_probs, 0.0)
        return -self.coefficient * query.credit * taken.sum(1)
