"""Stateless networks batched over tasks."""

from metarl.nets.context import ContextNet
from metarl.nets.conv import Conv4
from metarl.nets.mlp import MLP
from metarl.nets.module import from_module
from metarl.nets.net import Flat, Net, Normalized, Split
from metarl.nets.recurrent import GRU, Recurrent
from metarl.nets.shared import Shared, SharedRecurrent

__all__ = [
    "GRU",
    "MLP",
    "ContextNet",
    "Conv4",
    "Flat",
    "Net",
    "Normalized",
    "Recurrent",
    "Shared",
    "SharedRecurrent",
    "Split",
    "from_module",
]
