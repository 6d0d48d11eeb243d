"""Algorithms by name: each is a preset of an inner rule and an outer rule. ``python -m metarl.algorithms`` lists them.

The settings are declared here without importing torch; :meth:`Algorithm.rules` builds the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from metarl.settings import SettingsError, check, nearest, setting

if TYPE_CHECKING:
    from metarl.core.inner import InnerRule, TaskLoss
    from metarl.core.outer import OuterRule


class Algorithm(Protocol):
    """A frozen dataclass of settings that knows how to build its rules.

    Attributes:
        paper: where it comes from.
        recommended: run settings it prefers to the global defaults; a family's own recommendation wins over them.
    """

    paper: ClassVar[str]
    recommended: ClassVar[Mapping[str, Any]]

    def rules(self, inner_loss: TaskLoss[Any], inner_lr: float) -> tuple[InnerRule[Any], OuterRule]:
        """Build the inner and the outer rule."""
        ...


@dataclasses.dataclass(frozen=True)
class MamlTrpo:
    """MAML with a trust-region meta-update."""

    max_kl: float = setting(0.01, "trust region: largest mean KL(old||new) after adaptation, nats", above=0)
    cg_iterations: int = setting(10, "most conjugate-gradient products", low=1)
    cg_damping: float = setting(0.01, "added to the diagonal of the Fisher matrix", low=0)
    fisher_fraction: float = setting(0.05, "part of the states that the Fisher products look at", above=0, high=1)
    line_search_steps: int = setting(15, "most line-search candidates", low=1)
    line_search_shrink: float = setting(0.8, "factor from one candidate step to the next", above=0, high=0.999)
    first_order: bool = setting(False, "ignore second derivatives (FOMAML)")

    paper: ClassVar[str] = "Finn, Abbeel and Levine (2017), arXiv:1703.03400; Schulman et al. (2015), arXiv:1502.05477"
    recommended: ClassVar[Mapping[str, Any]] = {}

    def rules(self, inner_loss: TaskLoss[Any], inner_lr: float) -> tuple[InnerRule[Any], OuterRule]:
        """Build a gradient step and TRPO."""
        from metarl.core import TRPO, GradientStep

        outer = TRPO(
            max_kl=self.max_kl,
            cg_iterations=self.cg_iterations,
            cg_damping=self.cg_damping,
            fisher_fraction=self.fisher_fraction,
            line_search_steps=self.line_search_steps,
            line_search_shrink=self.line_search_shrink,
        )
        return GradientStep(inner_loss, inner_lr, self.first_order), outer


@dataclasses.dataclass(frozen=True)
class MamlAdam:
    """MAML with an Adam meta-update."""

    lr: float = setting(1e-3, "meta step size", above=0)
    beta1: float = setting(0.9, "decay of the first moment", low=0, high=0.9999)
    beta2: float = setting(0.999, "decay of the second moment", low=0, high=0.99999)
    first_order: bool = setting(False, "ignore second derivatives (FOMAML)")

    paper: ClassVar[str] = "Finn, Abbeel and Levine (2017), arXiv:1703.03400; Kingma and Ba (2015), arXiv:1412.6980"
    recommended: ClassVar[Mapping[str, Any]] = {}

    def rules(self, inner_loss: TaskLoss[Any], inner_lr: float) -> tuple[InnerRule[Any], OuterRule]:
        """Build a gradient step and Adam."""
        from metarl.core import Adam, GradientStep

        return GradientStep(inner_loss, inner_lr, self.first_order), Adam(self.lr, self.beta1, self.beta2)


@dataclasses.dataclass(frozen=True)
class MamlSgd:
    """MAML with plain meta-gradient descent."""

    lr: float = setting(1e-2, "meta step size", above=0)
    first_order: bool = setting(False, "ignore second derivatives (FOMAML)")

    paper: ClassVar[str] = "Finn, Abbeel and Levine (2017), arXiv:1703.03400"
    recommended: ClassVar[Mapping[str, Any]] = {}

    def rules(self, inner_loss: TaskLoss[Any], inner_lr: float) -> tuple[InnerRule[Any], OuterRule]:
        """Build a gradient step and SGD."""
        from metarl.core import SGD, GradientStep

        return GradientStep(inner_loss, inner_lr, self.first_order), SGD(self.lr)


ALGORITHMS: Mapping[str, type] = {"maml-trpo": MamlTrpo, "maml-adam": MamlAdam, "maml-sgd": MamlSgd}


def names() -> list[str]:
    """Return the names of all algorithms."""
    return sorted(ALGORITHMS)


def lookup(name: str) -> type:
    """Return the settings class of an algorithm.

    Raises:
        SettingsError: for an unknown name, with the nearest one.
    """
    if name not in ALGORITHMS:
        raise SettingsError(f"Unknown algorithm '{name}'. {nearest(name, names())}")
    return ALGORITHMS[name]


def make(name: str, **settings: Any) -> Algorithm:
    """Make an algorithm: ``make("maml-trpo", max_kl=0.02)``."""
    schema: Callable[..., Algorithm] = lookup(name)
    return schema(**check(lookup(name), settings, prefix="algo."))


if __name__ == "__main__":
    for name in names():
        schema: Any = lookup(name)
        print(f"{name:12} {schema.__doc__} {schema.paper}")
