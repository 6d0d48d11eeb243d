r"""Normalisation by the batch's own statistics, with a second derivative of few passes over the maps.

$$ y = \gamma \hat x + \beta, \qquad \hat x = r (x - \mu), \qquad r = (\sigma^2 + \epsilon)^{-1/2} $$

for every channel, mean and variance over its L numbers. torch's own operation does the same, up to its second derivative, which a
meta-gradient goes through at every inner step, and takes some 25 passes over the maps for that, this one eight. Here derivatives of
every order are exact; torch's third one takes the statistics for constants (version 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

_ALL = (True, True, True)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Normalise maps (N, C, H, W) over examples and positions, with gamma and beta (C,); not for ``torch.func``."""
    # a GPU, where nothing was measured, or nothing to differentiate
    plain = x.device.type != "cpu" or not torch.is_grad_enabled()
    if plain or x.numel() == x.shape[1]:  # torch's own says what is wrong
        return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)
    y: Tensor = _Forward.apply(x, gamma, beta, eps)  # type: ignore[no-untyped-call]
    return y


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, gamma, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gamma, mean, scale = ctx.saved_tensors
        dx, dgamma, dbeta = _Backward.apply(g, x, gamma, mean, scale, ctx.eps)  # type: ignore[no-untyped-call]
        return dx, dgamma, dbeta, None


class _Backward(Function):
    r"""The derivative, with $P u = u - \bar u - \hat x \overline{u \hat x}$: $(\gamma r P g, \sum g \hat x, \sum g)$."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            g, x, gamma, None, None, mean, scale, True, eps, _ALL
        )
        ctx.save_for_backward(g, x, gamma, mean, scale, dgamma, dbeta)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return dx, dgamma, dbeta

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, p: Tensor | None, q: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        g, x, gamma, mean, r, gx, g1 = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        v = torch.zeros_like(x) if v is None else v
        if torch.is_grad_enabled():  # a third derivative: statistics are functions of x again
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            r = torch.rsqrt(variance + ctx.eps)
            hat = (x - _c(mean)) * _c(r)
            gx, g1, vx, v1 = ((a * b).sum((0, 2, 3)) for a in (g, v) for b in (hat, torch.ones_like(x)))
            by_g = _c(gamma * r) * (v - _c(v1 / count) - hat * _c(vx / count))
        else:
            by_g, vx, v1 = torch.ops.aten.native_batch_norm_backward(
                v, x, gamma, None, None, mean, r, True, ctx.eps, _ALL
            )
        gx, g1, vx, v1 = gx / count, g1 / count, vx / count, v1 / count
        dot = (v * g).sum((0, 2, 3)) / count - v1 * g1 - vx * gx  # mean of v P g
        # of gamma r P g: - gamma r^2 (gx P v + vx P g + dot x^)
        on_v, on_g = -gamma * r * r * gx, -gamma * r * r * vx
        on_hat = -gamma * r * r * dot
        if p is not None:  # of sum g x^: r p P g
            by_g, on_g = torch.addcmul(by_g, x, _c(p * r)) - _c(p * r * mean), on_g + r * p
        if q is not None:  # of sum g
            by_g = by_g + _c(q)
        on_hat = on_hat - on_v * vx - on_g * gx
        shift = -on_v * v1 - on_g * g1 - on_hat * r * mean
        by_x = torch.addcmul(_c(shift), v, _c(on_v)).addcmul(g, _c(on_g)).addcmul(x, _c(on_hat * r))
        return by_g, by_x, r * dot * count, None, None, None


def _c(channels: Tensor) -> Tensor:
    return channels.reshape(1, -1, 1, 1)
