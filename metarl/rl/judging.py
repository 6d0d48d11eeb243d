"""From rollouts to batches: values, advantages and log-probabilities. Shapes as in :mod:`metarl.rl.rollouts`, R agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.core.parallel import Workers, chunks
from metarl.nets.shared import Shared
from metarl.rl import baseline, returns
from metarl.rl.baseline import Apart
from metarl.rl.losses import Batch, Credit, TeamBatch
from metarl.rl.policy import Policy, TeamPolicy
from metarl.rl.rollouts import Rollouts


class Discount(NamedTuple):
    """How rewards to come count.

    Attributes:
        gamma: discount.
        gae_lambda: 0 for one-step, 1 for Monte-Carlo advantages.
        bootstrap: value the state at the time limit by a baseline without time, instead of by 0 (a finite horizon).
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    bootstrap: bool = False


@dataclass(frozen=True)
class Judge:
    """Says how good the actions of rollouts were.

    Attributes:
        policy: who acted.
        discount: how rewards to come count.
        team: how the agents of a team see states; None where they are not told apart.
        ordered: whether batches are to be in order (:attr:`metarl.rl.losses.Batch.horizon`).
        workers: threads and device.
    """

    policy: Policy
    discount: Discount
    team: Shared | None
    ordered: bool
    workers: Workers

    def __call__(self, rollouts: Rollouts, seen: Tensor, last_seen: Tensor, memory: Tensor | None = None) -> Batch:
        """Turn rollouts into a batch with advantages normalised per task.

        Args:
            rollouts: of M tasks.
            seen: (M, T, E, O), observations as the policy saw them.
            last_seen: (M, E, O), final observations likewise.
            memory: what the policy remembered at every step, (M, T, E, H), where it does: then there is one baseline
                for all tasks that looks at it, and all advantages are normalised by one deviation, because no task's
                parameters are its own.
        """
        targets = returns.discounted_returns(rollouts.rewards, rollouts.mask, self.discount.gamma)
        num_tasks, horizon, episodes = rollouts.rewards.shape
        behaviour = (rollouts.behaviour[0].flatten(1, 2), *rollouts.behaviour[1:])
        cuts = chunks(num_tasks, horizon * episodes, self.workers.device)
        apart = None if self.team is None else self.team.apart
        pooled = seen if apart is None or memory is None else apart(seen.clamp(-10.0, 10.0)).mean(-2)
        knowing = None if memory is None else self._knowing(memory, pooled, targets, rollouts.mask, cuts)

        def values(tasks: slice) -> tuple[Tensor, Tensor, Tensor]:
            mask = rollouts.mask[tasks]
            if knowing is not None and memory is not None:
                own = (knowing[0], knowing[1][tasks])
                valued = baseline.predict_remembered(own, memory[tasks], pooled[tasks])
                last = torch.zeros_like(mask[:, 0])
            else:
                ended = rollouts.truncated[tasks]
                valued, last = self._values(seen[tasks], last_seen[tasks], targets[tasks], mask, ended, apart)
            acted = tuple(x[tasks] for x in behaviour)
            log_probs = self.policy.log_prob(acted, rollouts.actions[tasks].flatten(1, 2))
            return valued, last, log_probs

        parts = self.workers.map(values, cuts)
        valued, last, log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
        ends = rollouts.terminated, rollouts.truncated
        advantages = self._advantages(rollouts.rewards, valued, last, *ends).flatten(1, 2)
        weights = rollouts.mask.flatten(1, 2)
        weights = weights / weights.sum(1, keepdim=True)
        alike = (-1, advantages.shape[1]) if memory is None else (1, -1)
        mean, std = returns.moments(advantages.view(alike), weights.view(alike))
        return Batch(
            observations=seen.flatten(1, 2),
            actions=rollouts.actions.flatten(1, 2),
            advantages=returns.normalise(advantages, mean, std),
            weights=weights,
            log_probs=log_probs,
            behaviour=behaviour,
            credit=returns.credit(targets, rollouts.mask, std),
            horizon=horizon if self.ordered else None,
        )

    def apart(
        self, batch: Batch, rollouts: Rollouts, seen: Tensor, last_seen: Tensor, agent_rewards: Tensor
    ) -> TeamBatch:
        """Judge every agent by its own rewards (M, T, E, R), with a value of what it sees itself.

        Advantages are normalised per task and agent.
        """
        cuts = chunks(len(seen), seen.shape[1] * seen.shape[2], self.workers.device)
        parts = self.workers.map(
            lambda cut: self._each(batch.rows(cut), rollouts, seen, last_seen, agent_rewards, cut), cuts
        )
        return TeamBatch(**vars(batch), each=Credit(*map(torch.cat, zip(*parts, strict=True))))

    def _each(
        self, batch: Batch, rollouts: Rollouts, seen: Tensor, last_seen: Tensor, agent_rewards: Tensor, tasks: slice
    ) -> Credit:
        assert self.team is not None
        assert isinstance(self.policy, TeamPolicy)
        agents = len(self.team.columns)

        rewards = agent_rewards[tasks].movedim(-1, 1).flatten(0, 1)  # (m * R, T, E)
        mask, terminated, truncated = (
            x[tasks].repeat_interleave(agents, 0) for x in (rollouts.mask, rollouts.terminated, rollouts.truncated)
        )
        own, last = (self.team.apart(x[tasks]).movedim(-2, 1).flatten(0, 1) for x in (seen, last_seen))
        targets = returns.discounted_returns(rewards, mask, self.discount.gamma)
        valued, behind = self._values(own, last, targets, mask, truncated, None)
        advantages = self._advantages(rewards, valued, behind, terminated, truncated).flatten(1, 2)
        mean, std = returns.moments(advantages, batch.weights.repeat_interleave(agents, 0))
        advantages = returns.normalise(advantages, mean, std).view(-1, agents, advantages.shape[1]).transpose(1, 2)
        log_probs = self.policy.log_probs(batch.behaviour, batch.actions, agents)
        return Credit(advantages.contiguous(), log_probs)

    def _values(
        self, observations: Tensor, final: Tensor, targets: Tensor, mask: Tensor, truncated: Tensor, apart: Apart
    ) -> tuple[Tensor, Tensor]:
        """Fit a baseline to each row's returns; return the values of its states, (M, T, E), and of the final ones, (M, E)."""
        if not self.discount.bootstrap:
            fitted = baseline.fit(observations, targets, mask, apart=apart)
            return baseline.predict(fitted, observations, apart), torch.zeros_like(mask[:, 0])
        left = mask.sum(1, keepdim=True) - torch.arange(mask.shape[1], device=mask.device)[:, None]
        discount = torch.where(truncated.any(1, keepdim=True), self.discount.gamma**left, 0.0)
        fitted = baseline.fit(observations, targets, mask, baseline.Beyond(final, discount), apart)
        valued, last = (baseline.predict_timeless(fitted, x, apart) for x in (observations, final))
        return valued, last

    def _advantages(
        self, rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor, truncated: Tensor
    ) -> Tensor:
        next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
        next_values = torch.where(truncated, last.unsqueeze(1), next_values)
        gamma, gae_lambda, _ = self.discount
        return returns.advantages(rewards, values, next_values, terminated, truncated, gamma, gae_lambda)

    def _knowing(
        self, memory: Tensor, seen: Tensor, targets: Tensor, mask: Tensor, cuts: Sequence[slice]
    ) -> tuple[Tensor, Tensor]:
        """Fit the baseline that looks at the memory to all tasks."""
        sums = self.workers.map(lambda cut: baseline.moments(memory[cut], seen[cut], targets[cut], mask[cut]), cuts)
        return baseline.fit_remembered(sums)
