"""What becomes of a recording that nobody closed: kills, full disks, torn files, several recorders in one folder."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from p2p.actions import Action
from p2p.files import take_left
from p2p.manifest import MANIFEST, read_manifest, verify
from p2p.recording import (
    ANNOTATION_FILE,
    MANIFEST_KIND,
    VIDEO_FILE,
    RecordingWriter,
    discard_unfinished,
    executed_action,
    read_annotation,
    read_frames,
    repair_recordings,
    text_spans,
    unfinished,
)
from p2p.recording.memory import limited_memory
from p2p_convert.packets import read_packets

RECORDER = """
import itertools, sys
import numpy as np
from p2p.actions import Action
from p2p.recording import RecordingWriter
writer = RecordingWriter(__import__("pathlib").Path(sys.argv[1]), "killed", preset="ultrafast")
noise = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
for number in itertools.count():
    writer.add(np.roll(noise, number, 0), Action(dx=number), None, "go" if number >= 20 else None)
    print(number + 1, flush=True)
    sys.stdin.readline()
"""

REPAIR = "import sys; from pathlib import Path; from p2p.recording import repair_recordings as r; r(Path(sys.argv[1]))"


def frame(number: int) -> np.ndarray:
    """A picture that can be told from the others and costs some bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    return np.roll(noise, number, 0)


def check_whole(folder: Path, least: int, most: int) -> int:
    """A recording like any other, of so many frames; returns how many."""
    assert sorted(os.listdir(folder)) == [VIDEO_FILE, ANNOTATION_FILE, MANIFEST]
    manifest = read_manifest(folder, MANIFEST_KIND)
    assert sorted(manifest.files) == [VIDEO_FILE, ANNOTATION_FILE]
    verify(folder, manifest)
    annotation = read_annotation(folder)
    num_frames = len(annotation.frame_annotations)
    assert least <= num_frames <= most
    decoded = list(read_frames(folder / VIDEO_FILE))
    assert len(decoded) == num_frames
    taken = [executed_action(entry)[0] for entry in annotation.frame_annotations[1:]]
    assert taken == [Action(dx=number) for number in range(num_frames - 1)]
    with av.open(str(folder / VIDEO_FILE)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 20
        times = sorted(packet.pts for packet in container.demux(stream) if packet.size)  # type: ignore[type-var]
        assert times == [number * 512 for number in range(num_frames)]
        assert stream.time_base == Fraction(1, 20 * 512)
    return num_frames


def record(folder: Path, num_frames: int, **options: object) -> RecordingWriter:
    writer = RecordingWriter(folder, "r", preset="ultrafast", **options)  # type: ignore[arg-type]
    for number in range(num_frames):
        writer.add(frame(number), Action(dx=number), None)
    return writer


def killed_copy(writer: RecordingWriter, folder: Path) -> Path:
    """What would lie there if the writer were killed now: a copy that nobody owns."""
    (unfinished,) = writer.folder.parent.glob(f".{writer.folder.name}.*.partial")
    return Path(shutil.copytree(unfinished, folder / unfinished.name))


@contextlib.contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """Writing beyond it fails with an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------------------ kills


def test_a_killed_recording_lacks_less_than_half_a_second(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(55):
            number = int(process.stdout.readline())
            if number == 50:
                assert repair_recordings(tmp_path) == []  # its owner lives
            process.stdin.write("\n")
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "r").exists()
    (repaired,) = repair_recordings(tmp_path)
    assert (repaired.folder, repaired.problem) == (tmp_path / "r", "")
    assert check_whole(tmp_path / "r", 55 - 9, 56) == repaired.num_frames
    (span,) = text_spans(read_annotation(tmp_path / "r"), ["p2p"])
    assert (span.index, span.num_frames) == (21, repaired.num_frames - 21)
    assert os.listdir(tmp_path) == ["r"]
    assert repair_recordings(tmp_path) == []


def test_a_fragment_is_on_its_way_to_the_disk_before_the_next_begins(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    writer = record(tmp_path / "r", 0)
    for number in range(30):
        writer.add(frame(number), Action(dx=number), None)
        if number > 8:
            folder = copies / str(number)
            killed_copy(writer, folder)
            (repaired,) = repair_recordings(folder)
            assert number - 9 < check_whole(folder / "r", 1, 30) == repaired.num_frames
    writer.discard()


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast"])
def test_a_video_that_is_torn_anywhere_gives_its_whole_frames(tmp_path: Path, preset: str) -> None:
    writer = RecordingWriter(tmp_path / "r", "r", preset=preset)
    for number in range(60):
        writer.add(frame(number), Action(dx=number), None)
    whole = killed_copy(writer, tmp_path / "whole")
    writer.discard()
    content = (whole / VIDEO_FILE).read_bytes()
    for keep in np.linspace(0, len(content), 12).astype(int).tolist():
        folder = tmp_path / f"torn-{keep}"
        torn = Path(shutil.copytree(whole, folder / whole.name))
        (torn / VIDEO_FILE).write_bytes(content[:keep])
        repaired = repair_recordings(folder)
        assert len(repaired) == 1
        if repaired[0].problem:
            assert "no frame can be read" in repaired[0].problem
            assert keep < len(content) // 3
            assert (torn / "journal").exists()
        else:
            num_frames = check_whole(folder / "r", 1, 60)
            assert num_frames >= 60 * keep / len(content) - 24


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_torn_journal_gives_its_whole_frames(tmp_path: Path, lost: int) -> None:
    writer = record(tmp_path / "r", 40)
    torn = killed_copy(writer, tmp_path / "torn")
    writer.discard()
    content = (torn / "journal").read_bytes()
    (torn / "journal").write_bytes(content[:-lost] + bytes(3))
    (repaired,) = repair_recordings(tmp_path / "torn")
    assert repaired.problem == ""
    assert check_whole(tmp_path / "torn" / "r", 20, 39) == repaired.num_frames


def test_a_journal_that_is_torn_at_its_beginning_costs_no_video(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 40)
    left = killed_copy(writer, tmp_path / "torn")
    writer.discard()
    content = (left / "journal").read_bytes()
    end_of_header = content.index(b"\x1a")
    (left / "journal").write_bytes(content[:end_of_header] + bytes(len(content)))
    (repaired,) = repair_recordings(tmp_path / "torn")
    assert "no frame can be read" in repaired.problem
    assert (left / VIDEO_FILE).stat().st_size > 1 << 16


def test_what_was_closed_but_not_named_is_named(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 30)
    copy = killed_copy(writer, tmp_path / "copy")
    assert writer.close() is not None
    shutil.copy(tmp_path / "r" / VIDEO_FILE, copy / VIDEO_FILE)
    (repaired,) = repair_recordings(tmp_path / "copy")
    assert check_whole(repaired.folder, 30, 30) == 30


def test_what_was_killed_before_its_first_frame_leaves_nothing(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 0)
    killed_copy(writer, tmp_path / "copy")
    writer.discard()
    assert repair_recordings(tmp_path / "copy") == []
    assert os.listdir(tmp_path / "copy") == []


def test_a_link_among_what_was_left_is_not_followed(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 30)
    left = killed_copy(writer, tmp_path / "copy")
    writer.close()
    film = tmp_path / "film.mp4"
    (left / VIDEO_FILE).rename(film)
    (left / VIDEO_FILE).symlink_to(film)
    before = film.read_bytes()
    (repaired,) = repair_recordings(tmp_path / "copy")
    assert "Too many levels of symbolic links" in repaired.problem
    assert film.read_bytes() == before


@pytest.mark.parametrize("name", ["0.mp4", "a.mp4", "x.mp4", "z.mp4"])  # a folder lists them in any order
@pytest.mark.parametrize("is_link", [False, True])
def test_a_pipe_beside_the_video_holds_no_repair_up(tmp_path: Path, name: str, is_link: bool) -> None:
    writer = record(tmp_path / "r", 30)
    left = killed_copy(writer, tmp_path / "copy")
    writer.discard()
    os.mkfifo(tmp_path / "pipe" if is_link else left / name)
    if is_link:
        (left / name).symlink_to(tmp_path / "pipe")
    subprocess.run([sys.executable, "-c", REPAIR, tmp_path / "copy"], check=True, timeout=60)
    assert len(read_annotation(tmp_path / "copy" / "r").frame_annotations) >= 20


@pytest.mark.parametrize("end", [b"", b"\x1a"])
def test_a_journal_that_swells_when_it_is_read_costs_neither_memory_nor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(unfinished, "limited_memory", lambda: limited_memory(64 << 20))
    monkeypatch.setattr(unfinished, "MAX_FIELDS", 1000)
    writer = record(tmp_path / "r", 40)
    left = killed_copy(writer, tmp_path / "copy")
    writer.discard()
    with open(left / "journal", "ab") as journal:
        journal.write(b"\x1a\x00" * (4 << 20) + end)  # a hundred bytes each, once parsed
    assert [made.problem for made in repair_recordings(tmp_path / "copy")] == [""]
    check_whole(tmp_path / "copy" / "r", 20, 40)


def test_what_was_repaired_has_the_packets_of_what_was_closed(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 50)
    killed_copy(writer, tmp_path / "copy")
    assert writer.close() is not None
    (repaired,) = repair_recordings(tmp_path / "copy")
    content = []
    for folder in (tmp_path / "r", repaired.folder):
        packets = read_packets(folder / VIDEO_FILE, "video")
        assert not packets.video.reordered
        assert not packets.doubtful
        assert packets.starts.tolist() == [0]
        ends = (packets.places + packets.sizes).tolist()
        content.append([bytes(packets.content[a:b]) for a, b in zip(packets.places.tolist(), ends, strict=True)])
    assert len(content[1]) == repaired.num_frames
    assert content[0][: repaired.num_frames] == content[1]


# ------------------------------------------------------------------ errors and full disks


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_error_inside_closes_the_recording(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with RecordingWriter(tmp_path / "r", "r") as writer:
            for number in range(25):
                writer.add(frame(number), Action(dx=number), None)
            raise error

    with pytest.raises(error):
        fail()
    assert check_whole(tmp_path / "r", 25, 25)
    assert os.listdir(tmp_path) == ["r"]


def test_ctrl_c_while_it_closes_waits_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = record(tmp_path / "r", 25)
    interruptions = [KeyboardInterrupt]

    def interrupted(path: Path) -> None:
        if interruptions:
            raise interruptions.pop()

    monkeypatch.setattr("p2p.recording.unfinished.sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert check_whole(tmp_path / "r", 25, 25)


def test_a_full_disk_ends_the_recording_with_what_was_written(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 0)

    def record_on() -> None:
        for number in range(500):
            writer.add(frame(number), Action(dx=number), None)

    with files_no_longer_than(1 << 20), pytest.raises(OSError, match=r"\[Errno 27\]"):
        record_on()
    added = writer.num_frames
    with files_no_longer_than(1 << 20):
        assert writer.close() == tmp_path / "r"
    assert check_whole(tmp_path / "r", added - 20, added) == writer.num_frames


def test_without_room_for_a_copy_the_video_stays_as_it_is(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 30)
    killed_copy(writer, tmp_path / "copy")
    writer.discard()
    num_bytes = next((tmp_path / "copy").rglob("192x192*.mp4")).stat().st_size
    with files_no_longer_than(num_bytes // 2):
        (repaired,) = repair_recordings(tmp_path / "copy")
    assert b"moof" in (repaired.folder / "192x192.mp4").read_bytes(), "its fragments were not copied into one"
    assert check_whole(repaired.folder, 24, 30) == repaired.num_frames


def test_without_any_room_it_is_repaired_when_there_is_room(tmp_path: Path) -> None:
    writer = record(tmp_path / "r", 30)
    with files_no_longer_than(100), pytest.raises(ValueError, match="p2p repair"):
        writer.close()
    assert not (tmp_path / "r").exists()
    with files_no_longer_than(100):
        (problem,) = repair_recordings(tmp_path)
    assert "File too large" in problem.problem
    (repaired,) = repair_recordings(tmp_path)
    assert check_whole(tmp_path / "r", 20, 30) == repaired.num_frames
    assert os.listdir(tmp_path) == ["r"]


# ------------------------------------------------------------------ several in one folder


def test_two_recorders_of_one_name_keep_both(tmp_path: Path) -> None:
    first, second = record(tmp_path / "r", 25), record(tmp_path / "r", 30)
    folders = {first.close(), second.close()}
    assert len(folders) == 2
    assert sorted(len(read_annotation(folder).frame_annotations) for folder in folders if folder) == [25, 30]
    assert sorted(os.listdir(tmp_path)) == sorted(folder.name for folder in folders if folder)


def test_one_that_can_be_made_again_takes_no_other_name(tmp_path: Path) -> None:
    first, second = record(tmp_path / "r", 5, whole_only=True), record(tmp_path / "r", 6, whole_only=True)
    first.close()
    with pytest.raises(ValueError, match="exists already"):
        second.close()
    assert check_whole(tmp_path / "r", 5, 5)


def test_only_what_nobody_makes_now_is_discarded(tmp_path: Path) -> None:
    live, other = record(tmp_path / "r", 25), record(tmp_path / "r2", 25)
    killed = killed_copy(other, tmp_path / "copy")
    left = killed.rename(tmp_path / ".r.0123456789abcdef.partial")
    discard_unfinished(tmp_path, {"r"})
    assert not left.exists()
    assert live.close() is not None
    assert other.close() is not None


def test_a_place_is_left_only_when_its_owner_wrote_into_its_lock_and_ended(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert take_left(lock) is None
    lock.touch()
    assert take_left(lock) is None
    lock.write_text("1")
    held = take_left(lock)
    assert held is not None
    assert take_left(lock) is None
    held.close()
    os.mkfifo(tmp_path / "pipe")
    assert take_left(tmp_path / "pipe") is None
