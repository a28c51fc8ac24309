"""What a stranger may write where a name, a number, JSON or a file is expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from p2p import gate


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "../x",
        "a\\b",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\u202egnp",
        "\udcff",
        "x" * 256,
        7,
        None,
    ],
)
def test_a_name_that_is_not_one_plain_component_is_refused(name: object) -> None:
    with pytest.raises(gate.Refused, match="index"):
        gate.plain_name(name, "index")


@pytest.mark.parametrize("name", ["shard.00000.000.mds", ".metadata", "a b", "x" * 255, "ä-日本"])
def test_a_plain_name_passes(name: str) -> None:
    assert gate.plain_name(name, "index") == name


def test_a_path_is_checked_part_by_part() -> None:
    assert gate.plain_path("a/b.txt", "hub") == "a/b.txt"
    for path in ("a/../b", "/a", "a//b", "a/", "..", ""):
        with pytest.raises(gate.Refused):
            gate.plain_path(path, "hub")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11, float("nan")])
def test_only_a_whole_number_in_range_passes(value: object) -> None:
    with pytest.raises(gate.Refused, match=r"frames is .*0\.\.10"):
        gate.whole_number(value, "frames", 0, 10)
    assert gate.whole_number(10, "frames", 0, 10) == 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[NaN]",
        b"[-Infinity]",
        b"[" * 200_000,
        b"1" * 5000,
        '"\ud800',
        b"x" * 101,
        b'{"a": 1, "a": 1}',
    ],
)
def test_what_is_not_json_is_refused(data: bytes | str) -> None:
    with pytest.raises(gate.Refused, match="file"):
        gate.parse_json(data, "file", max_bytes=100 if data == b"x" * 101 else gate.MAX_JSON_BYTES)


def test_numbers_that_are_not_finite_are_refused() -> None:
    values = np.array([0, np.nan, np.inf], np.float32)
    with pytest.raises(gate.Refused, match="2 of 3"):
        gate.finite(values, "embedding")
    assert gate.finite(values[:1], "embedding") is not None


def test_a_pipe_a_folder_and_a_long_file_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"12345")
    for name in ("pipe", ".", "long"):
        with pytest.raises(gate.Refused):
            gate.read_regular(tmp_path / name, max_bytes=4)
    assert gate.read_regular(tmp_path / "long", max_bytes=5) == b"12345"


def test_what_refers_to_itself_again_and_again_is_shown_shortly() -> None:
    value: object = "x"
    for _ in range(60):
        value = (value, value)
    with pytest.raises(gate.Refused, match="expected an object"):
        gate.mapping(value, "metadata")
    assert gate.shown(["a", "b"]) == "['a', 'b']"


def test_what_is_shown_obeys_no_terminal() -> None:
    line = gate.shown("\x1b]0;owned\x07\n" + "x" * 1000)
    assert line.isprintable()
    assert len(line) <= 200
    assert gate.printable("a\x1b[31mb") == "a\\x1b[31mb"


def test_of_a_long_text_only_the_beginning_is_looked_at() -> None:
    class Counted(str):
        def __iter__(self) -> NoReturn:
            raise AssertionError("all of it is spelt out")

    for quote in (False, True):
        assert gate.shown(Counted("\udcff" * 100_000), quote).endswith("...")
