"""Random numbers that are a function of (seed, counter), for many simulations at once.

A generator per simulation would need a Python loop; here the randomness of simulation b at step t is a hash of ``seeds[b]``
and t, so that it depends on nothing else and costs a few passes over an array.

Reference: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators" (SplitMix64).
"""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 1 << 64


def keys(seeds: np.ndarray) -> np.ndarray:
    """Return the starting points of the streams of ``seeds``, uint64 (B,)."""
    return _mixed(np.asarray(seeds).astype(np.uint64) * np.uint64(_GOLDEN))


def later(keys: np.ndarray, counter: int) -> np.ndarray:
    """Return the streams that begin when these are at ``counter``: there the new ones are where these were at 0."""
    return keys - np.uint64(counter * _GOLDEN % _WORD)


def words(keys: np.ndarray, counter: int) -> np.ndarray:
    """Return 64 random bits of every stream, uint64 (B,); another counter gives others."""
    return _mixed(keys + np.uint64((counter + 1) * _GOLDEN % _WORD))


def table(keys: np.ndarray, count: int) -> np.ndarray:
    """Return the uniform numbers of counters 0 to ``count - 1`` side by side, float64 (B, count)."""
    return np.stack([uniform(keys, counter) for counter in range(count)], axis=1)


def uniform(keys: np.ndarray, counter: int) -> np.ndarray:
    """Return numbers uniform on [0, 1), float64 (B,), multiples of 2^-53."""
    return (words(keys, counter) >> np.uint64(11)) * 2.0**-53


def normal(keys: np.ndarray, counter: int) -> np.ndarray:
    r"""Return standard normal numbers, float32 (B,): $\sqrt{-2 \ln u} \cos 2 \pi v$ (Box and Muller), at most 6.7 in size."""
    bits = words(keys, counter)
    # u from the upper 32 bits, in (0, 1]; v from the lower 32
    u = ((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    v = bits.astype(np.uint32).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.sqrt(-2 * np.log(u)) * np.cos(v)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
