"""Pictures of a grid for the eye: queues, density and lights."""

from __future__ import annotations

from typing import Any

import numpy as np

from metarl.envs.traffic.network import MOVEMENTS, Grid
from metarl.envs.traffic.town import Town

# Drawing units: intersections are 1 apart, traffic keeps to the right.
_AWAY, _SIDE = 0.16, 0.05
_FORWARD = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)], dtype=np.float64)  # x eastwards, y northwards
_RIGHT = np.array([(1, 0), (0, -1), (-1, 0), (0, 1)], dtype=np.float64)
_LIGHTS = ("#d62728", "#e6b800", "#2ca02c")  # red, yellow, green
_QUEUES = ("#1f77b4", "#333333", "#9467bd")  # left, straight on, right


def draw(sim: Town, index: int, axes: Any) -> None:
    """Draw one of the grids on matplotlib axes.

    Every approach is a grey road that gets redder the fuller the link is. Bars at the stop line are the queues of left (blue),
    straight (black) and right (violet) traffic, as long as they would stand; the light before them shows what the movements
    left, and straight on with right, may do. Numbers are vehicles that wait to enter.
    """
    grid = sim.grid
    full = (sim.on_links[..., index] / grid.storage).cpu().numpy()
    queues = sim.queues[..., index].cpu().numpy()
    waiting = sim.origins[..., index].cpu().numpy()
    shown = sim.signals.shown()[..., index].cpu().numpy()
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-1.0, grid.columns)
    axes.set_ylim(-grid.rows, 1.0)
    for h, r, c in np.ndindex(4, grid.rows, grid.columns):
        stop = np.array([c, -r]) - _AWAY * _FORWARD[h] + _SIDE * _RIGHT[h]
        start = stop - (1 - 2 * _AWAY) * _FORWARD[h]
        load = float(full[h, r, c])
        _line(axes, start, stop, (0.85, 0.85 * (1 - load), 0.85 * (1 - load)), 5)
        _bars(axes, grid, queues[:, h, r, c], stop, h)
        for left, place in ((0, -0.02), (1, 0.02)):
            spot = stop + 0.05 * _FORWARD[h] + place * _RIGHT[h]
            axes.plot(*spot, "o", color=_LIGHTS[int(shown[left, h % 2, r, c])], markersize=3.5)
        if waiting[h, r, c] >= 0.5:
            spot = start - 0.1 * _FORWARD[h]
            axes.text(*spot, f"{waiting[h, r, c]:.0f}", ha="center", va="center", fontsize=7)
    axes.set_title(
        f"{sim.clock} s, {float(sim.vehicles[index]):.0f} vehicles", fontsize=8, y=-0.06
    )  # videos write above


def _bars(axes: Any, grid: Grid, queues: np.ndarray, stop: np.ndarray, heading: int) -> None:
    """Draw queues side by side, to the scale of the link."""
    scale = (1 - 2 * _AWAY) / grid.length * grid.spacing
    for movement, place in zip(range(len(MOVEMENTS)), (-0.03, 0.0, 0.03), strict=True):
        lanes = 1 if movement == 0 else grid.lanes
        if queues[movement] > 0.05:
            end = stop + place * _RIGHT[heading]
            begin = end - scale * float(queues[movement]) / lanes * _FORWARD[heading]
            _line(axes, begin, end, _QUEUES[movement], 2)


def _line(axes: Any, begin: np.ndarray, end: np.ndarray, color: Any, width: float) -> None:
    axes.plot([begin[0], end[0]], [begin[1], end[1]], color=color, linewidth=width, solid_capstyle="butt")


def image(sim: Town, index: int, width: int, height: int) -> np.ndarray:
    """Draw one of the grids, uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    draw(sim, index, figure.add_axes((0.02, 0.08, 0.96, 0.9)))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def space_time(axes: Any, loads: np.ndarray, green: np.ndarray, step: float, length: float) -> None:
    """Draw how full the links of one street are over time, on matplotlib axes.

    Time goes to the right, traffic upwards, link by link from the entry; a link is the redder the fuller it is. Beside its stop
    line, its upper end, it is green where the street may go straight on.

    Args:
        axes: to draw on.
        loads: part of each link that is full, (T, links).
        green: whether the street has green, bool (T, links).
        step: seconds between two of the T moments.
        length: of a link, m.
    """
    count, links = loads.shape
    extent = (0.0, count * step, 0.0, links * length)
    shown = axes.imshow(loads.T, origin="lower", aspect="auto", extent=extent, cmap="YlOrRd", vmin=0.0, vmax=1.0)
    for link in range(links):
        for time in np.flatnonzero(green[:, link]):
            line = ((link + 1) * length - 12.0,) * 2
            axes.plot((time * step, (time + 1) * step), line, color=_LIGHTS[2], linewidth=3, solid_capstyle="butt")
    axes.set_xlabel("time, s")
    axes.set_ylabel("along the street, m")
    axes.figure.colorbar(shown, ax=axes, label="part of the link that is full")
