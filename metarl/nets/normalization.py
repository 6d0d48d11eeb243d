r"""Normalisation of feature maps by task. Which statistics normalise a query decides what its accuracy can be compared with.

Feature maps are (N, M*C, H, W): N examples of each of M tasks, C channels of each task side by side, so that a statistic of a
channel is one of a task, and PyTorch's own batch normalisation never mixes two tasks. All kinds end in
$\hat x \gamma + \beta$ with the task's own gamma and beta; they differ in where the mean and the variance of
$\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}$ come from.

The support set is normalised by its own statistics in all of them. A query is normalised by those of

- ``transductive``: the whole query set, as in most published few-shot results. A prediction then depends on the other
  queries, and profits from knowing that the classes are equally frequent.
- ``support``: the support set. Queries are independent of each other.
- ``task``: the support set mixed with the query itself, half and half at the start (TaskNorm-I). Independent, too.
- ``group``: the query alone, over groups of channels. Independent, too, and of the support set as well.
- ``none``: nothing; then convolutions have biases instead of gamma and beta.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.params import Params
from metarl.nets.batch_norm import batch_norm

NORMALIZATIONS = ("transductive", "support", "task", "group", "none")
EPS = 1e-5
GROUPS = 8  # at most; as many as divide the channels


def fresh(kind: str, channels: int) -> Params:
    """Return the parameters of one layer: gamma (C,) ones, beta (C,) zeros, and of ``task`` its mix (2,) zeros."""
    if kind == "none":
        return {}
    params = {"gamma": torch.ones(channels), "beta": torch.zeros(channels)}
    return params | {"mix": torch.zeros(2)} if kind == "task" else params


def grouped(channels: int) -> int:
    """Return into how many groups ``group`` parts the channels."""
    return math.gcd(GROUPS, channels)


def refers(kind: str) -> bool:
    """Tell whether queries are normalised with the help of the support set."""
    return kind in ("support", "task")


def normalized(kind: str, x: Tensor, params: Params, reference: int) -> Tensor:
    """Normalise feature maps.

    Args:
        kind: one of ``NORMALIZATIONS``.
        x: (N, M*C, H, W).
        params: gamma and beta (M, C); of ``task`` also mix (M, 2).
        reference: how many of the N examples, from the first, are the support set of the others; N where all are.

    A single task's own statistics are left to torch, whose third derivative takes them for constants.
    """
    if kind == "none":
        return x
    gamma, beta = params["gamma"].reshape(-1), params["beta"].reshape(-1)
    if kind == "group":
        return _affine(_by_groups(x, params["gamma"].shape[1]), gamma, beta)
    if kind == "task":
        mean, variance = _mixed(x, params["mix"], reference)
    elif kind == "support" and reference < len(x):
        variance, mean = _moments(x[:reference], (0, 2, 3))
    elif len(params["gamma"]) == 1:
        # few numbers: torch's many passes cost less than Python, for which threads wait in turn
        return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    else:
        return batch_norm(x, gamma, beta, EPS)
    return _affine((x - mean) * torch.rsqrt(variance + EPS), gamma, beta)


def normalized_by_task(x: Tensor, params: Params, tasks: int) -> Tensor:
    """Normalise maps (M*N, C, H, W), channels last in memory, by their task's own statistics (``transductive``).

    Args:
        x: the maps, task after task; overwritten where gradients are switched off.
        params: gamma and beta (1, C), which all tasks share.
        tasks: M.
    """
    rows = x.permute(0, 2, 3, 1).reshape(tasks, -1, x.shape[1])  # (M, N*H*W, C), a view
    into = None if torch.is_grad_enabled() else rows
    rows = torch.sub(rows, rows.mean(1, keepdim=True), out=into)
    variance = torch.linalg.vecdot(rows, rows, dim=1).unsqueeze(1) / rows.shape[1]
    rows = torch.addcmul(params["beta"], rows, torch.rsqrt(variance + EPS) * params["gamma"], out=into)
    return rows.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def normalized_rectified(x: Tensor, params: Params) -> Tensor:
    """Normalise the maps (N, C, H, W) of one task by their own statistics (``transductive``), and set what is negative to 0.

    The same as :func:`normalized` and ReLU, but that a gradient of which nobody takes the gradient overwrites the one that it is
    made of: the result is for a convolution, a maximum or a mean, whose gradients are their own. Maps are the largest that is
    allocated, and each time they leave a hole too small for the next of their size, which is aligned: with three of them less,
    a task of 80 images of 28x28 holds 31 MiB instead of 44 (measured).

    Args:
        x: the maps.
        params: gamma and beta (1, C).
    """
    gamma, beta = params["gamma"].reshape(-1), params["beta"].reshape(-1)
    if x.numel() == x.shape[1]:  # torch's own layer says what is wrong
        return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    result: Tensor = _NormalizedRectified.apply(x, gamma, beta)  # type: ignore[no-untyped-call]
    return result


class _NormalizedRectified(torch.autograd.Function):
    """Batch normalisation and ReLU of maps (N, C, H, W); derivatives of second order are torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        result, mean, inverse = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)
        ctx.save_for_backward(x, result.relu_(), gamma, mean, inverse)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,), (x, result, gamma, mean, inverse) = gradients, ctx.saved_tensors
        rectified, normal = torch.ops.aten.threshold_backward, torch.ops.aten.native_batch_norm_backward
        known = (x, gamma, None, None, mean, inverse, True, EPS)
        if torch.is_grad_enabled():
            of_x, of_gamma, of_beta = normal(rectified(gradient, result, 0), *known, [True, True, True])
            return of_x, of_gamma, of_beta
        rectified(gradient, result, 0, grad_input=gradient)
        _, of_gamma, of_beta = normal(gradient, *known, [False, True, True])
        # of x: gamma / sigma (gradient - of_beta / n - (x - mu) / sigma of_gamma / n), with n numbers to a channel
        scale = gamma * inverse
        slope = -scale * inverse * of_gamma * (x.shape[1] / x.numel())
        start = -scale * of_beta * (x.shape[1] / x.numel()) - slope * mean
        start, scale, slope = (factor.reshape(1, -1, 1, 1) for factor in (start, scale, slope))
        torch.addcmul(start, gradient, scale, out=gradient).addcmul_(x, slope)
        return gradient, of_gamma, of_beta


def _by_groups(x: Tensor, channels: int) -> Tensor:
    """Normalise every example by its own statistics over groups of channels (Wu and He, 2018, arXiv:1803.08494)."""
    alone = x.reshape(-1, channels, *x.shape[2:])  # examples of tasks become a batch: nothing is shared
    return functional.group_norm(alone, grouped(channels), eps=EPS).reshape(x.shape)


def _mixed(x: Tensor, mix: Tensor, reference: int) -> tuple[Tensor, Tensor]:
    r"""Return mean and variance of TaskNorm-I, both (N, M*C, 1, 1).

    $$ \alpha = \operatorname{sigmoid}(a S + b), \quad \mu = \alpha \mu_S + (1-\alpha) \mu_n, \quad
       \sigma^2 = \alpha (\sigma_S^2 + (\mu_S - \mu)^2) + (1-\alpha) (\sigma_n^2 + (\mu_n - \mu)^2) $$

    with the moments of the S examples of the support set, and of example n itself. a and b are the learned mix, one pair for
    every layer. Reference: Bronskill et al. (2020), TaskNorm, arXiv:2003.03284, section 4.2.
    """
    alpha = torch.sigmoid(mix[:, 0] * reference + mix[:, 1])
    alpha = alpha.repeat_interleave(x.shape[1] // len(alpha)).reshape(1, -1, 1, 1)
    set_variance, set_mean = _moments(x[:reference], (0, 2, 3))
    own_variance, own_mean = _moments(x, (2, 3))
    mean = alpha * set_mean + (1 - alpha) * own_mean
    spread = set_variance + (set_mean - mean).square(), own_variance + (own_mean - mean).square()
    return mean, alpha * spread[0] + (1 - alpha) * spread[1]


def _moments(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    return variance, mean


def _affine(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return torch.addcmul(beta.reshape(1, -1, 1, 1), x, gamma.reshape(1, -1, 1, 1))
