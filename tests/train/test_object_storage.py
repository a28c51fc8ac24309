"""Shards come from a real S3 server; checkpoints go there and come back, after a kill, on a machine without them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.object_storage import ObjectFolder
from p2p.train.checkpoints import steps_in
from p2p.train.store import newest_remote
from p2p_convert.cli import main as p2p_convert
from tests.data.faulty_proxy import FaultyProxy
from tests.data.making import annotation, video_bytes, write_recording
from tests.s3 import S3Server
from tests.train.zygote import Zygote

Metrics = dict[int, dict[str, Any]]
BUCKET = "checkpoints"
OUTAGE_S = 30.0
CLOCKS = ("step_s", "wait_s", "frames_per_s", "tokens_per_s")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.make_bucket(BUCKET)
    yield server
    server.close()


@pytest.fixture
def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectFolder:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectFolder(f"s3://{BUCKET}/runs/small")


def without_clocks(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in CLOCKS}


def test_a_run_killed_and_moved_to_another_machine_resumes_from_object_storage(
    zygote: Zygote,
    small_run: Any,
    read_metrics: Callable[[Path], Metrics],
    s3: S3Server,
    store: ObjectFolder,
    shared_fixtures: Path,
    tmp_path: Path,
) -> None:
    """Up to the kill, shards in object storage give exactly the losses of the same shards in a folder."""
    data = f"s3://{BUCKET}/shards"
    assert p2p_convert([str(shared_fixtures / "data_case" / "dataset"), data, "--split", "val=0.3"]) == 0
    folder, local = tmp_path / "run", tmp_path / "local"
    options = ["save_interval=2ba", "max_duration=12ba"]
    undisturbed = zygote.start(small_run(local, *options), tmp_path / "local.log")
    remote = [f"data.train={data}/val", f"data.val={data}/train", f"save_folder={store.url}", "keep=2"]
    argv = small_run(folder, *options, *remote)
    run = zygote.start(argv, tmp_path / "log", environment=s3.environment)
    run.wait_until(lambda: newest_remote(store) is not None and 6 in read_metrics(folder))
    run.kill()
    uploaded = newest_remote(store)
    assert uploaded is not None
    assert uploaded < 12
    before = read_metrics(folder)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "cache")

    undisturbed.wait()
    reference = read_metrics(local)
    for step, entry in before.items():
        assert without_clocks(entry) == without_clocks(reference[step])

    zygote.start(argv, tmp_path / "log", 2, environment=s3.environment).wait()
    log = (tmp_path / "log").read_text()
    resumed = int(log.rpartition("resuming from step ")[2].split()[0])
    assert resumed >= uploaded
    after = read_metrics(folder)
    assert sorted(after) == list(range(1, 13))
    for step in range(resumed + 1, 13):
        assert after[step]["chunks"] == reference[step]["chunks"]
        assert after[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-3)
    names = sorted({name.split("/")[0] for name in store.list()})
    assert steps_in(names) == [12, 10]
    assert (folder / "policy" / "model.safetensors").is_file()


@pytest.fixture
def many_shards(tmp_path: Path) -> Path:
    """Raw recordings that give half a dozen shards."""
    video = video_bytes(21)
    for number in range(96):
        write_recording(tmp_path / "raw" / f"rec_{number:03}", video, annotation(21, seed=number))
    return tmp_path / "raw"


def test_training_gets_through_failed_requests_and_an_outage_of_half_a_minute(
    zygote: Zygote,
    small_run: Any,
    read_metrics: Callable[[Path], Metrics],
    s3: S3Server,
    store: ObjectFolder,
    many_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Converted to the store and trained from it, through a proxy that fails; the losses of local shards."""
    options = ["max_duration=12ba", "save_interval=3ba", "data.prefetch_factor=1", "data.val=null"]
    assert p2p_convert([str(many_shards), str(tmp_path / "shards")]) == 0
    local = tmp_path / "local"
    zygote.start(
        small_run(local, *options, f"data.train={tmp_path / 'shards' / 'train'}"), tmp_path / "local.log"
    ).wait()
    proxy = FaultyProxy(s3.endpoint, failing_share=0.05)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.address)
    assert p2p_convert([str(many_shards), f"s3://{BUCKET}/many"]) == 0
    folder = tmp_path / "run"
    remote = [f"data.train=s3://{BUCKET}/many/train", "data.cache_limit=1200kb", f"save_folder={store.url}-outage"]
    environment = s3.environment | {"S3_ENDPOINT_URL": proxy.address}
    run = zygote.start(small_run(folder, *options, *remote), tmp_path / "log", environment=environment)
    run.wait_until(lambda: 4 in read_metrics(folder))
    proxy.outage(OUTAGE_S)
    run.wait()
    assert proxy.num_outages_over == 1
    assert "trying again for 120 s altogether" in (tmp_path / "log").read_text()
    metrics, reference = read_metrics(folder), read_metrics(local)
    assert sorted(metrics) == list(range(1, 13))
    for step, entry in metrics.items():
        assert without_clocks(entry) == without_clocks(reference[step])
    assert newest_remote(ObjectFolder(f"{store.url}-outage")) == 12
    proxy.close()


def test_a_checkpoint_that_is_not_fully_uploaded_is_passed_over(store: ObjectFolder, tmp_path: Path) -> None:
    part = ObjectFolder(store.url + "-partial")
    (tmp_path / "shard").write_bytes(b"x")
    part.upload(tmp_path / "shard", "step-00000007/__0_0.distcp")
    assert newest_remote(part) is None


def test_a_missing_bucket_is_named(store: ObjectFolder) -> None:
    with pytest.raises(ValueError, match=r"s3://absent/x/: the store refuses: .*check the bucket, S3_ENDPOINT_URL"):
        ObjectFolder("s3://absent/x").list()
