"""A grid as a SUMO network: plain XML of nodes, edges and connections, which SUMO's own ``netconvert`` builds.

An approach (heading, row, column) is two edges, ``a_h_r_c`` and, over the length of the pocket, ``p_h_r_c`` with one lane more
for left turns; what leaves the grid goes by ``x_h_r_c``. Lanes count from the right: straight on from all of the link's lanes,
right turns from the first, left turns from the pocket.
"""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import subprocess
from collections.abc import Iterator

from metarl.envs.traffic.network import Grid
from metarl.settings import SettingsError

# Metres from one intersection to the next: links keep their length, whatever the size of the intersections between.
_GAP = 30.0
_FORWARD = ((0, 1), (1, 0), (0, -1), (-1, 0))  # x eastwards, y northwards, by heading
MISSING = "SUMO is not installed: pip install -c constraints.txt -e '.[sumo]'"
# Simulations at once: each is a process of some 120 MB.
MOST = 32

Place = tuple[int, int, int]


def after(heading: int, movement: int) -> int:
    """Return the heading behind a turn: 0 left, 1 straight on, 2 right."""
    return (heading + movement - 1) % 4


def ahead(grid: Grid, place: Place, heading: int) -> Place | None:
    """Return the approach into which one drives who leaves an intersection with a heading; None for an exit."""
    _, row, column = place
    x, y = _FORWARD[heading]
    row, column = row - y, column + x
    return (heading, row, column) if 0 <= row < grid.rows and 0 <= column < grid.columns else None


def edge(kind: str, place: Place) -> str:
    """Return the name of an edge: ``a`` far and ``p`` near part of an approach, ``x`` exit."""
    return "_".join((kind, *map(str, place)))


def places(grid: Grid) -> Iterator[Place]:
    """Yield all approaches."""
    return itertools.product(range(4), range(grid.rows), range(grid.columns))


def onto(grid: Grid, place: Place, movement: int) -> str:
    """Return the edge that a movement of an approach leads to."""
    heading = after(place[0], movement)
    further = ahead(grid, place, heading)
    return edge("a", further) if further is not None else edge("x", (heading, place[1], place[2]))


def build(grid: Grid, folder: pathlib.Path) -> pathlib.Path:
    """Write the network of a grid into a folder; return its file.

    Raises:
        SettingsError: where SUMO is missing, or refuses the network.
    """
    if any(importlib.util.find_spec(name) is None for name in ("sumo", "libsumo")):
        raise SettingsError(MISSING)
    import sumo

    nodes, edges = _nodes_and_edges(grid)
    parts = {"nod": ("nodes", nodes), "edg": ("edges", edges), "con": ("connections", _connections(grid))}
    for suffix, (tag, lines) in parts.items():
        text = "\n".join([f"<{tag}>", *lines, f"</{tag}>"])
        (folder / f"grid.{suffix}.xml").write_text(text + "\n", encoding="utf-8")
    words = [str(pathlib.Path(sumo.SUMO_HOME) / "bin" / "netconvert"), "--no-turnarounds", "--no-warnings"]
    words += ["-n", "grid.nod.xml", "-e", "grid.edg.xml", "-x", "grid.con.xml", "-o", "grid.net.xml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SettingsError(f"SUMO's netconvert refuses the grid: {' '.join(done.stderr.split())[:300]}")
    return folder / "grid.net.xml"


def _nodes_and_edges(grid: Grid) -> tuple[list[str], list[str]]:
    step, near = grid.length + _GAP, grid.pocket + _GAP / 2
    nodes, edges = [], []

    def node(name: str, x: float, y: float, kind: str = "priority") -> None:
        nodes.append(f'  <node id="{name}" x="{x:g}" y="{y:g}" type="{kind}"/>')

    def road(name: str, begin: str, end: str, lanes: int, length: float) -> None:
        spec = f'numLanes="{lanes}" speed="{grid.speed:g}" length="{max(length, 1.0):g}" priority="1"'
        edges.append(f'  <edge id="{name}" from="{begin}" to="{end}" {spec}/>')

    for row, column in itertools.product(range(grid.rows), range(grid.columns)):
        node(f"n_{row}_{column}", column * step, -row * step, "traffic_light")
    for heading, row, column in places(grid):
        x, y = _FORWARD[heading]
        here, place = (column * step, -row * step), (heading, row, column)
        middle, start = f"m_{heading}_{row}_{column}", f"n_{row + y}_{column - x}"
        if ahead(grid, place, (heading + 2) % 4) is None:  # nobody is behind: an entry
            start = f"s_{heading}_{row}_{column}"
            node(start, here[0] - x * step, here[1] - y * step)
        node(middle, here[0] - x * near, here[1] - y * near)
        road(edge("a", place), start, middle, grid.lanes, grid.length - grid.pocket)
        road(edge("p", place), middle, f"n_{row}_{column}", grid.lanes + 1, grid.pocket)
        if ahead(grid, place, heading) is None:
            node(f"t_{heading}_{row}_{column}", here[0] + x * step, here[1] + y * step)
            road(edge("x", place), f"n_{row}_{column}", f"t_{heading}_{row}_{column}", grid.lanes, grid.length)
    return nodes, edges


def _connections(grid: Grid) -> list[str]:
    lines = []

    def joined(begin: str, end: str, from_lane: int, to_lane: int) -> None:
        lines.append(f'  <connection from="{begin}" to="{end}" fromLane="{from_lane}" toLane="{to_lane}"/>')

    last = grid.lanes - 1
    for place in places(grid):
        far, near = edge("a", place), edge("p", place)
        for lane in range(grid.lanes):
            joined(far, near, lane, lane)
            joined(near, onto(grid, place, 1), lane, lane)
        joined(far, near, last, grid.lanes)
        joined(near, onto(grid, place, 0), grid.lanes, last)
        joined(near, onto(grid, place, 2), 0, 0)
    return lines
