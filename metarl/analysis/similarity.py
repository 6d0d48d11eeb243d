r"""What adapting changes in a network: similarity of every layer's representation, and adapting parts of it alone.

Raghu et al. ask whether MAML reuses features or learns them rapidly: if all layers but the last look the same before and after,
and adapting the last alone does as well, features are reused.

Shapes: M tasks, N examples, p and q features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metarl.analysis.curves import Curve, update_curve
from metarl.core.inner import GradientStep
from metarl.core.params import Params, detach, expand
from metarl.domain import Seed
from metarl.families import Tasks
from metarl.fewshot.domain import ShotDomain
from metarl.fewshot.losses import ShotBatch
from metarl.learner import MetaLearner
from metarl.nets import MLP, ContextNet, Conv4, Flat, Net
from metarl.nets.context import CONTEXT
from metarl.rl.categorical import CategoricalPolicy
from metarl.rl.domain import RLDomain
from metarl.rl.gaussian import GaussianPolicy
from metarl.rl.losses import Batch
from metarl.settings import SettingsError

_LOOSE = ("log_std", CONTEXT)  # what no layer holds


def cka(ours: Tensor, theirs: Tensor) -> Tensor:
    r"""Linear centred kernel alignment of every task's two representations (M, N, p) and (M, N, q): (M,), in [0, 1].

    $$ \frac{\lVert Y^\top X \rVert_F^2}{\lVert X^\top X \rVert_F \, \lVert Y^\top Y \rVert_F} $$

    of columns with their means subtracted: 1 where one is the other turned and scaled. NaN where one does not vary.

    Reference: Kornblith et al. (2019), arXiv:1905.00414, equation 5 and section 3.
    """
    x, y = (z.double() - z.double().mean(1, keepdim=True) for z in (ours, theirs))
    cross, own, other = (torch.linalg.matrix_norm(a.mT @ b) for a, b in ((y, x), (x, x), (y, y)))
    return cross.square() / (own * other)


def representations(net: Net, params: Params, inputs: Tensor, reference: Tensor | None = None) -> list[Tensor]:
    """Return what every layer makes of the inputs (M, N, ...), first to last, the output included: (M, N, p) each.

    Of a strided convolution the means over positions.

    Args:
        net: fully connected or Conv4.
        params: (M, ...).
        inputs: (M, N, ...).
        reference: of the support set, where the network normalises queries with its help.

    Raises:
        SettingsError: for any other network.
    """
    if isinstance(net, Flat):
        return representations(net.net, params, inputs.flatten(2))
    if isinstance(net, ContextNet):
        context = params[CONTEXT].unsqueeze(1).expand(-1, inputs.shape[1], -1)
        return representations(net.net, params, torch.cat([inputs, context], -1))
    with torch.no_grad():
        if isinstance(net, MLP):
            widths = net.sizes[1:-1]
            hidden = [MLP((*net.sizes[: i + 2], width), net.activation) for i, width in enumerate(widths)]
            heads = [f"{i + 1}." for i in range(len(widths))]
            parts = [
                (part, {**params, **_identity(head, part.sizes[-1], params)})
                for part, head in zip(hidden, heads, strict=True)
            ]
            return [part(own, inputs) for part, own in [*parts, (net, params)]]
        if isinstance(net, Conv4):
            found = []
            for blocks in range(1, net.blocks + 1):
                part = dataclasses.replace(net, blocks=blocks)
                part = dataclasses.replace(part, outputs=part.features)
                found.append(
                    _convolved(part, {**params, **_identity("head.", part.features, params)}, inputs, reference)
                )
            return [*found, _convolved(net, params, inputs, reference)]
    raise SettingsError(
        f"{type(net).__name__} has layers that only it knows; representations are compared of MLP and Conv4"
    )


def similarities(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int) -> np.ndarray:
    """Return how alike every layer's representation of the query set is before and after adapting, (layers, M).

    The queries are those that the adapted parameters are judged by: in reinforcement learning the states that they visit.
    """
    net = network(learner)
    trail = learner.explore(meta, tasks, seed, steps)
    data = trail.query.data
    if isinstance(data, ShotBatch):
        inputs, reference = data.inputs, data.reference
    else:
        assert isinstance(data, Batch)
        inputs, reference = _states(data.observations, data.weights), None
    before = representations(net, expand(detach(meta), len(tasks)), inputs, reference)
    after = representations(net, trail.params, inputs, reference)
    found: np.ndarray = torch.stack([cka(one, other) for one, other in zip(before, after, strict=True)]).cpu().numpy()
    return found


def network(learner: MetaLearner) -> Net:
    """Return the network that adapts.

    Raises:
        SettingsError: if the policy is of the user's own.
    """
    domain = learner.domain
    if isinstance(domain, ShotDomain):
        return domain.net
    if isinstance(domain, RLDomain) and isinstance(domain.policy, GaussianPolicy | CategoricalPolicy):
        return domain.policy.net
    raise SettingsError("the network of a policy of your own is not known")


def head(names: Sequence[str]) -> tuple[str, ...]:
    """Return the last layer's parameters, and those that no layer holds."""
    from metarl.rules import head as last

    return (*last([name for name in names if name != CONTEXT]), *(name for name in names if name == CONTEXT))


def parts(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int) -> dict[str, Curve]:
    """Return adaptation curves of all parameters, of the head alone and of everything but the head.

    Raises:
        SettingsError: if the inner rule is no gradient step, or adapts only some parameters as it is.
    """
    inner = learner.inner
    if not isinstance(inner, GradientStep) or inner.subset != ("*",):
        raise SettingsError(
            "adapting the head alone can be compared only where the inner rule is a step of all parameters"
        )
    names = [name for name in meta if inner.rates is None or not name.startswith("rate.")]
    last = head(names)
    subsets = {"all": tuple(names), "head": last, "body": tuple(name for name in names if name not in last)}
    return {
        label: update_curve(
            dataclasses.replace(learner, inner=dataclasses.replace(inner, subset=subset)), meta, tasks, seed, steps
        )
        for label, subset in subsets.items()
        if subset
    }


def _identity(prefix: str, width: int, params: Params) -> Params:
    """Return the parameters of a layer that changes nothing, for every task."""
    some = next(iter(params.values()))
    eye = torch.eye(width, dtype=some.dtype, device=some.device)
    return {f"{prefix}weight": eye.expand(len(some), -1, -1), f"{prefix}bias": eye.new_zeros(len(some), width)}


def _convolved(net: Conv4, params: Params, inputs: Tensor, reference: Tensor | None) -> Tensor:
    return net(params, inputs) if reference is None else net.relative(params, inputs, reference)


def _states(observations: Tensor, weights: Tensor) -> Tensor:
    """Return as many states of every task as all have, spread evenly over those before the episodes' ends."""
    count = min(256, int((weights > 0).sum(1).min()))
    rows = []
    for own, weight in zip(observations, weights, strict=True):
        alive = torch.nonzero(weight > 0)[:, 0]
        rows.append(own[alive[torch.linspace(0, len(alive) - 1, count).long()]])
    return torch.stack(rows)
