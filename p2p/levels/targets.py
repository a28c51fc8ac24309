"""What there is to do on a map: lines to use or to walk over, keys to pick up, teleporters; and from where."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from p2p.gate import Refused
from p2p.levels.field import Jump
from p2p.levels.grid import HEIGHT, SPACING, Grid, Heights, Places, sector_at
from p2p.levels.mechanisms import Key, Mechanism, Trigger, exit_trigger, find_exits, find_mechanisms, find_teleporters
from p2p.levels.sight import in_front, meetings, nearest_point
from p2p.levels.wad import MEDIUM_SKILL, MULTIPLAYER, Level

USE_REACH = 44.0  # from the middle of a player to a line that it uses; the engine's is 64
CROSS_REACH = 12.0
TAKE_REACH = 24  # along each axis; the engine's is 36, at any height between feet and head
TELEPORT_REACH = 24.0
MAX_SPECIAL_LINES = 2_000  # of a map; Freedoom's maps have up to 289
MAX_PLACES_OF_LINE = 400  # that are looked at, evenly along it
KEY_THINGS: dict[int, Key] = {5: "blue", 40: "blue", 6: "yellow", 39: "yellow", 13: "red", 38: "red"}


@dataclass(frozen=True)
class Situation:
    """A level's heights and what the player has; `moving` sectors are on their way up or down."""

    floor: Heights
    ceiling: Heights
    keys: frozenset[Key] = frozenset()
    moving: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Target:
    """Something to be used, walked over, or taken.

    Attributes:
        places: where one stands to do it.
        key: of "take": the key; else the one that it needs, if any.
        sectors: those that it changes.
    """

    kind: Trigger | Literal["take"]
    places: tuple[int, ...]
    line: int = -1
    mechanism: Mechanism | None = None
    key: Key = ""
    sectors: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        changes = self.mechanism.changes if self.mechanism else ()
        object.__setattr__(self, "sectors", frozenset(change.sector for change in changes))


def mechanism_targets(level: Level, grid: Grid) -> list[Target]:
    """Every line that opens, lowers or raises something."""
    num_special = int(np.count_nonzero(level.special))
    if num_special > MAX_SPECIAL_LINES:
        raise Refused(f"{level.name}: {num_special} lines do something; at most {MAX_SPECIAL_LINES} in a map")
    return [_line_target(level, grid, m.trigger, m.line, m) for m in find_mechanisms(level)]


def exit_targets(level: Level, grid: Grid) -> list[Target]:
    """Every line that ends the level."""
    return [_line_target(level, grid, exit_trigger(level, line), line) for line in find_exits(level)]


def key_targets(level: Level, grid: Grid) -> list[Target]:
    """The keys of doors at normal skill."""
    found = []
    low, _ = grid.heights(level.floor, level.ceiling)
    shifts = range(-(TAKE_REACH // SPACING), TAKE_REACH // SPACING + 1)
    for thing in level.things:
        if int(thing["type"]) in KEY_THINGS and is_there(thing):
            x, y = float(thing["x"]), float(thing["y"])
            middle, height = grid.place(x, y), int(level.floor[sector_at(level, x, y)])
            near = [middle + row * grid.num_columns + column for row in shifts for column in shifts]
            places = tuple(place for place in near if not grid.solid[place] and -8 < height - low[place] < HEIGHT)
            found.append(Target("take", places, key=KEY_THINGS[int(thing["type"])]))
    return found


def is_there(thing: Any) -> bool:
    """Whether a thing of the map is there in a game for one at normal skill."""
    flags = int(thing["flags"])
    return bool(flags & MEDIUM_SKILL) and not flags & MULTIPLAYER


@dataclass(frozen=True)
class Teleports:
    """`jumps`: from a place to another, through the line of `lines`; `gone`: steps (place, direction) that jump."""

    jumps: tuple[Jump, ...]
    lines: dict[Jump, int]
    gone: tuple[tuple[int, int], ...]


def find_teleports(level: Level, grid: Grid) -> Teleports:
    """What steps over the front of a teleporter's line become."""
    lines: dict[Jump, int] = {}
    gone = []
    for teleporter in find_teleporters(level):
        landing = grid.place(teleporter.x, teleporter.y)
        near = places_near(level, grid, teleporter.line, TELEPORT_REACH)
        near = near[in_front(level, teleporter.line, grid.points(near)) > 0]
        for place in near.tolist():
            for direction, offset in enumerate(grid.offsets.tolist()):
                crossed, _ = meetings(level, grid.point(place), grid.point(place + offset))
                if teleporter.line in crossed:
                    gone.append((place, direction))
                    lines[place, landing] = teleporter.line
    return Teleports(tuple(lines), lines, tuple(gone))


def places_near(level: Level, grid: Grid, line: int, reach: float) -> Places:
    """Places within `reach` of a line."""
    a, b = level.start[line], level.end[line]
    low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
    columns = np.arange(math.ceil((low[0] - grid.west) / SPACING), int((high[0] - grid.west) // SPACING) + 1)
    rows = np.arange(math.ceil((low[1] - grid.south) / SPACING), int((high[1] - grid.south) // SPACING) + 1)
    places = (rows[:, None] * grid.num_columns + columns).reshape(-1)
    points = grid.points(places)
    along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.asarray(places[np.hypot(*(points - (a + along[:, None] * (b - a))).T) <= reach])


def _line_target(level: Level, grid: Grid, trigger: Trigger, line: int, mechanism: Mechanism | None = None) -> Target:
    near = places_near(level, grid, line, USE_REACH if trigger == "use" else CROSS_REACH)
    near = near[~grid.solid[near]]
    if trigger == "use":
        near = near[in_front(level, line, grid.points(near)) > 8]
        near = near[:: max(1, len(near) // MAX_PLACES_OF_LINE)]
        near = np.array([place for place in near.tolist() if _reaches(level, grid, place, line)], np.int64)
    return Target(trigger, tuple(near.tolist()), line, mechanism, mechanism.key if mechanism else "")


def _reaches(level: Level, grid: Grid, place: int, line: int) -> bool:
    """Whether nothing stands between a place and the nearest point of a line: no wall, no other line to use."""
    x, y = grid.point(place)
    lines, _ = meetings(level, (x, y), nearest_point(level, line, x, y))
    return not any(other != line and (level.solid[other] or level.special[other]) for other in lines.tolist())
