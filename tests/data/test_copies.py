"""The copy of a remote stream: whose it is, when it is brought up to date, and that nothing else is ever deleted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2p.data import ShardError
from p2p.data.cache import ORIGIN_FILE
from p2p.format import compress
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.making import annotation, tree_digest, video_bytes

NAME = "shard.00000.000.mds"


@pytest.fixture
def stream(make_stream: Make) -> Path:
    return make_stream({name: (video_bytes(21), annotation(21)) for name in ("one", "two")})


@pytest.fixture
def other(make_stream: Make) -> Path:
    """Files of the same names, and other recordings."""
    return make_stream({name: (video_bytes(31, seed=1), annotation(31)) for name in ("three", "two")}, name="other")


def load(folder: Path, remote: Path, **options: Any) -> list[tuple[str, int]]:
    dataset = open_dataset(folder, local=str(folder), remote=str(remote), **options)
    return [(sample["recording"], sample["start"]) for sample in read_all(dataset)]


def replace_folder(old: Path, new: Path) -> None:
    shutil.rmtree(old)
    shutil.copytree(new, old)


def test_new_data_at_the_same_address_replaces_the_copy(
    stream: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    assert load(cache, stream) == [("one", 0), ("one", 10), ("two", 0), ("two", 10)]
    assert not caplog.records
    replace_folder(stream, other)
    assert {name for name, _ in load(cache, stream)} == {"three", "two"}
    assert "index.json: not the index of" in caplog.text
    assert (cache / NAME).read_bytes() == (other / NAME).read_bytes()


@pytest.mark.parametrize("left", ["", '{"version": 2, "shards": [', "{}"])
def test_half_an_index_of_a_killed_process_is_replaced(stream: Path, tmp_path: Path, left: str) -> None:
    cache = tmp_path / "cache"
    expected = load(cache, stream)
    (cache / "index.json").write_text(left)
    assert load(cache, stream) == expected


def test_a_copy_that_an_older_version_made_is_taken_over(stream: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(stream, cache)
    load(cache, stream)
    assert json.loads((cache / ORIGIN_FILE).read_text())["remote"] == str(stream)


def test_a_stream_of_its_own_is_not_overwritten_by_a_copy(stream: Path, other: Path) -> None:
    before = tree_digest(other)
    with pytest.raises(ShardError, match=r"index\.json: another stream, and no copy of .*name an empty folder"):
        load(other, stream)
    assert tree_digest(other) == before


@pytest.mark.parametrize("target", ["link", "pipe", "folder"])
def test_what_lies_in_place_of_a_shard_is_neither_followed_nor_deleted(
    stream: Path, tmp_path: Path, target: str
) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    load(cache, stream)
    (cache / NAME).unlink()
    if target == "link":
        outside.write_bytes(b"precious")
        (cache / NAME).symlink_to(outside)
    elif target == "pipe":
        os.mkfifo(cache / NAME)
    else:
        (cache / NAME).mkdir()
    with pytest.raises(ShardError, match=NAME):
        load(cache, stream)
    assert os.path.lexists(cache / NAME)
    assert target != "link" or outside.read_bytes() == b"precious"


@pytest.mark.parametrize("name", [NAME, "index.json"])
def test_a_pipe_in_a_local_stream_is_an_error_that_names_it(stream: Path, name: str) -> None:
    (stream / name).unlink()
    os.mkfifo(stream / name)
    with pytest.raises(ValueError, match=rf"{name}: not a regular file"):
        read_all(open_dataset(stream))


def test_a_damaged_local_shard_is_left_as_it_is(stream: Path, make_stream: Make) -> None:
    packed = make_stream({"one": (video_bytes(21), annotation(21))}, name="packed", compression="zstd:3")
    for folder, name in ((stream, NAME), (packed, f"{NAME}.zstd")):
        os.truncate(folder / name, 100)
        before = tree_digest(folder)
        with pytest.raises(ShardError, match="restore the file from a copy"):
            read_all(open_dataset(folder))
        assert tree_digest(folder) == before


def test_an_unpacked_shard_whose_packed_form_is_gone_stays(make_stream: Make) -> None:
    stream = make_stream({"one": (video_bytes(21), annotation(21))}, compression="zstd:3")
    expected = len(read_all(open_dataset(stream)))
    (stream / f"{NAME}.zstd").unlink()
    assert len(read_all(open_dataset(stream))) == expected
    assert (stream / NAME).is_file()


def test_an_index_from_elsewhere_cannot_name_a_file_outside_the_copy(stream: Path, tmp_path: Path) -> None:
    """The object's key is harmless, the name that it is unpacked to climbs."""
    victim, cache = tmp_path / ".bashrc", tmp_path / "a" / "cache"
    victim.write_text("precious")
    index = json.loads((stream / "index.json").read_text())
    shard = index["shards"][0]
    shard["zip_data"], shard["compression"] = dict(shard["raw_data"]), "zstd"
    shard["raw_data"]["basename"] = "../../.bashrc"
    (stream / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match="is not the plain name of one file"):
        load(cache, stream)
    assert victim.read_text() == "precious"


def test_a_packed_shard_that_unpacks_to_more_than_it_says_is_refused(make_stream: Make, tmp_path: Path) -> None:
    from xxhash import xxh3_64_hexdigest

    stream = make_stream({"one": (video_bytes(21), annotation(21))}, compression="zstd:3")
    bomb = compress(b"\0" * (1 << 28))
    index = json.loads((stream / "index.json").read_text())
    index["shards"][0]["zip_data"].update(bytes=len(bomb), hashes={"xxh3_64": xxh3_64_hexdigest(bomb)})
    (stream / "index.json").write_text(json.dumps(index))
    (stream / f"{NAME}.zstd").write_bytes(bomb)
    with pytest.raises(ShardError, match="268435456 bytes when unpacked; at most"):
        load(tmp_path / "cache", stream)
    assert not (tmp_path / "cache" / NAME).exists()


def test_an_object_longer_than_the_index_says_is_not_downloaded(stream: Path, tmp_path: Path) -> None:
    os.truncate(stream / NAME, 1 << 34)  # sparse
    with pytest.raises(ShardError, match="17179869184 bytes; at most"):
        load(tmp_path / "cache", stream)
