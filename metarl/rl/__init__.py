"""Reinforcement learning on the meta-core: policies, rollouts, returns, losses."""

from metarl.rl.categorical import CategoricalPolicy
from metarl.rl.domain import RLDomain
from metarl.rl.gaussian import GaussianPolicy
from metarl.rl.losses import PolicyLoss, PolicyQuery
from metarl.rl.policy import Policy
from metarl.rl.rollouts import Rollouts
from metarl.rl.trials import Trial

__all__ = [
    "CategoricalPolicy",
    "GaussianPolicy",
    "Policy",
    "PolicyLoss",
    "PolicyQuery",
    "RLDomain",
    "Rollouts",
    "Trial",
]
