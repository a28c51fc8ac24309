"""The same shards and the same chunks through a real S3 server, also when it fails now and then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.data import ShardError
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.storage import open_store
from tests.data.conftest import open_dataset, read_all
from tests.data.faulty_proxy import FaultyProxy
from tests.data.making import annotation, digest, tree_digest, video_bytes, write_recording
from tests.s3 import S3Server

OPTIONS = Options(val_fraction=0.2)
BUCKET = "recordings"  # one for all tests: the server reserves space for each


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.make_bucket(BUCKET)
    yield server
    server.close()


@pytest.fixture
def endpoint(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxy(endpoint: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(endpoint.endpoint, failing_share=0.1)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.address)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    video = video_bytes(21)
    for number in range(40):
        write_recording(root / f"rec_{number:02}", video, annotation(21, seed=number))
    return root


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
    for name in store.names():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name))
    assert tree_digest(tmp_path) == tree_digest(local, leave_out=["lock"])


def test_conversion_and_training_get_through_faults_and_an_outage(
    raw: Path, local: Path, proxy: FaultyProxy, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/with-faults"
    proxy.outage(2)
    convert([raw], address, OPTIONS)
    assert proxy.num_failed > 0
    failed = proxy.num_failed
    proxy.outage(2)
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")
    samples = read_all(dataset, num_workers=2)
    assert proxy.num_failed > failed
    assert contents(samples) == contents(read_all(open_dataset(local / "train")))


def test_a_missing_object_is_an_error_at_once(raw: Path, endpoint: S3Server, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/missing-object"
    convert([raw], address, OPTIONS)
    endpoint.client().delete_object(Bucket=BUCKET, Key="missing-object/train/shard.00001.000.mds")
    dataset = open_dataset(tmp_path, local=str(tmp_path), remote=f"{address}/train")
    with pytest.raises(
        ShardError, match=r"s3://recordings/missing-object/train/shard\.00001\.000\.mds: cannot be downloaded"
    ):
        read_all(dataset)


def test_wrong_keys_are_an_error_at_once(
    raw: Path, endpoint: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{BUCKET}/wrong-keys"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ValueError, match=r"s3://recordings/wrong-keys.*refuses.*credentials"):
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
                os._exit(7 if "another conversion is writing" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    child = os.fork()
    if child == 0:
        with open_store(address).locked():
            os._exit(0)  # dies with the lock
    os.waitpid(child, 0)
    assert ".convert/lock" in open_store(address).names()
    assert sum(convert([raw], address, OPTIONS).recordings.values()) == 40
