"""Stateless networks batched over tasks."""

from metarl.nets.context import ContextNet
from metarl.nets.mlp import MLP
from metarl.nets.module import from_module
from metarl.nets.net import Net

__all__ = ["MLP", "ContextNet", "Net", "from_module"]
