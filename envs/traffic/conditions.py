"""From tables of tasks to what the simulator takes.

Shapes: H = 4 headings, R rows, C columns, N = R * C intersections, E entries, B grids.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from metarl.envs.traffic import arrivals, topology
from metarl.envs.traffic.detectors import Detectors
from metarl.envs.traffic.network import Grid
from metarl.envs.traffic.simulator import Conditions

_CPU = torch.device("cpu")


def conditions(values: Mapping[str, np.ndarray], grid: Grid, device: torch.device = _CPU) -> Conditions:
    """Return the conditions of B grids from :func:`metarl.envs.traffic.task.table`."""
    given = {name: torch.tensor(numbers, dtype=torch.float64, device=device) for name, numbers in values.items()}
    count = given["demand"].shape[1]
    links = (4, grid.rows, grid.columns, count)
    left, right = given["left"], given["right"]
    straight = (1.0 - left - right).clamp_(min=0.0)
    shares = torch.stack([left, straight, right])[:, :, None, None].expand(3, *links).contiguous()
    number = torch.arange(4 * grid.intersections, device=device)[:, None]
    hit = torch.where(number == given["incident_approach"], given["incident_factor"], 1.0)
    begin = given["incident_start"][0].floor()
    return Conditions(
        demand=given["demand"] / 3600,
        course=torch.cat([given[n] for n in ("peak_height", "peak_time", "peak_width", "tide", "tide_turn")]),
        shares=shares,
        saturation=given["saturation"].reshape(links).contiguous(),
        lost=given["lost_time"][0],
        incident=hit.reshape(links).contiguous(),
        begin=begin,
        end=begin + given["incident_duration"][0].floor(),
    )


def detectors(
    values: Mapping[str, np.ndarray], grid: Grid, seeds: np.ndarray, device: torch.device = _CPU
) -> Detectors:
    """Return the detectors of B grids, likewise."""
    given = {
        name: torch.tensor(values[name], dtype=torch.float64, device=device) for name in ("detector", "noise", "bias")
    }
    working = given["detector"].reshape(4, grid.rows, grid.columns, -1).contiguous()
    return Detectors(working, given["noise"][0], given["bias"][0], arrivals.keys(seeds, device))


def link_flows(demand: Tensor, shares: Tensor) -> Tensor:
    """Return the flow that every approach would have if nothing held it up, veh/s, (H, R, C, B).

    Args:
        demand: at the entries, veh/s, (E, B).
        shares: turning shares, (3, H, R, C, B).

    Raises:
        ValueError: if vehicles could drive in circles for ever.
    """
    begin = torch.zeros_like(shares[0])
    views = topology.entries(begin)
    for view, some in zip(views, torch.split(demand, [len(view) for view in views]), strict=True):
        view += some
    flow = begin
    # flow = begin + what drives on, until nothing changes any more; a grid that is done stays as it is, whatever others do
    for _ in range(1000):
        moved = topology.outgoing(shares * flow)
        following = topology.drive_on(moved[0] + moved[1] + moved[2], begin.clone())
        changes = (following - flow).abs().amax((0, 1, 2)) >= 1e-9
        if not bool(changes.any()):
            return flow
        flow = torch.where(changes, following, flow)
    raise ValueError("turning shares keep vehicles in the grid for ever")


def flow_ratios(grid: Grid, given: Conditions) -> Tensor:
    """Return the largest ratio of flow to saturation flow among the lanes of each phase, at base demand, (4, R, C, B)."""
    flow = link_flows(given.demand, given.shares)
    pace = given.saturation * (grid.saturation / 3600)
    left = given.shares[0] * flow / pace
    through = (given.shares[1] + given.shares[2]) * flow / (pace * grid.lanes)
    return torch.stack([torch.maximum(x[axis], x[axis + 2]) for axis in (0, 1) for x in (through, left)])


def loads(values: Mapping[str, np.ndarray], grid: Grid) -> np.ndarray:
    """Return Y of the busiest intersection, the sum of its phases' flow ratios, float64 (B,)."""
    ratios = flow_ratios(grid, conditions(values, grid))
    return (ratios[0] + ratios[1] + ratios[2] + ratios[3]).amax((0, 1)).numpy()
