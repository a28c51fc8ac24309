"""A shard that is missing, damaged or out of reach is an error that names it: never a short epoch, never a hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.data import GameplayDataset, ShardError
from p2p.data.remote import copy_file
from p2p.data.stream import GameplayStream
from p2p.files import owned
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.disks import small_disk
from tests.data.making import annotation, video_bytes

NUM_RECORDINGS = 40  # in tasks of 16: three shards


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from p2p_convert.plan import Options
    from p2p_convert.run import convert
    from tests.data.making import write_recording

    root = tmp_path_factory.mktemp("streams")
    video = video_bytes(21)
    for number in range(NUM_RECORDINGS):
        write_recording(root / "raw" / f"rec_{number:02}", video, annotation(21, seed=number))
    for name, compression in (("plain", ""), ("zstd", "zstd:3")):
        convert([root / "raw"], root / name, Options(val_fraction=0, compression=compression))
    return {name: root / name / "train" for name in ("plain", "zstd")}


def second_shard(stream: Path) -> Path:
    """A shard that is not the first to be read."""
    return sorted(p for p in stream.iterdir() if p.name.startswith("shard."))[1]


@pytest.mark.parametrize("harm", [remove, truncate, flip_a_bit])
@pytest.mark.parametrize("kind", ["plain", "zstd"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_bad_shard_raises_with_its_name(
    streams: dict[str, Path],
    tmp_path: Path,
    harm: Callable[[Path], None],
    kind: str,
    num_workers: int,
    is_remote: bool,
) -> None:
    stream = tmp_path / "stream"
    shutil.copytree(streams[kind], stream)
    bad = second_shard(stream)
    harm(bad)
    where = {"local": str(tmp_path / "cache"), "remote": str(stream)} if is_remote else {"local": str(stream)}
    begin = time.monotonic()
    with pytest.raises(ValueError, match=bad.name.removesuffix(".zstd").replace(".", r"\.")) as caught:
        read_all(open_dataset(stream, **where), num_workers)
    assert "ShardError" in f"{type(caught.value).__name__} {caught.value}"
    assert time.monotonic() - begin < 60


def test_a_damaged_copy_is_downloaded_again(streams: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    where: dict[str, Any] = {"local": str(cache), "remote": str(streams["plain"])}
    expected = [(s["recording"], s["start"]) for s in read_all(open_dataset(cache, **where))]
    flip_a_bit(second_shard(cache))
    again = read_all(open_dataset(cache, **where))
    assert [(s["recording"], s["start"]) for s in again] == expected
    assert second_shard(cache).read_bytes() == second_shard(streams["plain"]).read_bytes()


def test_an_error_is_raised_again_in_the_next_epoch(streams: dict[str, Path], tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    shutil.copytree(streams["plain"], stream)
    remove(second_shard(stream))
    dataset = open_dataset(stream)
    for _ in range(2):
        with pytest.raises(ShardError, match="no such file, but the index lists it"):
            read_all(dataset)


def test_a_dataset_of_a_newer_format_is_refused(streams: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((streams["plain"] / "index.json").read_text())
    index["p2p"]["version"] = [2, 0]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"version 2\.0; this p2p reads 1\.x: upgrade p2p"):
        open_dataset(tmp_path)
    index["p2p"]["version"] = [1, 7]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert len(open_dataset(tmp_path)) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected a folder written by"),
        ("{", "not a JSON file"),
        ('{"version": 2, "shards": []}', "not an index of p2p-segments"),
    ],
)
def test_a_bad_index_is_an_error_that_names_it(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path / "index.json") in str(caught.value)


def test_recordings_too_short_for_any_chunk_are_an_error(make_stream: Make) -> None:
    with pytest.raises(ValueError, match="1 recordings, none of them gives a chunk"):
        open_dataset(make_stream({"r": (video_bytes(1), annotation(1))}))


def test_the_only_copy_of_a_shard_is_never_evicted(streams: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="would delete its only shards"):
        open_dataset(streams["plain"], cache_limit="10mb")


@pytest.mark.parametrize("options", [{"phase": 1}, {"num_timesteps": 0}, {"local": None}, {"streams": []}])
def test_wrong_arguments_are_explained(streams: dict[str, Path], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"write|name either"):
        open_dataset(streams["plain"], **options)


def test_a_small_cache_is_enough(streams: dict[str, Path], tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in streams["plain"].glob("shard.*")]
    limit = 4 * max(sizes) + (streams["plain"] / "index.json").stat().st_size + 1
    where: dict[str, Any] = {"local": str(tmp_path), "remote": str(streams["plain"]), "cache_limit": limit}
    assert len(read_all(open_dataset(tmp_path, **where), num_workers=2)) == 2 * NUM_RECORDINGS


@pytest.mark.parametrize(("kind", "num_workers", "cache_limit"), [("plain", 0, None), ("zstd", 2, "50mb")])
def test_a_full_cache_disk_is_an_error_that_names_the_shard(
    streams: dict[str, Path], tmp_path: Path, kind: str, num_workers: int, cache_limit: str | None
) -> None:
    shards = sorted(path for path in streams[kind].iterdir() if path.name.startswith("shard."))
    unpacked = max(path.stat().st_size for path in streams["plain"].glob("shard.*"))
    room = (streams[kind] / "index.json").stat().st_size + unpacked * 3 // 2 + (64 << 10)
    with small_disk(tmp_path / "disk", room) as disk:
        where = {"local": str(disk.path / "cache"), "remote": str(streams[kind]), "cache_limit": cache_limit}
        with pytest.raises(ValueError, match="No space left on device; free some space, or set cache_limit") as caught:
            read_all(open_dataset(tmp_path, **where), num_workers)
        assert any(path.name.removesuffix(".zstd") in str(caught.value) for path in shards)
        disk.grow(64 << 20)
        assert len(read_all(open_dataset(tmp_path, **where), num_workers)) == 2 * NUM_RECORDINGS


@pytest.mark.parametrize("while_reading", [True, False])
def test_a_rerun_after_sigkill_needs_no_cleaning(streams: dict[str, Path], tmp_path: Path, while_reading: bool) -> None:
    where: dict[str, Any] = {"local": str(tmp_path / "cache"), "remote": str(streams["plain"])}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no exec: importing torch again would take longer than the test
        dataset = open_dataset(tmp_path, **where)
        iterator = iter(dataset)
        if while_reading:
            next(iterator)
        os.write(writer, b"ready")
        signal.pause()
    assert os.read(reader, 5) == b"ready"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert len(read_all(open_dataset(tmp_path, **where))) == 2 * NUM_RECORDINGS


def test_a_worker_that_waits_for_another_gives_up(
    streams: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.data.shards.SLACK_S", 0.3)
    where: dict[str, Any] = {"local": str(tmp_path), "remote": str(streams["plain"])}
    dataset = open_dataset(tmp_path, **where, give_up_after_s=0.2)
    with (
        owned(tmp_path / ".1.lock", "the second shard"),
        pytest.raises(TimeoutError, match=r"shard .*00001.*another process has been fetching it for \d s"),
    ):
        read_all(dataset)


def test_the_lock_of_a_dead_process_is_free(streams: dict[str, Path], tmp_path: Path) -> None:
    where: dict[str, Any] = {"local": str(tmp_path), "remote": str(streams["plain"])}
    dataset = open_dataset(tmp_path, **where)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with owned(tmp_path / ".1.lock", "the second shard"):
            os.write(writer, b"held")
            signal.pause()
    assert os.read(reader, 4) == b"held"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(read_all(dataset)) == 2 * NUM_RECORDINGS


def test_a_failing_store_is_asked_again_until_it_answers(
    streams: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def flaky(source: str, path: Path, max_bytes: int) -> None:
        calls.append(source)
        if len(calls) % 3:
            raise ConnectionError("reset by peer")
        copy_file(source, path, max_bytes)

    monkeypatch.setattr("p2p.data.remote.copy_file", flaky)
    monkeypatch.setattr("p2p.data.remote.FIRST_PAUSE_S", 0.01)
    where: dict[str, Any] = {"local": str(tmp_path), "remote": str(streams["plain"])}
    assert len(read_all(open_dataset(tmp_path, **where))) == 2 * NUM_RECORDINGS
    assert len(calls) == 3 * 4


def test_a_store_that_stays_away_is_an_error(
    streams: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(source: str, path: Path, max_bytes: int) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("p2p.data.remote.copy_file", away)
    stream = GameplayStream(local=str(tmp_path), remote=str(streams["plain"]))
    with pytest.raises(ShardError, match=r"index\.json: cannot be downloaded: ConnectionError: no route"):
        GameplayDataset(streams=[stream], give_up_after_s=0.2)
