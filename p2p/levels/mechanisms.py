"""What a map's lines do when they are used or walked over: doors, lifts, floors, teleporters, the exit.

The numbers are Doom's own line types. What a script or a gun sets off is left out, and so are crushers: nobody needs
them to reach an exit by walking, using and waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from p2p.levels.wad import Level

Trigger = Literal["use", "walk"]
Effect = Literal["door", "lift", "lower", "lower_high", "turbo_lower", "raise", "raise_ceiling", "raise_by"]
Key = Literal["", "blue", "yellow", "red"]

DOOR_CLEARANCE = 4  # an open door stops so far below the lowest ceiling around it

EXITS = {11: "use", 52: "walk", 51: "use", 124: "walk"}
SECRET_EXITS = (51, 124)
TELEPORTERS = (39, 97)
_MANUAL: dict[int, tuple[Key, bool]] = {  # key, and whether the door closes again
    1: ("", True), 26: ("blue", True), 27: ("yellow", True), 28: ("red", True), 117: ("", True),
    31: ("", False), 32: ("blue", False), 33: ("red", False), 34: ("yellow", False), 118: ("", False),
}  # fmt: skip
_LOCKED: dict[int, Key] = {99: "blue", 133: "blue", 134: "red", 135: "red", 136: "yellow", 137: "yellow"}
_REMOTE: dict[Effect, tuple[tuple[int, ...], tuple[int, ...]]] = {  # special numbers: used, walked over
    "door": (
        (29, 63, 103, 61, 111, 114, 112, 115, *_LOCKED),
        (2, 4, 86, 90, 105, 106, 108, 109),
    ),
    "lift": ((21, 62, 122, 123), (10, 88, 120, 121, 53, 87)),
    "lower": ((23, 60), (38, 82, 37, 84)),
    "lower_high": ((102, 45), (19, 83)),
    "turbo_lower": ((71, 70), (36, 98)),
    "raise": ((18, 69, 131, 132, 20, 68), (119, 128, 129, 130, 22, 95)),
    "raise_ceiling": ((101, 64), (5, 91)),
    "raise_by": ((14, 67, 15, 66, 140), (58, 92, 59, 93)),
}
_RISE = {14: 32, 67: 32, 15: 24, 66: 24, 58: 24, 92: 24, 59: 24, 93: 24, 140: 512}
_STAIRS: dict[int, tuple[Trigger, int]] = {7: ("use", 8), 127: ("use", 16), 8: ("walk", 8), 100: ("walk", 16)}
_DONUT = 9
_RETURNING = {29, 63, 4, 90, 105, 108, 111, 114}
_SIDES: tuple[Trigger, Trigger] = ("use", "walk")
_EFFECTS: dict[int, tuple[Effect, Trigger]] = {
    number: (effect, trigger)
    for effect, sides in _REMOTE.items()
    for trigger, numbers in zip(_SIDES, sides, strict=True)
    for number in numbers
}


@dataclass(frozen=True)
class Change:
    """Where a sector's floor or ceiling goes; None: it stays."""

    sector: int
    floor: int | None = None
    ceiling: int | None = None
    returns: bool = False  # by itself, after a few seconds


@dataclass(frozen=True)
class Mechanism:
    """A line that changes sectors. `manual`: the line is the door's own face."""

    line: int
    trigger: Trigger
    changes: tuple[Change, ...]
    key: Key = ""
    manual: bool = False


@dataclass(frozen=True)
class Teleporter:
    """A line that takes who crosses it from its front to (x, y)."""

    line: int
    x: float
    y: float


def find_mechanisms(level: Level) -> list[Mechanism]:
    """Every line that opens, lowers or raises something."""
    found = []
    for line in np.flatnonzero(level.special).tolist():
        special, tag = int(level.special[line]), int(level.tag[line])
        if special in _MANUAL and level.back[line] >= 0:
            key, returns = _MANUAL[special]
            change = _door(level, int(level.back[line]), returns)
            found.append(Mechanism(line, "use", (change,), key, manual=True))
        elif special in _EFFECTS and tag:
            effect, trigger = _EFFECTS[special]
            changes = tuple(_change(level, sector, effect, special) for sector in _tagged(level, tag))
            found.append(Mechanism(line, trigger, changes, _LOCKED.get(special, "")))
        elif special in _STAIRS and tag:
            trigger, step = _STAIRS[special]
            changes = tuple(change for sector in _tagged(level, tag) for change in _stairs(level, sector, step))
            found.append(Mechanism(line, trigger, changes))
        elif special == _DONUT and tag:
            changes = tuple(change for sector in _tagged(level, tag) for change in _donut(level, sector))
            found.append(Mechanism(line, "use", changes))
    return [mechanism for mechanism in found if mechanism.changes]


def find_exits(level: Level, secret: bool = False) -> list[int]:
    """Lines that end the level; those to a secret level only where there is no other, or when they are asked for."""
    exits = [line for line in np.flatnonzero(level.special).tolist() if int(level.special[line]) in EXITS]
    plain = [line for line in exits if int(level.special[line]) not in SECRET_EXITS]
    return exits if secret or not plain else plain


def exit_trigger(level: Level, line: int) -> Trigger:
    """Whether the exit is used or walked over."""
    return "walk" if EXITS[int(level.special[line])] == "walk" else "use"


def _tagged(level: Level, tag: int) -> list[int]:
    return [int(sector) for sector in np.flatnonzero(level.sector_tag == tag)]


def _door(level: Level, sector: int, returns: bool) -> Change:
    around = [int(level.ceiling[other]) for other in level.neighbours(sector)]
    lowest = min(around, default=int(level.ceiling[sector]) + DOOR_CLEARANCE)
    return Change(sector, None, lowest - DOOR_CLEARANCE, returns)


def _change(level: Level, sector: int, effect: str, special: int) -> Change:
    if effect == "door":
        return _door(level, sector, special in _RETURNING)
    floor = int(level.floor[sector])
    others = level.neighbours(sector)
    floors = [int(level.floor[other]) for other in others] or [floor]
    if effect == "lift":
        return Change(sector, min([floor, *floors]), returns=True)
    if effect == "lower":
        return Change(sector, min([floor, *floors]))
    if effect == "lower_high":
        return Change(sector, max(floors))
    if effect == "turbo_lower":
        highest = max(floors)
        return Change(sector, highest + 8 if highest != floor else highest)
    if effect == "raise":
        return Change(sector, min([other for other in floors if other > floor], default=floor))
    if effect == "raise_by":
        return Change(sector, floor + _RISE[special])
    ceilings = [int(level.ceiling[other]) for other in others]
    return Change(sector, min([*ceilings, int(level.ceiling[sector])]))


def _stairs(level: Level, sector: int, step: int) -> list[Change]:
    """Each next stair lies behind a line whose front the last one is, and has the same floor texture."""
    changes: list[Change] = []
    height, seen = int(level.floor[sector]), {sector}
    while True:
        height += step
        changes.append(Change(sector, height))
        onward = level.back[(level.front == sector) & (level.back >= 0)].tolist()
        texture = level.floor_texture[sector]
        following = [other for other in onward if other not in seen and level.floor_texture[other] == texture]
        if not following:
            return changes
        sector = following[0]
        seen.add(sector)


def _donut(level: Level, pillar: int) -> list[Change]:
    """The pillar goes down, its ring up, to the floor beyond the ring."""
    for ring in level.neighbours(pillar):
        beyond = [int(level.floor[other]) for other in level.neighbours(ring) if other != pillar]
        if beyond:
            return [Change(pillar, beyond[0]), Change(ring, beyond[0])]
    return []


def find_teleporters(level: Level) -> list[Teleporter]:
    """Teleporters for players, each with the first landing place in a sector of its tag."""
    from p2p.levels.grid import sector_at

    landings = level.things[level.things["type"] == 14]
    sectors = [sector_at(level, float(thing["x"]), float(thing["y"])) for thing in landings]
    found = []
    for line in np.flatnonzero(np.isin(level.special, TELEPORTERS)).tolist():
        tagged = set(_tagged(level, int(level.tag[line])))
        for thing, sector in zip(landings, sectors, strict=True):
            if sector in tagged:
                found.append(Teleporter(line, float(thing["x"]), float(thing["y"])))
                break
    return found
