"""Settings of the inner and outer rules, declared without importing torch, and how each builds its rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from metarl.core.inner import InnerRule, TaskLoss
    from metarl.core.outer import OuterRule


@dataclasses.dataclass(frozen=True)
class PlainInner:
    """Gradient steps that nobody differentiates: nothing to leave out, and no step sizes to learn."""

    adapt: tuple[str, ...] = setting(("*",), "patterns of the parameters that adapt; head: the last layer")

    def rule(self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]) -> InnerRule[Any]:
        """Build a gradient step."""
        from metarl.core import GradientStep

        return GradientStep(inner_loss, inner_lr, first_order=True, subset=_subset(self.adapt, names))


@dataclasses.dataclass(frozen=True)
class GradientInner:
    """Gradient steps."""

    first_order: bool = setting(False, "ignore second derivatives (FOMAML)")
    adapt: tuple[str, ...] = setting(("*",), "patterns of the parameters that adapt; head: the last layer (ANIL)")
    rates: str = setting(
        "fixed", "step sizes: inner_lr, or learned for every tensor or weight", choices=("fixed", "tensor", "weight")
    )
    rates_steps: int = setting(1, "inner steps with learned rates of their own; later ones use the last", low=1)

    def rule(self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]) -> InnerRule[Any]:
        """Build a gradient step."""
        from metarl.core import GradientStep, LearnedRates

        subset, rates = _subset(self.adapt, names), None
        if self.rates != "fixed":
            rates = LearnedRates(inner_lr, self.rates == "weight", self.rates_steps)
        elif self.rates_steps > 1:
            raise SettingsError(f"algo.rates_steps={self.rates_steps} needs learned rates: algo.rates=tensor or weight")
        return GradientStep(inner_loss, inner_lr, self.first_order, subset, rates=rates)


@dataclasses.dataclass(frozen=True)
class ContextInner:
    """Gradient steps on a context alone."""

    context_size: int = setting(10, "numbers in the context, inputs that are adapted", low=1)
    first_order: bool = setting(False, "ignore second derivatives")

    def rule(self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]) -> InnerRule[Any]:
        """Build a gradient step from a context of zeros."""
        from metarl.core import GradientStep

        del names
        return GradientStep(inner_loss, inner_lr, self.first_order, ("context",), from_zero=True)


@dataclasses.dataclass(frozen=True)
class ProximalInner:
    """A regularised problem, solved and differentiated implicitly."""

    strength: float = setting(2.0, "lambda, how strongly the solution is held near its start", above=0)
    solver_steps: int = setting(16, "most gradients that the solver takes; its first step is inner_lr long", low=2)
    tolerance: float = setting(1e-3, "of the solver, relative to the first gradient", low=0)
    solve_iterations: int = setting(5, "most conjugate-gradient products of the implicit derivative", low=1)
    first_order: bool = setting(False, "take the identity for the derivative")

    def rule(self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]) -> InnerRule[Any]:
        """Build a proximal solver."""
        from metarl.core import ProximalSolve

        del names
        solver = (self.strength, self.solver_steps, self.tolerance, self.solve_iterations)
        return ProximalSolve(inner_loss, inner_lr, *solver, self.first_order)


@dataclasses.dataclass(frozen=True)
class MemoryInner:
    """No inner updates: a recurrent network learns a task by remembering what it has seen of it."""

    memory_size: int = setting(64, "recurrent units", low=1, high=100_000)
    trial_episodes: int = setting(5, "episodes of a task that a trial has, and the memory spans", low=1)

    def rule(self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]) -> InnerRule[Any]:
        """Build nothing that changes anything."""
        from metarl.core import Unchanged

        del inner_loss, inner_lr, names
        return Unchanged()


@dataclasses.dataclass(frozen=True)
class TrpoOuter:
    """A trust-region meta-update."""

    max_kl: float = setting(0.01, "trust region: largest mean KL(old||new) after adaptation, nats", above=0)
    cg_iterations: int = setting(10, "most conjugate-gradient products", low=1)
    cg_damping: float = setting(0.01, "added to the diagonal of the Fisher matrix", low=0)
    fisher_fraction: float = setting(0.05, "part of the states that the Fisher products look at", above=0, high=1)
    line_search_steps: int = setting(15, "most line-search candidates", low=1)
    line_search_shrink: float = setting(0.8, "factor from one candidate step to the next", above=0, high=0.999)

    def rule(self) -> OuterRule:
        """Build TRPO."""
        from metarl.core import TRPO

        return TRPO(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class AdamOuter:
    """An Adam meta-update."""

    lr: float = setting(1e-3, "meta step size", above=0)
    beta1: float = setting(0.9, "decay of the first moment", low=0, high=0.9999)
    beta2: float = setting(0.999, "decay of the second moment", low=0, high=0.99999)
    decay_steps: int = setting(0, "meta-updates over which lr falls along a cosine; 0 keeps it", low=0)
    final_lr: float = setting(0.0, "meta step size after decay_steps", low=0)
    clip_norm: float = setting(0.0, "longest meta-gradient, longer ones are shortened; 0 takes every one", low=0)
    clip_value: float = setting(0.0, "largest element of the meta-gradient; 0 cuts nothing off", low=0)

    def rule(self) -> OuterRule:
        """Build Adam."""
        from metarl.core import Adam

        return Adam(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class ProMPOuter:
    """Several clipped Adam epochs on one meta-batch."""

    lr: float = setting(1e-3, "meta step size of an epoch", above=0)
    epochs: int = setting(5, "steps on one meta-batch", low=1)
    clip: float = setting(0.3, "how far from 1 a likelihood ratio still earns", above=0, high=1)
    kl_penalty: float = setting(5e-4, "weight of the KL before adapting", low=0)
    clip_norm: float = setting(0.0, "longest meta-gradient, longer ones are shortened; 0 takes every one", low=0)

    def rule(self) -> OuterRule:
        """Build ProMP."""
        from metarl.core import Adam, ProMP

        return ProMP(Adam(self.lr, clip_norm=self.clip_norm), self.epochs, self.clip, self.kl_penalty)


@dataclasses.dataclass(frozen=True)
class ClippedOuter:
    """Several clipped Adam epochs on one batch, where nothing adapts."""

    lr: float = setting(3e-3, "step size of an epoch", above=0)
    epochs: int = setting(6, "steps on one batch", low=1)
    clip: float = setting(0.2, "how far from 1 a likelihood ratio still earns", above=0, high=1)
    clip_norm: float = setting(0.5, "longest gradient, longer ones are shortened; 0 takes every one", low=0)
    decay_steps: int = setting(0, "epochs in all over which lr falls along a cosine; 0 keeps it", low=0)
    final_lr: float = setting(0.0, "step size after decay_steps", low=0)

    def rule(self) -> OuterRule:
        """Build ProMP without a leash, which is PPO's rule."""
        from metarl.core import Adam, ProMP

        adam = Adam(self.lr, decay_steps=self.decay_steps, final_lr=self.final_lr, clip_norm=self.clip_norm)
        return ProMP(adam, self.epochs, self.clip, kl_penalty=0.0)


@dataclasses.dataclass(frozen=True)
class SgdOuter:
    """Plain meta-gradient descent."""

    lr: float = setting(1e-2, "meta step size", above=0)

    def rule(self) -> OuterRule:
        """Build SGD."""
        from metarl.core import SGD

        return SGD(self.lr)


@dataclasses.dataclass(frozen=True)
class ReptileOuter:
    """A step toward the mean of the adapted parameters."""

    lr: float = setting(1.0, "meta step size; 1 goes to the mean itself", above=0)
    decay_steps: int = setting(0, "meta-updates over which lr falls to 0 along a line; 0 keeps it", low=0)

    def rule(self) -> OuterRule:
        """Build Reptile."""
        from metarl.core import Reptile

        return Reptile(self.lr, self.decay_steps)


def head(names: Sequence[str]) -> list[str]:
    """Return the last layer's parameters, and a policy's log standard deviation, which no layer holds.

    >>> head(["0.weight", "0.bias", "1.weight", "1.bias", "log_std"])
    ['1.weight', '1.bias', 'log_std']
    """
    loose = [name for name in names if name == "log_std"]
    layers = [name for name in names if name not in loose]
    last = layers[-1].rpartition(".")[0]
    return [name for name in layers if name.rpartition(".")[0] == last] + loose


def _subset(patterns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    subset = tuple(name for pattern in patterns for name in (head(names) if pattern == "head" else [pattern]))
    if not subset:
        raise SettingsError("algo.adapt=[] adapts nothing; name patterns of parameters such as algo.adapt=[head]")
    return subset
