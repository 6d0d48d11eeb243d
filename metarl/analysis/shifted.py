"""Learners whose tasks and simulations are of other settings than in training, while the policy sees them as it was trained to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from metarl.analysis.agent import Agent
from metarl.analysis.bands import Band
from metarl.families import EnvBatch, RLFamily, RLSpec, ShotFamily, ShotSpec, Split, Tasks, make
from metarl.fewshot.domain import ShotDomain
from metarl.rl.domain import RLDomain
from metarl.rl.trials import Trial, bare
from metarl.settings import SettingsError


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A family with another's tasks and simulations, and its own spec: an oracle is told a task in the scale of training.

    Attributes:
        family: of training.
        other: whose tasks and simulations these are.
    """

    family: RLFamily
    other: RLFamily
    recommended: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self) -> RLSpec:
        """Training's."""
        return self.family.spec

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the other's tasks."""
        return self.other.sample_tasks(num_tasks, split, seed)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make the other's simulations."""
        return self.other.batch(num_envs, threads)


def shifted(agent: Agent, band: Band) -> Agent:
    """Return the agent among a band's tasks; its parameters are the same.

    Raises:
        SettingsError: if the band changes more than tasks: what is observed, done or predicted, or for how long.
    """
    config = dataclasses.replace(agent.config, env_settings={**agent.config.env_settings, **band.settings})
    other, domain = make(config.env, **config.env_settings), agent.learner.domain
    if isinstance(domain, RLDomain):
        _refuse_other(bare(domain.family).spec, other.spec, band)
        family: RLFamily = Shifted(bare(domain.family), other)
        family = dataclasses.replace(domain.family, family=family) if isinstance(domain.family, Trial) else family
        learner = dataclasses.replace(agent.learner, domain=dataclasses.replace(domain, family=family))
    else:
        learner = dataclasses.replace(agent.learner, domain=_other_shots(domain, other, band))
    return dataclasses.replace(agent, learner=learner, config=config)


def _other_shots(domain: object, other: ShotFamily, band: Band) -> ShotDomain:
    if not isinstance(domain, ShotDomain):
        raise SettingsError(f"{type(domain).__name__} has no family whose tasks could be a band's")
    _refuse_other(domain.family.spec, other.spec, band)
    return dataclasses.replace(domain, family=other, _pools={})  # its examples may be others


def _refuse_other(own: RLSpec | ShotSpec, other: RLSpec | ShotSpec, band: Band) -> None:
    alike = [dataclasses.replace(spec, parameters=()) for spec in (own, other)]
    names = [[parameter.name for parameter in spec.parameters] for spec in (own, other)]
    if alike[0] != alike[1] or names[0] != names[1]:
        raise SettingsError(
            f"band={band.name} changes what a policy or network sees and does, for how long, or what a task is made of; a band"
            " may change the range of tasks only"
        )
