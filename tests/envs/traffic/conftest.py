"""Grids to simulate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.simulator import Conditions, GridSim


class Scenes:
    """Makes simulations whose conditions are alike everywhere, but for what a test names."""

    @staticmethod
    def conditions(grid, count=1, demand=0.0, shares=(0.15, 0.6, 0.25), **changes):
        """Conditions of ``count`` grids; ``demand`` in veh/h, a number or one an entry, or a tensor in veh/s; others as tensors."""
        links = (4, grid.rows, grid.columns, count)

        def full(value, *shape):
            return torch.full(shape, float(value), dtype=torch.float64)

        if not isinstance(demand, torch.Tensor):
            rates = np.broadcast_to(np.asarray(demand, dtype=np.float64) / 3600, grid.entries).copy()
            demand = torch.as_tensor(rates)[:, None].repeat(1, count)
        values = {
            "demand": demand,
            "course": torch.tensor([[0.0], [0.0], [1.0], [0.0], [1.0]], dtype=torch.float64).repeat(1, count),
            "shares": torch.tensor(shares, dtype=torch.float64).reshape(3, 1, 1, 1, 1).repeat(1, *links),
            "saturation": full(1, *links),
            "lost": full(0, count),
            "incident": full(1, *links),
            "begin": full(0, count),
            "end": full(0, count),
        }
        return Conditions(**(values | changes))

    @staticmethod
    def varied(grid, count, seed=0):
        """Conditions in which everything differs from grid to grid, heavy enough to spill back."""
        rng = np.random.default_rng(seed)
        links = (4, grid.rows, grid.columns, count)

        def uniform(low, high, *shape):
            return torch.as_tensor(rng.uniform(low, high, shape))

        shares = torch.as_tensor(np.moveaxis(rng.dirichlet([1.5, 6.0, 2.5], links), -1, 0).copy())
        begin = uniform(0, 300, count).floor()
        return Conditions(
            demand=uniform(300, 1500, grid.entries, count) / 3600,
            course=torch.stack([uniform(*ends, count) for ends in ((0, 1.5), (0, 600), (60, 200), (0, 0), (100, 600))]),
            shares=shares / shares.sum(0),
            saturation=uniform(0.45, 1, *links),
            lost=uniform(0, 4, count),
            incident=torch.where(uniform(0, 1, *links) < 0.1, 0.1, 1.0).double(),
            begin=begin,
            end=begin + 200,
        )

    def make(self, grid=None, count=1, poisson=False, **conditions):
        """A simulation with flowing, or random, arrivals."""
        grid = grid or Grid()
        return GridSim(grid, self.conditions(grid, count, **conditions), np.arange(count, dtype=np.uint32), poisson)

    @staticmethod
    def hold(sim, phase):
        """Ask for one phase everywhere, as soon as it is legal."""
        wanted = torch.full_like(sim.signals.phase, phase)
        sim.signals.request(torch.where(sim.signals.free, wanted, sim.signals.phase))

    @staticmethod
    def put(sim, approach, vehicles):
        """Let vehicles come to an entry now."""
        sim.origins[approach] += vehicles
        sim.demanded += vehicles

    def settle(self, sim, phase, seconds=30):
        """Show one phase everywhere until it is green."""
        for _ in range(seconds):
            self.hold(sim, phase)
            sim.tick()

    @staticmethod
    def state(sim):
        """Everything a simulation knows, by name, grids last."""
        signals = sim.signals
        return {
            "demanded": sim.demanded,
            "exited": sim.exited,
            "time_spent": sim.time_spent,
            "mixed": sim.mixed,
            "queues": sim.queues,
            "origins": sim.origins,
            "entered": sim.entered,
            "left": sim.left,
            "on_links": sim.on_links,
            "in_transit": sim.in_transit,
            "phase": signals.phase,
            "age": signals.age,
        }

    @staticmethod
    def random_requests(sim, key, rows=None):
        """Legal phases that are a function of the second and of a number for every grid."""
        legal = sim.signals.legal()
        count = len(key)
        noise = [np.random.default_rng([int(k), sim.clock]).random((4, *legal.shape[1:3])) for k in key]
        level = torch.as_tensor(np.stack(noise, -1)).reshape(4, *legal.shape[1:3], count)
        keep = torch.as_tensor(np.array([np.random.default_rng([int(k), sim.clock, 1]).random() < 0.8 for k in key]))
        return torch.where(keep, sim.signals.phase, torch.where(legal, level, -1.0).argmax(0))


@pytest.fixture(name="scenes")
def _scenes():
    return Scenes()
