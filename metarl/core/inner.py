"""Inner rules: how parameters change from a support set. Pure, differentiable, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from metarl.core.params import Params, leaf

D_contra = TypeVar("D_contra", contravariant=True)

# (params (M, ...), support of M tasks) -> loss of every task, (M,); task i depends on row i alone
TaskLoss = Callable[[Params, D_contra], Tensor]


class InnerRule(Protocol[D_contra]):
    """``rule(params, support) -> params``: parameters (M, ...) in and out, differentiable where they require gradients."""

    def __call__(self, params: Params, support: D_contra) -> Params:
        """Adapt every task's parameters to its own support set."""
        ...


@dataclass(frozen=True)
class GradientStep:
    r"""One step down the gradient of the support loss: MAML's inner rule.

    $$ U(\theta_i) = \theta_i - \alpha \nabla_{\theta_i} L_i(\theta_i) $$

    The losses of the tasks are *summed* before differentiating: rows are independent, so that is the gradient of each
    task, and the step does not depend on how many tasks there are. (A mean would divide alpha by M.)

    Attributes:
        loss: support loss of every task, (M,).
        lr: step size alpha.
        first_order: treat the gradient as a constant when differentiating through the step (FOMAML).

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, equation 1 and section 5.2 for first order.
    """

    loss: TaskLoss[Any]
    lr: float
    first_order: bool = False

    def __call__(self, params: Params, support: object) -> Params:
        """Step once. The graph is kept only if ``params`` require gradients and the rule is of second order."""
        differentiable = any(value.requires_grad for value in params.values())
        keep = differentiable and not self.first_order
        with torch.enable_grad():
            start = params if keep else leaf(params)
            loss_M = self.loss(start, support)
            gradients = torch.autograd.grad(
                loss_M.sum(), list(start.values()), create_graph=keep, allow_unused=True, materialize_grads=True
            )
        return {name: value - self.lr * g for (name, value), g in zip(params.items(), gradients, strict=True)}
