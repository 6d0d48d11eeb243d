"""Inner rules: how parameters change from a support set. Pure, differentiable, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from metarl.core.params import Params, leaf

D_contra = TypeVar("D_contra", contravariant=True)

# (params (M, ...), support of M tasks) -> loss of every task, (M,); task i depends on row i alone
TaskLoss = Callable[[Params, D_contra], Tensor]

# First word of the names of what a rule itself learns, beside the model's parameters.
RATE = "rate."


class InnerRule(Protocol[D_contra]):
    """``rule(params, support, step) -> params``: parameters (M, ...) in and out, differentiable where they require gradients.

    What the rule learns besides (step sizes, say) are meta-parameters like all others: :meth:`init` adds them under names
    of their own, and they pass through adaptation unchanged.
    """

    def init(self, params: Params) -> Params:
        """Return the rule's own meta-parameters for a model with these parameters; {} where it has none.

        Raises:
            ValueError: if the rule does not fit the model.
        """
        ...

    def __call__(self, params: Params, support: D_contra, step: int = 0) -> Params:
        """Adapt every task's parameters to its own support set; ``step`` counts inner updates from 0."""
        ...


@dataclass(frozen=True)
class LearnedRates:
    r"""Step sizes that are meta-learned, $\alpha$ in $\theta_i - \alpha \circ \nabla L_i$; their sign is free.

    Attributes:
        start: value before training.
        per_weight: one for every weight (Meta-SGD); otherwise one for every tensor (as in MAML++).
        steps: inner updates with rates of their own; later ones use the last.

    Reference: Li et al. (2017), Meta-SGD, arXiv:1707.09835, equation 3; Antoniou et al. (2019), MAML++, arXiv:1810.09502,
    section 4. Differs from the former: one start for all instead of a draw from U(0.005, 0.1).
    """

    start: float
    per_weight: bool = True
    steps: int = 1

    def __post_init__(self) -> None:
        """Check the numbers: the start divides, and a rule takes at least one step."""
        if self.start == 0 or self.steps < 1:
            raise ValueError(f"start={self.start} must not be 0, and steps={self.steps} must be at least 1")

    def init(self, params: Params) -> Params:
        """Return the rates of these parameters, ``rate.<step>.<name>``."""
        return {
            f"{RATE}{step}.{name}": torch.full_like(value if self.per_weight else value.new_empty(()), self.start)
            for step in range(self.steps)
            for name, value in params.items()
        }

    def of(self, params: Params, name: str, step: int) -> Tensor:
        """Return the rates of one parameter (M, ...), in a shape that broadcasts over it."""
        rate = params[f"{RATE}{min(step, self.steps - 1)}.{name}"]
        return rate.reshape(rate.shape + (1,) * (params[name].dim() - rate.dim()))


@dataclass(frozen=True)
class GradientStep:
    r"""One step down the gradient of the support loss: MAML's inner rule, and with its options its relatives.

    $$ U(\theta_i) = \theta_i - \alpha \nabla_{\theta_i} L_i(\theta_i) $$

    The losses of the tasks are *summed* before differentiating: rows are independent, so that is the gradient of each
    task, and the step does not depend on how many tasks there are. (A mean would divide alpha by M.)

    Attributes:
        loss: support loss of every task, (M,).
        lr: step size alpha. With learned rates it scales them all, by ``lr / rates.start``.
        first_order: treat the gradient as a constant when differentiating through the step (FOMAML).
        subset: patterns of the names that adapt, ``("2.*", "log_std")``; all others stay as they are (ANIL).
        from_zero: what adapts starts from 0 for every task, and is not meta-learned (CAVIA's context).
        rates: meta-learned step sizes (Meta-SGD, MAML++); None for the fixed ``lr``.
        copies: R agents of a team that adapt each for itself: the first step gives every one of them a copy, (M, ...) become
            (M, R, ...), and what it learns from is its own loss alone. 1 leaves them together.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, equation 1 and section 5.2 for first order; Raghu et al.
    (2020), ANIL, arXiv:1909.09157; Zintgraf et al. (2019), CAVIA, arXiv:1810.03642, equation 3.
    """

    loss: TaskLoss[Any]
    lr: float
    first_order: bool = False
    subset: tuple[str, ...] = ("*",)
    from_zero: bool = False
    rates: LearnedRates | None = None
    copies: int = 1

    def init(self, params: Params) -> Params:
        """Return the learned rates, if there are any.

        Raises:
            ValueError: if a pattern of the subset meets no parameter, or a parameter has a name that rates would have.
        """
        for pattern in self.subset:
            if not any(fnmatchcase(name, pattern) for name in params):
                raise ValueError(f"nothing to adapt: '{pattern}' meets none of {', '.join(params)}")
        if any(name.startswith(RATE) for name in params):
            raise ValueError(
                f"the model has a parameter whose name starts with '{RATE}', as learned rates do; rename it"
            )
        return self.rates.init({name: params[name] for name in self.adapting(params)}) if self.rates else {}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        """Step once. The graph is kept only if ``params`` require gradients and the rule is of second order."""
        names = self.adapting(params)
        keep = not self.first_order and any(value.requires_grad for value in params.values())
        if self.copies > 1 and step == 0:
            params = {n: value.unsqueeze(1).expand(-1, self.copies, *value.shape[1:]) for n, value in params.items()}
        if self.from_zero and step == 0:
            params = {**params, **{n: torch.zeros_like(params[n]).requires_grad_(keep) for n in names}}
        with torch.enable_grad():
            start = params if keep else leaf(params)
            loss_M = self.loss(start, support)
            gradients = torch.autograd.grad(
                loss_M.sum(),
                [start[name] for name in names],
                create_graph=keep,
                allow_unused=True,
                materialize_grads=True,
            )
        stepped = {n: params[n] - self._rate(params, n, step) * g for n, g in zip(names, gradients, strict=True)}
        return {**params, **stepped}

    def _rate(self, params: Params, name: str, step: int) -> Tensor | float:
        if self.rates is None:
            return self.lr
        return self.rates.of(params, name, step) * (self.lr / self.rates.start)

    def adapting(self, params: Iterable[str]) -> list[str]:
        """Return those names of parameters that adapt; all others stay what they are."""
        model = (name for name in params if self.rates is None or not name.startswith(RATE))
        return [name for name in model if any(fnmatchcase(name, pattern) for pattern in self.subset)]


@dataclass(frozen=True)
class Unchanged:
    """No rule: for policies that learn a task by remembering it, whose parameters stay what they are."""

    def init(self, params: Params) -> Params:
        """Return nothing."""
        del params
        return {}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        """Return the parameters."""
        del support, step
        return params
