"""Observations standardised by their running mean and variance, one for all tasks.

Statistics are values, as parameters are: an iteration uses those that it found, and hands on others into which all of its
rollouts are merged. So what a policy sees does not change while likelihood ratios are taken.

Shapes: M tasks, N states, O numbers of an observation, an oracle's task included.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.domain import Statistics
from metarl.nets.shared import Columns

# As VecNormalize of Stable-Baselines3 has them: largest size of a standardised number, and what is added to the variance.
CLIP = 10.0
_EPSILON = 1e-8


def unseen(size: int) -> Statistics:
    """Return the statistics of no states: float64 ``count`` (), ``mean`` (O,), and ``squares`` (O,) of deviations from it."""
    zeros = torch.zeros(size, dtype=torch.float64)
    return {"count": torch.zeros((), dtype=torch.float64), "mean": zeros, "squares": zeros.clone()}


def moments(observations: Tensor, mask: Tensor) -> Statistics:
    """Return the statistics of every task's states (M, N, O) where the mask (M, N) is not 0, each with a row a task."""
    x, counts = observations.double(), (mask > 0).double().unsqueeze(-1)
    count = counts.sum(1)
    mean = (counts * x).sum(1) / count.clamp(min=1)
    squares = (counts * (x - mean.unsqueeze(1)).square()).sum(1)
    return {"count": count.squeeze(-1).cpu(), "mean": mean.cpu(), "squares": squares.cpu()}


def merged(running: Statistics, parts: Sequence[Statistics]) -> Statistics:
    r"""Merge statistics of tasks, (M, ...) each, into running ones: those of all states together.

    $$ n = \sum_i n_i, \quad \bar x = \bar x_0 + \sum_i \tfrac{n_i}{n} (\bar x_i - \bar x_0), \quad
       S = \sum_i S_i + n_i (\bar x_i - \bar x)^2 $$

    Means are subtracted before anything is squared, so that nothing cancels however far from 0 the data are.

    Reference: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", for any number of parts.
    """
    counts, means, squares = (
        torch.cat([running[name].unsqueeze(0), *(part[name] for part in parts)])
        for name in ("count", "mean", "squares")
    )
    total, shares = counts.sum(), counts.unsqueeze(-1)
    mean = means[0] + (shares * (means - means[0])).sum(0) / total.clamp(min=1)
    return {"count": total, "mean": mean, "squares": (squares + shares * (means - mean).square()).sum(0)}


@dataclass(frozen=True)
class Normalizer:
    r"""Standardises observations (..., O), clipped to $\pm 10$, by statistics that it never changes.

    $$ \operatorname{clip}\Big( \frac{s - \bar x}{\sqrt{S / n + 10^{-8}}}, -10, 10 \Big) $$

    Before there are any states, observations are only clipped.

    Of a team of equal agents there are statistics of what one of them sees, so that they fit any number of agents.

    Attributes:
        statistics: of the states seen so far, or of the agents' rows of them.
        kept: the columns of these that stay as they are: an action mask's.
        device: where observations are.
        columns: what each of the agents sees of a state, rows of column numbers; None where there is no team.

    Reference: ``VecNormalize`` of Stable-Baselines3.
    """

    statistics: Statistics
    kept: slice
    device: torch.device
    columns: Columns | None = None

    @functools.cached_property
    def affine(self) -> tuple[Tensor, Tensor]:
        """What is subtracted, and what the rest is multiplied by, float32 (O,) each."""
        count, mean, squares = (self.statistics[name] for name in ("count", "mean", "squares"))
        variance = squares / count if count > 0 else torch.ones_like(squares)
        mean, scale = mean.clone(), (variance + _EPSILON).rsqrt()
        mean[self.kept], scale[self.kept] = 0.0, 1.0
        if self.columns is not None:
            size, row = 1 + max(map(max, self.columns)), torch.arange(len(mean)).repeat(len(self.columns))
            place = torch.zeros(size, dtype=torch.int64).scatter(0, torch.tensor(self.columns).flatten(), row)
            mean, scale = mean[place], scale[place]
        return mean.float().to(self.device), scale.float().to(self.device)

    def __call__(self, observations: Tensor) -> Tensor:
        """Return what the policy sees."""
        mean, scale = self.affine
        return ((observations - mean) * scale).clamp(-CLIP, CLIP)
