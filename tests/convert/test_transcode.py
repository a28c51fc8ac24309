"""Recap's own recordings, and --transcode: 20 frames a second, 192x192, actions that belong to the frames."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from p2p.data.resize import resize
from p2p.data.video import SegmentDecoder
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording import read_annotation
from p2p_convert.annotations import extract
from p2p_convert.budget import Budget
from p2p_convert.cli import main
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.transcode import Encoding, merge_annotations, parse_encoding, resample, transcode
from p2p_convert.verify import decode_segments
from tests.convert.test_convert import stored_segments
from tests.data.making import add_text, annotation, decoded, tree_digest, video_bytes, write_recording


def test_regular_times_choose_every_frame_once() -> None:
    times = np.arange(200) / 20
    assert resample(times).tolist() == list(range(200))
    assert resample(times + np.random.default_rng(0).uniform(0, 0.004, 200)).tolist() == list(range(200))


def test_irregular_times_choose_the_frame_in_force() -> None:
    assert resample(np.array([0.0, 0.02, 0.04, 0.06, 0.11, 0.3])).tolist() == [0, 2, 3, 4, 4, 4, 5]
    assert resample(np.arange(61) / 60).tolist() == list(range(0, 61, 3))
    assert resample(np.zeros(0)).tolist() == []


def test_actions_between_chosen_frames_add_up() -> None:
    made = annotation(7)
    for index, frame in enumerate(made.frame_annotations):
        frame.user_action.keyboard.keys[:] = [["w"], ["a"], ["s"], ["d"], ["w"], ["e"], ["q"]][index]
        frame.user_action.mouse.mouse_delta_px.x, frame.user_action.mouse.mouse_delta_px.y = 10**index % 1000, 1
    add_text(made, 2, 1.0, 1.0)
    merged = merge_annotations(made, [0, 3, 3, 6]).frame_annotations
    assert [list(frame.user_action.keyboard.keys) for frame in merged] == [
        ["w"],
        ["a", "s", "d"],
        ["d"],
        ["w", "e", "q"],
    ]
    assert [frame.user_action.mouse.mouse_delta_px.y for frame in merged] == [1, 3, 0, 3]
    assert [len(frame.frame_text_annotation) for frame in merged] == [0, 1, 0, 0]


def original(folder: Path, video: bytes, made: messages.VideoAnnotation) -> Path:
    """A recording as Recap leaves it: with a video.mp4 alone."""
    write_recording(folder, None, made)
    (folder / "video.mp4").write_bytes(video)
    return folder


@pytest.mark.parametrize(("name", "num_frames"), [("user_only", 157), ("system_only", 386), ("system_and_user", 741)])
def test_a_recording_of_about_20_frames_a_second_is_converted_one_frame_to_one_annotation(
    shared_fixtures: Path, tmp_path: Path, name: str, num_frames: int
) -> None:
    made = read_annotation(shared_fixtures / "recap_case" / name)
    video = video_bytes(num_frames, size=192, b_frames=0)
    folder = original(tmp_path / "raw" / name, video, made)
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    segments = stored_segments(tmp_path / "out" / "train", with_annotation=True)
    expected, _ = extract(made, num_frames, Counter())
    assert sum(segment.num_frames for segment in segments) == num_frames == len(made.frame_annotations)
    for column in ("keys", "buttons", "mouse_px", "taken"):
        stored = np.concatenate([getattr(segment, column) for segment in segments])
        assert np.array_equal(stored, getattr(expected, column))
    assert segments[0].annotation == (folder / "annotation.proto").read_bytes()
    pictures_of_source = decoded(video)
    for segment in segments:
        for number in (0, segment.num_frames // 2, segment.num_frames - 1):
            (picture,) = SegmentDecoder().rgb(segment, number, number + 1)
            source = pictures_of_source[segment.first_frame + number].transpose(1, 2, 0)
            assert np.abs(picture.astype(int) - source).mean() < 12


@pytest.mark.parametrize("unit", [1_000, 1_000_000, 1_000_000_000])
def test_a_recap_recording_of_another_rate_is_resampled_and_stretched(tmp_path: Path, unit: int) -> None:
    video = video_bytes(61, size=64, rate=40, crf="1")
    made = annotation(61)
    times = np.arange(61) / 40
    times[20:] += 0.1  # a hole of two frames
    for frame, when in zip(made.frame_annotations, times, strict=True):
        frame.frame_time = 7 * unit + int(when * unit)
    folder = original(tmp_path / "raw" / "rec", video, made)
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    (segment,) = stored_segments(tmp_path / "out" / "train", with_annotation=True)
    assert segment.num_frames == 33
    assert segment.annotation == (folder / "annotation.proto").read_bytes()
    assert segment.source is not None
    assert segment.source["encoded"] == {"crf": 17, "gop": 50}
    source = decoded(video)
    chosen = [*range(0, 20, 2), 19, 19, *range(20, 61, 2)]
    for number, picture in enumerate(SegmentDecoder().rgb(segment, 0, 33)):
        expected = resize(np.ascontiguousarray(source[chosen[number]].transpose(1, 2, 0)), 192, 192)
        assert np.abs(picture.astype(int) - expected).mean() < 8
    assert not segment.mouse_px[10:11].any()


def test_times_that_leap_ask_for_no_more_than_the_video_has(tmp_path: Path) -> None:
    made = annotation(60)
    for number, frame in enumerate(made.frame_annotations):
        frame.frame_time = 50_000_000 * number + (10**15 if number > 30 else 0)  # eleven days
    original(tmp_path / "raw" / "leaps", video_bytes(60, rate=40), made)
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    (segment,) = stored_segments(tmp_path / "out" / "train")
    assert segment.num_frames == 30


def test_a_video_of_one_frame_a_day_is_rejected(tmp_path: Path) -> None:
    slow = video_bytes(30, b_frames=0, container_options={"use_editlist": "0"})
    place = slow.index(b"mdhd") + 16
    assert int.from_bytes(slow[place : place + 4], "big") == 10240
    slow = slow[:place] + (1).to_bytes(4, "big") + slow[place + 4 :]  # ticks a second: a frame lasts 512 s
    original(tmp_path / "raw" / "slow", slow, annotation(30))
    original(tmp_path / "raw" / "fine", video_bytes(30), annotation(30))
    (verdict,) = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0)).rejected
    assert (verdict["recording"], verdict["reason"]) == ("slow", "implausible times")


def test_motion_that_no_number_holds_costs_its_recording_alone(tmp_path: Path) -> None:
    made = annotation(60)
    for frame in made.frame_annotations:
        frame.user_action.mouse.mouse_delta_px.x = 2**31 - 1
    original(tmp_path / "raw" / "flies", video_bytes(60, rate=40), made)
    original(tmp_path / "raw" / "walks", video_bytes(60, rate=40), annotation(60))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    (verdict,) = summary.rejected
    assert (verdict["recording"], verdict["reason"]) == ("flies", "implausible motion")
    assert summary.recordings == {"train": 1}


def test_a_damaged_original_video_is_rejected_by_its_frame(tmp_path: Path) -> None:
    video = video_bytes(60)
    damaged = bytearray(video)
    damaged[20_000:20_024] = bytes(24)
    original(tmp_path / "raw" / "bad", bytes(damaged), annotation(60))
    original(tmp_path / "raw" / "good", video, annotation(60))
    (verdict,) = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0, decode="none")).rejected
    assert (verdict["recording"], verdict["reason"]) == ("bad", "video does not decode")
    assert "bad/video.mp4: frame " in verdict["message"]


def test_encoding_again_gives_the_same_bytes_whatever_was_in_memory() -> None:
    video, made = video_bytes(25, size=96, seed=1), annotation(25)
    encoded = set()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rubbish = [rng.integers(0, 256, int(size), dtype=np.uint8) for size in rng.integers(1_000, 3_000_000, 20)]
        del rubbish[::2]
        encoded.add(transcode(video, made, Encoding(), Budget("here"))[0])
    assert len(encoded) == 1


def test_transcode_sets_the_distance_of_keyframes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "raw" / "rec", video_bytes(60, gop=60, size=192), annotation(60))
    arguments = [str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0", "--transcode", "gop=20"]
    assert main(arguments) == 0
    assert "frames are not those of the source bit by bit" in capsys.readouterr().out
    (segment,) = stored_segments(tmp_path / "out" / "train")
    assert np.diff(segment.packet_starts).max() <= 20
    assert len(decode_segments([segment])) == 60


def test_encodings_are_read_strictly() -> None:
    assert parse_encoding("gop=20,crf=23") == Encoding(20, 23)
    for wrong in ("gop", "gop=x", "bitrate=1", "gop=0", "crf=99"):
        with pytest.raises(ValueError, match="--transcode"):
            parse_encoding(wrong)


def test_recordings_with_only_an_original_video_come_out_of_archives_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in ("a", "b", "c", "d"):
        write_recording(raw / name, video_bytes(25) if name in "bd" else None, annotation(25))
        (raw / name / "video.mp4").write_bytes(video_bytes(25, size=96, seed=1))
    archive = tmp_path / "batch.tar.gz"
    work = ("plan.json", "task-00000.json")  # which tell the sources
    for order in (("annotation.proto", "video.mp4", "192x192.mp4"), ("192x192.mp4", "video.mp4", "annotation.proto")):
        with tarfile.open(archive, "w:gz") as tar:
            for path in (raw / name / file for name in ("c", "b", "d", "a") for file in order):
                if path.exists():
                    tar.add(path, f"dataset/batch/{path.parent.name}/{path.name}")
        out = tmp_path / order[0]
        assert convert([archive], out, Options(val_fraction=0)).recordings == {"train": 4}
        convert([raw], tmp_path / f"folders {order[0]}", Options(val_fraction=0))
        assert tree_digest(out, work) == tree_digest(tmp_path / f"folders {order[0]}", work)
        sizes = {s.recording: s.video.width for s in stored_segments(out / "train")}
        assert sizes == {"a": 192, "b": 64, "c": 192, "d": 64}
