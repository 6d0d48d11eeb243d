"""The meta-core: adapt, differentiate through adapting, update. It knows tensors, and neither rewards nor images.

``Params`` are parameters by name, a ``dict[str, Tensor]``: a model's own, or those of M tasks, which lead with M.
"""

from metarl.core.adapt import Objective, Outcome, Terms, adapt
from metarl.core.descent import SGD, Adam, ProMP, Reptile
from metarl.core.inner import GradientStep, InnerRule, LearnedRates, Unchanged
from metarl.core.outer import TRPO, OuterRule
from metarl.core.parallel import Workers
from metarl.core.params import Params
from metarl.core.proximal import ProximalSolve
from metarl.core.schedule import Schedule
from metarl.core.update import Update

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
    "ProMP",
    "ProximalSolve",
    "Reptile",
    "Schedule",
    "Terms",
    "Unchanged",
    "Update",
    "Workers",
    "adapt",
]
