"""Random numbers against NumPy's and SciPy's, and demand that swells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from metarl.envs import counters
from metarl.envs.traffic import arrivals
from metarl.envs.traffic.network import Grid

CPU = torch.device("cpu")


def test_uniform_numbers_are_the_other_familys():
    """SplitMix64 in signed words: catches a shift that repeats the sign, in half of all numbers."""
    seeds = np.array([0, 1, 5, 2**32 - 1], dtype=np.uint32)
    for counter in (0, 1, 17, 10**6):
        ours = arrivals.uniform(arrivals.keys(seeds, CPU), torch.tensor(counter))
        assert np.array_equal(ours.numpy(), counters.uniform(counters.keys(seeds), counter))


def test_decay_is_the_exponential():
    x = np.concatenate([np.linspace(0, 5, 1001), np.linspace(5, 64, 500)])
    expected = np.array([math.exp(-value) for value in x])
    np.testing.assert_allclose(arrivals.decay(torch.as_tensor(x)).numpy(), expected, rtol=3e-13)
    assert float(arrivals.decay(torch.tensor(1e6, dtype=torch.float64))) < 1e-27


@pytest.mark.parametrize("mean", [0.0, 1e-3, 0.14, 0.55, 1.2])
def test_poisson_numbers_are_the_quantiles(mean):
    unit = np.random.default_rng(0).random(20000)
    ours = arrivals.poisson(torch.tensor(mean, dtype=torch.float64), torch.as_tensor(unit))
    assert np.array_equal(ours.numpy(), np.maximum(scipy.stats.poisson.ppf(unit, mean), 0))


def test_nearly_normal_numbers_have_the_moments():
    """Mean 0, variance 1, kurtosis 3 - 1.2 / 4 of a sum of four uniforms; successive numbers do not hang together."""
    keys = arrivals.keys(np.arange(20000, dtype=np.uint32), CPU)
    first, second = (arrivals.gaussian(keys, torch.tensor(c)).numpy() for c in (0, 1))
    assert abs(first.mean()) < 4 / math.sqrt(20000)
    assert first.var() == pytest.approx(1.0, abs=0.04)
    assert (first**4).mean() == pytest.approx(2.7, abs=0.15)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert np.abs(first).max() <= 2 * math.sqrt(3)


def test_demand_swells_as_the_formula_says(scenes):
    """Flowing arrivals of every second against the formula in plain Python; veh/h are turned into veh/s once."""
    grid = Grid(rows=1, columns=1)
    course = torch.tensor([[0.8], [30.0], [12.0], [0.5], [40.0]], dtype=torch.float64)
    sim = scenes.make(grid, demand=[360, 720, 1080, 1440], course=course)
    before = 0.0
    for second in range(60):
        sim.tick()
        factor = 1 + 0.8 * math.exp(-((second - 30) ** 2) / (2 * 12**2))
        east = 0.5 - second / 40 if second < 40 else -0.5  # what comes eastwards is more by this part, westwards less
        mean = 0.1 + 0.2 * (1 + east) + 0.3 + 0.4 * (1 - east)
        assert float(sim.demanded) - before == pytest.approx(factor * mean, abs=1e-8)
        before = float(sim.demanded)


def test_random_arrivals_have_the_mean_and_the_variance_of_each_entry(scenes):
    """Every entry its own; a Poisson count's variance is its mean. Catches entries that share numbers."""
    grid, count, seconds = Grid(rows=1, columns=2), 400, 100
    rates = np.array([300.0, 600, 900, 1200, 1500, 1800])
    keys = arrivals.keys(np.arange(count, dtype=np.uint32), CPU)
    mean = torch.as_tensor(rates / 3600)[None, :, None].repeat(seconds, 1, count)
    drawn = arrivals.drawn(keys, mean, 0).numpy()
    totals = drawn.sum(0)  # (E, B)
    expected = rates / 3600 * seconds
    assert (np.abs(totals.mean(1) - expected) < 4 * np.sqrt(expected / count)).all()
    np.testing.assert_allclose(totals.var(1) / expected, 1.0, atol=4 * math.sqrt(2 / count))
    correlation = np.corrcoef(totals) - np.eye(grid.entries)
    assert np.abs(correlation).max() < 4 / math.sqrt(count)
    later = arrivals.drawn(keys, mean[:10], 60).numpy()
    assert np.array_equal(later, drawn[60:70])  # a second's arrivals do not depend on where drawing began


def test_a_simulation_gets_each_second_its_own_arrivals(scenes):
    """Across the blocks in which they are drawn: catches one that comes again and again."""
    grid, seeds = Grid(rows=1, columns=2), np.array([0, 1], dtype=np.uint32)
    rates = np.array([300.0, 600, 900, 1200, 1500, 1800])
    sim = scenes.make(grid, 2, poisson=True, demand=rates)
    mean = torch.as_tensor(rates / 3600)[None, :, None].repeat(70, 1, 2)
    expected = arrivals.drawn(arrivals.keys(seeds, CPU), mean, 0).sum(1).cumsum(0)
    for second in range(70):
        sim.tick()
        assert torch.equal(sim.demanded, expected[second])


def test_arrivals_come_to_their_own_entry(scenes):
    """Entry by entry, one alone: catches blocks of the entries in another order than documented."""
    grid = Grid(rows=2, columns=3)
    places = [(0, 1, c) for c in range(3)] + [(1, r, 0) for r in range(2)]
    places += [(2, 0, c) for c in range(3)] + [(3, r, 2) for r in range(2)]
    numbers = [grid.entry(h, c if h % 2 == 0 else r) for h, r, c in places]
    assert numbers == list(range(grid.entries))
    for number, place in enumerate(places):
        rates = np.zeros(grid.entries)
        rates[number] = 3600.0 * 0.5
        sim = scenes.make(grid, demand=rates)
        sim.tick()
        assert float(sim.entered[(*place, 0)]) == pytest.approx(0.5, abs=1e-8)
        assert float(sim.entered.sum()) == float(sim.demanded)
    with pytest.raises(ValueError, match="no entry"):
        grid.entry(1, 2)
