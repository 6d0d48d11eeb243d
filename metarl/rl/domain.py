"""Sampling: every task's policy acts in every task's simulations, all at once. Shapes as in :mod:`metarl.rl.rollouts`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl import families
from metarl.core.adapt import Path
from metarl.core.parallel import Workers, chunks
from metarl.core.params import Params, rows
from metarl.domain import Role, Sample, Seed, Statistics
from metarl.families import EnvBatch, RLFamily, Split, Tasks
from metarl.nets.net import Net
from metarl.nets.recurrent import Recurrent
from metarl.nets.shared import Shared, SharedRecurrent
from metarl.rl import agents, normalizer
from metarl.rl.categorical import CategoricalPolicy
from metarl.rl.gaussian import GaussianPolicy
from metarl.rl.groups import groups, randomness
from metarl.rl.judging import Discount, Judge
from metarl.rl.losses import Batch, Exploration, PolicyLoss, PolicyQuery
from metarl.rl.normalizer import Normalizer
from metarl.rl.policy import Policy
from metarl.rl.rollouts import Rollouts, to_device
from metarl.rl.simulations import Simulations
from metarl.rl.trials import Trial, bare
from metarl.settings import SettingsError


class Aside(NamedTuple):
    """What is known of rollouts beside themselves.

    Attributes:
        seconds: that an average group of simulations spent in the simulator; of groups that follow each other, their sum.
        success: fraction of every task's episodes that were a success, float32 (M,); None where simulations do not judge.
        agent_rewards: (M, T, E, R), what each agent of a team answers for; None where nobody asks.
    """

    seconds: float
    success: Tensor | None
    agent_rewards: Tensor | None = None


class Surrogate(NamedTuple):
    """Form of the inner loss: its name, and the decay of ``loaded-dice``."""

    name: str = "lvc"
    decay: float = 0.9


@dataclass(frozen=True)
class RLDomain:
    """A task family, a policy, and how rollouts become a batch.

    :meth:`normalizing` standardises observations, :meth:`encouraging` rewards entropy, :meth:`localising` lets the agents of a
    team learn from what each answers for.

    Attributes:
        family: where tasks and simulations come from.
        policy: who acts.
        episodes: E, episodes of each task in one support or query set.
        gamma: discount.
        gae_lambda: 0 for one-step, 1 for Monte-Carlo advantages.
        surrogate: form of the inner loss (:class:`~metarl.rl.losses.PolicyLoss`).
        bootstrap: value the state at the time limit by a baseline without time, instead of by 0 (a finite horizon).
        workers: threads and device.
    """

    family: RLFamily
    policy: Policy
    episodes: int = 20
    gamma: float = 0.99
    gae_lambda: float = 1.0
    surrogate: Surrogate = field(default_factory=Surrogate)
    bootstrap: bool = False
    workers: Workers = field(default_factory=Workers)
    _normalizer: Normalizer | None = field(default=None, repr=False)
    _entropy_bonus: float = field(default=0.0, repr=False)
    _local: bool = field(default=False, repr=False)
    _batches: dict[tuple[int, int, int], tuple[RLFamily, EnvBatch]] = field(default_factory=dict, repr=False)
    _pools: dict[int, Workers] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the surrogate, and that a memory is not asked for what lies behind its time."""
        _ = self._loss
        if self.bootstrap and self.memory is not None:
            raise SettingsError(
                "bootstrap=true does not fit a policy with a memory, whose baseline knows the time; leave it out"
            )

    def normalizing(self) -> RLDomain:
        """Return the domain whose policy and baseline see observations standardised (:mod:`metarl.rl.normalizer`)."""
        spec, device = self.family.spec, self.workers.device
        if self.team is not None:
            columns = self.team.columns
            fresh = normalizer.unseen(len(columns[0]))
            own = Normalizer(fresh, agents.mask_of_agent(self.family), device, columns)
            return dataclasses.replace(self, _normalizer=own)
        mask = sum(spec.choices.counts) if spec.choices is not None and spec.choices.masked else 0
        kept = slice(spec.observation_size - mask, spec.observation_size)  # behind it an oracle's has the task
        own = Normalizer(normalizer.unseen(self._observation_size), kept, device)
        return dataclasses.replace(self, _normalizer=own)

    def encouraging(self, entropy_bonus: float) -> RLDomain:
        """Return the domain whose outer loss rewards the policy's entropy (:class:`~metarl.rl.losses.PolicyQuery`)."""
        return dataclasses.replace(self, _entropy_bonus=entropy_bonus)

    def localising(self) -> RLDomain:
        """Return the domain in whose inner updates the agents of a team learn from their own rewards, where they are told.

        Raises:
            SettingsError: if there is no team that shares a policy.
        """
        if self.team is None:
            raise SettingsError("agents learn from their own rewards only in a team that shares a policy")
        return dataclasses.replace(self, _local=True)

    def given(self, statistics: Statistics) -> RLDomain:
        """Return the same domain that standardises by these statistics, if it does."""
        if self._normalizer is None:
            return self
        return dataclasses.replace(self, _normalizer=dataclasses.replace(self._normalizer, statistics=statistics))

    def fixed(self, params: Params, tasks: Tasks, seed: Seed) -> None:
        """Rollouts depend on the policy."""
        del params, tasks, seed

    def learned(self, samples: Sequence[Sample]) -> Statistics:
        """Return the statistics with those of the samples merged in."""
        if self._normalizer is None:
            return {}
        return normalizer.merged(self._normalizer.statistics, [sample.statistics for sample in samples])

    @property
    def local(self) -> bool:
        """Whether the agents of a team learn from their own rewards in inner updates."""
        return self._local

    @property
    def normalizer(self) -> Normalizer | None:
        """What standardises observations; None where nothing does."""
        return self._normalizer

    @property
    def memory(self) -> Recurrent | None:
        """The policy's network where it remembers; None where it sees one state at a time."""
        return self._net if isinstance(self._net, Recurrent) else None

    @property
    def team(self) -> Shared | None:
        """How the agents of a team see states; None where they are not told apart."""
        net = self._net
        return net.shared if isinstance(net, SharedRecurrent) else net if isinstance(net, Shared) else None

    @property
    def _net(self) -> Net | None:
        return self.policy.net if isinstance(self.policy, CategoricalPolicy | GaussianPolicy) else None

    @property
    def remembers(self) -> bool:
        """Whether its policy has a memory."""
        return self.memory is not None

    @property
    def metric(self) -> str:
        """Undiscounted return of an episode."""
        return "return"

    @property
    def unit(self) -> str:
        """Rewards of one episode."""
        return f"reward per episode of {bare(self.family).spec.horizon} steps"

    @property
    def protocol(self) -> str:
        """A return needs no more words."""
        return ""

    @property
    def higher_is_better(self) -> bool:
        """A return is."""
        return True

    @property
    def query(self) -> PolicyQuery:
        """The outer loss."""
        return PolicyQuery(self.policy, entropy_bonus=self._entropy_bonus)

    def inner_loss(self, params: Params, support: Batch) -> Tensor:
        """Return the support loss of every task, (M,)."""
        return self._loss(params, support)

    def exploration(self, coefficient: float) -> Path | None:
        """Return E-MAML's term."""
        return Exploration(self.policy, coefficient) if coefficient else None

    def once(self, adapting: Collection[str]) -> None:
        """Return None: every inner step looks at data of its own."""
        del adapting

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh meta-parameters."""
        return {name: value.to(self.workers.device) for name, value in self.policy.init(generator).items()}

    def sample_tasks(self, num_tasks: int, split: Split, seed: Seed) -> Tasks:
        """Draw tasks of a split."""
        return families.drawn(bare(self.family), num_tasks, split, seed)

    def collect(self, params: Params, tasks: Tasks, seed: Seed, role: Role) -> Sample:
        """Roll out E episodes, or trials, of every task and judge their actions."""
        started = time.perf_counter()
        rollouts, aside = self.rollout(params, tasks, seed, self.local and role == "support")
        sampled = time.perf_counter()
        data = self.judge(rollouts, self._remembered(params, rollouts), aside.agent_rewards)
        metrics = {
            "seconds_sampling": sampled - started,
            "seconds_physics": aside.seconds,
            "seconds_judging": time.perf_counter() - sampled,
            "entropy": float(self.policy.entropy(data.behaviour, data.weights).mean()),
            "episode_length": rollouts.steps / rollouts.rewards[:, 0].numel(),
        }
        statistics, scores, course = self._moments(rollouts), rollouts.returns.mean(1).cpu(), None
        if isinstance(self.family, Trial):
            course = self.family.returns(rollouts).mean(2).cpu()
            scores, metrics["episode_length"] = course.mean(1), metrics["episode_length"] / self.family.episodes
        return Sample(data, scores, rollouts.steps, metrics, statistics, aside.success, course)

    def rollout(self, params: Params, tasks: Tasks, seed: Seed, local: bool = False) -> tuple[Rollouts, Aside]:
        """Run E episodes of every task with its own parameters; ``local`` keeps what agents answer for, where they are told.

        The simulations are cut into groups, each driven by a thread of its own that alternates between physics and policy
        without waiting for the others. On the CPU a group has its own share of the cores; on a GPU the groups take turns,
        so that the physics of one runs on all cores while the other's actions are computed. Where a family can run only so
        many simulations at once (``spec.at_once``), the groups follow each other.

        Returns:
            The rollouts, and what is known beside them.
        """
        spec = self.family.spec
        most = None if spec.at_once is None else max(1, spec.at_once // self.episodes)
        cuts, threads = groups(len(tasks), self.workers, most)
        beside = len(cuts) if most is None else 1
        actions, behaviour = self.policy.buffers(params, (len(tasks), spec.horizon, self.episodes))
        rollouts, told = Rollouts.empty(self._observation_size, actions, behaviour), self.credited if local else 0
        pool = self._pools.setdefault(beside, Workers(beside))
        done = pool.map(
            lambda g: self._roll(g % beside, cuts[g], threads, params, tasks, seed, rollouts, told), range(len(cuts))
        )
        solved = [group.solved for group in done if group.solved is not None]
        success = torch.tensor(np.concatenate(solved)).view(len(tasks), -1).float().mean(1) if solved else None
        own = [group.agent_rewards for group in done if group.agent_rewards is not None]
        each = to_device(np.concatenate(own, 1), self.workers.device) if own else None
        if each is not None:
            each = each.view(spec.horizon, len(tasks), self.episodes, told).movedim(0, 1)
        return rollouts, Aside(sum(group.seconds for group in done) / beside, success, each)

    def judge(self, rollouts: Rollouts, memory: Tensor | None = None, agent_rewards: Tensor | None = None) -> Batch:
        """Turn rollouts into a batch with advantages normalised per task.

        Args:
            rollouts: of M tasks.
            memory: what the policy remembered at every step, (M, T, E, H), where it does: then there is one baseline
                for all tasks that looks at it, and all advantages are normalised by one deviation, because no task's
                parameters are its own.
            agent_rewards: (M, T, E, R), where each agent of a team is to learn from its own.
        """
        discount = Discount(self.gamma, self.gae_lambda, self.bootstrap)
        judge = Judge(self.policy, discount, self.team, self._loss.ordered, self.workers)
        seen, last_seen = self.normalized(rollouts.observations), self.normalized(rollouts.final_observations)
        batch = judge(rollouts, seen, last_seen, memory)
        return batch if agent_rewards is None else judge.apart(batch, rollouts, seen, last_seen, agent_rewards)

    def _remembered(self, params: Params, rollouts: Rollouts) -> Tensor | None:
        """Return what the policy remembered at every step, (M, T, E, H); None where it has no memory."""
        net = self.memory
        if net is None:
            return None
        seen = self.normalized(rollouts.observations)
        num_tasks, _, episodes = rollouts.mask.shape
        # as many sequences at once as a chunk has samples elsewhere would make each step of theirs too small
        cuts = chunks(num_tasks, 8 * episodes, self.workers.device)
        with torch.no_grad():
            parts = self.workers.map(lambda cut: net.memory(rows(params, cut), seen[cut].flatten(1, 2)), cuts)
        return torch.cat(parts).view(*rollouts.mask.shape, -1)

    def observe(self, observations: Tensor, tasks: Tasks) -> Tensor:
        """Return what the policy sees, (M, E, ...), of a family's observations."""
        return self.normalized(self.told(observations, tasks))

    def normalized(self, observations: Tensor) -> Tensor:
        """Return what the policy sees of observations in which an oracle's task is."""
        return observations if self._normalizer is None else self._normalizer(observations)

    def told(self, observations: Tensor, tasks: Tasks) -> Tensor:
        """Return observations, (M, E, ...), and for an oracle the task scaled to [-1, 1] behind them."""
        if not self.family.spec.oracle:
            return observations
        low, high = (np.array([getattr(p, end) for p in self.family.spec.parameters]) for end in ("low", "high"))
        scaled = ((2 * tasks.values - low - high) / np.maximum(high - low, 1e-12)).astype(np.float32)
        task = to_device(scaled, observations.device).unsqueeze(1).expand(*observations.shape[:2], -1)
        return torch.cat([observations, task], -1)

    @property
    def credited(self) -> int:
        """Return how many agents of a team tell their own rewards; 0 where nobody does."""
        team = self.family.spec.agents
        return team.count if team is not None and team.credited else 0

    @property
    def _loss(self) -> PolicyLoss:
        return PolicyLoss(self.policy, *self.surrogate)

    def _moments(self, rollouts: Rollouts) -> Statistics:
        """Return statistics of every task's states, where they are kept."""
        if self._normalizer is None:
            return {}
        observations, mask = rollouts.observations.flatten(1, 2), rollouts.mask.flatten(1, 2)
        if self.team is not None:
            observations, mask = (
                self.team.apart(observations).flatten(1, 2),
                mask.repeat_interleave(len(self.team.columns), 1),
            )
        cuts = chunks(mask.shape[0], mask.shape[1], self.workers.device)
        parts = self.workers.map(lambda cut: normalizer.moments(observations[cut], mask[cut]), cuts)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def _observation_size(self) -> int:
        spec = self.family.spec
        return spec.observation_size + (len(spec.parameters) if spec.oracle else 0)

    def _roll(
        self, group: int, cut: slice, threads: int, params: Params, tasks: Tasks, seed: Seed, out: Rollouts, told: int
    ) -> Simulations:
        """Run one group's episodes into its rows of ``out``, with ``told`` agents' rewards beside; return the simulations."""
        spec, device, episodes = self.family.spec, self.workers.device, self.episodes
        tasks, params = tasks.rows(cut), rows(params, cut)
        count = len(tasks)
        noise, seeds = randomness(cut, seed, (spec.horizon, episodes), self.policy)
        noise_MTEA = to_device(noise, device)
        key = (group, count * episodes, threads)
        simulations = Simulations(self.family, tasks, episodes, told)
        with torch.no_grad():
            kept = self._batches.get(key)
            if kept is None or kept[0] is not self.family:  # replace(domain, family=...) shares this dictionary
                kept = self._batches[key] = (self.family, simulations.make(threads))
            act = self.policy.actor(params)
            observations = simulations.start(kept[1], seeds)
            for t in range(spec.horizon):
                seen = self.told(to_device(observations, device).view(count, episodes, -1), tasks)
                actions, state = act(self.normalized(seen), noise_MTEA[:, t])
                out.observations[cut, t] = seen
                out.actions[cut, t] = actions
                out.behaviour[0][cut, t] = state
                observations = simulations.step(actions.view(count * episodes, -1).cpu().numpy())
                if not simulations.alive.any():
                    break
        for name, array in simulations.record().items():
            value = to_device(array, device).view(spec.horizon, count, episodes)
            getattr(out, name)[cut] = value.transpose(0, 1)
        final = to_device(simulations.final, device).view(count, episodes, -1)
        out.final_observations[cut] = self.told(final, tasks)
        return simulations
