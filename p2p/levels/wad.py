"""A WAD file's map as arrays: vertices, lines, sectors, things (Doom format; the Unofficial Doom Specs name the lumps).

numpy reads the five lumps that matter. The library for WADs on PyPI (omgifol) opens the file for writing, believes its
directory and looks at no index; here every size, count and index of the file is checked before it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.gate import Refused, open_regular, plain_name, shown

MAX_LUMPS = 65536
MAX_LUMP_BYTES = 4 << 20  # of one of a map's lumps; indices in it have 16 bits
MAX_LINES = 20_000  # of a map; Freedoom's largest has 7,245
NO_SIDE = 0xFFFF

_LUMP = np.dtype([("start", "<u4"), ("size", "<u4"), ("name", "S8")])
_FORMATS = {
    "THINGS": np.dtype([("x", "<i2"), ("y", "<i2"), ("angle", "<u2"), ("type", "<u2"), ("flags", "<u2")]),
    "LINEDEFS": np.dtype([(field, "<u2") for field in ("a", "b", "flags", "special", "tag", "front", "back")]),
    "SIDEDEFS": np.dtype([("offset", "<i2", 2), ("textures", "S8", 3), ("sector", "<u2")]),
    "VERTEXES": np.dtype([("x", "<i2"), ("y", "<i2")]),
    "SECTORS": np.dtype(
        [
            ("floor", "<i2"),
            ("ceiling", "<i2"),
            ("textures", "S8", 2),
            *((field, "<u2") for field in ("light", "special", "tag")),
        ]
    ),
}
_MAP_LUMPS = (*_FORMATS, "SEGS", "SSECTORS", "NODES", "REJECT", "BLOCKMAP")

IMPASSABLE, TWO_SIDED = 1, 4  # flags of a line
MEDIUM_SKILL, MULTIPLAYER = 2, 16  # flags of a thing


@dataclass(frozen=True)
class Level:
    """One map. Lengths are map units; a player has a radius of 16 and is 56 high.

    Lines run from `start` to `end`; who walks along one has its front on the right hand.
    """

    name: str
    start: NDArray[np.float64]  # [lines, 2]
    end: NDArray[np.float64]  # [lines, 2]
    flags: NDArray[np.int64]  # [lines]
    special: NDArray[np.int64]  # [lines] what it does when it is used or walked over
    tag: NDArray[np.int64]  # [lines] of the sectors that it does it to
    front: NDArray[np.int64]  # [lines] sector on its right
    back: NDArray[np.int64]  # [lines] sector on its left; -1: none
    floor: NDArray[np.int64]  # [sectors]
    ceiling: NDArray[np.int64]  # [sectors]
    sector_special: NDArray[np.int64]  # [sectors]
    sector_tag: NDArray[np.int64]  # [sectors]
    floor_texture: NDArray[Any]  # [sectors] its name: stairs go on as long as it is the same
    things: NDArray[Any]  # fields x, y, angle (degrees), type, flags

    @property
    def solid(self) -> NDArray[np.bool_]:
        """[lines] Whether nobody passes it, whatever the heights on its sides."""
        return (self.back < 0) | (self.flags & IMPASSABLE != 0)

    def neighbours(self, sector: int) -> list[int]:
        """The sectors that share a two-sided line with this one."""
        beyond = np.concatenate([self.back[self.front == sector], self.front[self.back == sector]])
        return sorted({int(other) for other in beyond if other >= 0} - {sector})


def read_level(path: Path | str, name: str) -> Level:
    """The map of this name, such as MAP01 or E1M1.

    Raises:
        Refused: when the file is no WAD, or damaged, or has no such map, or one of another format.
        OSError: when it cannot be read.
    """
    place = shown(str(path), quote=False)
    plain_name(name, f"{place}: map")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        names, starts, sizes = _directory(file.read(12), file, size, place)
        if name not in names:
            maps = ", ".join(map_names(names)) or "none"
            raise Refused(f"{place}: no map {shown(name)}; the maps in it are {maps}")
        marker = names.index(name)
        content = {}
        for number in range(marker + 1, min(marker + 1 + len(_MAP_LUMPS), len(names))):
            if (lump := names[number]) in _FORMATS and lump not in content:
                content[lump] = _lump(file, starts[number], sizes[number], size, f"{place}: {name}: {lump}")
        if "BEHAVIOR" in names[marker + 1 : marker + 2 + len(_MAP_LUMPS)]:
            raise Refused(f"{place}: {name} is a map of Hexen's format; only those of Doom's are read")
    tables = {}
    for lump, kind in _FORMATS.items():
        if lump not in content:
            raise Refused(f"{place}: {name} has no lump {lump}; only maps of Doom's format are read")
        if len(content[lump]) % kind.itemsize:
            raise Refused(f"{place}: {name}: {lump} has {len(content[lump])} bytes; expected {kind.itemsize} an entry")
        tables[lump] = np.frombuffer(content[lump], kind)
    return _level(name, tables, f"{place}: {name}")


def map_names(lumps: list[str]) -> list[str]:
    """Of the names in a WAD's directory: those of maps, which the lump THINGS follows."""
    return [name for name, after in pairwise(lumps) if after == "THINGS"]


def list_maps(path: Path | str) -> list[str]:
    """The names of the maps in a WAD file.

    Raises:
        Refused, OSError: as `read_level`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return map_names(_directory(file.read(12), file, size, shown(str(path), quote=False))[0])


def _directory(header: bytes, file: Any, size: int, place: str) -> tuple[list[str], list[int], list[int]]:
    """Names, starts and sizes of the lumps."""
    if len(header) < 12 or header[:4] not in (b"IWAD", b"PWAD"):
        raise Refused(f"{place}: not a WAD file; it begins with {shown(header[:4])}, expected IWAD or PWAD")
    num_lumps, start = (int(value) for value in np.frombuffer(header[4:], "<u4"))
    if num_lumps > MAX_LUMPS or start + num_lumps * _LUMP.itemsize > size:
        raise Refused(f"{place}: a directory of {num_lumps} lumps at byte {start} does not fit the file ({size} bytes)")
    file.seek(start)
    lumps = np.frombuffer(file.read(num_lumps * _LUMP.itemsize), _LUMP)
    names = [name.decode("ascii", "replace") for name in lumps["name"].tolist()]
    return names, lumps["start"].tolist(), lumps["size"].tolist()


def _lump(file: Any, start: int, length: int, size: int, where: str) -> bytes:
    if length > MAX_LUMP_BYTES or start + length > size:
        raise Refused(f"{where}: {length} bytes at byte {start} of {size}; expected at most {MAX_LUMP_BYTES} inside it")
    file.seek(start)
    content: bytes = file.read(length)
    return content


def _level(name: str, tables: dict[str, NDArray[Any]], where: str) -> Level:
    lines, sides, sectors = tables["LINEDEFS"], tables["SIDEDEFS"], tables["SECTORS"]
    if len(lines) > MAX_LINES:
        raise Refused(f"{where}: {len(lines)} lines; at most {MAX_LINES} in a map")
    vertices = np.stack([tables["VERTEXES"]["x"], tables["VERTEXES"]["y"]], axis=1).astype(np.float64)
    _check_index(lines["a"], len(vertices), f"{where}: a line's vertex")
    _check_index(lines["b"], len(vertices), f"{where}: a line's vertex")
    _check_index(lines["front"], len(sides), f"{where}: a line's front side")
    two_sided = lines["back"] != NO_SIDE
    _check_index(lines["back"][two_sided], len(sides), f"{where}: a line's back side")
    _check_index(sides["sector"], len(sectors), f"{where}: a side's sector")
    sector_of = sides["sector"].astype(np.int64)
    back = np.full(len(lines), -1, np.int64)
    back[two_sided] = sector_of[lines["back"][two_sided]]
    whole = {field: lines[field].astype(np.int64) for field in ("flags", "special", "tag")}
    long = (vertices[lines["a"]] != vertices[lines["b"]]).any(axis=1)  # a line without length bounds nothing
    return Level(
        name,
        vertices[lines["a"]][long],
        vertices[lines["b"]][long],
        whole["flags"][long],
        whole["special"][long],
        whole["tag"][long],
        sector_of[lines["front"]][long],
        back[long],
        sectors["floor"].astype(np.int64),
        sectors["ceiling"].astype(np.int64),
        sectors["special"].astype(np.int64),
        sectors["tag"].astype(np.int64),
        sectors["textures"][:, 0],
        tables["THINGS"],
    )


def _check_index(values: NDArray[Any], count: int, where: str) -> None:
    if len(values) and int(values.max()) >= count:
        raise Refused(f"{where} is number {int(values.max())}; there are {count}")
