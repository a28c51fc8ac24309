"""A map as a grid of places where a player can stand, and which steps between neighbouring places can be taken.

As the engine does, a player is a square of 32 units that stands on the highest floor it touches, below the lowest
ceiling it touches: two numbers for each place, for any heights of the sectors. Places lie 8 units apart, on whole
multiples of 8, as maps' walls do: so a passage that is exactly as wide as the player has a place in its middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from p2p.gate import Refused
from p2p.levels.wad import MEDIUM_SKILL, MULTIPLAYER, Level

SPACING = 8
RADIUS, HEIGHT, STEP = 16, 56, 24  # of a player, and the highest step that it climbs
MAX_PLACES = 8_000_000
MAX_LOOKS = 20_000_000  # places in the boxes around all lines; of Freedoom's maps 650,000 at most
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (row, column), as angles grow
BLOCKED_FLOOR, BLOCKED_CEILING = 30_000, -30_000

# Decoration that blocks the way: thing type to radius.
_SOLID_THINGS = {
    **dict.fromkeys((2028, 30, 31, 32, 33, 36, 37, 35, 41, 42, 43, 44, 45, 46, 47, 48, 55, 56, 57), 16),
    **dict.fromkeys((25, 26, 27, 28, 29, 49, 50, 51, 52, 53, 70, 73, 74, 75, 76, 77, 78, 85, 86), 16),
    54: 32,
    2035: 10,  # a barrel
}

Heights = NDArray[np.int64]  # [sectors]
Places = NDArray[np.int64]  # indices into the flattened grid


@dataclass(frozen=True)
class Grid:
    """Places of a level, row by row from the south-west; each touches one sector or more.

    Attributes:
        sectors, starts: the sectors touched by place i are sectors[starts[i]:starts[i + 1]].
        sector: [places] in which sector the middle lies; -1: in none.
        solid: [places] nobody can ever stand there.
    """

    level: Level
    west: int
    south: int
    num_rows: int
    num_columns: int
    sectors: NDArray[np.int64]
    starts: NDArray[np.int64]
    sector: NDArray[np.int64]
    solid: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """How many places there are."""
        return self.num_rows * self.num_columns

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[8] What to add to a place's index for its neighbour in each of DIRECTIONS."""
        return np.array([row * self.num_columns + column for row, column in DIRECTIONS], np.int64)

    def place(self, x: float, y: float) -> int:
        """The place nearest to a point; ValueError outside."""
        column, row = round((x - self.west) / SPACING), round((y - self.south) / SPACING)
        if not (0 <= column < self.num_columns and 0 <= row < self.num_rows):
            raise ValueError(f"({x:.0f}, {y:.0f}) lies outside the map {self.level.name}")
        return row * self.num_columns + column

    def point(self, place: int) -> tuple[float, float]:
        """Where a place is."""
        row, column = divmod(place, self.num_columns)
        return float(self.west + SPACING * column), float(self.south + SPACING * row)

    def points(self, places: Places) -> NDArray[np.float64]:
        """[n, 2] Where places are."""
        rows, columns = np.divmod(places, self.num_columns)
        return np.stack([self.west + SPACING * columns, self.south + SPACING * rows], axis=-1).astype(np.float64)

    def heights(self, floor: Heights, ceiling: Heights) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[places] Floor and ceiling of whoever stands there, for these heights of the sectors."""
        low = np.where(self.solid, BLOCKED_FLOOR, np.maximum.reduceat(floor[self.sectors], self.starts[:-1]))
        high = np.where(self.solid, BLOCKED_CEILING, np.minimum.reduceat(ceiling[self.sectors], self.starts[:-1]))
        return low, high

    def touched(self, place: int) -> list[int]:
        """The sectors that a player touches there."""
        return [int(sector) for sector in self.sectors[self.starts[place] : self.starts[place + 1]]]

    def steps(self, floor: Heights, ceiling: Heights) -> NDArray[np.bool_]:
        """[places, 8] Whether one gets from a place to its neighbour in each direction, for these heights."""
        low, high = self.heights(floor, ceiling)
        fits = (high - low >= HEIGHT).reshape(self.num_rows, self.num_columns)
        low, high = (values.reshape(self.num_rows, self.num_columns) for values in (low, high))
        possible = np.zeros((self.num_rows, self.num_columns, 8), np.bool_)
        for number, (row, column) in enumerate(DIRECTIONS):
            here, there = _overlap(self.num_rows, row), _overlap(self.num_columns, column)
            a, b = (here[0], there[0]), (here[1], there[1])
            possible[(*a, number)] = fits[a] & fits[b] & (low[b] - low[a] <= STEP) & (high[b] - low[a] >= HEIGHT)
        straight = possible.copy()
        for number in (1, 3, 5, 7):  # no corner is cut
            possible[..., number] &= straight[..., number - 1] & straight[..., (number + 1) % 8]
        return possible.reshape(self.size, 8)


def _overlap(count: int, shift: int) -> tuple[slice, slice]:
    """Indices from which, and to which, a shift leads inside `count`."""
    return slice(max(0, -shift), count - max(0, shift)), slice(max(0, shift), count + min(0, shift))


def make_grid(level: Level, solid_things: bool = True) -> Grid:
    """Lay the grid over a level.

    Raises:
        Refused: when the level has no lines, or is too large.
    """
    if not len(level.start):
        raise Refused(f"{level.name}: the map has no lines")
    corners = np.concatenate([level.start, level.end])
    west, south = (int(value) // SPACING * SPACING - 8 * SPACING for value in corners.min(axis=0))
    num_columns, num_rows = ((corners.max(axis=0) - (west, south)) // SPACING + 9).astype(int).tolist()
    if num_rows * num_columns > MAX_PLACES:
        raise Refused(f"{level.name}: {num_rows} x {num_columns} places; at most {MAX_PLACES} in a map")
    looks = (np.abs(level.end - level.start) // SPACING + 5).prod(axis=1).sum()
    if looks > MAX_LOOKS:
        raise Refused(f"{level.name}: its lines are too long: {looks:.0f} places along them; at most {MAX_LOOKS}")
    sector = _sectors_of_places(level, west, south, num_rows, num_columns)
    solid = sector < 0
    size = num_rows * num_columns
    inside = np.flatnonzero(~solid)
    pairs = [np.stack([np.arange(size), np.maximum(sector, 0)], axis=1)]
    for line in range(len(level.start)):
        places = _touching(level, line, west, south, num_rows, num_columns)
        if level.solid[line]:
            solid[places] = True
        else:
            pairs += [np.stack([places, np.full(len(places), side)], axis=1) for side in _sides(level, line)]
    if solid_things:
        for x, y, radius in _blocking_things(level):
            near = np.abs(_points(inside, west, south, num_columns) - (x, y)).max(axis=1) < radius + RADIUS
            solid[inside[near]] = True
    keys = np.unique(np.concatenate([pair[:, 0] * len(level.floor) + pair[:, 1] for pair in pairs]))
    starts = np.searchsorted(keys // len(level.floor), np.arange(size + 1))
    return Grid(level, west, south, num_rows, num_columns, keys % len(level.floor), starts, sector, solid)


def _sides(level: Level, line: int) -> list[int]:
    return sorted({int(level.front[line]), int(level.back[line])})


def _points(places: Places, west: int, south: int, num_columns: int) -> NDArray[np.float64]:
    rows, columns = np.divmod(places, num_columns)
    return np.stack([west + SPACING * columns, south + SPACING * rows], axis=-1).astype(np.float64)


def _touching(level: Level, line: int, west: int, south: int, num_rows: int, num_columns: int) -> Places:
    """Places whose player overlaps the line: their bounding boxes do, and the line passes not outside its corners."""
    (ax, ay), (bx, by) = level.start[line], level.end[line]
    low_x, high_x, low_y, high_y = (
        min(ax, bx) - RADIUS,
        max(ax, bx) + RADIUS,
        min(ay, by) - RADIUS,
        max(ay, by) + RADIUS,
    )
    columns = np.arange(int((low_x - west) // SPACING) + 1, int(-((west - high_x) // SPACING)))
    rows = np.arange(int((low_y - south) // SPACING) + 1, int(-((south - high_y) // SPACING)))
    columns, rows = columns[(columns >= 0) & (columns < num_columns)], rows[(rows >= 0) & (rows < num_rows)]
    x, y = np.meshgrid(west + SPACING * columns, south + SPACING * rows)
    away = np.abs((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    near = away < RADIUS * (abs(bx - ax) + abs(by - ay))
    row, column = np.nonzero(near)
    return (rows[row] * num_columns + columns[column]).astype(np.int64)


def _sectors_of_places(level: Level, west: int, south: int, num_rows: int, num_columns: int) -> NDArray[np.int64]:
    """[places] In which sector each place lies: along a row, the sector behind the last line that was crossed.

    A row is looked at a quarter of a unit beside its places, so that no line's end, and no line along it, lies on it.
    """
    found = np.full((num_rows, num_columns), -1, np.int64)
    x = west + SPACING * np.arange(num_columns) + 0.25
    upward = level.end[:, 1] > level.start[:, 1]
    east_side = np.where(upward, level.front, level.back)  # front is on the right of whoever walks along the line
    for row in range(num_rows):
        y = south + SPACING * row + 0.25
        crossing = np.flatnonzero((level.start[:, 1] > y) != (level.end[:, 1] > y))
        if len(crossing):
            start, end = level.start[crossing], level.end[crossing]
            where = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
            order = np.argsort(where)
            last = np.searchsorted(where[order], x) - 1
            found[row] = np.where(last >= 0, east_side[crossing[order]][last], -1)
    return found.reshape(-1)


def sector_at(level: Level, x: float, y: float) -> int:
    """The sector of a point; -1: none."""
    y += 0.25
    crossing = np.flatnonzero((level.start[:, 1] > y) != (level.end[:, 1] > y))
    start, end = level.start[crossing], level.end[crossing]
    where = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
    west = np.where(where <= x, where, -np.inf)
    if not len(west) or np.isinf(west.max()):
        return -1
    line = crossing[int(west.argmax())]
    return int(level.front[line] if level.end[line, 1] > level.start[line, 1] else level.back[line])


def _blocking_things(level: Level) -> list[tuple[float, float, int]]:
    """Decoration of a game at normal skill that nobody walks through: where, and its radius."""
    return [
        (float(thing["x"]), float(thing["y"]), _SOLID_THINGS[int(thing["type"])])
        for thing in level.things
        if int(thing["type"]) in _SOLID_THINGS
        and int(thing["flags"]) & MEDIUM_SKILL
        and not int(thing["flags"]) & MULTIPLAYER
    ]
