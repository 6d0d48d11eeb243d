"""Stateless networks batched over tasks."""

from metarl.nets.context import ContextNet
from metarl.nets.mlp import MLP
from metarl.nets.module import from_module
from metarl.nets.net import Net
from metarl.nets.recurrent import GRU, Recurrent

__all__ = ["GRU", "MLP", "ContextNet", "Net", "Recurrent", "from_module"]
