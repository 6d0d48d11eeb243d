"""Conjugate gradient against a dense solver, and the even choice of samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from metarl.core.solvers import conjugate_gradient, spread


def _spd(size, seed, condition=20.0):
    """A random symmetric positive definite matrix with eigenvalues from 1 to ``condition``."""
    g = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.double))
    return basis @ torch.diag(torch.linspace(1.0, condition, size, dtype=torch.double)) @ basis.T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 17, 40])
def test_solves_positive_definite_systems(size, seed):
    """Equal to the dense solution; ``residual`` is b - A x, which the caller uses in place of another product."""
    a = _spd(size, seed)
    b = torch.randn(size, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.double)
    x, residual, used = conjugate_gradient(lambda v: a @ v, b, iterations=2 * size + 5, tolerance=1e-24)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(residual, b - a @ x, rtol=0, atol=1e-10)
    assert used <= size + 3


def test_few_iterations_reduce_the_error_in_the_norm_of_the_matrix():
    """Ten products of a 40-dimensional system: the known bound 2 ((sqrt k - 1)/(sqrt k + 1))^n holds."""
    a = _spd(40, 1, condition=30.0)
    b = torch.randn(40, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    exact = torch.linalg.solve(a, b)
    x, residual, used = conjugate_gradient(lambda v: a @ v, b, iterations=10)
    root = math.sqrt(30.0)
    bound = 2 * ((root - 1) / (root + 1)) ** 10
    assert used == 10
    assert ((x - exact) @ a @ (x - exact) / (exact @ a @ exact)).sqrt() <= bound
    torch.testing.assert_close(residual, b - a @ x, rtol=0, atol=1e-12)


def test_stops_within_the_tolerance():
    a = _spd(20, 3)
    b = torch.ones(20, dtype=torch.double)
    _, residual, used = conjugate_gradient(lambda v: a @ v, b, iterations=100, tolerance=1e-4)
    assert residual @ residual <= 1e-4 * (b @ b)
    assert used < 20


def test_stops_before_a_direction_of_negative_curvature():
    """diag(2, 1, -1) and b = (1, 1, 0.1): the iterate of the sound steps is returned, finite, with its residual."""
    a = torch.diag(torch.tensor([2.0, 1.0, -1.0], dtype=torch.double))
    b = torch.tensor([1.0, 1.0, 0.1], dtype=torch.double)
    x, residual, used = conjugate_gradient(lambda v: a @ v, b)
    assert used < 3
    assert bool(torch.isfinite(x).all())
    torch.testing.assert_close(residual, b - a @ x, rtol=0, atol=1e-12)
    x, residual, used = conjugate_gradient(lambda v: -v, b)
    assert used == 0
    assert torch.equal(x, torch.zeros(3, dtype=torch.double))
    assert torch.equal(residual, b)


def test_nan_products_and_a_zero_right_hand_side_end_at_the_last_sound_iterate():
    b = torch.tensor([1.0, 2.0])
    x, residual, used = conjugate_gradient(lambda v: v * math.nan, b)
    assert (used, x.tolist(), residual.tolist()) == (0, [0.0, 0.0], [1.0, 2.0])

    products = itertools.count()
    diagonal = torch.tensor([2.0, 1.0])
    x, residual, used = conjugate_gradient(lambda v: diagonal * v * (math.nan if next(products) else 1), b)
    assert used == 1
    assert bool(torch.isfinite(x).all())
    torch.testing.assert_close(residual, b - diagonal * x)

    zero = torch.zeros(3)
    x, residual, used = conjugate_gradient(lambda v: pytest.fail("no product is needed for b = 0"), zero)
    assert (used, x.tolist(), residual.tolist()) == (0, [0.0] * 3, [0.0] * 3)


def test_the_arguments_are_left_alone():
    b = torch.ones(4)
    conjugate_gradient(lambda v: 2 * v, b)
    assert torch.equal(b, torch.ones(4))


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 6, 7, 10, 12, 97, 200, 4000])
def test_spread_chooses_so_many_different_indices(total):
    for count in {1, max(1, total // 10), max(1, total // 3), total}:
        index = spread(total, count)
        assert index.dtype == torch.int64
        assert index.tolist() == sorted(set(index.tolist()))
        assert len(index) == count
        assert int(index[0]) >= 0
        assert int(index[-1]) < total


@pytest.mark.parametrize(
    ("steps", "episodes"), [(200, 20), (100, 20), (200, 10), (100, 25), (64, 16), (35, 40), (50, 7)]
)
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_spread_covers_episodes_and_times_evenly(steps, episodes, fraction):
    """States are flattened as (T, E): every tenth index would look at two of twenty episodes only."""
    total = steps * episodes
    count = round(fraction * total)
    index = spread(total, count)
    share = count / episodes
    per_episode = torch.bincount(index % episodes, minlength=episodes).double()
    assert per_episode.min() >= 0.5 * share - 1
    assert per_episode.max() <= 1.5 * share + 1
    blocks = 10
    per_block = torch.bincount(index // episodes * blocks // steps, minlength=blocks).double()
    sizes = torch.bincount(torch.arange(total) // episodes * blocks // steps, minlength=blocks).double()
    torch.testing.assert_close(per_block, sizes * fraction, rtol=0.15, atol=4.0)
