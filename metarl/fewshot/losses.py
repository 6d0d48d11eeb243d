"""Losses over labelled shots. Shapes: M tasks, N examples, S support examples, C classes or numbers to predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.core.adapt import Geometry, Ratio, Terms
from metarl.core.params import Params
from metarl.nets.conv import Conv4
from metarl.nets.net import Flat, Net, Normalized, Split


@dataclass(frozen=True)
class ShotBatch:
    """Examples.

    Attributes:
        inputs: (M, N, ...).
        targets: (M, N, C) numbers, or classes int64 (M, N).
        reference: inputs (M, S, ...) of the support set, where the network normalises queries with its help.
        predicted: log-probabilities (M, N, C) when the examples were drawn, of the distribution that a KL starts from.
        features: (M, N, ...) that the network's body makes of the inputs, where it need not look at them again.
    """

    inputs: Tensor
    targets: Tensor
    reference: Tensor | None = None
    predicted: Tensor | None = None
    features: Tensor | None = None

    @property
    def num_tasks(self) -> int:
        """M."""
        return self.inputs.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[1]

    def rows(self, tasks: slice) -> ShotBatch:
        """Return the examples of some tasks."""
        rest = (None if x is None else x[tasks] for x in (self.reference, self.predicted, self.features))
        return ShotBatch(self.inputs[tasks], self.targets[tasks], *rest)

    def samples(self, index: Tensor) -> ShotBatch:
        """Return them all: of a few shots none can be spared, and a part would have other batch statistics.

        So ``algo.fisher_fraction`` has no effect on few-shot learning, and Fisher products are exact.
        """
        del index
        return self


class Judgement(NamedTuple):
    """How well examples are predicted: scores (M,), and for distributions the log-probabilities (M, N, C)."""

    scores: Tensor
    predicted: Tensor | None


class ShotLoss(Protocol):
    """A loss of inner and outer level, with its score; it is the outer loss (:class:`~metarl.core.adapt.Query`) itself.

    Attributes:
        higher_is_better: whether a larger score is better.
    """

    higher_is_better: ClassVar[bool]

    @property
    def geometry(self) -> Geometry | None:
        """The distribution that is predicted, if it is one."""
        ...

    @property
    def ratio(self) -> Ratio | None:
        """None: a loss over labels is not made of likelihood ratios."""
        ...

    def __call__(self, params: Params, query: ShotBatch) -> Terms:
        """Return losses (M,), and KL(old||new) (M,) for distributions."""
        ...

    def loss(self, params: Params, batch: ShotBatch) -> Tensor:
        """Return the mean loss over each task's examples, (M,)."""
        ...

    def judge(self, params: Params, batch: ShotBatch) -> Judgement:
        """Return the scores, and what is predicted."""
        ...


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error, which is the score as well; a regression predicts no distribution.

    Attributes:
        net: who predicts.
    """

    net: Net

    higher_is_better: ClassVar[bool] = False

    @property
    def geometry(self) -> Geometry | None:
        """None."""
        return None

    @property
    def ratio(self) -> Ratio | None:
        """None."""
        return None

    def __call__(self, params: Params, query: ShotBatch) -> Terms:
        """Return losses (M,), no KL, and the losses as scores."""
        loss = self.loss(params, query)
        return Terms(loss, None, loss.detach())

    def loss(self, params: Params, batch: ShotBatch) -> Tensor:
        """Mean over examples and numbers, (M,)."""
        return (outputs(self.net, params, batch) - batch.targets).square().flatten(1).mean(1)

    def judge(self, params: Params, batch: ShotBatch) -> Judgement:
        """Return the losses."""
        return Judgement(self.loss(params, batch), None)


@dataclass(frozen=True)
class CrossEntropy:
    r"""Classification: $L_i = -\frac1N \sum_n \log p(y_n | x_n)$, a mean over the task's examples, with the accuracy as score.

    The step size of an inner update applies to this mean. (The code of Finn et al. (2017) sums over examples and divides by
    the shots, so that their step size is ours divided by the number of classes.) It is its own geometry: the categorical
    distribution of the classes, whose parameters are log-probabilities.

    Attributes:
        net: predicts logits.
    """

    net: Net

    higher_is_better: ClassVar[bool] = True

    @property
    def geometry(self) -> CrossEntropy:
        """A classifier predicts a distribution: itself."""
        return self

    @property
    def ratio(self) -> Ratio | None:
        """None."""
        return None

    def __call__(self, params: Params, query: ShotBatch) -> Terms:
        """Return losses (M,), the mean over examples of KL(old||new) (M,), nats, and the scores of :meth:`judge` (M,)."""
        log_probs, kl = self._log_probs(params, query, last=True), None
        with torch.no_grad():
            if query.predicted is not None:
                old = query.predicted
                kl = (old.exp() * (old - log_probs)).sum(-1).mean(1)
            scores = _accuracy(log_probs, query.targets)
        return Terms(_mean_loss(log_probs, query.targets), kl, scores)

    def loss(self, params: Params, batch: ShotBatch) -> Tensor:
        """Mean over examples, (M,), nats."""
        return _mean_loss(self._log_probs(params, batch), batch.targets)

    def judge(self, params: Params, batch: ShotBatch) -> Judgement:
        """Return the fraction of examples whose likeliest class is the right one, and all log-probabilities.

        Where logits are not finite, so are the scores: an arbitrary class would be right once in C times.
        """
        log_probs = self._log_probs(params, batch, last=True)
        return Judgement(_accuracy(log_probs, batch.targets), log_probs)

    def predict(self, params: Params, query: ShotBatch) -> tuple[Tensor, ...]:
        """Return the log-probabilities (M, N, C)."""
        return (self._log_probs(params, query),)

    def fisher(
        self, predicted: tuple[Tensor, ...], tangent: tuple[Tensor, ...], query: ShotBatch
    ) -> tuple[Tensor, ...]:
        r"""Multiply a tangent by $\operatorname{diag}(p) - p p^T$ of every example, as a mean over the task's examples."""
        probs, t = predicted[0].exp(), tangent[0]
        return (probs * (t - (probs * t).sum(-1, keepdim=True)) / query.num_samples,)

    def _log_probs(self, params: Params, batch: ShotBatch, last: bool = False) -> Tensor:
        """Return the log-probabilities; ``last`` after the last inner step."""
        return outputs(differentiated_once(self.net) if last else self.net, params, batch).log_softmax(-1)


LOSSES: dict[str, type[SquaredError] | type[CrossEntropy]] = {"mse": SquaredError, "cross_entropy": CrossEntropy}


def outputs(net: Net, params: Params, batch: ShotBatch) -> Tensor:
    """Return what the network predicts, (M, N, C)."""
    if batch.features is not None:
        return splittable(net).last(params, batch.features)
    if batch.reference is None:
        return net(params, batch.inputs)
    assert isinstance(net, Normalized), "only a network that refers to the support set is given one"
    return net.relative(params, batch.inputs, batch.reference)


def differentiated_once(net: Net) -> Net:
    """Return the network as it takes least time where nobody takes the gradient of its gradient: the same function."""
    return dataclasses.replace(net, channels_last=True) if isinstance(net, Conv4) else net


@dataclass(frozen=True)
class Features:
    r"""Evaluates a network's body once, for a rule that adapts its last layer alone (ANIL).

    $$ f_{\theta_i'}(x) = \operatorname{last}_{h_i'}(\operatorname{body}_b(x)), \qquad \theta = (b, h) $$

    b is the same for all tasks and all inner steps: their images are one ordinary batch (with statistics of each task's own),
    and an inner step is one of a linear layer. Losses and meta-gradients are those of the long way, which evaluates the
    body at every step and for every task with parameters of its own.

    Attributes:
        net: whose last layer adapts.

    Reference: Raghu et al. (2020), ANIL, arXiv:1909.09157, section 4.
    """

    net: Net

    def __call__(self, meta: Params, data: Sequence[ShotBatch]) -> list[ShotBatch]:
        """Return the sets with their features, differentiable in ``meta``.

        Equal sets, as the support sets of all inner steps are, share them; a set that has features already keeps them.
        """
        body, shared = (
            splittable(differentiated_once(self.net)).body,
            {name: value.unsqueeze(0) for name, value in meta.items()},
        )
        ready: list[ShotBatch] = []
        for batch in data:
            alike = (one.features for one in ready if one.reference is batch.reference and _equal(one, batch))
            features = next(alike, None) if batch.features is None else batch.features
            if features is None:
                features = body(shared, _flat(self.net, batch.inputs), batch.reference)
            ready.append(dataclasses.replace(batch, features=features))
        return ready


def splittable(net: Net) -> Split:
    """Return the network that has a body and a last layer.

    Raises:
        TypeError: if there is none.
    """
    bare = net.net if isinstance(net, Flat) else net
    if not isinstance(bare, Split):
        raise TypeError(f"{type(bare).__name__} has no last layer that could be evaluated by itself")
    return bare


def features_of(net: Net, adapting: Collection[str]) -> Features | None:
    """Return what evaluates the body once, where these parameters adapt; None where that would not be the same."""
    bare = net.net if isinstance(net, Flat) else net
    return Features(net) if isinstance(bare, Split) and set(adapting) <= set(bare.adaptable) else None


def _equal(one: ShotBatch, other: ShotBatch) -> bool:
    return one.inputs is other.inputs or torch.equal(one.inputs, other.inputs)


def _flat(net: Net, inputs: Tensor) -> Tensor:
    return inputs.flatten(2) if isinstance(net, Flat) else inputs


def _accuracy(log_probs: Tensor, targets: Tensor) -> Tensor:
    right = (log_probs.argmax(-1) == targets).to(log_probs.dtype).mean(1)
    return torch.where(torch.isfinite(log_probs).flatten(1).all(1), right, torch.nan)


def _mean_loss(log_probs: Tensor, targets: Tensor) -> Tensor:
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1).mean(1)
