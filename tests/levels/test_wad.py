"""A map file is a stranger's until it has been checked."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from p2p.gate import Refused
from p2p.levels.wad import list_maps, read_level
from tests.levels.tiny_wad import Room, box, tiny_wad, wad_of

ROOMS = [box(0, 0, 256, 256), box(256, 0, 512, 256, floor=16, tag=7)]


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "tiny.wad"
    path.write_bytes(content)
    return path


def test_a_map_has_the_lines_sectors_and_things_that_were_written(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_wad(ROOMS, (64, 64), {((256, 256), (256, 0)): (62, 7)}, [(100, 50, 2035)]))
    level = read_level(path, "MAP01")
    assert list_maps(path) == ["MAP01"]
    assert level.floor.tolist() == [0, 16]
    assert level.sector_tag.tolist() == [0, 7]
    assert len(level.start) == 7
    shared = int(np.flatnonzero(level.back >= 0)[0])
    assert (level.front[shared], level.back[shared]) == (0, 1)
    assert (level.special[shared], level.tag[shared]) == (62, 7)
    assert level.solid.sum() == 6
    assert level.neighbours(0) == [1]
    assert [(int(t["x"]), int(t["y"]), int(t["type"])) for t in level.things] == [(64, 64, 1), (100, 50, 2035)]


def test_a_missing_map_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_wad(ROOMS, (64, 64)))
    with pytest.raises(Refused, match=r"no map 'MAP09'; the maps in it are MAP01"):
        read_level(path, "MAP09")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a WAD"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "not a WAD"),
        (struct.pack("<4sII", b"PWAD", 2**31, 12), "does not fit the file"),
        (struct.pack("<4sII", b"PWAD", 3, 2**32 - 1), "does not fit the file"),
        (wad_of({"MAP01": b"", "THINGS": b""}), "no lump LINEDEFS"),
    ],
)
def test_what_is_no_wad_or_a_torn_one_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read_level(written(tmp_path, content), "MAP01")


def lumps(content: bytes) -> dict[str, bytes]:
    count, start = struct.unpack_from("<II", content, 4)
    entries = [struct.unpack_from("<II8s", content, start + 16 * number) for number in range(count)]
    return {name.rstrip(b"\0").decode(): content[begin : begin + size] for begin, size, name in entries}


@pytest.mark.parametrize(
    ("lump", "offset", "reason"),
    [
        ("LINEDEFS", 0, "a line's vertex is number 65000; there are 6"),
        ("LINEDEFS", 10, "a line's front side is number 65000"),
        ("SIDEDEFS", 28, "a side's sector is number 65000; there are 2"),
    ],
)
def test_an_index_beyond_its_table_is_refused(tmp_path: Path, lump: str, offset: int, reason: str) -> None:
    parts = lumps(tiny_wad(ROOMS, (64, 64)))
    broken = bytearray(parts[lump])
    struct.pack_into("<H", broken, offset, 65000)
    with pytest.raises(Refused, match=reason):
        read_level(written(tmp_path, wad_of({**parts, lump: bytes(broken)})), "MAP01")


def test_a_lump_that_ends_in_the_middle_of_an_entry_is_refused(tmp_path: Path) -> None:
    parts = lumps(tiny_wad(ROOMS, (64, 64)))
    with pytest.raises(Refused, match="SECTORS has 51 bytes; expected 26 an entry"):
        read_level(written(tmp_path, wad_of({**parts, "SECTORS": parts["SECTORS"][:-1]})), "MAP01")


def test_a_lump_outside_the_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(tiny_wad(ROOMS, (64, 64)))
    directory = struct.unpack_from("<I", content, 8)[0]
    struct.pack_into("<I", content, directory + 16, len(content))  # where THINGS begin
    with pytest.raises(Refused, match=r"THINGS: .* bytes at byte"):
        read_level(written(tmp_path, bytes(content)), "MAP01")


def test_a_map_of_hexens_format_is_refused(tmp_path: Path) -> None:
    parts = {**lumps(tiny_wad(ROOMS, (64, 64))), "BEHAVIOR": b"ACS\0"}
    with pytest.raises(Refused, match="Hexen"):
        read_level(written(tmp_path, wad_of(parts)), "MAP01")


def test_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wad")
    with pytest.raises(Refused, match="not a regular file"):
        read_level(tmp_path / "pipe.wad", "MAP01")


def test_a_line_without_length_is_left_out(tmp_path: Path) -> None:
    corners = [(0, 0), (0, 128), (128, 128), (128, 128), (128, 0)]
    level = read_level(written(tmp_path, tiny_wad([Room(corners)], (64, 64))), "MAP01")
    assert len(level.start) == 4
