"""The meta-core: adapt, differentiate through adapting, update. It knows tensors, and neither rewards nor images."""

from metarl.core.adapt import Objective, Outcome, Terms, adapt
from metarl.core.inner import GradientStep, InnerRule
from metarl.core.outer import SGD, TRPO, Adam, OuterRule
from metarl.core.parallel import Workers
from metarl.core.params import Params

__all__ = [
    "SGD",
    "TRPO",
    "Adam",
    "GradientStep",
    "InnerRule",
    "Objective",
    "Outcome",
    "OuterRule",
    "Params",
    "Terms",
    "Workers",
    "adapt",
]
