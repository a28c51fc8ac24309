"""A prefix in an object store has one conversion, on a real S3 server: who may take it over, and who has lost it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2p.files import InUse
from p2p.object_storage import ObjectFolder, StorageError
from p2p_convert import lease
from p2p_convert.cli import main
from p2p_convert.lease import LOCK, LeaseLost
from p2p_convert.plan import Options, make_plan
from p2p_convert.run import convert
from p2p_convert.storage import open_store
from p2p_convert.work import run_task
from tests.data.making import annotation, video_bytes, write_recording
from tests.s3 import S3Server, serving_bucket

BUCKET = "leases"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving_bucket(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


@pytest.fixture
def address(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty prefix."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{abs(hash(request.node.name))}"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for number in range(20):
        write_recording(root / f"rec_{number:02}", video_bytes(12), annotation(12, seed=number))
    return root


def leave_lock(address: str, **facts: Any) -> None:
    """As a conversion leaves it that somebody pulled the plug of."""
    content = {"host": "elsewhere", "pid": 1, "started": time.time(), "renewed": time.time(), **facts}
    ObjectFolder(address).write(LOCK, json.dumps(content).encode())


def take_within(address: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with open_store(address).locked():
                return
        except InUse:
            assert time.monotonic() < deadline


def test_a_container_that_is_started_again_with_its_name_and_number_waits_no_longer_than_the_lease(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_lock(address, host=socket.gethostname(), pid=os.getpid(), token="of the last start")
    with (
        pytest.raises(InUse, match=r"another conversion \(on '.*last heard of .*--break-lock"),
        open_store(address).locked(),
    ):
        pass
    monkeypatch.setattr(lease, "EXPIRED_S", 1.0)
    take_within(address, 30)


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_living_owner_is_not_robbed_by_a_wrong_clock_or_by_its_number_being_unknown_here(
    address: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_lock(address, host=host, pid=2**22 + 1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 400)
    with pytest.raises(InUse, match="another conversion"), open_store(address).locked():
        pass


@pytest.mark.parametrize("garbage", [b"", b"\xff{", b"[1]", b'{"token": 5}', b'{"host": "' + b"x" * 9000 + b'"}'])
def test_a_lock_that_is_none_is_named_and_can_be_broken(
    raw: Path, address: str, garbage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    ObjectFolder(address).write(LOCK, garbage)
    assert main([str(raw), address]) == 2
    error = capsys.readouterr().err
    assert f"{address}/{LOCK}" in error
    assert "--break-lock" in error
    assert error.count("\n") == 1
    assert main([str(raw), address, "--break-lock"]) == 0
    assert LOCK not in open_store(address).sizes()


def test_who_lost_the_lease_writes_no_report_and_no_index_and_leaves_the_new_owner_his_lock(
    raw: Path, address: str
) -> None:
    def rob(*_: object) -> None:
        leave_lock(address, token="the robber's")

    with pytest.raises(LeaseLost, match="nothing more"):
        convert([raw], address, Options(val_fraction=0), progress=rob)
    names = open_store(address).sizes()
    assert [name for name in names if name.endswith("index.json")] == []
    assert len([name for name in names if "/task-" in name]) == 1
    assert b"robber" in ObjectFolder(address).read(LOCK, 1000)
    assert convert([raw], address, Options(val_fraction=0), break_lock=True).recordings == {"train": 20}


def test_a_lease_that_is_gone_is_lost_also_for_workers(address: str) -> None:
    store = open_store(address)
    with store.locked() as hold:
        hold.check()
        store.check(hold.token)
        leave_lock(address, token="the robber's")
        with pytest.raises(LeaseLost):
            store.check(hold.token)
        ObjectFolder(address).delete([LOCK])
        with pytest.raises(LeaseLost):
            store.check(hold.token)
        with pytest.raises(LeaseLost):
            hold.check()
        with pytest.raises(InUse, match="process"), store.locked(break_lock=True):
            pass  # this machine knows that a conversion lives


def test_who_was_stopped_until_another_took_over_replaces_no_shard_of_his(raw: Path, address: str) -> None:
    task = make_plan([raw], address, Options(val_fraction=0)).tasks[0]
    leave_lock(address, token="the new owner's")
    with pytest.raises(LeaseLost):
        run_task(replace(task, lease="the old owner's"))
    assert list(open_store(address).sizes()) == [LOCK]


def test_a_renewal_is_a_new_version_and_makes_the_lease_young(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    objects = ObjectFolder(address)
    with open_store(address).locked():
        first = objects.look(LOCK, 1000)
        deadline = time.monotonic() + 30
        while objects.look(LOCK, 1000).etag == first.etag:
            assert time.monotonic() < deadline
    assert objects.list() == {}


def test_no_more_of_an_object_is_read_than_was_asked_for(address: str) -> None:
    objects = ObjectFolder(address)
    objects.write("big", b"0123456789")
    assert objects.read("big", 10) == objects.look("big", 10).content == b"0123456789"
    for call in (objects.read, objects.look):
        with pytest.raises(StorageError, match=r"/big: longer than 9 bytes"):
            call("big", 9)
