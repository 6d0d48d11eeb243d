"""The meta-core: adapt, differentiate through adapting, update. It knows tensors, and neither rewards nor images."""

from metarl.core.adapt import Objective, Outcome, Terms, adapt
from metarl.core.inner import GradientStep, InnerRule, LearnedRates, Unchanged
from metarl.core.outer import SGD, TRPO, Adam, OuterRule, Reptile
from metarl.core.parallel import Workers
from metarl.core.params import Params
from metarl.core.proximal import ProximalSolve

__all__ = [
    "SGD",
    "TRPO",
    "Adam",
    "GradientStep",
    "InnerRule",
    "LearnedRates",
    "Objective",
    "Outcome",
    "OuterRule",
    "Params",
    "ProximalSolve",
    "Reptile",
    "Terms",
    "Unchanged",
    "Workers",
    "adapt",
]
