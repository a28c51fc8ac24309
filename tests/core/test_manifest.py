"""A manifest finds every change of a file and every lie in itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2p.gate import Refused
from p2p.manifest import (
    MANIFEST,
    HashedFile,
    decode_manifest,
    describe,
    new_hashed_file,
    read_manifest,
    verify,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"content of a")
    (tmp_path / "b").write_bytes(b"")
    write_manifest(tmp_path, "checkpoint", ["a", "b"], {"step": 3})
    return tmp_path


def test_what_was_written_verifies(folder: Path) -> None:
    manifest = read_manifest(folder, "checkpoint")
    verify(folder, manifest)
    assert manifest.facts == {"step": 3}


@pytest.mark.parametrize("content", [b"content of A", b"content of", b"content of a!", None])
def test_a_changed_file_is_named(folder: Path, content: bytes | None) -> None:
    (folder / "a").unlink()
    if content is not None:
        (folder / "a").write_bytes(content)
    with pytest.raises(Refused, match="/a: "):
        verify(folder, read_manifest(folder, "checkpoint"))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": "policy"},
        {"files": []},
        {"files": {"../a": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": -1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": 1, "sha256": "x" * 64}}},
        {"files": {"a": {"bytes": 1}}},
        {"facts": 7},
    ],
)
def test_a_lie_in_the_manifest_is_refused(folder: Path, change: dict[str, object]) -> None:
    content = json.loads((folder / MANIFEST).read_bytes()) | change
    with pytest.raises(Refused, match="somewhere"):
        decode_manifest(json.dumps(content).encode(), "checkpoint", "somewhere")


def test_a_file_that_is_hashed_while_it_is_written_is_what_the_disk_has(tmp_path: Path) -> None:
    with new_hashed_file(tmp_path / "a") as file:
        for piece in (b"one", memoryview(bytes(3 << 20)), b"", memoryview(b"two")):
            file.write(piece)
    record = file.record()
    assert record == describe(tmp_path / "a")
    assert record.num_bytes == (3 << 20) + 6


def test_pieces_of_a_stream_may_change_once_they_are_written(tmp_path: Path) -> None:
    piece = bytearray(3 << 20)
    with open(tmp_path / "a", "wb") as file, ThreadPoolExecutor(1) as background:
        stream = HashedFile(file, background)
        for number in (1, 2, 3):
            piece[:] = bytes([number]) * len(piece)
            stream.write(piece)
            stream.write(piece[:5])
        stream.close()
    assert stream.record() == describe(tmp_path / "a")
    assert stream.record().num_bytes == 3 * (len(piece) + 5)


def test_a_file_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_hashed_file(tmp_path / "a") as file:
            file.write(b"half")
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fail()
    assert list(tmp_path.iterdir()) == []
