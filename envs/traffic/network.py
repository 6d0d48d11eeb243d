"""The grid of intersections: geometry, turns, protected phases, and the constants of its traffic.

Headings are the directions in which vehicles travel: 0 north, 1 east, 2 south, 3 west. Movements are turns: 0 left, 1
straight, 2 right. An approach (h, r, c) is the link on which vehicles travel with heading h *towards* the intersection in row r
(rows count southwards) and column c (columns count eastwards); so every link but the exits is an approach.
"""

from __future__ import annotations

import dataclasses

from metarl.settings import SettingsError, check, setting

HEADINGS = ("north", "east", "south", "west")
MOVEMENTS = ("left", "straight", "right")
LEFT, STRAIGHT, RIGHT = range(3)

# Phase 2 * axis + side: north and south bound traffic is axis 0, east and west bound axis 1; side 0 is straight on and right,
# side 1 is left. No two movements of a phase cross or merge, so none gives way.
PHASES = ("north-south", "north-south left", "east-west", "east-west left")


@dataclasses.dataclass(frozen=True)
class Grid:
    r"""A grid of equal links and signals; lengths in m, times in s.

    Traffic on a lane follows a triangular fundamental diagram with free speed $v$, backward wave speed $w$ and jam density
    $k_j$ = 1 / ``spacing``:

    $$ q(k) = \min(v k,\; w (k_j - k)), \qquad Q = \frac{v w k_j}{v + w} $$

    Defaults: 13.89 m/s (50 km/h; SUMO, LightSim), 5.56 m/s (20 km/h; LightSim), 7.5 m a standing vehicle (SUMO, CityFlow);
    hence Q = 1906 veh/h a lane. 300 m links are CityFlow's; 3 s yellow and 10 s decisions (hence 7 s minimum green) RESCO's.
    Saturation flows of 1800 to 2000 veh/h a lane are the textbooks'.

    Reference: Newell (1993), "A simplified theory of kinematic waves in highway traffic", parts I to III.
    """

    rows: int = setting(3, "rows of intersections, from north to south", low=1, high=20)
    columns: int = setting(3, "columns of intersections, from west to east", low=1, high=20)
    length: float = setting(300.0, "length of a link, m", low=50, high=2000)
    lanes: int = setting(2, "lanes of a link for traffic straight on and right", low=1, high=4)
    pocket: float = setting(
        100.0, "length of the left-turn pocket, m; the other lanes are marked over the same length", above=0
    )
    speed: float = setting(13.89, "free speed, m/s", low=1, high=40)
    wave: float = setting(5.56, "speed at which a jam dissolves backwards, m/s", low=1, high=40)
    spacing: float = setting(7.5, "road that a standing vehicle takes up, m", low=1, high=30)
    saturation: float = setting(1800.0, "saturation flow of a lane at its stop line, veh/h", low=100, high=3600)
    yellow: int = setting(3, "yellow before a phase ends, s; nothing crosses", low=0, high=20)
    all_red: int = setting(0, "all lights red between two phases, s", low=0, high=20)
    min_green: int = setting(7, "shortest green, s", low=0, high=60)

    def __post_init__(self) -> None:
        """Check every field and what they mean together."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in check(Grid, given).items():
            object.__setattr__(self, name, value)
        if self.pocket > self.length:
            raise SettingsError(f"pocket={self.pocket:g} is too large: it must be at most length={self.length:g}")
        if self.saturation / 3600 > self.lane_capacity:
            most = 3600 * self.lane_capacity
            raise SettingsError(f"saturation={self.saturation:g} is too large: a lane carries {most:.0f} veh/h")

    @property
    def intersections(self) -> int:
        """N = rows * columns."""
        return self.rows * self.columns

    @property
    def entries(self) -> int:
        """E, the links through which vehicles come: one a column from the south, a row from the west, and so on round.

        Entries are ordered by heading (north, east, south, west), then by row or column.
        """
        return 2 * (self.rows + self.columns)

    @property
    def eastwards(self) -> tuple[int, ...]:
        """Where the entries lead, in their order: 1 eastwards, -1 westwards, 0 elsewhere."""
        return (0,) * self.columns + (1,) * self.rows + (0,) * self.columns + (-1,) * self.rows

    @property
    def clearance(self) -> int:
        """Seconds from the end of a green to the beginning of the next one."""
        return self.yellow + self.all_red

    @property
    def lane_capacity(self) -> float:
        """Q, veh/s."""
        return self.speed * self.wave / (self.speed + self.wave) / self.spacing

    @property
    def storage(self) -> float:
        """Vehicles that stand on a link when it is full."""
        return self.lanes * self.length / self.spacing

    @property
    def pocket_storage(self) -> float:
        """Vehicles that stand on one lane over the length of the pocket."""
        return self.pocket / self.spacing

    @property
    def free_time(self) -> float:
        """Travel time of an empty link, s."""
        return self.length / self.speed

    @property
    def wave_time(self) -> float:
        """Time after which the tail of a full link feels that its head moves, s."""
        return self.length / self.wave

    def entry(self, heading: int, index: int) -> int:
        """Return the number of the entry with a heading in a column (north, south) or row (east, west)."""
        sizes = (self.columns, self.rows, self.columns, self.rows)
        if not (0 <= heading < 4 and 0 <= index < sizes[heading]):
            raise ValueError(f"there is no entry with heading {heading} and index {index}")
        return sum(sizes[:heading]) + index
