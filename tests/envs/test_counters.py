"""Random numbers by counter: their distribution, and that nothing is shared between seeds or steps."""

from __future__ import annotations

import numpy as np

from metarl.envs import counters


def test_words_are_splitmix64():
    """The published outputs of SplitMix64 from state 1234567, whose stream starts where ours of that key does."""
    state = np.array([1234567], dtype=np.uint64)
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [int(counters.words(state, i)[0]) for i in range(5)] == known


def test_neighbouring_seeds_and_steps_are_independent_and_uniform():
    """A hash that leaves a trace of its input makes neighbouring episodes alike."""
    keys = counters.keys(np.arange(4000, dtype=np.uint32))
    u = np.stack([counters.uniform(keys, t) for t in range(50)])  # (T, B)
    assert u.dtype == np.float64
    assert ((u >= 0) & (u < 1)).all()
    assert len(np.unique(u)) == u.size
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * np.sqrt(2 * 99)  # chi-square with 99 degrees of freedom
    z = (u - 0.5) * np.sqrt(12)
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z[1:, 1:], z[:-1, :-1])):
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)


def test_normal_numbers_have_the_moments_of_a_normal():
    z = np.stack([counters.normal(counters.keys(np.arange(4000, dtype=np.uint32)), t) for t in range(50)])
    assert z.dtype == np.float32
    count = z.size
    z = z.astype(np.float64)
    # standard errors: 1, sqrt(2), sqrt(15), sqrt(96) over sqrt(n)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * np.sqrt(variance / count)
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 5 / np.sqrt(count)
    assert abs((z[1:] * z[:-1]).mean()) < 5 / np.sqrt(count)
