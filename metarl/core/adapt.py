r"""The heart: adapt to support sets, and the meta-objective that looks at what adapting led to.

$$ \min_\theta \; \frac1M \sum_{i=1}^M L_i\bigl(U_k(\cdots U_1(\theta)\cdots)\bigr) $$

Shapes: M tasks, N samples of a task, P meta-parameters. Data are opaque: anything with :class:`Data`'s four members.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from metarl.core.inner import InnerRule
from metarl.core.parallel import Workers, chunks
from metarl.core.params import Params, detach, expand, leaf
from metarl.core.solvers import linearize, spread

# Linearised graphs of up to this many samples are kept between Fisher products; beyond, each
# product builds its chunk's graph again, so that memory does not grow with the meta-batch.
_KEPT_SAMPLES = 1 << 18


class Data(Protocol):
    """Samples of M tasks, N each."""

    @property
    def num_tasks(self) -> int:
        """M."""
        ...

    @property
    def num_samples(self) -> int:
        """N."""
        ...

    def rows(self, tasks: slice) -> Self:
        """Return the data of some tasks."""
        ...

    def samples(self, index: Tensor) -> Self:
        """Return some of every task's samples, re-weighted to be a mean again; index is int64 (n,)."""
        ...


class Terms(NamedTuple):
    """What the query set says of each task's adapted parameters.

    Attributes:
        loss: (M,).
        kl: KL(old||new) (M,) of distributions.
        scores: (M,) in the domain's metric, where the evaluation of the loss tells them as well.
    """

    loss: Tensor
    kl: Tensor | None
    scores: Tensor | None = None


class Query(Protocol):
    """The outer loss.

    ``geometry`` is None where predictions are no distribution; then there is no KL and no Fisher. ``ratio`` is None where
    the loss is not made of likelihood ratios; then there is nothing to clip.
    """

    @property
    def geometry(self) -> Geometry | None:
        """The distribution that is predicted, if it is one."""
        ...

    @property
    def ratio(self) -> Ratio | None:
        """The likelihood ratios that the loss is made of, if it is."""
        ...

    def __call__(self, params: Params, query: Any) -> Terms:
        """Evaluate the adapted parameters (M, ...) on the query set."""
        ...


class Geometry(Protocol):
    """The predicted distribution, as its parameters (a tuple of tensors leading with M), and its Fisher matrix."""

    def predict(self, params: Params, query: Any) -> tuple[Tensor, ...]:
        """Return the distribution's parameters at every sample, differentiable in ``params``."""
        ...

    def fisher(self, predicted: tuple[Tensor, ...], tangent: tuple[Tensor, ...], query: Any) -> tuple[Tensor, ...]:
        """Multiply a tangent by the Fisher matrix of every sample, weighted to the mean over a task's samples."""
        ...


class Ratio(Protocol):
    """A loss made of likelihood ratios of what was done to how likely it was when it was done."""

    def clipped(self, epsilon: float) -> Query:
        """Return the loss that gains nothing from ratios beyond 1 - epsilon and 1 + epsilon."""
        ...

    def divergence(self, params: Params, data: Any) -> Tensor:
        """Return KL(old||params) of every task on support or query data, (M,), differentiable."""
        ...


class Path(Protocol):
    """A term of the meta-objective for what adapting went through, beside where it led."""

    def __call__(self, params: Params, support: Any, query: Any, step: int) -> Tensor:
        """Return (M,) of the parameters (M, ...) before one inner step, its support set, the query set, and the step, from 0."""
        ...


class Once(Protocol):
    """What can be computed of the data before adapting, because no inner step changes the parameters that it needs."""

    def __call__(self, meta: Params, data: Sequence[Any]) -> list[Any]:
        """Return the data sets of M tasks with it, differentiable in ``meta``, which has no task dimension."""
        ...


class Outcome(NamedTuple):
    """The meta-objective at one point.

    Attributes:
        loss: mean over tasks.
        kl: likewise; 0 where there is no distribution.
        scores: of every task, where the loss tells them.
    """

    loss: float
    kl: float
    scores: tuple[float, ...] = ()


def adapt(rule: InnerRule[Any], params: Params, supports: Sequence[Any]) -> Params:
    """Apply the inner rule once per support set, for all M tasks at once: theta_i' = U_k(... U_1(theta_i))."""
    for step, support in enumerate(supports):
        params = rule(params, support, step)
    return params


@dataclass(frozen=True)
class Objective:
    """theta -> mean over tasks of the query loss after adapting; what every outer rule minimises.

    An outer rule receives this object, not a gradient: Adam asks once for the gradient, TRPO besides for Fisher products
    and for the value at every candidate. Nothing is ever written, so a rejected candidate leaves nothing to restore.

    Attributes:
        rule: the inner rule.
        supports: one support set for every inner step.
        query: the query set.
        loss: the outer loss.
        workers: who evaluates the chunks.
        chunk_tasks: tasks to a chunk; None chooses by the number of samples.
        path: a term that is added at every inner step; None adds nothing. The Fisher matrix does not look at it.
        once: computes what the inner steps have in common; None computes everything at every step, with the same result.
    """

    rule: InnerRule[Any]
    supports: Sequence[Data]
    query: Data
    loss: Query
    workers: Workers = field(default_factory=Workers)
    chunk_tasks: int | None = None
    path: Path | None = None
    once: Once | None = None

    def value(self, meta: Params) -> Outcome:
        """Evaluate; no graph through the adaptation is built."""
        return self._mean(self.workers.map(lambda tasks: self._terms(detach(meta), tasks), self._chunks()))

    def gradient(self, meta: Params) -> tuple[Outcome, Params]:
        """Evaluate together with the meta-gradient, which has the shapes of ``meta``."""

        def part(tasks: slice) -> tuple[Terms, Params]:
            theta = leaf(meta)
            terms = self._terms(theta, tasks)
            gradients = torch.autograd.grad(
                terms.loss.sum(), list(theta.values()), allow_unused=True, materialize_grads=True
            )
            kl = None if terms.kl is None else terms.kl.detach()
            return terms._replace(loss=terms.loss.detach(), kl=kl), dict(zip(theta, gradients, strict=True))

        return self._summed(part)

    def adapted(self, meta: Params) -> tuple[Outcome, Params]:
        """Evaluate together with the mean over tasks of the adapted parameters, in the shapes of ``meta``.

        For rules without a meta-gradient; the path plays no part.
        """

        def part(tasks: slice) -> tuple[Terms, Params]:
            theta = detach(meta)
            *supports, query = self._ready(theta, [data.rows(tasks) for data in (*self.supports, self.query)])
            final = detach(adapt(self.rule, self._expanded(theta, query.num_tasks), supports))
            return self.loss(final, query), {name: value.sum(0) for name, value in final.items()}

        return self._summed(part)

    def fisher(self, meta: Params, fraction: float = 1.0) -> Callable[[Params], Params]:
        r"""Return v -> mean over tasks of $J_i^T F_i J_i v$, the Hessian of the mean KL(old||new) at ``meta``.

        J is the derivative of the adapted parameters (and so of the predictions) with respect to the meta-parameters, F
        the Fisher matrix of the predicted distribution. Where old and new agree the gradient of the KL is zero, so this is
        its exact Hessian and needs no third derivative.

        Args:
            meta: the point.
            fraction: the part of each task's support and query samples that the product looks at, in (0, 1].

        Raises:
            ValueError: if the predictions are no distribution.
        """
        geometry = self.loss.geometry
        if geometry is None:
            raise ValueError(
                "a Fisher product needs predictions that are a distribution; use an outer rule without one"
            )
        supports = [_thin(support, fraction) for support in self.supports]
        query = _thin(self.query, fraction)
        cuts = chunks(query.num_tasks, query.num_samples, self.workers.device, self.chunk_tasks)

        def linearized(tasks: slice) -> Callable[[Params], Params]:
            local = query.rows(tasks)

            def predict(theta: Params) -> tuple[Tensor, ...]:
                *before, after = self._ready(theta, [*(support.rows(tasks) for support in supports), local])
                return geometry.predict(adapt(self.rule, self._expanded(theta, local.num_tasks), before), after)

            predicted, jacobian, transpose = linearize(predict, leaf(meta))
            return lambda v: transpose(geometry.fisher(predicted, jacobian(v), local))

        if query.num_tasks * query.num_samples <= _KEPT_SAMPLES:
            products = self.workers.map(linearized, cuts)
            return lambda v: self._average(self.workers.each(lambda product: product(v), products))
        return lambda v: self._average(self.workers.each(lambda tasks: linearized(tasks)(v), cuts))

    def _chunks(self) -> list[slice]:
        return chunks(self.query.num_tasks, self.query.num_samples, self.workers.device, self.chunk_tasks)

    def _terms(self, meta: Params, tasks: slice) -> Terms:
        *supports, query = self._ready(meta, [data.rows(tasks) for data in (*self.supports, self.query)])
        params = self._expanded(meta, query.num_tasks)
        if self.path is None:
            return self.loss(adapt(self.rule, params, supports), query)
        on_the_way = []
        for step, support in enumerate(supports):
            on_the_way.append(self.path(params, support, query, step))
            params = self.rule(params, support, step)
        terms = self.loss(params, query)
        return terms._replace(loss=sum(on_the_way, terms.loss))

    def _expanded(self, meta: Params, num_tasks: int) -> Params:
        """Give every task its own parameters; as views where most of them are not looked at again."""
        if self.once is None:
            return expand(meta, num_tasks)
        return {name: value.expand(num_tasks, *value.shape) for name, value in meta.items()}

    def _ready(self, meta: Params, data: list[Any]) -> list[Any]:
        """Return support sets and query set with what is computed once."""
        return data if self.once is None else self.once(meta, data)

    def _summed(self, part: Callable[[slice], tuple[Terms, Params]]) -> tuple[Outcome, Params]:
        """Average what the chunks return, and keep no more than one sum of their parameters."""
        terms: list[Terms] = []

        def summands() -> Generator[Params, None, None]:
            with contextlib.closing(self.workers.each(part, self._chunks())) as parts:
                for one, summand in parts:
                    terms.append(one)
                    yield summand

        average = self._average(summands())
        return self._mean(terms), average

    def _mean(self, parts: list[Terms]) -> Outcome:
        """Average over all tasks: with :meth:`_average`, the only places where tasks meet."""
        loss = torch.cat([part.loss for part in parts]).mean().item()
        kl = [part.kl for part in parts if part.kl is not None]
        scores = [part.scores for part in parts if part.scores is not None]
        return Outcome(
            loss, torch.cat(kl).mean().item() if kl else 0.0, tuple(torch.cat(scores).tolist()) if scores else ()
        )

    def _average(self, parts: Generator[Params, None, None]) -> Params:
        """Add the chunks' sums in the order of the chunks, as they come, and divide by the number of tasks."""
        with contextlib.closing(parts):  # an interrupt while adding ends the chunks, too
            total = functools.reduce(lambda a, b: {name: value + b[name] for name, value in a.items()}, parts)
        return {name: value / self.query.num_tasks for name, value in total.items()}


def _thin(data: Data, fraction: float) -> Data:
    count = max(1, round(fraction * data.num_samples))
    return data if count >= data.num_samples else data.samples(spread(data.num_samples, count))
