"""Shards come from a real S3 server; checkpoints go there and come back, after a kill, on a machine without them."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.checkpoints.steps import fetch_newest, local_steps, newest_stored, steps_in
from p2p.object_storage import ObjectFolder
from p2p.recipe import Recipe
from p2p.train.publishing import Uploader
from p2p_convert.cli import main as p2p_convert
from tests.data.faulty_proxy import FaultyProxy
from tests.data.making import annotation, video_bytes, write_recording
from tests.hostile_store import serve
from tests.s3 import S3Server, serving_bucket
from tests.train.making import DATA_FILE, Payload, write_checkpoint
from tests.train.zygote import Zygote

Metrics = dict[int, dict[str, Any]]
BUCKET = "checkpoints"
OUTAGE_S = 30.0
CLOCKS = ("step_s", "wait_s", "frames_per_s", "tokens_per_s")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving_bucket(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


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
    run.wait_until(lambda: newest_stored(store) is not None and 6 in read_metrics(folder))
    run.kill()
    uploaded = newest_stored(store)
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

    store.delete(["step-00000012/.metadata"])  # as if the run had been ended while it uploaded that one
    zygote.start(argv, tmp_path / "again.log", environment=s3.environment).wait()
    assert "already trained for 12ba" in (tmp_path / "again.log").read_text()
    assert newest_stored(store) == 12

    anew = zygote.start([*argv, "resume=false"], tmp_path / "anew.log", environment=s3.environment)
    assert anew.end() == [2]
    assert "holds checkpoints up to step 12, and resume is false" in (tmp_path / "anew.log").read_text()


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
    assert newest_stored(ObjectFolder(f"{store.url}-outage")) == 12
    proxy.close()


def test_a_checkpoint_that_is_not_fully_uploaded_is_passed_over(store: ObjectFolder, tmp_path: Path) -> None:
    part = ObjectFolder(store.url + "-partial")
    (tmp_path / "shard").write_bytes(b"x")
    part.upload(tmp_path / "shard", "step-00000007/__0_0.distcp")
    assert newest_stored(part) is None
    assert fetch_newest(part, tmp_path / "fetched", None) is None


@pytest.fixture
def store_without_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An empty store that answers a PUT with 501; its environment."""
    for _ in serve(monkeypatch):
        yield {name: value for name, value in os.environ.items() if name == "S3_ENDPOINT_URL" or "AWS_" in name}


def test_a_run_whose_last_checkpoint_cannot_be_uploaded_fails(
    zygote: Zygote, small_run: Any, store_without_writes: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = small_run(folder, "max_duration=1ba", "data.val=null", "save_folder=s3://any/x")
    run = zygote.start(argv, tmp_path / "log", 2, environment=store_without_writes)
    assert run.end() == [2, 2]
    log = run.log.read_text()
    assert "Traceback" not in log
    assert log.count("p2p: error: s3://any/x: the last checkpoint was not uploaded: ") == 2
    assert local_steps(folder / "checkpoints") == [1]


class Listener(ObjectFolder):
    """Remembers what is uploaded, in order."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.uploaded: list[str] = []

    def upload(self, path: Path, name: str) -> None:
        super().upload(path, name)
        self.uploaded.append(name)


def test_what_is_damaged_in_the_store_is_not_taken_and_the_checkpoint_before_is(
    store: ObjectFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Uploaded, then bent: half a file, a page of an error in its place, a manifest of nothing."""
    listener = Listener(store.url + "-damaged")
    uploader = Uploader(listener, tmp_path / "run", keep=9)
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path / "run", step)
        uploader.submit(step)
    uploader.close(60)
    assert [name for name in listener.uploaded if name.startswith("step-00000004/")][-2:] == [
        "step-00000004/manifest.json",
        "step-00000004/.metadata",
    ]
    assert local_steps(tmp_path / "run") == [4]
    content = (tmp_path / "run" / "step-00000004" / DATA_FILE).read_bytes()
    listener.write(f"step-00000004/{DATA_FILE}", content[: len(content) // 2])
    page = b"<html>503</html>"
    listener.write(f"step-00000003/{DATA_FILE}", page + bytes(len(content) - len(page)))
    listener.write("step-00000002/manifest.json", b"{}")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert newest_stored(listener) == 3  # whole by its lengths
    assert fetch_newest(listener, fetched, None) == 1
    for words in (
        "step-00000004 is passed over: __0_0.distcp has",
        "step-00000003 is passed over: ",
        "step-00000002 is",
    ):
        assert words in caplog.text
    assert [path.name for path in fetched.iterdir()] == ["step-00000001"]
    assert fetch_newest(listener, fetched, 1) is None


def test_a_store_whose_checkpoints_are_all_damaged_is_left_as_it_is(store: ObjectFolder, tmp_path: Path) -> None:
    """To begin anew there would delete them with the first upload; one that was never whole is nothing."""
    from p2p.train.checkpointer import find_resume_point

    damaged = ObjectFolder(store.url + "-all-damaged")
    recipe = Recipe(name="a", run_folder=str(tmp_path / "run"), save_folder=damaged.url)
    damaged.write(f"step-00000004/{DATA_FILE}", b"x")
    assert find_resume_point(recipe, "data") is None
    for name in (".metadata", "config.yaml", "manifest.json"):
        damaged.write(f"step-00000004/{name}", b"x")
    with pytest.raises(ValueError, match=r"-all-damaged: no checkpoint is usable .*write another save_folder"):
        find_resume_point(recipe, "data")


def test_a_hostile_checkpoint_in_the_store_runs_nothing(
    store: ObjectFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hostile, mark = ObjectFolder(store.url + "-hostile"), tmp_path / "it-ran"
    for has_manifest, step in ((True, 5), (False, 6)):
        checkpoint = write_checkpoint(
            tmp_path / "run", step, bend=lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Payload(mark)))
        )
        for path in checkpoint.iterdir():
            if has_manifest or path.name != "manifest.json":
                hostile.upload(path, f"{checkpoint.name}/{path.name}")
    (tmp_path / "fetched").mkdir()
    assert fetch_newest(hostile, tmp_path / "fetched", None) is None
    assert caplog.text.count("not the metadata of a checkpoint") == 2
    assert not mark.exists()


def test_a_missing_bucket_is_named(store: ObjectFolder) -> None:
    with pytest.raises(ValueError, match=r"s3://absent/x/: the store refuses: .*check the bucket, S3_ENDPOINT_URL"):
        ObjectFolder("s3://absent/x").list()
