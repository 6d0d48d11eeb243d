"""Reinforcement learning on the meta-core: policies, rollouts, returns, losses."""

from metarl.rl.domain import RLDomain
from metarl.rl.losses import PolicyLoss, PolicyQuery
from metarl.rl.policy import GaussianPolicy
from metarl.rl.rollouts import Rollouts

__all__ = ["GaussianPolicy", "PolicyLoss", "PolicyQuery", "RLDomain", "Rollouts"]
