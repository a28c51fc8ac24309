"""Recordings in, shards out: what is kept, what is rejected and why, and what survives interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from p2p.format import Segment, decode_index, decode_segment
from p2p.game_names import load_aliases
from p2p.proto import video_annotation_pb2 as messages
from p2p_convert.cli import main
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.sources import split_position, validation_ids
from p2p_convert.storage import open_store
from p2p_convert.verify import decode_file, decode_segments
from tests.data.making import add_text, annotation, tree_digest, video_bytes, write_recording
from tests.hub.stand_in import HubStandIn


def stored_segments(stream: Path, with_annotation: bool = False) -> list[Segment]:
    """All segments of a stream, read without Streaming."""
    shards, _ = decode_index((stream / "index.json").read_bytes(), str(stream))
    segments = []
    for shard in shards:
        content = (stream / shard["raw_data"]["basename"]).read_bytes()
        (count,) = np.frombuffer(content[:4], "<u4")
        offsets = np.frombuffer(content[4 : 4 + 4 * (count + 1)], "<u4").tolist()
        for begin, end in pairwise(offsets):
            segments.append(decode_segment(content[begin:end], with_annotation))
    return segments


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for number in range(6):
        video = video_bytes(40 + number, gop=12, seed=number)
        write_recording(root / f"rec_{number}", video, annotation(40 + number, seed=number))
    return root


def test_every_frame_and_every_byte_of_the_annotation_is_there_again(raw: Path, tmp_path: Path) -> None:
    convert([raw], tmp_path, Options(val_fraction=0))
    by_recording: dict[str, list[Segment]] = {}
    for segment in stored_segments(tmp_path / "train", with_annotation=True):
        by_recording.setdefault(segment.recording, []).append(segment)
    assert sorted(by_recording) == sorted(folder.name for folder in raw.iterdir())
    for name, segments in by_recording.items():
        assert decode_segments(segments) == decode_file((raw / name / "192x192.mp4").read_bytes())
        assert segments[0].annotation == (raw / name / "annotation.proto").read_bytes()


def test_a_long_recording_is_cut_at_keyframes_and_each_segment_decodes_alone(tmp_path: Path) -> None:
    video = video_bytes(700, gop=50, size=32)
    write_recording(tmp_path / "raw" / "long", video, annotation(700))
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    segments = stored_segments(tmp_path / "out" / "train")
    assert [s.num_frames for s in segments] == [300, 300, 100]
    assert [s.first_frame for s in segments] == [0, 300, 600]
    frames = decode_file(video)
    for segment in reversed(segments):
        part = frames[segment.first_frame : segment.first_frame + segment.num_frames]
        assert decode_segments([segment]) == part


def test_open_gops_are_not_cut(tmp_path: Path) -> None:
    video = video_bytes(600, gop=40, b_frames=3, size=32, **{"x264-params": "open-gop=1:scenecut=0", "preset": "fast"})
    write_recording(tmp_path / "raw" / "open", video, annotation(600))
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    assert decode_segments(stored_segments(tmp_path / "out" / "train")) == decode_file(video)


def test_a_video_in_fragments_loses_nothing_either(tmp_path: Path) -> None:
    video = video_bytes(90, gop=20, container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    write_recording(tmp_path / "raw" / "r", video, annotation(90))
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    segments = stored_segments(tmp_path / "out" / "train")
    expected = decode_file(video)
    assert len(expected) == 90
    assert decode_segments(segments) == expected


def test_bad_recordings_are_counted_by_reason_and_listed(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "raw"
    good = video_bytes(30)
    write_recording(source / "fine", good, annotation(30))
    write_recording(source / "also_fine", good, annotation(30))
    write_recording(source / "no_video", None, annotation(30))
    write_recording(source / "no_annotation", good, None)
    write_recording(source / "cut_off", good[: len(good) * 2 // 3], annotation(30))
    moved = video_bytes(30, container_options={"movflags": "faststart"})
    write_recording(source / "cut_off_late", moved[: len(moved) * 2 // 3], annotation(30))
    write_recording(source / "not_a_video", b"hello" * 99, annotation(30))
    write_recording(source / "garbage", good, b"\xff\x01 no protobuf")
    write_recording(source / "empty", good, b"")
    summary = convert([source], tmp_path / "out", Options(val_fraction=0), max_rejected=0.9)
    assert summary.recordings == {"train": 2}
    reasons = {verdict["recording"]: verdict["reason"] for verdict in summary.rejected}
    assert reasons == {
        "no_video": "no video",
        "no_annotation": "no annotation",
        "cut_off": "unreadable video",
        "cut_off_late": "truncated video",
        "not_a_video": "unreadable video",
        "garbage": "annotation is not protobuf",
        "empty": "empty annotation",
    }
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["recording"] for line in listed} == set(reasons)
    assert all(str(source) in line["where"] for line in listed)


def test_what_is_odd_about_recordings_is_counted(tmp_path: Path) -> None:
    video = video_bytes(12)
    told = annotation(12)
    add_text(told, 2, 0.0, 1.0)
    add_text(told, 3, -1.0, 1.0)
    add_text(told, 4, 1.0, 1.0, embedded=False)
    add_text(told, 5, 1.0, 1.0)
    told.frame_annotations[5].frame_text_annotation[0].text_embedding_dict["gemini-2.5-flash"].text_embeddings[
        "gemma"
    ].shape[0] = 7
    write_recording(tmp_path / "raw" / "told", video, told)
    write_recording(tmp_path / "raw" / "one_frame", video_bytes(1), annotation(1))
    write_recording(tmp_path / "raw" / "fewer", video, annotation(5))
    write_recording(tmp_path / "raw" / "more", video, annotation(50))
    write_recording(tmp_path / "raw" / "nothing_known", video, annotation(12, "nothing"))
    write_recording(tmp_path / "raw" / "no_frames", video, messages.VideoAnnotation(metadata={"id": "some-id"}))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    assert summary.recordings == {"train": 5}
    assert summary.reasons == {"empty annotation": 1}
    assert {kind: count for kind, count in summary.counts.items() if not kind.startswith(("key", "button"))} == {
        "recordings of one frame, which give no chunk": 1,
        "fewer annotations": 1,
        "more annotations than frames": 1,
        "text with a duration that is not positive": 2,
        "text without an embedding": 2,
        "text with a damaged embedding": 1,
    }


def test_too_many_bad_recordings_fail_the_run_and_leave_no_index(tmp_path: Path) -> None:
    write_recording(tmp_path / "raw" / "fine", video_bytes(30), annotation(30))
    for number in range(3):
        write_recording(tmp_path / "raw" / f"bad_{number}", None, annotation(30))
    with pytest.raises(ValueError, match=r"3 of 4 recordings were rejected \(3 no video\)"):
        convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    assert not list((tmp_path / "out").rglob("index.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere", "{tmp}/out"], "nowhere: no such folder"),
        (["{tmp}/void", "{tmp}/out"], "void: no recording in it"),
        (["{tmp}/void", "{tmp}/out", "--split", "train=0.5"], "--split train=0.5"),
        (["{tmp}/void", "{tmp}/out", "--compression", "rar"], "--compression rar"),
        (["{tmp}/void", "{tmp}/out", "--compression", "zstd:99"], "--compression zstd:99: write none, zstd or"),
        (["{tmp}/void", "{tmp}/out", "--workers", "0"], "--workers 0"),
    ],
)
def test_user_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    assert main([a.format(tmp=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("p2p: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    video = video_bytes(20)
    for number in range(40):
        write_recording(tmp_path / "raw" / f"rec_{number:02}", video, annotation(20, seed=number))
    convert([tmp_path / "raw"], tmp_path / "one", Options(val_fraction=0.2), num_workers=1)
    convert([tmp_path / "raw"], tmp_path / "two", Options(val_fraction=0.2), num_workers=2)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")


def test_a_second_run_keeps_what_is_there(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(raw), str(tmp_path)]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mds")}
    capsys.readouterr()
    assert main([str(raw), str(tmp_path)]) == 0
    assert "1 of 1 tasks were done before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mds")} == before


def test_other_recordings_or_options_do_not_mix_into_a_conversion(raw: Path, tmp_path: Path) -> None:
    convert([raw], tmp_path, Options(val_fraction=0.3))
    with pytest.raises(ValueError, match="holds a conversion of other recordings or with other options"):
        convert([raw], tmp_path, Options(val_fraction=0.4))


def test_a_second_conversion_into_the_same_folder_refuses(raw: Path, tmp_path: Path) -> None:
    with (
        open_store(str(tmp_path)).locked(),
        pytest.raises(
            ValueError, match=r"another process \(process \d+\) is using it; wait for it, or name another OUT"
        ),
    ):
        convert([raw], tmp_path, Options())


def test_the_split_hangs_on_ids_alone_and_small_sets_have_both() -> None:
    many = [f"rec_{number}" for number in range(2000)]
    chosen = validation_ids(many, 0.05)
    assert 60 < len(chosen) < 140
    assert validation_ids([*many, "another"], 0.05) - {"another"} == chosen
    assert validation_ids(["a", "b", "c"], 0.01) == {min("abc", key=split_position)}
    assert len(validation_ids(["a", "b"], 0.999)) == 1
    assert validation_ids(["a"], 0.5) <= {"a"}
    assert validation_ids(many, 0) == frozenset()


def test_games_have_streams_of_their_own(tmp_path: Path) -> None:
    for name, game in (("a", "doom"), ("b", "quake"), ("c", "doom")):
        write_recording(tmp_path / "raw" / name, video_bytes(20), annotation(20, game=game))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0, by_game=True))
    assert summary.recordings == {"train/doom": 2, "train/quake": 1}
    assert (tmp_path / "out" / "train" / "quake" / "index.json").is_file()


def test_games_whose_names_have_no_ascii_letter_are_not_mixed(tmp_path: Path) -> None:
    games = ("原神", "崩坏", "★", "☆", "", "a/b", "a|b")
    for number, game in enumerate(games):
        write_recording(tmp_path / "raw" / f"r{number}", video_bytes(12), annotation(12, game=game))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0, by_game=True))
    assert sorted(summary.recordings.values()) == [1] * len(games)
    assert {"train/原神", "train/崩坏", "train/a_b"} <= set(summary.recordings)


def test_misspelt_games_share_a_stream(tmp_path: Path) -> None:
    for name, game in (("a", "Quake"), ("b", "quaek"), ("c", "My Game_2")):
        write_recording(tmp_path / "raw" / name, video_bytes(20), annotation(20, game=game))
    (tmp_path / "names.json").write_text('{"aliases": {"Quaek": "quake"}}')
    out = tmp_path / "out"
    arguments = [str(tmp_path / "raw"), str(out), "--split", "val=0", "--by-game"]
    assert main([*arguments, "--game-names", str(tmp_path / "names.json")]) == 0
    games = {path.parent.name: len(decode_index(path.read_bytes(), "")[1]) for path in out.rglob("index.json")}
    assert games == {"quake": 2, "my-game-2": 1}
    (tmp_path / "names.json").write_text("[]")
    assert main([*arguments[:1], str(tmp_path / "other"), "--game-names", str(tmp_path / "names.json")]) == 2


def make_archive(path: Path, folders: list[Path]) -> Path:
    """A .tar.gz of recordings as the public dataset has them, each with a video.mp4 that is not wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for folder in folders:
            for name in ("annotation.proto", "video.mp4", "192x192.mp4"):
                source = folder / name
                if name == "video.mp4":
                    info = tarfile.TarInfo(f"dataset/batch/{folder.name}/{name}")
                    info.size = 100_000
                    tar.addfile(info, io.BytesIO(os.urandom(info.size)))
                elif source.exists():
                    tar.add(source, f"dataset/batch/{folder.name}/{name}")
    return path


@pytest.mark.parametrize("val_fraction", [0.0, 0.01])
def test_an_archive_gives_the_same_shards_as_its_folders(raw: Path, tmp_path: Path, val_fraction: float) -> None:
    archive = make_archive(tmp_path / "batch_00001.tar.gz", sorted(raw.iterdir(), reverse=True))
    convert([archive], tmp_path / "a", Options(val_fraction=val_fraction))
    convert([raw], tmp_path / "b", Options(val_fraction=val_fraction))
    work = ("plan.json", "task-00000.json")  # which tell the sources
    assert tree_digest(tmp_path / "a", work) == tree_digest(tmp_path / "b", work)


def test_an_archive_is_never_unpacked_nor_held_in_memory(tmp_path: Path) -> None:
    big = os.urandom(1 << 20) * 30
    with tarfile.open(tmp_path / "big.tar.gz", "w:gz", compresslevel=0) as tar:
        for number in range(8):
            for name, content in (("annotation.proto", annotation(12).SerializeToString()), ("192x192.mp4", big)):
                info = tarfile.TarInfo(f"d/rec_{number}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    program = f"""
import resource
from p2p_convert.sources import ArchiveSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = ArchiveSource({str(tmp_path / "big.tar.gz")!r}, 0)
total = 0
for raw in source.recordings():
    total += len(raw.files["192x192.mp4"])
    del raw
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    num_bytes, extra_kib = map(int, out.split())
    assert num_bytes == 8 * len(big)
    assert extra_kib < 2.5 * len(big) / 1024  # a file in pieces, then in one
    assert [path.name for path in tmp_path.iterdir()] == ["big.tar.gz"]


def test_archives_are_read_from_the_hub(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / "batch_00001.tar.gz", sorted(raw.iterdir()))
    content = {"dataset/batch_00001.tar.gz": archive.read_bytes(), "README.md": b"hello"}
    hub = HubStandIn({("datasets", "owner/games"): content})
    hub.breaks["dataset/batch_00001.tar.gz"] = [1000, 5000, 70_000]  # bytes after which a transfer is cut
    monkeypatch.setattr("p2p.hub.transfer.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    try:
        convert(["hf://datasets/owner/games/dataset"], tmp_path / "out", Options(val_fraction=0))
    finally:
        hub.close()
    convert([raw], tmp_path / "local", Options(val_fraction=0))
    work = ["plan.json", "task-00000.json"]
    assert tree_digest(tmp_path / "out", work) == tree_digest(tmp_path / "local", work)


@pytest.mark.parametrize("cut", [0.1, 0.65, 0.99, 1.0])
def test_nothing_of_an_archive_that_is_cut_off_or_damaged_counts_and_the_conversion_goes_on(
    raw: Path, tmp_path: Path, cut: float
) -> None:
    folders = sorted(raw.iterdir())
    archive = make_archive(tmp_path / "raw" / "batch_2.tar.gz", folders[:4])
    make_archive(tmp_path / "raw" / "batch_3.tar.gz", folders[4:])
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1  # of the checksum: the content is what it was
    archive.write_bytes(content[: int(len(content) * cut)])
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0), max_rejected=0.9)
    assert summary.recordings == {"train": 2}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in rejected} == {"damaged archive"}
    assert {line["where"] for line in rejected} == {str(archive)}
    read = [line["recording"] for line in rejected]
    assert read == ["", *(folder.name for folder in folders[:4])][: len(read)]
    assert cut < 0.9 or len(read) >= 4  # the last one was not complete before the damage showed
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert sum(game["recordings"] for game in stats["games"].values()) == 2


def test_the_same_recording_from_two_archives_counts_once(raw: Path, tmp_path: Path) -> None:
    folders = sorted(raw.iterdir())
    make_archive(tmp_path / "raw_1.tar.gz", folders[:4])
    make_archive(tmp_path / "raw_2.tar.gz", folders[3:])
    summary = convert([tmp_path], tmp_path / "out", Options(val_fraction=0))
    assert summary.recordings == {"train": 6}
    assert summary.reasons == {"duplicate id": 1}


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    video = video_bytes(25)
    for number in range(100):
        write_recording(tmp_path / "raw" / f"rec_{number:03}", video, annotation(25, seed=number))
    options = Options(val_fraction=0.1, game_aliases=load_aliases())  # as the command has them
    convert([tmp_path / "raw"], tmp_path / "calm", options)
    expected = tree_digest(tmp_path / "calm", ["lock"])
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "p2p_convert.cli", str(tmp_path / "raw"), str(out), "--split", "val=0.1"]
    kills = 0
    for num_tasks in (1, 3, 5, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(out.glob(".convert/task-*.json"))) < num_tasks:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        kept = {path: os.stat(path).st_mtime_ns for path in out.glob(".convert/task-*.json")}
    assert kills >= 3
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    assert {path: os.stat(path).st_mtime_ns for path in kept} == kept
    assert tree_digest(out, ["lock"]) == expected
