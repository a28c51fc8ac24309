"""What a hostile object store lists and sends: no name of it leads out of a folder, and it has no more of the disk than
it said before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.gate import Refused
from p2p.object_storage import ObjectFolder, StorageError
from tests.hostile_store import HostileStore, serve


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectFolder]:
    for _ in serve(monkeypatch):
        yield ObjectFolder("s3://bucket/some/prefix")


@pytest.mark.parametrize(
    "key",
    [
        "some/prefix/../../evil",
        "some/prefix//etc/passwd",
        "some/prefix/./x",
        "some/prefix/a\\..\\b",
        "some/prefix/a\nb",
        "some/prefix/\x1b[2Jx",
        "some/prefix/" + "x" * 300,
        "elsewhere/x",
        "some/prefixed",
    ],
)
def test_a_listed_name_that_is_no_plain_path_is_refused_by_name(
    folder: ObjectFolder, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostileStore, "keys", ("some/prefix/train/index.json", key))
    with pytest.raises(StorageError, match=r"^s3://bucket/some/prefix: .*delete or rename that object") as refusal:
        folder.list()
    assert str(refusal.value).isprintable()


def test_plain_names_are_relative_to_the_prefix_and_markers_of_folders_are_left_out(
    folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostileStore, "keys", ("some/prefix/", "some/prefix/train/", "some/prefix/train/spiel é"))
    assert list(folder.list()) == ["train/spiel é"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ""])
def test_nothing_is_downloaded_by_a_name_that_climbs(folder: ObjectFolder, name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        folder.download(name, tmp_path / "in" / name.lstrip("/"), 5)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_sends_more_than_it_said_is_cut_off(folder: ObjectFolder, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"^s3://bucket/some/prefix/x: longer than 5 bytes"):
        folder.download("x", tmp_path / "x", 5)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="longer than 5 bytes"):
        folder.read("x", 5)
    assert HostileStore.num_sent < 1 << 28


@pytest.mark.parametrize("facts", ["<Size>1</Size>", "<ETag>x</ETag>", ""])
def test_a_listing_that_leaves_out_what_objects_have_is_refused(
    folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch, facts: str
) -> None:
    monkeypatch.setattr(HostileStore, "keys", ("some/prefix/x",))
    monkeypatch.setattr(HostileStore, "facts", facts)
    with pytest.raises(StorageError, match=r"an answer without (Size|ETag).*check S3_ENDPOINT_URL"):
        folder.list()
