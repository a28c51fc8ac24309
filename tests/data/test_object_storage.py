"""The same shards and the same chunks through a real S3 server, also when it fails now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p import object_storage
from p2p.data import ShardError
from p2p.data.remote import Remote
from p2p.object_storage import PATIENCE_S, ObjectFolder, StorageError
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.storage import open_store
from tests.data.conftest import open_dataset, read_all
from tests.data.faulty_proxy import STALL, FaultyProxy
from tests.data.making import annotation, digest, tree_digest, video_bytes, write_recording, write_recordings
from tests.hostile_store import HostileStore, serve
from tests.s3 import S3Server, serving_bucket

OPTIONS = Options(val_fraction=0.2)
BUCKET = "recordings"  # one for all tests: the server reserves space for each


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving_bucket(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


@pytest.fixture
def endpoint(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def quiet_proxy(endpoint: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that fails only when it is told to."""
    proxy = FaultyProxy(endpoint.endpoint)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.address)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(quiet_proxy: FaultyProxy) -> FaultyProxy:
    quiet_proxy.failing_share = 0.3
    return quiet_proxy


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("raw"), 40, 21)


@pytest.fixture(scope="module")
def local(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    convert([raw], out, OPTIONS)
    return out


def contents(samples: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(s["recording"], s["start"], digest(s["frames"]), digest(s["actions"])) for s in samples]


def test_a_conversion_to_s3_gives_the_same_objects(raw: Path, local: Path, endpoint: S3Server, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/some/prefix"
    convert([raw], address, OPTIONS, num_workers=2)
    store = open_store(address)
    for name in store.sizes():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name))
    assert tree_digest(tmp_path) == tree_digest(local, leave_out=["lock"])


def test_conversion_and_loading_get_through_faults_and_an_outage(
    raw: Path, local: Path, proxy: FaultyProxy, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/with-faults"
    proxy.outage(2)
    convert([raw], address, OPTIONS)
    assert proxy.num_failed > 1
    failed = proxy.num_failed
    proxy.outage(2)
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")
    samples = read_all(dataset, num_workers=2)
    assert proxy.num_failed > failed
    assert proxy.num_outages_over == 2
    assert contents(samples) == contents(read_all(open_dataset(local / "train")))


def test_a_store_that_takes_requests_and_never_answers_is_asked_again(
    raw: Path, local: Path, quiet_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "READ_TIMEOUT_S", 1.0)
    address = f"s3://{BUCKET}/stalled"
    quiet_proxy.outage(2.5, STALL)
    convert([raw], address, OPTIONS)
    quiet_proxy.outage(2.5, STALL)
    samples = read_all(open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train"), num_workers=2)
    assert quiet_proxy.num_outages_over == 2
    assert contents(samples) == contents(read_all(open_dataset(local / "train")))


def test_a_loader_process_does_not_use_the_connection_it_was_forked_with(
    raw: Path, quiet_proxy: FaultyProxy, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/connections"
    convert([raw], address, OPTIONS)
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")  # fetches the index
    before = quiet_proxy.num_connections
    assert before > 0
    read_all(dataset, num_workers=2)  # one worker may have fetched all shards before the other looked
    assert quiet_proxy.num_connections > before


def test_a_lock_that_cannot_be_given_back_does_not_hide_why_the_work_ended(quiet_proxy: FaultyProxy) -> None:
    def work() -> None:
        with open_store(f"s3://{BUCKET}/locked").locked():
            quiet_proxy.outage(1e6)
            raise RuntimeError("of the work")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="of the work"):
        work()
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_store_that_is_gone_is_waited_for_once(
    raw: Path, quiet_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the client of S3, and then all over again by the stream around it."""
    address = f"s3://{BUCKET}/gone"
    convert([raw], address, OPTIONS)
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train", give_up_after_s=2.0)
    quiet_proxy.outage(1e6)
    with pytest.raises(ShardError, match="Could not connect"):
        read_all(dataset)
    assert [record.getMessage() for record in caplog.records if record.name == "p2p.data.remote"] == []


@pytest.mark.parametrize("failure", ["503", "lost", "half"])
def test_every_request_is_repeated(failure: str, quiet_proxy: FaultyProxy, tmp_path: Path) -> None:
    folder = ObjectFolder(f"s3://{BUCKET}/repeated/{failure}")
    content = b"0123456789"
    (tmp_path / "up").write_bytes(content)

    def fails_twice(call: Callable[..., object], *arguments: object) -> object:
        quiet_proxy.planned = [failure, failure]
        result = call(*arguments)
        assert not quiet_proxy.planned
        return result

    fails_twice(folder.upload, tmp_path / "up", "uploaded")
    fails_twice(folder.write, "written", content)
    assert fails_twice(folder.create, "created", content) == (failure == "503")  # else the first one did its work
    assert list(fails_twice(folder.list)) == ["created", "uploaded", "written"]
    fails_twice(folder.download, "uploaded", tmp_path / "down", len(content))
    assert (tmp_path / "down").read_bytes() == fails_twice(folder.read, "written", 10) == content
    assert fails_twice(folder.look, "written", 10).content == content
    fails_twice(folder.delete, ["created", "uploaded"])
    assert list(folder.list()) == ["written"]
    with pytest.raises(FileNotFoundError, match="no such object"):
        fails_twice(folder.read, "created", 10)


def test_patience_has_an_end_and_the_error_says_what_to_do(quiet_proxy: FaultyProxy, tmp_path: Path) -> None:
    folder = ObjectFolder(f"s3://{BUCKET}/patience", patience_s=1.0)
    (tmp_path / "up").write_bytes(b"x")
    quiet_proxy.outage(3600)
    begin = time.monotonic()
    for call in (folder.list, lambda: folder.read("x", 9), lambda: folder.upload(tmp_path / "up", "x")):
        with pytest.raises(StorageError, match=r"s3://recordings/patience/.*does not answer.*check S3_ENDPOINT_URL"):
            call()
    assert 1.5 < time.monotonic() - begin < 60


def test_the_lock_is_taken_when_only_the_answer_was_lost(quiet_proxy: FaultyProxy) -> None:
    store = open_store(f"s3://{BUCKET}/lost-answer")
    quiet_proxy.planned = ["lost"]
    with store.locked():
        assert list(store.sizes()) == [".convert/lock"]
    assert store.sizes() == {}


def test_a_missing_object_is_an_error_at_once(raw: Path, endpoint: S3Server, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/missing-object"
    convert([raw], address, OPTIONS)
    endpoint.client().delete_object(Bucket=BUCKET, Key="missing-object/train/shard.00001.000.mds")
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")
    with pytest.raises(
        ShardError, match=r"s3://recordings/missing-object/train/shard\.00001\.000\.mds: cannot be downloaded"
    ):
        read_all(dataset)


def test_an_address_without_shards_names_the_one_below_it_that_has_them(
    raw: Path, endpoint: S3Server, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/above-shards"
    convert([raw], address, OPTIONS)
    with pytest.raises(ShardError, match=rf"no such object there; did you mean {address}/train\?$"):
        open_dataset(tmp_path / "above", local=str(tmp_path / "above"), remote=address)
    with pytest.raises(ShardError, match="no such object there; expected shards written by `p2p-convert RAW OUT`"):
        open_dataset(tmp_path / "far", local=str(tmp_path / "far"), remote=f"s3://{BUCKET}/far")


def test_wrong_keys_are_an_error_at_once(
    raw: Path, endpoint: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{BUCKET}/wrong-keys"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ValueError, match=r"s3://recordings/wrong-keys.*refuses.*the keys"):
        convert([raw], address, OPTIONS)
    with pytest.raises(ValueError, match=r"s3://recordings/wrong-keys/train/index\.json: cannot be downloaded"):
        open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")


def test_one_conversion_at_a_time_and_the_lock_of_a_dead_one_goes(raw: Path, endpoint: S3Server) -> None:
    address = f"s3://{BUCKET}/one-at-a-time"
    with open_store(address).locked():
        child = os.fork()
        if child == 0:
            try:
                convert([raw], address, OPTIONS)
            except ValueError as error:
                os._exit(7 if "is using it; wait for it, or name another OUT" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    child = os.fork()
    if child == 0:
        with open_store(address).locked():
            os._exit(0)  # dies with the lock
    os.waitpid(child, 0)
    assert ".convert/lock" in open_store(address).sizes()
    assert sum(convert([raw], address, OPTIONS).recordings.values()) == 40


@pytest.fixture
def hostile_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HostileStore]]:
    yield from serve(monkeypatch)


def test_a_store_that_sends_more_than_the_index_allows_does_not_fill_the_disk(
    hostile_store: type[HostileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote("s3://bucket", 5.0)
    with pytest.raises(ShardError, match="longer than 5 bytes"):
        remote.fetch("shard", tmp_path / "shard", 5)
    assert (tmp_path / "shard").stat().st_size <= 5
    assert hostile_store.num_sent < 1 << 28
    monkeypatch.setattr(hostile_store, "head", (("Content-Length", "5"),))
    with pytest.raises(ShardError, match="an answer without ETag"):
        remote.etag("shard")


def test_new_data_at_the_same_address_is_noticed_by_its_etag(
    raw: Path, endpoint: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, cache = f"s3://{BUCKET}/renewed", tmp_path / "cache"
    source, options = tmp_path / "raw", Options(val_fraction=0)
    for number, seed in ((0, 0), (1, 1)):
        write_recording(source / f"{number}", video_bytes(21, seed=seed), annotation(21))
        convert([source / f"{number}"], f"{address}/{number}", options)
    objects = [ObjectFolder(f"{address}/{number}/train") for number in (0, 1)]

    def recordings() -> set[str]:
        dataset = open_dataset(cache, local=str(cache), remote=objects[0].url)
        return {sample["recording"] for sample in read_all(dataset)}

    assert recordings() == {"0"}
    fetched = (cache / "index.json").stat().st_ino
    assert recordings() == {"0"}
    assert (cache / "index.json").stat().st_ino == fetched
    assert not caplog.records
    for name in objects[1].list():
        objects[0].write(name, objects[1].read(name, 1 << 30))
    assert recordings() == {"1"}
    assert "index.json: not the index of" in caplog.text
