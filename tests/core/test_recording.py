"""Raw recordings: the reference's actions, a writer whose folders are whole or absent, and dirty input."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.actions import Action, ActionSpace
from p2p.manifest import MANIFEST, read_manifest, verify
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording import (
    ANNOTATION_FILE,
    MANIFEST_KIND,
    SYSTEM,
    UNKNOWN,
    USER,
    VIDEO_FILE,
    RecordingWriter,
    action_message,
    executed_action,
    parse_annotation,
    read_annotation,
    read_frames,
    text_spans,
    write_annotation,
)

SPACE = ActionSpace()
HEADS = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")


def pictures(num_frames: int, size: tuple[int, int] = (192, 192)) -> list[np.ndarray]:
    """Frames that differ, smooth enough for a video codec."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return [np.stack([rows + i, columns, rows + columns + 3 * i], axis=2).astype(np.uint8) for i in range(num_frames)]


@pytest.mark.parametrize("name", ["rec_a", "rec_b", "rec_c"])
def test_executed_actions_equal_the_reference(shared_fixtures: Path, name: str) -> None:
    folder = shared_fixtures / "data_case" / "dataset" / name
    executed = [executed_action(frame) for frame in read_annotation(folder).frame_annotations]
    compared = 0
    with np.load(shared_fixtures / "data_case" / "expected.npz") as expected:
        chunks = [key.removesuffix("/start_frame") for key in expected.files if key.endswith("/start_frame")]
        for chunk in (chunk for chunk in chunks if chunk.startswith(name + "/")):
            begin = int(expected[f"{chunk}/start_frame"]) + 1
            for row in np.nonzero(expected[f"{chunk}/valid_frame_mask"])[0].tolist():
                action, who = executed[begin + row] if begin + row < len(executed) else (None, UNKNOWN)
                for maker in (USER, SYSTEM):
                    assert expected[f"{chunk}/{maker}_action_mask"][row] == (who == maker)
                if action is not None:
                    ids = np.concatenate([expected[f"{chunk}/{head}"][row] for head in HEADS])
                    np.testing.assert_array_equal(SPACE.encode_action(action), ids)
                    compared += 1
    assert compared > 0


def test_an_unknown_action_is_none_whatever_it_holds() -> None:
    frame = messages.FrameAnnotation(user_action=action_message(Action(("w",), ("0",), 9, 9)))
    frame.user_action.is_known = False
    assert executed_action(frame) == executed_action(messages.FrameAnnotation()) == (None, UNKNOWN)


def test_of_two_known_actions_the_systems_was_executed() -> None:
    frame = messages.FrameAnnotation(
        user_action=action_message(Action(("w",))), system_action=action_message(Action(("s",)))
    )
    assert executed_action(frame) == (Action(("s",)), SYSTEM)


class TestWriter:
    def test_what_was_added_is_read_back(self, tmp_path: Path) -> None:
        frames = pictures(30)
        user = [None if i % 3 == 0 else Action(("w",), ("1",), i, -i) for i in range(30)]
        with RecordingWriter(tmp_path / "r", "id-1", game="doom", game_subtype="health") as writer:
            for frame, action in zip(frames, user, strict=True):
                writer.add(frame, action, Action(("s",)) if action is None else None)
        annotation = read_annotation(tmp_path / "r" / ANNOTATION_FILE)
        assert (annotation.metadata.id, annotation.metadata.env.env) == ("id-1", "doom")
        assert annotation.metadata.frames_per_second == 20
        assert len(annotation.frame_annotations) == 30
        executed = [executed_action(frame) for frame in annotation.frame_annotations]
        assert executed[0] == (None, UNKNOWN)
        assert executed[1:] == [(Action(("s",)), SYSTEM) if a is None else (a, USER) for a in user[:-1]]
        decoded = list(read_frames(tmp_path / "r" / VIDEO_FILE))
        assert len(decoded) == 30
        errors = [np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(frames, decoded, strict=True)]
        assert max(errors) < 8

    def test_the_video_is_h264_at_twenty_frames_a_second(self, tmp_path: Path) -> None:
        import av

        with RecordingWriter(tmp_path / "r", "r", gop=5) as writer:
            for frame in pictures(12):
                writer.add(frame, None, None)
        with av.open(str(tmp_path / "r" / VIDEO_FILE)) as container:
            stream = container.streams.video[0]
            keyframes = [i for i, frame in enumerate(container.decode(stream)) if frame.key_frame]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 20)
            assert (stream.width, stream.height, stream.pix_fmt) == (192, 192, "yuv420p")
        assert keyframes == [0, 5, 10]

    def test_an_instruction_holds_for_exactly_the_frames_it_was_in_force(self, tmp_path: Path) -> None:
        embedding = np.arange(768, dtype=np.float32)[None]
        with RecordingWriter(tmp_path / "r", "r") as writer:
            for index, frame in enumerate(pictures(60)):
                text = "left" if 10 <= index < 33 else "right" if 33 <= index < 40 else None
                writer.add(frame, Action(), None, text, embedding if text == "left" else None)
        first, second = text_spans(read_annotation(tmp_path / "r"), ["p2p"])
        assert (first.index, first.num_frames, first.instruction) == (11, 23, "left")
        assert (second.index, second.num_frames, second.instruction) == (34, 7, "right")
        np.testing.assert_array_equal(first.embedding, embedding)
        assert second.embedding is None

    def test_an_instruction_at_the_end_is_no_trouble(self, tmp_path: Path) -> None:
        with RecordingWriter(tmp_path / "r", "r") as writer:
            for index, frame in enumerate(pictures(4)):
                writer.add(frame, Action(), None, "go" if index >= 2 else None)
        (span,) = text_spans(read_annotation(tmp_path / "r"), ["p2p"])
        assert (span.index, span.num_frames) == (3, 1)

    def test_of_one_that_can_be_made_again_nothing_is_left_when_it_fails(self, tmp_path: Path) -> None:
        def fail() -> None:
            with RecordingWriter(tmp_path / "r", "r", whole_only=True) as writer:
                writer.add(pictures(1)[0], None, None)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert list(tmp_path.iterdir()) == []

    def test_the_folder_appears_only_when_it_is_complete(self, tmp_path: Path) -> None:
        writer = RecordingWriter(tmp_path / "r", "r")
        writer.add(pictures(1)[0], None, None)
        assert not (tmp_path / "r").exists()
        assert writer.close() == tmp_path / "r"
        assert [path.name for path in tmp_path.iterdir()] == ["r"]
        assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [VIDEO_FILE, ANNOTATION_FILE, MANIFEST]

    def test_a_manifest_names_the_annotation_and_the_video_of_whatever_size(self, tmp_path: Path) -> None:
        with RecordingWriter(tmp_path / "r", "r", size=(32, 64)) as writer:
            writer.add(pictures(1, (32, 64))[0], None, None)
        manifest = read_manifest(tmp_path / "r", MANIFEST_KIND)
        assert sorted(manifest.files) == ["64x32.mp4", ANNOTATION_FILE]
        verify(tmp_path / "r", manifest)

    def test_a_recording_without_a_frame_leaves_nothing(self, tmp_path: Path) -> None:
        assert RecordingWriter(tmp_path / "r", "r").close() is None
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "r").mkdir()
        with pytest.raises(ValueError, match="exists already"):
            RecordingWriter(tmp_path / "r", "r")

    def test_a_frame_of_another_size_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected uint8"), RecordingWriter(tmp_path / "r", "r") as writer:
            writer.add(pictures(1, (100, 192))[0], None, None)

    def test_it_is_written_as_recap_writes_it(self, tmp_path: Path) -> None:
        before_ms = time.time() * 1000
        with RecordingWriter(tmp_path / "r", "r") as writer:
            for index, frame in enumerate(pictures(4)):
                user, system = (Action(("w",)), None) if index < 2 else (None, Action(dx=3))
                writer.add(frame, user, system, time_ns=None if index < 2 else 10**9 + index)
        annotation = read_annotation(tmp_path / "r")
        assert annotation.version == 7
        assert before_ms - 1 <= annotation.metadata.timestamp <= time.time() * 1000 + 1
        assert [frame.frame_time for frame in annotation.frame_annotations] == [0, 50_000_000, 10**9 + 2, 10**9 + 3]
        frames = annotation.frame_annotations
        assert all(frame.HasField("user_action") and frame.HasField("system_action") for frame in frames)
        assert [(frame.user_action.is_known, frame.system_action.is_known) for frame in frames] == [
            (False, False),  # nothing is known of what came before the first frame
            (True, False),
            (True, False),
            (False, True),
        ]
        assert frames[1].user_action.HasField("keyboard")
        assert not frames[3].system_action.HasField("keyboard")
        assert frames[3].system_action.HasField("mouse")


def test_a_recording_of_the_old_form_is_read_as_before() -> None:
    """Seconds, no version, only the action that is known, a keyboard without keys, no time of the frames."""
    old = messages.VideoAnnotation()
    old.metadata.id, old.metadata.timestamp, old.metadata.frames_per_second = "old", 1_700_000_000, 20
    old.frame_annotations.add().user_action.is_known = False
    frame = old.frame_annotations.add()
    frame.user_action.is_known = True
    frame.user_action.keyboard.SetInParent()
    frame.user_action.mouse.mouse_delta_px.x = 4
    frame = old.frame_annotations.add()
    frame.user_action.is_known = False
    frame.system_action.CopyFrom(action_message(Action(("s",))))
    annotation = parse_annotation(old.SerializeToString(), "old")
    assert annotation == old
    assert [executed_action(frame) for frame in annotation.frame_annotations] == [
        (None, UNKNOWN),
        (Action(dx=4), USER),
        (Action(("s",)), SYSTEM),
    ]


class TestTexts:
    @staticmethod
    def annotation(durations: list[float], version: str = "v1") -> messages.VideoAnnotation:
        annotation = messages.VideoAnnotation()
        for duration in durations:
            entry = annotation.frame_annotations.add().frame_text_annotation.add(instruction="go", duration=duration)
            entry.frame_text_annotator.version = version
        return annotation

    def test_durations_are_widened_before_they_become_frames(self) -> None:
        spans = text_spans(self.annotation([1.15, 0.35, 3.0]), ["v1"])
        assert [span.num_frames for span in spans] == [22, 6, 60]

    def test_a_duration_that_is_not_positive_is_skipped_and_counted(self) -> None:
        skipped: Counter[str] = Counter()
        durations = [0.0, -1.0, float("nan"), float("inf"), 1.0]
        assert [span.index for span in text_spans(self.annotation(durations), ["v1"], skipped=skipped)] == [4]
        assert sum(skipped.values()) == 4

    def test_the_first_annotator_that_is_asked_for_counts(self) -> None:
        annotation = self.annotation([1.0])
        second = annotation.frame_annotations[0].frame_text_annotation.add(instruction="stop", duration=2.0)
        second.frame_text_annotator.version = "v2"
        assert [span.instruction for span in text_spans(annotation, ["v2"])] == ["stop"]
        assert [span.instruction for span in text_spans(annotation, ["v2", "v1"])] == ["go"]
        assert text_spans(annotation, ["v3"]) == []

    @pytest.mark.parametrize(
        ("shape", "values"), [([1, 4], [1.0] * 3), ([4], [1.0] * 4), ([1, 1], [float("nan")]), ([-2, -3], [1.0] * 6)]
    )
    def test_a_damaged_embedding_counts_as_none(self, shape: list[int], values: list[float]) -> None:
        annotation = self.annotation([1.0])
        tensor = annotation.frame_annotations[0].frame_text_annotation[0].text_embedding_dict["v1"]
        tensor.text_embeddings["gemma"].shape.extend(shape)
        tensor.text_embeddings["gemma"].values.extend(values)
        skipped: Counter[str] = Counter()
        assert text_spans(annotation, ["v1"], skipped=skipped)[0].embedding is None
        assert skipped == {"text with a damaged embedding": 1}


class TestDirtyFiles:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"annotation\.proto: no such file"):
            read_annotation(tmp_path)

    def test_what_is_not_protobuf_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / ANNOTATION_FILE
        path.write_bytes(b"\xff" * 40)
        with pytest.raises(ValueError, match=r"annotation\.proto: not a serialized VideoAnnotation"):
            read_annotation(path)

    def test_an_empty_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ANNOTATION_FILE).touch()
        with pytest.raises(ValueError, match=r"annotation\.proto: empty file"):
            read_annotation(tmp_path)

    def test_a_pipe_is_refused_unread(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / ANNOTATION_FILE)
        os.mkfifo(tmp_path / VIDEO_FILE)
        with pytest.raises(ValueError, match=r"annotation\.proto: not a regular file"):
            read_annotation(tmp_path)
        with pytest.raises(ValueError, match=r"192x192\.mp4: not a regular file"):
            list(read_frames(tmp_path / VIDEO_FILE))

    def test_an_annotation_without_end_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("p2p.recording.annotation.MAX_ANNOTATION_BYTES", 100)
        (tmp_path / ANNOTATION_FILE).write_bytes(bytes(101))
        with pytest.raises(ValueError, match="longer than 100 bytes"):
            read_annotation(tmp_path)

    def test_a_playlist_that_is_called_a_video_opens_no_other_file(self, shared_fixtures: Path, tmp_path: Path) -> None:
        other = shared_fixtures / "data_case" / "dataset" / "rec_c" / VIDEO_FILE
        path = tmp_path / VIDEO_FILE
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{other}\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="cannot be decoded"):
            list(read_frames(path))

    @given(st.binary(min_size=1, max_size=300))
    def test_any_bytes_are_an_annotation_or_a_value_error(self, content: bytes) -> None:
        try:
            annotation = parse_annotation(content, "x")
        except ValueError:
            return
        for frame in annotation.frame_annotations:
            assert executed_action(frame)[1] in (USER, SYSTEM, UNKNOWN)
        text_spans(annotation, [""])

    @pytest.mark.parametrize("keep", [0, 100, 5000])
    def test_a_truncated_video_is_named(self, shared_fixtures: Path, tmp_path: Path, keep: int) -> None:
        whole = (shared_fixtures / "data_case" / "dataset" / "rec_c" / VIDEO_FILE).read_bytes()
        path = tmp_path / VIDEO_FILE
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"192x192\.mp4: cannot be decoded"):
            list(read_frames(path))

    def test_a_missing_video_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cannot be decoded"):
            list(read_frames(tmp_path / VIDEO_FILE))


def test_an_annotation_is_written_whole(tmp_path: Path) -> None:
    annotation = messages.VideoAnnotation(version=5)
    write_annotation(annotation, tmp_path / ANNOTATION_FILE)
    assert read_annotation(tmp_path) == annotation
    assert [path.name for path in tmp_path.iterdir()] == [ANNOTATION_FILE]
