r"""What adaptation does: whether it holds on other tasks, where its gradient points, and what its second order is worth.

Each is a function of numbers or of a learner, equal to a closed form where there is one (``tests/analysis/test_diagnostics.py``).
``python -m metarl.diagnose RUN`` computes them for a run.

Shapes: M tasks, P parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from metarl.analysis.curves import Curve, adapt, update_curve, with_episodes, with_rate
from metarl.analysis.statistics import Estimate
from metarl.core.adapt import Objective
from metarl.core.inner import GradientStep
from metarl.core.params import Params, detach, expand, leaf, ravel
from metarl.domain import Sample, Seed
from metarl.families import FamilyError, Tasks
from metarl.learner import MetaLearner
from metarl.rl.domain import RLDomain
from metarl.settings import SettingsError

# Held-out losses of more than so many times the training loss are called meta-overfitting.
LIMIT = 2.0
_DRAWS = 2000

S = TypeVar("S")


class Inflation(NamedTuple):
    """Mean held-out loss over mean training loss, with its 95 % interval over tasks, and whether that is too much."""

    ratio: Estimate
    held_out: float
    training: float

    @property
    def overfits(self) -> bool:
        """Whether the ratio is above 2."""
        return self.ratio.value > LIMIT


class Agreement(NamedTuple):
    """Cosine of two vectors, and the norm of the first over that of the second."""

    cosine: float
    norm_ratio: float


class Alignment(NamedTuple):
    """Whether the first gradient points where adapting ends.

    Attributes:
        cosine: of every task, (M,).
        improvement: of every task's score by one inner update, (M,); more is better whatever the metric.
        correlation: Spearman's, between the two; NaN for fewer than three tasks or where one of them does not vary.
    """

    cosine: np.ndarray
    improvement: np.ndarray
    correlation: float


def risk_inflation(held_out: np.ndarray, training: np.ndarray, seed: int = 0) -> Inflation:
    r"""Return $R = \bar L_{\text{held out}} / \bar L_{\text{training}}$, of losses after adapting; above 2 is meta-overfitting.

    The interval is a bootstrap's over the tasks of both, each drawn by itself.

    Args:
        held_out: losses of tasks that training has not seen, (M,), none below 0.
        training: losses of tasks that it has seen, (M',).
        seed: of the draws.

    Raises:
        SettingsError: if a loss is negative, or no training loss is positive: then a ratio says nothing.
    """
    both = [np.asarray(losses, dtype=np.float64) for losses in (held_out, training)]
    if any((losses < 0).any() or not np.isfinite(losses).all() for losses in both) or both[1].mean() <= 0:
        raise SettingsError("risk inflation needs losses of 0 or more; of returns, say with best= what none exceeds")
    rng = np.random.default_rng(seed)
    above, below = (x[rng.integers(len(x), size=(_DRAWS, len(x)))].mean(1) for x in both)
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    means = [float(losses.mean()) for losses in both]
    return Inflation(Estimate(means[0] / means[1], float(low), float(high)), *means)


def leave_one_out(fit: Callable[[Tasks], S], losses: Callable[[S, Tasks], np.ndarray], tasks: Tasks) -> Inflation:
    r"""Return R of a finite set of tasks: each is held out once, from a training on all others.

    $$ R = \frac{\sum_i L_i(\theta_{-i})}{\sum_i \frac{1}{M-1} \sum_{j \ne i} L_j(\theta_{-i})} $$

    Args:
        fit: what a training on some tasks ends with (:func:`metarl.analysis.restricted.fit` makes one of a learner).
        losses: of tasks after adapting from that, (M,).
        tasks: M of them, at least 2.
    """
    if len(tasks) < 2:
        raise SettingsError("leaving one task out needs at least two")
    held, training = [], []
    for out in range(len(tasks)):  # a training each
        kept = np.arange(len(tasks)) != out
        found = losses(fit(tasks.rows(kept)), tasks)
        held.append(found[out])
        training.append(found[kept].mean())
    return risk_inflation(np.array(held), np.array(training))


def adapted_losses(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, best: float | None = None
) -> np.ndarray:
    """Return the loss of every task after adapting, on fresh data, (M,).

    Args:
        learner: brings domain and inner rule.
        meta: meta-parameters.
        tasks: M tasks.
        seed: of the data.
        steps: inner updates.
        best: a return that none exceeds: the loss is what is missing to it (reinforcement learning only).

    Raises:
        SettingsError: if returns are to be losses and nothing says from what they are counted.
    """
    query = learner.explore(meta, tasks, seed, steps)
    if isinstance(learner.domain, RLDomain):
        if best is None:
            raise SettingsError(
                "a return is no loss: say with best= what none exceeds, such as best=0 where rewards are costs"
            )
        return best - query.query.scores.double().numpy()
    with torch.no_grad():
        terms = learner.domain.query(query.params, query.query.data)
    losses: np.ndarray = terms.loss.double().cpu().numpy()
    return losses


def cosines(ours: Params, theirs: Params) -> np.ndarray:
    """Return the cosine of every task's two vectors of parameters (M, ...), (M,); 0 where one of them is 0."""
    one, other = (torch.cat([v.flatten(1) for v in params.values()], 1).double() for params in (ours, theirs))
    norms = (one.norm(dim=1) * other.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    found: np.ndarray = ((one * other).sum(1) / norms).cpu().numpy()
    return found


def descent(learner: MetaLearner, params: Params, sample: Sample) -> Params:
    r"""Return $-\nabla L_i(\theta_i)$ of every task's support set, (M, ...)."""
    start = leaf(params)
    with torch.enable_grad():
        losses = learner.domain.inner_loss(start, sample.data)
        gradients = torch.autograd.grad(losses.sum(), list(start.values()), allow_unused=True, materialize_grads=True)
    return {name: -gradient for name, gradient in zip(start, gradients, strict=True)}


def alignment(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int) -> Alignment:
    r"""Compare the first gradient with where adapting ends: $\cos(-\nabla L_i(\theta), \theta_i^* - \theta)$.

    $\theta_i^*$ is what ``steps`` inner updates reach; many of them come near the task's own optimum. A cosine near 1 says that one
    step can do what many do. The correlation says whether tasks with a better direction gain more by the first step.
    """
    base = expand(detach(meta), len(tasks))
    first = learner.domain.collect(base, tasks, (*seed, 0), "support")
    final, scores = adapt([learner] * steps, meta, tasks, seed)
    # agents that adapt each for itself end with parameters of their own
    base = {n: v if v.shape == final[n].shape else v.unsqueeze(1).expand_as(final[n]) for n, v in base.items()}
    direction = {name: final[name] - base[name] for name in base}
    cosine = cosines(descent(learner, base, first), direction)
    after = scores[1].values if steps > 1 else learner.domain.collect(final, tasks, (*seed, 1), "query").scores.numpy()
    improvement = (after - scores[0].values) * (1.0 if learner.domain.higher_is_better else -1.0)
    varies = len(tasks) > 2 and np.ptp(cosine) > 0 and np.ptp(improvement) > 0
    correlation = float(stats.spearmanr(cosine, improvement).statistic) if varies else float("nan")
    return Alignment(cosine, improvement, correlation)


def orders(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed) -> Agreement:
    """Compare the first-order meta-gradient with the full one, on the same data.

    Returns:
        Their cosine, and the norm of the first over that of the second.

    Raises:
        SettingsError: if the inner rule is no gradient step, or never taken.
    """
    if not isinstance(learner.inner, GradientStep) or learner.inner_steps == 0:
        raise SettingsError("first and second order differ only for inner gradient steps, of which this run has none")
    trail = learner.explore(meta, tasks, seed, learner.inner_steps)
    vectors: list[Tensor] = []
    for first_order in (True, False):
        objective = Objective(
            rule=dataclasses.replace(learner.inner, first_order=first_order),
            supports=[sample.data for sample in trail.supports],
            query=trail.query.data,
            loss=learner.domain.query,
            workers=learner.domain.workers,
            chunk_tasks=learner.chunk_tasks,
        )
        vectors.append(ravel(objective.gradient(detach(meta))[1]).double())
    first, second = vectors
    size = float(first.norm() * second.norm())
    cosine = float(first @ second) / size if size else float("nan")
    ratio = float(first.norm() / second.norm()) if second.norm() > 0 else float("nan")
    return Agreement(cosine, ratio)


def sweep(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, rates: Sequence[float]
) -> dict[float, Curve | None]:
    """Return the adaptation curve of every step size; None where adaptation diverges with it.

    Raises:
        SettingsError: if the inner rule has no step size.
    """
    with_rate(learner, 1.0)  # refused here if it has none: that is no divergence
    found: dict[float, Curve | None] = {}
    for rate in rates:
        try:
            curve = update_curve(learner, meta, tasks, seed, steps, (rate,))
            found[rate] = curve if np.isfinite(curve.values).all() else None
        except (FamilyError, SettingsError):
            found[rate] = None
    return found


def by_episodes(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, steps: int, episodes: Sequence[int]
) -> dict[int, Curve]:
    """Return the adaptation curve for so many rollouts an update; scores are means over as many episodes as in training."""
    assert isinstance(learner.domain, RLDomain)
    found = {}
    for count in episodes:
        fewer = with_episodes(learner, count)
        params, scores = expand(detach(meta), len(tasks)), []
        for step in range(steps + 1):
            # fresh ones: those that it learns from would be as few as they are
            judged = learner.domain.collect(params, tasks, (*seed, step, 1), "query")
            scores.append(judged.scores.double().numpy())
            if step < steps:
                support = fewer.domain.collect(params, tasks, (*seed, step), "support")
                params = fewer.adapt(params, support.data, step)
        seen = tuple(step * count for step in range(steps + 1))
        found[count] = Curve(tuple(range(steps + 1)), seen, np.stack(scores))
    return found
