"""What meta-learning is compared with: classifiers that are fitted to a task's support set, all tasks at once.

Shapes: M tasks, S support examples, Q queries, D numbers of an input, F features, W classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.params import Params

DISTANCES = ("euclidean", "cosine")


def nearest(support: Tensor, targets: Tensor, query: Tensor, distance: str = "euclidean") -> Tensor:
    """Return the class of every query's nearest support example, int64 (M, Q).

    Args:
        support: (M, S, ...), flattened to vectors.
        targets: int64 (M, S).
        query: (M, Q, ...).
        distance: ``euclidean``, or ``cosine``: 1 minus the cosine of the angle. Among equals the first example wins.

    Raises:
        ValueError: for another distance.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got '{distance}'")
    a, b = query.flatten(2), support.flatten(2)
    if distance == "cosine":
        # a blank image has no direction: it is at distance 1 from everything
        apart = 1 - functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).transpose(1, 2)
    else:
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return targets.gather(1, apart.argmin(-1))


def prototypes(features: Tensor, targets: Tensor, ways: int) -> Tensor:
    """Return the mean features of every class, (M, W, F).

    Args:
        features: (M, S, F).
        targets: int64 (M, S), each class at least once.
        ways: W.
    """
    member = functional.one_hot(targets, ways).to(features.dtype)  # (M, S, W)
    return torch.einsum("msw,msf->mwf", member, features) / member.sum(1).unsqueeze(-1)


def prototype_logits(support: Tensor, targets: Tensor, query: Tensor, ways: int) -> Tensor:
    r"""Return $-\lVert f(x) - c_k \rVert^2$ of every query's features and every class's prototype, (M, Q, W).

    Args:
        support: features (M, S, F).
        targets: int64 (M, S).
        query: features (M, Q, F).
        ways: W.

    Reference: Snell et al. (2017), arXiv:1703.05175, equations 1 and 2, with the squared Euclidean distance.
    """
    centres = prototypes(support, targets, ways)
    return -(query.unsqueeze(2) - centres.unsqueeze(1)).square().sum(-1)


def fit_head(features: Tensor, targets: Tensor, ways: int, strength: float) -> Params:
    r"""Fit a linear classifier to every task: logistic regression with a penalty, solved to its optimum.

    $$ \min_{W, b} \; -\frac1S \sum_s \log \operatorname{softmax}(W^T f_s + b)_{y_s} + \frac{\lambda \bar f^2}2 \lVert W \rVert^2,
       \qquad \bar f^2 = \frac1S \sum_s \lVert f_s \rVert^2 $$

    The penalty grows with the features' mean square, so that it does not depend on their scale.

    Args:
        features: (M, S, F).
        targets: int64 (M, S).
        ways: W.
        strength: lambda, greater than 0.

    Returns:
        ``head.weight`` (M, F, W) and ``head.bias`` (M, W), as :class:`~metarl.nets.Conv4` has them.
    """
    scale = features.square().sum(-1).mean(1).clamp_min(1e-12).sqrt()[:, None, None]
    inputs = (features / scale).detach().double()  # in single precision the search would end in noise
    weight = inputs.new_zeros(len(inputs), inputs.shape[-1], ways).requires_grad_()
    bias = inputs.new_zeros(len(inputs), ways).requires_grad_()
    # tasks share nothing but the length of a step, so that a minimum of their sum is a minimum of each
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=300, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = torch.baddbmm(bias.unsqueeze(1), inputs, weight)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / inputs.shape[1]
        total = loss + strength / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return {"head.weight": weight.detach().to(scale.dtype) / scale, "head.bias": bias.detach().to(scale.dtype)}


def fine_tuning(loss: Callable[[Params, Any], Tensor], params: Params, support: Any, lr: float) -> Iterator[Params]:
    """Yield every task's parameters after 0, 1, 2, ... steps of Adam on its support set.

    Adam works number by number, so that one optimiser of all tasks is one of each.

    Args:
        loss: support loss of every task, (M,).
        params: (M, ...), which stay as they are.
        support: of M tasks.
        lr: step size.

    Yields:
        Parameters (M, ...) that the next step changes: use them before.
    """
    own = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(list(own.values()), lr=lr)
    while True:
        yield {name: value.detach() for name, value in own.items()}
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(own, support).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
