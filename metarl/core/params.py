"""Parameters as values: ``dict[str, Tensor]`` with the few operations of a vector space that meta-learning needs.

Meta-parameters have a module's shapes; task parameters lead with the task dimension M. Nothing here writes in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Params = dict[str, Tensor]


def expand(params: Params, num_tasks: int) -> Params:
    """Give every one of M tasks its own copy: shapes (...) become (M, ...)."""
    return {name: value.expand(num_tasks, *value.shape).contiguous() for name, value in params.items()}


def rows(params: Params, tasks: slice) -> Params:
    """Return the parameters of some tasks, (M, ...) to (m, ...)."""
    return {name: value[tasks] for name, value in params.items()}


def stack_rows(parts: Iterable[Params]) -> Params:
    """Concatenate parameters along the task dimension; inverse of :func:`rows`."""
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def leaf(params: Params) -> Params:
    """Return the same values as new leaves of an autograd graph."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def detach(params: Params) -> Params:
    """Return the same values cut from their graph."""
    return {name: value.detach() for name, value in params.items()}


def ravel(params: Params) -> Tensor:
    """Return all values as one vector, shape (P,)."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def unravel(vector: Tensor, like: Params) -> Params:
    """Cut a vector of shape (P,) into the names and shapes of ``like``."""
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def ravel_rows(params: Params) -> Tensor:
    """Return every task's values (M, ...) as one row of a matrix (M, P)."""
    return torch.cat([value.reshape(len(value), -1) for value in params.values()], dim=1)


def unravel_rows(matrix: Tensor, like: Params) -> Params:
    """Cut a matrix (M, P) into the names and shapes of ``like``; inverse of :func:`ravel_rows`."""
    parts = torch.split(matrix, [value[0].numel() for value in like.values()], dim=1)
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def is_finite(params: Params) -> bool:
    """Tell whether every number is finite."""
    return all(bool(torch.isfinite(value).all()) for value in params.values())
