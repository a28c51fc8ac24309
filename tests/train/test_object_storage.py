"""Shards come from a real S3 server; checkpoints go there and come back, after a kill, on a machine without them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.train.checkpoints import newest_remote, steps_in
from p2p.train.store import ObjectFolder
from tests.s3 import S3Server
from tests.train.zygote import Zygote

Metrics = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.make_bucket("checkpoints")
    yield server
    server.close()


@pytest.fixture
def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectFolder:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectFolder("s3://checkpoints/runs/small")


def test_a_run_killed_and_moved_to_another_machine_resumes_from_object_storage(
    zygote: Zygote,
    small_run: Any,
    read_metrics: Callable[[Path], Metrics],
    s3: S3Server,
    store: ObjectFolder,
    shards: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    data = ObjectFolder("s3://checkpoints/shards")
    for path in (shards / "val").iterdir():
        data.upload(path, path.name)
    options = [f"data.train={data.url}", f"save_folder={store.url}", "save_interval=2ba", "keep=2"]
    argv = small_run(folder, *options, "max_duration=12ba")
    run = zygote.start(argv, tmp_path / "log", environment=s3.environment)
    run.wait_until(lambda: newest_remote(store, tmp_path) is not None and 6 in read_metrics(folder))
    run.kill()
    uploaded = newest_remote(store, tmp_path)
    assert uploaded is not None
    assert uploaded < 12
    before = read_metrics(folder)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "cache")

    zygote.start(argv, tmp_path / "log", 2, environment=s3.environment).wait()
    log = (tmp_path / "log").read_text()
    resumed = int(log.rpartition("resuming from step ")[2].split()[0])
    assert resumed >= uploaded
    after = read_metrics(folder)
    assert sorted(after) == list(range(1, 13))
    for step in range(resumed + 1, max(before) + 1):
        assert after[step]["chunks"] == before[step]["chunks"]
        assert after[step]["loss"] == pytest.approx(before[step]["loss"], rel=1e-3)
    names = sorted({name.split("/")[0] for name in store.sizes()})
    assert steps_in(names) == [12, 10]
    assert (folder / "policy" / "model.safetensors").is_file()


def test_a_checkpoint_that_is_not_fully_uploaded_is_passed_over(store: ObjectFolder, tmp_path: Path) -> None:
    part = ObjectFolder(store.url + "-partial")
    (tmp_path / "shard").write_bytes(b"x")
    part.upload(tmp_path / "shard", "step-00000007/__0_0.distcp")
    assert newest_remote(part, tmp_path) is None


def test_a_missing_bucket_is_named(store: ObjectFolder) -> None:
    with pytest.raises(ValueError, match=r"s3://absent/x: .*Check the bucket, S3_ENDPOINT_URL"):
        ObjectFolder("s3://absent/x").sizes()
