"""Context parameters: a few inputs that are parameters, for rules that adapt these alone (CAVIA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets.net import Net

CONTEXT = "context"


@dataclass(frozen=True)
class ContextNet:
    r"""A network that sees, beside its inputs, a vector of parameters: $f([x, \phi])$.

    Attributes:
        net: takes the inputs with the context behind them.
        size: numbers in the context, ``context`` (C,), 0 at the start.

    Reference: Zintgraf et al. (2019), CAVIA, arXiv:1810.03642, section 3.1.
    """

    net: Net
    size: int

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters.

        Raises:
            ValueError: if the network has a parameter called ``context``.
        """
        params = self.net.init(generator)
        if CONTEXT in params:
            raise ValueError(f"the network has a parameter called {CONTEXT}, which is the context's own; rename it")
        return {CONTEXT: torch.zeros(self.size), **params}

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, in) to outputs (M, N, out)."""
        context = params[CONTEXT].unsqueeze(1).expand(-1, inputs.shape[1], -1)
        return self.net({n: v for n, v in params.items() if n != CONTEXT}, torch.cat([inputs, context], -1))
