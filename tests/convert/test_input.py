"""What a recording must be before it is converted: what is refused, by which name, and that nothing else suffers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest

from p2p.proto import video_annotation_pb2 as messages
from p2p.recording.memory import limited_memory
from p2p_convert import annotations, budget, decoding, work
from p2p_convert.annotations import extract
from p2p_convert.budget import Budget
from p2p_convert.cli import decoding_time, main
from p2p_convert.errors import Rejected
from p2p_convert.executors import run_local
from p2p_convert.packets import read_packets
from p2p_convert.plan import Options, Task
from p2p_convert.run import Summary, convert
from p2p_convert.segments import RawRecording
from p2p_convert.sources import FolderSource
from p2p_convert.verify import decode_file, decode_segments
from tests.convert.test_convert import stored_segments
from tests.data.making import add_text, annotation, pictures, tree_digest, video_bytes, write_recording


def with_two_good(root: Path, name: str) -> Path:
    """A folder with the recordings "a" and "z"; the path of the one called `name`, still to be written, in it."""
    for good in ("a", "z"):
        write_recording(root / good, video_bytes(25), annotation(25))
    return root / name


def verdict_of(root: Path, out: Path, name: str) -> tuple[str, str]:
    """(reason, message) of the one recording that is rejected; the two good ones are converted."""
    summary = convert([root], out, Options(val_fraction=0))
    assert summary.recordings == {"train": 2}
    (verdict,) = summary.rejected
    assert verdict["recording"] == name
    assert name in verdict["message"]
    return verdict["reason"], verdict["message"]


def muxed(
    container: str,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: int = 64,
    num_streams: int = 1,
    num_frames: int = 25,
    seconds_per_frame: float = 0.05,
) -> bytes:
    """A video in any container; without video streams, one of audio."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        streams = [out.add_stream(codec, rate=20) for _ in range(num_streams)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = size, size, pix_fmt
        for number, picture in enumerate(pictures(num_frames, size=size)):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = round(number * seconds_per_frame * 20)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
        if not streams:
            sound = out.add_stream("aac", rate=16000, layout="mono")
            for number in range(10):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
                silence.rate, silence.pts = 16000, 1024 * number
                out.mux(sound.encode(silence))
            out.mux(sound.encode(None))
    return file.getvalue()


FOREIGN = {
    "unreadable video": [
        lambda: muxed("matroska"),
        lambda: b"ffconcat version 1.0\nfile 'other.mp4'\n",
        lambda: b"#EXTM3U\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n",
        lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
        lambda: b"",
    ],
    "no video stream": [lambda: muxed("mp4", num_streams=0)],
    "several video streams": [lambda: muxed("mp4", num_streams=2)],
    "not H.264": [lambda: muxed("mp4", "mpeg4"), lambda: muxed("mp4", "png", "rgb24")],
    "implausible size": [lambda: muxed("mp4", pix_fmt="yuv444p", size=8)],
    "foreign pixel format": [lambda: muxed("mp4", pix_fmt="yuv420p10le")],
    "not 20 frames a second": [
        lambda: video_bytes(60, rate=60),
        lambda: muxed("mp4", num_frames=3, seconds_per_frame=8640.0),
    ],
}


@pytest.mark.parametrize("reason", FOREIGN)
def test_only_an_mp4_of_one_h264_stream_at_20_frames_a_second_is_gameplay(reason: str) -> None:
    for make in FOREIGN[reason]:
        with pytest.raises(Rejected) as verdict:
            read_packets(make(), "raw/rec/192x192.mp4")
        assert verdict.value.reason == reason
        assert "raw/rec/192x192.mp4" in verdict.value.message


def test_sides_may_be_odd_and_single_frames_may_come_late() -> None:
    assert read_packets(muxed("mp4", pix_fmt="yuv444p", size=47), "odd").num_frames == 25
    assert read_packets(video_bytes(40, rate=19), "slow").num_frames == 40
    late = io.BytesIO()
    with av.open(late, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=20)
        stream.width = stream.height = 64
        for number, picture in enumerate(pictures(60)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + (number > 30) + (number > 31)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert read_packets(late.getvalue(), "late").num_frames == 60


def test_an_original_video_of_sound_alone_costs_that_recording(tmp_path: Path) -> None:
    folder = write_recording(with_two_good(tmp_path / "raw", "b"), None, annotation(25))
    (folder / "video.mp4").write_bytes(muxed("mp4", num_streams=0))
    assert verdict_of(tmp_path / "raw", tmp_path / "out", "b")[0] == "no video stream"


def test_a_video_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_recording(with_two_good(tmp_path / "raw", "b"), None, annotation(25))
    os.mkfifo(folder / "192x192.mp4")
    assert verdict_of(tmp_path / "raw", tmp_path / "out", "b")[0] == "no video"


def test_an_embedding_that_is_not_finite_or_has_an_impossible_shape_is_dropped_and_counted() -> None:
    bad = [(1, 8), (1, 8), (-1, -8), (1,) * 71, (8,), (2, 8), (), (0, 8)]
    made = annotation(len(bad) + 3)
    for index in range(1, len(bad) + 2):
        add_text(made, index, 1.0, float(index))
    for index, shape in enumerate(bad, start=1):
        texts = made.frame_annotations[index].frame_text_annotation[0].text_embedding_dict["gemini-2.5-flash"]
        texts.text_embeddings["gemma"].shape[:] = shape
    for index, value in ((1, float("nan")), (2, float("inf"))):
        texts = made.frame_annotations[index].frame_text_annotation[0].text_embedding_dict["gemini-2.5-flash"]
        texts.text_embeddings["gemma"].values[3] = value
    counts: Counter[str] = Counter()
    _, found = extract(made, len(made.frame_annotations), counts)
    assert counts["text with a damaged embedding"] == counts["text without an embedding"] == len(bad)
    assert [list(text.embeddings) for text in found] == [*[[]] * len(bad), ["gemma"]]
    assert found[-1].embeddings["gemma"].shape == (1, 8)


def test_a_recording_with_a_nan_is_converted_without_it(tmp_path: Path) -> None:
    made = annotation(25)
    add_text(made, 3, 1.0, float("nan"))
    write_recording(tmp_path / "raw" / "rec", video_bytes(25), made)
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    assert summary.counts["text with a damaged embedding"] == 1
    (segment,) = stored_segments(tmp_path / "out" / "train")
    assert [dict(text.embeddings) for text in segment.texts] == [{}]


def test_more_text_than_a_recording_can_have_costs_that_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "MAX_TEXTS", 4)
    made = annotation(25)
    for index in range(1, 6):
        add_text(made, index, 1.0, 1.0)
    write_recording(with_two_good(tmp_path / "raw", "b"), video_bytes(25), made)
    assert verdict_of(tmp_path / "raw", tmp_path / "out", "b")[0] == "too much text"


def test_names_of_keys_without_end_do_not_swell_the_counts() -> None:
    made = messages.VideoAnnotation()
    for number in range(1000):
        action = made.frame_annotations.add().user_action
        action.is_known = True
        action.keyboard.keys.append(f"\x1b[2J{number}" + "x" * 1000)
    counts: Counter[str] = Counter()
    extract(made, 1000, counts)
    assert len(counts) <= 101
    assert all(name.isprintable() and len(name) <= 200 for name in counts)
    assert counts["recordings with more foreign names than are counted"] == 1


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "line\nbreak"])
def test_a_folder_whose_name_is_not_plain_text_costs_that_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_recording(with_two_good(tmp_path / "raw", name), video_bytes(25), annotation(25))
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0.5"]) == 0
    out = capsys.readouterr().out
    assert "1 recordings rejected" in out
    assert ("caf\\udce9" if name.startswith("caf") else "line\\nbreak") in out


@pytest.mark.parametrize("field", ["env", "key", "text"])
def test_text_that_is_not_utf_8_costs_that_recording(tmp_path: Path, field: str) -> None:
    made = annotation(25, game="abcdef" if field == "env" else "doom")
    if field == "key":
        made.frame_annotations[3].user_action.keyboard.keys.append("abcdef")
    if field == "text":
        made.frame_annotations[3].frame_text_annotation.add(instruction="abcdef", duration=1.0)
    content = made.SerializeToString().replace(b"abcdef", b"abc\xffef")
    write_recording(with_two_good(tmp_path / "raw", "b"), video_bytes(25), content)
    assert verdict_of(tmp_path / "raw", tmp_path / "out", "b")[0] == "annotation is not protobuf"


def test_whatever_goes_wrong_with_one_recording_costs_that_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recording(with_two_good(tmp_path / "raw", "b"), video_bytes(25), annotation(25))
    converting = work.convert_recording

    def failing(raw: RawRecording, *options: object) -> object:
        if raw.id == "b":
            raise error
        return converting(raw, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "convert_recording", failing)
    expected: list[tuple[BaseException, str]] = [
        (RuntimeError("a mistake of ours"), "unexpected error"),
        (MemoryError(), "needs too much memory"),
        (PermissionError(13, "Permission denied", "b/annotation.proto"), "unreadable file"),
    ]
    for number, (error, reason) in enumerate(expected):  # noqa: B007  seen by `failing`
        assert verdict_of(tmp_path / "raw", tmp_path / f"out{number}", "b")[0] == reason
    for ending in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        error = ending
        with pytest.raises(type(ending)):
            convert([tmp_path / "raw"], tmp_path / "ended", Options(val_fraction=0))


class Deadly(dict[str, bytes]):
    """The files of a recording that kill the process that looks at them."""

    def __getitem__(self, name: str) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class DeadlySource(FolderSource):
    """Folders, of which those called "deadly" are."""

    def recordings(self) -> Iterator[RawRecording]:
        for raw in super().recordings():
            yield replace(raw, files=Deadly({"annotation.proto": b""})) if raw.id == "deadly" else raw


def test_a_recording_that_kills_its_process_costs_that_recording(tmp_path: Path) -> None:
    tasks = []
    for number, names in enumerate((["good", "zeal"], ["a", "deadly", "z"])):
        folders = [write_recording(tmp_path / "raw" / n, video_bytes(3), annotation(3)) for n in names]
        source = DeadlySource(tuple(map(str, folders)), 1)
        tasks.append(Task(number, source, Options(val_fraction=0), str(tmp_path / "out")))
    done = {task.number: report for task, report in run_local(tasks, 2)}
    assert [verdict["reason"] for verdict in done[1]["rejected"]] == ["kills its process"]
    kept = {n: [r["id"] for r in done[n]["streams"]["train"]["recordings"]] for n in done}
    assert kept == {0: ["good", "zeal"], 1: ["a", "z"]}


def test_memory_is_limited_while_one_recording_is_converted() -> None:
    with limited_memory(256 << 20), pytest.raises(MemoryError):
        np.ones(1 << 30, np.uint8)
    with limited_memory(256 << 20):
        assert np.ones(1 << 20, np.uint8).all()
    assert np.ones(300 << 20, np.uint8)[-1]


def test_an_annotation_that_swells_when_it_is_read_costs_that_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swelling = annotation(1).SerializeToString() + b"\x1a\x02\x0a\x00" * 16_000_000  # 64 MB of empty actions
    write_recording(with_two_good(tmp_path / "raw", "b"), video_bytes(25), swelling)
    monkeypatch.setattr(work, "limited_memory", lambda: limited_memory(256 << 20))
    reason, _ = verdict_of(tmp_path / "raw", tmp_path / "out", "b")
    assert reason in ("annotation is not protobuf", "needs too much memory")


def test_a_recording_has_a_budget_of_time_and_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    Budget("here").check(budget.MAX_FRAMES)
    with pytest.raises(Rejected, match="too long: here: more than 1728000 frames"):
        Budget("here").check(budget.MAX_FRAMES + 1)
    monkeypatch.setattr(budget, "START_S", 0.0)
    monkeypatch.setattr(budget, "FRAME_S", 0.0)
    slow = Budget("here")
    sum(range(10_000))
    with pytest.raises(Rejected, match="takes too long: here: frame 7"):
        slow.check(7)


def damaged(video: bytes, place: int, seed: int = 0) -> bytes:
    """24 bytes at a place, counted from the first packet, overwritten."""
    begin = video.index(b"mdat") + 4 + place
    return video[:begin] + np.random.default_rng(seed).bytes(24) + video[begin + 24 :]


def convert_damaged(tmp_path: Path, decode: str) -> Summary:
    """A recording of many segments whose last packets are overwritten, and a good one."""
    video = video_bytes(1100, gop=50, size=32, preset="ultrafast")
    packets = read_packets(video, "here")
    last = int(packets.places[-20]) - video.index(b"mdat") - 4
    root = tmp_path / "raw"
    if not root.exists():
        write_recording(root / "bad", damaged(video, last + 40), annotation(1100))
        write_recording(root / "good", video, annotation(1100))
    options = Options(val_fraction=0, decode=decode)
    return convert([root], tmp_path / decode, options)


def test_conversion_decodes_what_it_stores_and_names_the_frame(tmp_path: Path) -> None:
    summary = convert_damaged(tmp_path, "all")
    (verdict,) = summary.rejected
    assert (verdict["recording"], verdict["reason"]) == ("bad", "video does not decode")
    assert "bad/192x192.mp4: frame 10" in verdict["message"]
    assert summary.recordings == {"train": 1}
    none = convert_damaged(tmp_path, "none")
    assert (none.recordings, none.rejected) == ({"train": 2}, [])


def test_a_sample_decodes_the_same_segments_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []

    class Watching(decoding.SegmentDecoder):
        def frames(self, segment, begin, end):  # type: ignore[no-untyped-def]
            decoded[-1].append(segment.index)
            return super().frames(segment, begin, end)

    monkeypatch.setattr(decoding, "SegmentDecoder", Watching)
    write_recording(tmp_path / "raw" / "rec", video_bytes(2100, gop=50, size=16, preset="ultrafast"), annotation(2100))
    for number in range(2):
        decoded.append([])
        convert([tmp_path / "raw"], tmp_path / f"out{number}", Options(val_fraction=0, decode="sampled"))
    assert decoded[0] == decoded[1]
    assert decoded[0][0] == 0
    assert len(set(decoded[0])) == 3


def test_a_conversion_goes_on_with_another_choice_of_what_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "raw" / "rec", video_bytes(25), annotation(25))
    command = [str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]
    assert main([*command, "--decode", "none"]) == 0
    assert "frames are not decoded" in capsys.readouterr().err
    before = tree_digest(tmp_path / "out")
    assert main(command) == 0
    assert "1 of 1 tasks were done before" in capsys.readouterr().err
    assert tree_digest(tmp_path / "out") == before
    assert main([*command[:1], str(tmp_path / "again"), "--split", "val=0"]) == 0
    assert "every frame is decoded, about 30 times the work of copying it" in capsys.readouterr().err
    assert tree_digest(tmp_path / "again") == before
    assert "2.0 h by 4 processes" in decoding_time(int(7e6 * 8 * 3600), "all", 4)


@pytest.mark.parametrize("codec", ["libx264", "libx264rgb"])
def test_damage_is_harmless_or_reported(tmp_path: Path, codec: str) -> None:
    """Without arithmetic coding every changed byte shows; with it, not each: docs/format.md has the figures."""
    video = video_bytes(40, codec=codec, pix_fmt="rgb24" if codec == "libx264rgb" else "yuv420p", gop=20, size=64)
    num_bytes = sum(read_packets(video, "here").sizes.tolist())
    expected = decode_file(video)
    places = np.linspace(0, num_bytes - 24, 40).astype(int).tolist()
    for place in places:
        write_recording(tmp_path / "raw" / f"at {place:06}", damaged(video, place, place), annotation(40))
    write_recording(tmp_path / "raw" / "whole", video, annotation(40))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0), max_rejected=1)
    kept = {segment.recording: decode_segments([segment]) for segment in stored_segments(tmp_path / "out" / "train")}
    assert len(kept) + len(summary.rejected) == len(places) + 1
    assert all(frames == expected for frames in kept.values())
    assert "whole" in kept
    assert len(summary.rejected) > len(places) / 2


def test_a_decoder_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    video = video_bytes(40, gop=20, preset="veryfast")
    for place in range(1000, 9000, 1000):
        write_recording(tmp_path / "raw" / f"at {place}", damaged(video, place), annotation(40))
    write_recording(tmp_path / "raw" / "whole", video, annotation(40))
    command = [sys.executable, "-m", "p2p_convert.cli", "raw", "out", "--max-rejected", "1", "--split", "val=0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    assert "rejected" in ended.stdout
    decoding, progress = ended.stderr.splitlines()
    assert decoding.startswith("every frame is decoded")
    assert "] 1/1 MB " in progress
