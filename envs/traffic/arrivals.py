r"""Random numbers on any device that are a function of (seed, counter), and vehicles that arrive by them.

Everything here is made of additions, multiplications and comparisons, which round alike on every device and in every place
of a batch: a grid's arrivals have the same bits alone, among others, on a CPU and on a GPU. (Library exponentials do not.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metarl.envs import counters

# SplitMix64 (see metarl.envs.counters) in signed words, which wrap around alike
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

# Vehicles that may arrive at one entry within one second, and the largest mean for which that leaves out next to nothing:
# more than 13 arrive with a probability of 5e-11.
MOST = 13
LARGEST_MEAN = 1.2


def keys(seeds: np.ndarray, device: torch.device) -> Tensor:
    """Return the starting points of the streams of ``seeds``, int64 (B,)."""
    return torch.tensor(counters.keys(seeds).view(np.int64), device=device)


def uniform(keys: Tensor, counter: Tensor) -> Tensor:
    """Return numbers uniform on [0, 1), float64, of streams and counters that broadcast.

    The same bits as :func:`metarl.envs.counters.uniform`.
    """
    z = _mixed(keys + (counter + 1) * _GOLDEN)
    return _shifted(z, 11).double() * 2.0**-53


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; torch's own shift repeats the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def decay(x: Tensor) -> Tensor:
    r"""Return $e^{-x}$ for $x \ge 0$: a Taylor polynomial of $x / 1024$, squared ten times; relative error below 3e-13.

    Beyond 64, the value at 64 (2e-28).
    """
    y = x.clamp(max=64.0) * (-1.0 / 1024)
    value = torch.ones_like(y)
    for order in range(11, 0, -1):
        value = value * y * (1.0 / order) + 1.0
    for _ in range(10):
        value = value * value
    return value


def poisson(mean: Tensor, unit: Tensor) -> Tensor:
    r"""Return Poisson numbers by inversion: the smallest n with $u < \sum_{k \le n} e^{-m} m^k / k!$, at most 13.

    Args:
        mean: m, at most 1.2.
        unit: u, uniform on [0, 1), float64.
    """
    probability = decay(mean).expand_as(unit)
    cumulated, count = probability, (unit >= probability).double()
    for k in range(1, MOST):
        probability = probability * mean * (1.0 / k)
        cumulated = cumulated + probability
        count += unit >= cumulated
    return count


def swell(time: Tensor, height: Tensor, middle: Tensor, width: Tensor) -> Tensor:
    r"""Return the demand at a time relative to the base, $1 + A e^{-(t - t_0)^2 / (2 \sigma^2)}$; times in s."""
    away = (time - middle) / width
    return 1.0 + height * decay(0.5 * away * away)


def course(seconds: Tensor, given: Tensor, eastwards: Sequence[int]) -> Tensor:
    r"""Return the demand in some seconds relative to the base, $s(t)\, (1 + d_e T (1 - 2 \min(t / t_T, 1)))$, (seconds, E, B).

    With the peak's factor s (:func:`swell`). While the tide turns, it changes nothing on average of a demand without a peak.

    Args:
        seconds: t, (seconds,).
        given: height, middle and width of the peak, tide T, and the seconds $t_T$ in which it turns, (5, B).
        eastwards: d, 1 for entries eastwards, -1 westwards, else 0.
    """
    *peak, tide, turn = given
    ebb = tide * (1.0 - 2.0 * (seconds[:, None] / turn).clamp(max=1.0))
    towards = torch.tensor(eastwards, dtype=torch.float64, device=given.device)[:, None]
    return swell(seconds[:, None], *peak)[:, None] * (1.0 + towards * ebb[:, None])


def drawn(keys: Tensor, mean: Tensor, start: int) -> Tensor:
    """Return how many vehicles arrive, float64 (seconds, E, B).

    Args:
        keys: int64 (B,).
        mean: mean arrivals in each of some seconds, (seconds, E, B).
        start: the first of these seconds; arrivals of a second do not depend on which others are asked for.
    """
    seconds, entries, _ = mean.shape
    counter = torch.arange(start * entries, (start + seconds) * entries, device=mean.device)
    return poisson(mean, uniform(keys, counter.reshape(seconds, entries, 1)))


def gaussian(keys: Tensor, counter: Tensor) -> Tensor:
    r"""Return nearly normal numbers, mean 0 and variance 1, at most 3.5 in size: $\sqrt 3 \, (u_1 + u_2 + u_3 + u_4 - 2)$.

    The four uniforms are the quarters of one word of 64 bits.
    """
    z = _mixed(keys + (counter + 1) * _GOLDEN)
    total = sum(_shifted(z << 16 * quarter, 48) for quarter in range(4))
    assert isinstance(total, Tensor)
    return (total.double() * 2.0**-16 - (2.0 - 2.0**-15)) * math.sqrt(3.0)
