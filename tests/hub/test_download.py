"""`p2p download` against a stand-in for the Hub: resumed, checked, selected and unpacked."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from p2p.cli import main
from p2p.hub import transfer
from p2p.manifest import MANIFEST, read_manifest, verify, write_manifest
from tests.hub.stand_in import HubStandIn

MODELS = ("models", "elefantai/open-p2p")
DATASET = ("datasets", "elefantai/p2p-full-data")
TOY = ("datasets", "elefantai/p2p-toy-examples")
CHECKPOINT = "150M/checkpoint-step=00500000.ckpt"

MakeHub = Callable[[dict[tuple[str, str], dict[str, bytes]]], HubStandIn]


# The library writes what it receives in pieces of 10 MB; what breaks off within a piece is transferred again.
PIECE = 10 * 1024 * 1024
MODEL_SIZE = 3 * PIECE + 1_000_000


def content(seed: int, size: int = MODEL_SIZE) -> bytes:
    return (seed.to_bytes(4, "big") + bytes(range(251))) * (size // 255)


def model_files() -> dict[str, bytes]:
    return {
        CHECKPOINT: content(1),
        "150M/model_config.yaml": b"policy_model: {}\n",
        "300M/checkpoint-step=00500000.ckpt": content(2),
        "300M/model_config.yaml": b"policy_model: {}\n",
        "README.md": b"weights\n",
    }


def archive(recordings: dict[str, dict[str, bytes]], folder: str = "batch") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for recording, files in recordings.items():
            for name, data in files.items():
                member = tarfile.TarInfo(f"{folder}/{recording}/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def recording(seed: int) -> dict[str, bytes]:
    return {"annotation.proto": content(seed, 2000), "192x192.mp4": content(seed + 1, 9000), "video.mp4": b"big"}


def dataset_files() -> dict[str, bytes]:
    batches = {1: ("aa", "bb"), 2: ("cc", "dd"), 3: ("ee", "ff")}
    games = {"aa": "Quake", "bb": "Doom", "cc": "Doom", "dd": "doom", "ee": "Quake", "ff": "Quake"}
    files = {
        f"dataset/batch_{number:05d}.tar.gz": archive({name: recording(ord(name[0])) for name in names})
        for number, names in batches.items()
    }
    rows = [(name, f"dataset/batch_{number:05d}/{name}") for number, names in batches.items() for name in names]
    table = pyarrow.table(
        {"id": [row[0] for row in rows], "filepath": [row[1] for row in rows], "env_name": [games[r[0]] for r in rows]}
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return files | {"data_metadata.parquet": buffer.getvalue()}


def found_below(folder: Path) -> set[str]:
    """The files that lie under their final names."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in paths if path.parts[0] != transfer.STAGING}


def incomplete_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.incomplete"))


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.01)


def test_a_model_arrives_under_its_size_and_a_second_run_transfers_nothing(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub({MODELS: model_files()})
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0
    assert found_below(tmp_path) == {CHECKPOINT, "150M/model_config.yaml"}
    assert (tmp_path / CHECKPOINT).read_bytes() == content(1)
    hub.transfers.clear()
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0
    assert hub.transfers == []


def test_a_broken_transfer_goes_on_where_it_broke(
    make_hub: MakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.01)
    hub = make_hub({MODELS: model_files()})
    hub.breaks[CHECKPOINT] = [PIECE + 500_000, PIECE + 700_000]
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0
    assert (tmp_path / CHECKPOINT).read_bytes() == content(1)
    assert hub.starts(CHECKPOINT) == [0, PIECE, 2 * PIECE], "each connection asked for what was still missing"


def test_connections_that_bring_nothing_end_with_advice_and_no_file(
    make_hub: MakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.01)
    hub = make_hub({MODELS: model_files()})
    hub.breaks[CHECKPOINT] = [0] * 50
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 2
    assert "run the same command again to go on" in capsys.readouterr().err
    assert found_below(tmp_path) == set()
    assert len(hub.starts(CHECKPOINT)) == transfer.MAX_TRIES_WITHOUT_PROGRESS


@pytest.mark.parametrize("path", [CHECKPOINT, "150M/model_config.yaml"])
def test_no_more_is_written_than_the_hub_lists(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    files = {CHECKPOINT: content(1, 1000), "150M/model_config.yaml": b"policy_model: {}\n"}
    hub = make_hub({MODELS: files})
    hub.substitutes[path] = files[path] + bytes(200_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 2
    assert f"longer than the {len(files[path])} bytes that {MODELS[1]} lists" in capsys.readouterr().err
    assert all(entry.stat().st_size <= 1 << 16 for entry in tmp_path.rglob("*"))
    assert incomplete_bytes(tmp_path) == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits
    hub.substitutes.clear()
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0


def test_a_killed_download_goes_on_in_the_next_run(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub({MODELS: model_files()})
    hub.stalls[CHECKPOINT] = 2 * PIECE + 500_000
    command = [sys.executable, "-m", "p2p.cli", "download", "model", "150M", "--output", str(tmp_path)]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    ) as it:
        assert hub.stalled.wait(60)
        wait_until(lambda: incomplete_bytes(tmp_path) >= 2 * PIECE)
        it.send_signal(signal.SIGKILL)
        it.wait(60)
    assert found_below(tmp_path) == set()
    del hub.stalls[CHECKPOINT]
    on_disk = incomplete_bytes(tmp_path)
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0
    assert (tmp_path / CHECKPOINT).read_bytes() == content(1)
    assert hub.starts(CHECKPOINT) == [0, on_disk]


@pytest.mark.parametrize("path", [CHECKPOINT, "150M/model_config.yaml"])
def test_a_file_with_another_hash_is_refused_and_a_good_one_taken_later(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    hub = make_hub({MODELS: model_files()})
    right = model_files()[path]
    hub.substitutes[path] = right[:-1] + bytes([right[-1] ^ 1])
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert path in message
    assert "has the hash" in message
    assert path not in found_below(tmp_path)
    hub.substitutes.clear()
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 0
    assert (tmp_path / path).read_bytes() == right


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "600M"], "600M"),
        (["model", "150M", "--repo", "nobody/nothing"], "no model nobody/nothing"),
        (["model", "150M", "--repo", "not a name"], "OWNER/NAME"),
        (["data"], "--toy, --start N --end M, or --game NAME"),
        (["data", "--toy", "--game", "Quake"], "--toy is a set of its own"),
        (["data", "--start", "7", "--end", "9"], "00001 to 00003"),
        (["data", "--start", "3", "--end", "2"], "--end 2 is before --start 3"),
        (["data", "--start", "0"], "numbered from 1"),
        (["data", "--game", "Quack"], "'Quake'"),
        (["data", "--game", "Quake", "--archives"], "--archives"),
    ],
)
def test_a_wrong_wish_is_explained_in_one_line(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_hub({MODELS: model_files(), DATASET: dataset_files()})
    assert main(["download", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_an_absent_hub_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["download", "model", "150M", "--output", str(tmp_path)]) == 2
    assert "elefantai/open-p2p at http://127.0.0.1:9" in capsys.readouterr().err.splitlines()[-1]


def test_a_range_of_archives_becomes_recording_folders_without_raw_video(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub({DATASET: dataset_files()})
    wish = ["download", "data", "--start", "1", "--end", "2", "--output", str(tmp_path)]
    assert main(wish) == 0
    names = ("annotation.proto", "192x192.mp4")
    folders = ("batch_00001/aa", "batch_00001/bb", "batch_00002/cc", "batch_00002/dd")
    assert found_below(tmp_path) == {f"{folder}/{name}" for folder in folders for name in names}
    assert (tmp_path / "batch_00001/aa/192x192.mp4").read_bytes() == recording(ord("a"))["192x192.mp4"]
    hub.transfers.clear()
    assert main(wish) == 0
    assert hub.transfers == []


def test_raw_video_is_added_when_asked(make_hub: MakeHub, tmp_path: Path) -> None:
    make_hub({DATASET: dataset_files()})
    assert main(["download", "data", "--start", "1", "--end", "1", "--output", str(tmp_path)]) == 0
    assert main(["download", "data", "--start", "1", "--end", "1", "--raw-video", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "batch_00001/bb/video.mp4").read_bytes() == b"big"
    assert len(found_below(tmp_path)) == 6


def test_one_game_is_taken_from_the_archives_that_hold_it(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub({DATASET: dataset_files()})
    assert main(["download", "data", "--game", "quake", "--output", str(tmp_path)]) == 0
    folders = {str(Path(path).parent) for path in found_below(tmp_path)} - {"."}
    assert folders == {"batch_00001/aa", "batch_00003/ee", "batch_00003/ff"}
    assert hub.starts("dataset/batch_00002.tar.gz") == []


def test_archives_are_kept_whole_when_asked(make_hub: MakeHub, tmp_path: Path) -> None:
    files = dataset_files()
    make_hub({DATASET: files})
    assert main(["download", "data", "--start", "2", "--end", "2", "--archives", "--output", str(tmp_path)]) == 0
    assert found_below(tmp_path) == {"dataset/batch_00002.tar.gz"}
    assert (tmp_path / "dataset/batch_00002.tar.gz").read_bytes() == files["dataset/batch_00002.tar.gz"]


def test_the_toy_set_comes_without_raw_video(make_hub: MakeHub, tmp_path: Path) -> None:
    loose = {f"toy/{name}/{file}": data for name in ("r1", "r2", "r3") for file, data in recording(9).items()}
    hub = make_hub({TOY: loose})
    assert main(["download", "data", "--toy", "--output", str(tmp_path)]) == 0
    assert found_below(tmp_path) == {path for path in loose if not path.endswith("video.mp4")}
    assert all(not transfer.path.endswith("/video.mp4") for transfer in hub.transfers)


def test_an_archive_with_climbing_names_writes_only_below_the_output(make_hub: MakeHub, tmp_path: Path) -> None:
    evil = archive({"../../../evil": recording(3), "..": recording(4), "good": recording(5)})
    make_hub({DATASET: {"dataset/batch_00001.tar.gz": evil}})
    output = tmp_path / "deep" / "er" / "out"
    assert main(["download", "data", "--start", "1", "--output", str(output)]) == 0
    folders = {str(Path(path).parent) for path in found_below(output)}
    assert folders == {"batch_00001/evil", "batch_00001/good"}
    assert [path for path in tmp_path.rglob("*.mp4") if output not in path.parents] == []


@pytest.mark.parametrize(
    "path",
    ["../evil/192x192.mp4", "a/../../evil/192x192.mp4", "/evil/192x192.mp4", "a\n/192x192.mp4", ".download/x.mp4"],
)
def test_a_path_that_the_hub_must_not_give_is_refused_before_anything_is_fetched(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    hub = make_hub({TOY: {path: b"evil", "a/192x192.mp4": b"good"}})
    assert main(["download", "data", "--toy", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "elefantai/p2p-toy-examples" in error.splitlines()[-1]
    assert "a file of the repository" in error.splitlines()[-1]
    assert hub.transfers == []
    assert found_below(tmp_path / "out") == set()


@pytest.mark.parametrize("stem", ["..", ".", ".download"])
def test_an_archive_whose_name_would_climb_gives_no_folder(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], stem: str
) -> None:
    make_hub({TOY: {f"toy/{stem}.tar.gz": archive({"evil": recording(3)})}})
    assert main(["download", "data", "--toy", "--output", str(tmp_path / "out")]) == 2
    assert f"toy/{stem}.tar.gz" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.mp4")) == []


def test_two_downloads_into_one_folder_are_one_too_many(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hub({TOY: {"a/192x192.mp4": b"good"}})
    wish = ["download", "data", "--toy", "--output", str(tmp_path)]
    with transfer.Downloads(transfer.Repository(TOY[1], "dataset"), tmp_path):
        assert main(wish) == 2
    assert "another process" in capsys.readouterr().err
    assert main(wish) == 0


def test_a_damaged_note_of_what_is_finished_is_named(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hub({TOY: {"a/192x192.mp4": b"good"}})
    wish = ["download", "data", "--toy", "--output", str(tmp_path)]
    assert main(wish) == 0
    note = tmp_path / transfer.STAGING / "verified.json"
    note.write_bytes(note.read_bytes()[:-5])
    assert main(wish) == 2
    assert f"{note}: not a JSON text" in capsys.readouterr().err
    note.unlink()
    assert main(wish) == 0


def test_a_damaged_archive_is_refused_and_leaves_no_recording(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hub({DATASET: {"dataset/batch_00001.tar.gz": dataset_files()["dataset/batch_00001.tar.gz"][:-40]}})
    assert main(["download", "data", "--start", "1", "--output", str(tmp_path)]) == 2
    assert "not a whole .tar.gz archive" in capsys.readouterr().err
    assert found_below(tmp_path) == set()


def signed_recording(folder: Path) -> dict[str, bytes]:
    """The files of a recording as we write them, with their manifest."""
    files = {name: data for name, data in recording(1).items() if name != "video.mp4"}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, "recording", files, {})
    return files | {MANIFEST: (folder / MANIFEST).read_bytes()}


@pytest.mark.parametrize("is_loose", [True, False])
def test_a_recording_keeps_its_manifest_and_a_manifest_alone_is_no_recording(
    make_hub: MakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_loose: bool
) -> None:
    caplog.set_level("INFO")
    recordings = {"aa": signed_recording(tmp_path / "made"), "bb": {MANIFEST: b"{}", "notes.txt": b""}}
    loose = {f"toy/{name}/{file}": data for name, files in recordings.items() for file, data in files.items()}
    make_hub({TOY: loose if is_loose else {"toy.tar.gz": archive(recordings)}})
    assert main(["download", "data", "--toy", "--output", str(tmp_path / "got")]) == 0
    assert "1 recordings in" in caplog.text
    (manifest_path,) = (tmp_path / "got").rglob(f"aa/{MANIFEST}")
    verify(manifest_path.parent, read_manifest(manifest_path.parent, "recording"))


def test_manifests_alone_are_no_dataset(make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hub({TOY: {f"toy/aa/{MANIFEST}": b"{}"}})
    assert main(["download", "data", "--toy", "--output", str(tmp_path)]) == 2
    assert "holds no recording" in capsys.readouterr().err


def test_a_listing_of_many_pages_is_read_whole(make_hub: MakeHub) -> None:
    hub = make_hub({TOY: {f"toy/{number:03d}/notes.txt": b"" for number in range(23)}})
    hub.page_size = 5
    assert len(transfer.Repository(TOY[1], "dataset").files()) == 23


@pytest.mark.parametrize(
    ("endless", "words"),
    [
        ("again", "the listing has no end"),
        ("empty", "the listing has no end"),
        ("bytes", "is longer than 16777216 bytes; tell the repository's owner"),
        ("error", "404 Client Error"),
    ],
)
def test_a_listing_without_an_end_is_refused(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], endless: str, words: str
) -> None:
    make_hub({TOY: {"a": b""}}).endless = endless
    assert main(["download", "data", "--toy", "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
