"""Stateless networks batched over tasks."""

from metarl.nets.mlp import MLP
from metarl.nets.module import from_module
from metarl.nets.net import Net

__all__ = ["MLP", "Net", "from_module"]
