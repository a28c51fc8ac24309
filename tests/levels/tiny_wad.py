"""Writes small maps of Doom's format: rooms as polygons, which share a two-sided line where they share an edge."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[int, int]


@dataclass(frozen=True)
class Room:
    """A sector. Its corners run clockwise: who walks along an edge has the room on the right hand."""

    corners: Sequence[Point]
    floor: int = 0
    ceiling: int = 128
    special: int = 0
    tag: int = 0


def box(west: int, south: int, east: int, north: int, floor: int = 0, ceiling: int = 128, tag: int = 0) -> Room:
    return Room([(west, south), (west, north), (east, north), (east, south)], floor, ceiling, tag=tag)


def tiny_wad(
    rooms: Sequence[Room],
    start: Point,
    specials: Mapping[tuple[Point, Point], tuple[int, int]] | None = None,
    things: Sequence[tuple[int, int, int]] = (),
    name: str = "MAP01",
) -> bytes:
    """A WAD with one map.

    Args:
        specials: of the edge from one corner to the next, in the direction of its room: number and tag.
        things: x, y and type of each, beside the player's start.
    """
    vertices = list(dict.fromkeys(corner for room in rooms for corner in room.corners))
    lines, sides = [], []
    special_of = specials or {}
    edges = {edge: number for number, room in enumerate(rooms) for edge in _edges(room)}
    for (a, b), room_number in edges.items():
        back = edges.get((b, a))
        reversed_first = (b, a) in special_of or ((a, b) not in special_of and back is not None and back < room_number)
        if back is not None and reversed_first:
            continue  # the room beyond has this line
        special, tag = special_of.get((a, b), (0, 0))
        sides.append(room_number)
        front_side = len(sides) - 1
        back_side = 0xFFFF
        if back is not None:
            sides.append(back)
            back_side = len(sides) - 1
        flags = 1 if back is None else 4
        lines.append(
            struct.pack("<7H", vertices.index(a), vertices.index(b), flags, special, tag, front_side, back_side)
        )
    everything = [(*start, 1), *things]
    lumps = {
        name: b"",
        "THINGS": b"".join(struct.pack("<hhHHH", x, y, 0, kind, 7) for x, y, kind in everything),
        "LINEDEFS": b"".join(lines),
        "SIDEDEFS": b"".join(struct.pack("<hh8s8s8sH", 0, 0, b"-", b"-", b"-", sector) for sector in sides),
        "VERTEXES": b"".join(struct.pack("<hh", *vertex) for vertex in vertices),
        "SECTORS": b"".join(
            struct.pack("<hh8s8sHHH", r.floor, r.ceiling, b"FLOOR", b"CEIL", 160, r.special, r.tag) for r in rooms
        ),
    }
    return wad_of(lumps)


def _edges(room: Room) -> list[tuple[Point, Point]]:
    return [(corner, room.corners[(index + 1) % len(room.corners)]) for index, corner in enumerate(room.corners)]


def wad_of(lumps: Mapping[str, bytes]) -> bytes:
    """A WAD with these lumps, in this order."""
    body, directory = b"", b""
    for name, content in lumps.items():
        directory += struct.pack("<II8s", 12 + len(body), len(content), name.encode())
        body += content
    return struct.pack("<4sII", b"PWAD", len(lumps), 12 + len(body)) + body + directory
