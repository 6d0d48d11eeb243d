"""Other ways to normalise the queries of a trained network, so that one run can be judged by several protocols."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.params import Params
from metarl.nets import Conv4
from metarl.nets.net import Net, Normalized

ONE_BY_ONE = "one-by-one"
# Images that one pass over several queries takes at most; each query brings a support set of its own.
_IMAGES = 2048


@dataclass(frozen=True)
class OneByOne:
    """A network with batch statistics that sees each query in a batch of its own: the support set and that one query.

    Predictions are then independent of the other queries. Shapes: M tasks, Q queries, S support images.

    Attributes:
        net: its inputs (M, N, ...) normalise each other.

    Reference: Nichol, Achiam and Schulman (2018), arXiv:1803.02999, section 6.1, "without transduction".
    """

    net: Normalized

    @property
    def normalization(self) -> str:
        """``one-by-one``."""
        return ONE_BY_ONE

    @property
    def refers(self) -> bool:
        """A query is predicted together with the support set."""
        return True

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        return self.net.init(generator)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map a support set (M, S, ...) to outputs (M, S, O), normalised by itself."""
        return self.net(params, inputs)

    def relative(self, params: Params, inputs: Tensor, reference: Tensor) -> Tensor:
        """Map queries (M, Q, ...) to outputs (M, Q, O): each of them is a task beside others, with parameters of its task."""
        support, count = reference.shape[1], inputs.shape[1]
        at_once = max(1, _IMAGES // (len(inputs) * (support + 1)))
        parts = []
        for start in range(0, count, at_once):
            some = inputs[:, start : start + at_once]
            width = some.shape[1]
            batch = torch.cat([reference.repeat_interleave(width, 0), some.flatten(0, 1).unsqueeze(1)], 1)
            own = {name: value.repeat_interleave(width, 0) for name, value in params.items()}
            parts.append(self.net(own, batch)[:, -1].reshape(len(inputs), width, -1))
        return torch.cat(parts, 1)


def protocols(net: Net) -> dict[str, Net]:
    """Return the networks by which a trained one can be judged without training again, by their normalisation; its own first.

    Batch statistics and those of the support set treat a support set alike, so that adapted parameters are the same:
    ``transductive`` and ``support`` judge each other's runs, and ``one-by-one`` both. Other kinds have parameters of their
    own, or none, and stand alone. A network without any normalisation has the empty name.
    """
    if not isinstance(net, Normalized):
        return {"": net}
    own: dict[str, Net] = {net.normalization: net}
    if not isinstance(net, Conv4) or net.normalization not in ("transductive", "support"):
        return own
    batch = dataclasses.replace(net, normalization="transductive")
    rest: dict[str, Net] = {
        "transductive": batch,
        "support": dataclasses.replace(net, normalization="support"),
        ONE_BY_ONE: OneByOne(batch),
    }
    return own | rest
