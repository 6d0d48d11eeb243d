"""Conv4 as a loop over tasks with torch's own layers: slow, and independent of ours."""

from __future__ import annotations

import torch
from torch.nn import functional


def _batch_norm(x, mean, var, gamma, beta):
    return functional.batch_norm(x, mean, var, gamma, beta, training=False)


def _mixed(s, q, gamma, beta, mix):
    """TaskNorm-I example by example, from the paper's formulas."""
    alpha = 1 / (1 + torch.exp(-(mix[0] * len(s) + mix[1])))
    mean_s, var_s = s.mean((0, 2, 3)), s.var((0, 2, 3), correction=0)
    out = []
    for x in q:
        mean_x, var_x = x.mean((1, 2)), x.var((1, 2), correction=0)
        mean = alpha * mean_s + (1 - alpha) * mean_x
        var = alpha * (var_s + (mean_s - mean) ** 2) + (1 - alpha) * (var_x + (mean_x - mean) ** 2)
        out.append(_batch_norm(x[None], mean, var, gamma, beta)[0])
    return torch.stack(out)


def _normalized(kind, s, q, p):
    """Normalise support and query maps (S or N, C, H, W) of one task."""
    if kind == "none":
        return s, q
    gamma, beta = p["gamma"], p["beta"]
    own = [functional.batch_norm(x, None, None, gamma, beta, training=True) for x in (s, q)]
    if kind == "transductive":
        return own
    if kind == "support":
        return own[0], _batch_norm(q, s.mean((0, 2, 3)), s.var((0, 2, 3), correction=0), gamma, beta)
    if kind == "group":
        return [functional.group_norm(x, 8, gamma, beta) for x in (s, q)]
    return [_mixed(s, x, gamma, beta, p["mix"]) for x in (s, q)]


def by_hand(net, params, support, query):
    """Outputs (M, S, O) and (M, N, O) by a loop over tasks and torch's own layers."""
    outputs = []
    for task in range(len(support)):
        s, q = support[task], query[task]
        for block in range(4):
            p = {n.split(".")[1]: v[task] for n, v in params.items() if n.startswith(f"{block}.")}
            stride = 2 if net.downsampling == "stride" else 1
            s, q = (functional.conv2d(x, p["weight"], p.get("bias"), stride=stride, padding=1) for x in (s, q))
            s, q = (functional.relu(x) for x in _normalized(net.normalization, s, q, p))
            if stride == 1:
                s, q = functional.max_pool2d(s, 2), functional.max_pool2d(q, 2)
        s, q = (x.mean((2, 3)) if net.downsampling == "stride" else x.flatten(1) for x in (s, q))
        weight, bias = params["head.weight"][task].T, params["head.bias"][task]
        outputs.append((functional.linear(s, weight, bias), functional.linear(q, weight, bias)))
    return [torch.stack(part) for part in zip(*outputs, strict=True)]
