"""A folder has the same operations as an object store; what they have in common is tried on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2p.files import temporary_path
from p2p.object_storage import ObjectFolder
from p2p.storage import LocalFolder, open_storage


def test_a_folder_lists_what_is_whole_and_regular_by_name(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("b/c/one", b"1", memoryview(b"23"))
    folder.write("a", b"x")
    temporary_path(tmp_path / "a").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    assert {name: stored.num_bytes for name, stored in folder.list().items()} == {"a": 1, "b/c/one": 3}
    assert list(folder.list("b/")) == list(folder.list("b/c/o")) == ["b/c/one"]
    assert list(folder.list("nothing/here")) == []
    assert list(LocalFolder(tmp_path, depth=2).list()) == ["a"]
    assert list(LocalFolder(tmp_path / "nowhere").list()) == []


def test_what_is_written_again_has_another_etag(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("a", b"1")
    before = folder.list()["a"].etag
    os.utime(tmp_path / "a", ns=(1, 1))
    assert folder.list()["a"].etag != before


def test_a_folder_reads_so_much_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("a", b"123")
    assert folder.read("a", 3) == b"123"
    with pytest.raises(ValueError, match="longer than 2 bytes"):
        folder.read("a", 2)
    folder.delete(["a", "a"])
    with pytest.raises(FileNotFoundError):
        folder.read("a", 3)


def test_an_address_says_which_storage(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalFolder)
    store = open_storage("s3://bucket/runs/one/")
    assert isinstance(store, ObjectFolder)
    assert (store.url, store.name) == ("s3://bucket/runs/one", "one")
    with pytest.raises(ValueError, match="write a local folder, or s3://"):
        open_storage("ftp://bucket/x")
