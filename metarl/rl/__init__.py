"""Reinforcement learning on the meta-core: policies, rollouts, returns, losses."""

from metarl.rl.categorical import CategoricalPolicy
from metarl.rl.domain import RLDomain, Surrogate
from metarl.rl.gaussian import GaussianPolicy
from metarl.rl.losses import Exploration, PolicyLoss, PolicyQuery
from metarl.rl.policy import Policy
from metarl.rl.rollouts import Rollouts

__all__ = [
    "CategoricalPolicy",
    "Exploration",
    "GaussianPolicy",
    "Policy",
    "PolicyLoss",
    "PolicyQuery",
    "RLDomain",
    "Rollouts",
    "Surrogate",
]
