"""What is open of the recordings that are being read: segments are read once, packets decoded once, within limits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from p2p.data import GameplayDataset
from p2p.data.video import SegmentDecoder
from p2p.format import decode_segment, encode_segment
from p2p_convert.segments import RawRecording, convert_recording
from tests.data.conftest import Make, open_dataset
from tests.data.making import annotation, decoded, video_bytes

NUM_FRAMES = 601  # of one keyframe every 250: segments of 500 and 101 frames


@pytest.fixture
def stream(make_stream: Make) -> Path:
    made = {f"rec_{i:02}": (video_bytes(NUM_FRAMES, gop=250, seed=i), annotation(NUM_FRAMES)) for i in range(6)}
    return make_stream(made)


def reads(dataset: GameplayDataset, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each segment is read in an epoch."""
    found: Counter[tuple[str, int]] = Counter()

    def note(content: bytes, **options: Any) -> Any:
        segment = decode_segment(content, **options)
        found[segment.recording, segment.index] += 1
        return segment

    monkeypatch.setattr("p2p.data.dataset.decode_segment", note)
    for _ in dataset:
        pass
    return found


def test_a_segment_is_read_once_but_where_a_lane_begins_or_turns(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(stream, phase="random", shuffle=True)
    found = reads(dataset, monkeypatch)
    num_segments = 6 * 2
    assert len(found) == num_segments
    assert found.total() <= num_segments + 3 * dataset.order(0).num_lanes


def test_beyond_the_limit_of_open_recordings_chunks_are_the_same(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch() -> list[tuple[str, int, int]]:
        dataset = open_dataset(stream, phase="random", shuffle=True)
        return [(s["recording"], s["start"], int(s["frames"].sum())) for s in dataset]

    expected = epoch()
    monkeypatch.setattr("p2p.data.lanes.MAX_OPEN", 3)
    assert epoch() == expected
    monkeypatch.setattr("p2p.data.lanes.MAX_PACKET_BYTES", 1000)
    assert epoch() == expected


@pytest.mark.parametrize("b_frames", [0, 3])
def test_successive_windows_decode_every_packet_once(b_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "192x192.mp4": video_bytes(200, gop=250, b_frames=b_frames),
        "annotation.proto": annotation(200).SerializeToString(),
    }
    (segment,) = convert_recording(RawRecording("r", "r", files)).segments
    segment = decode_segment(b"".join(encode_segment(segment)))
    packets: list[int] = []

    def note(content: memoryview) -> av.Packet:
        packets.append(len(content))
        return av.Packet(content)  # type: ignore[arg-type]

    monkeypatch.setattr("p2p.data.video.av", SimpleNamespace(**{**vars(av), "Packet": note}))
    frames, decoder, out = decoded(files["192x192.mp4"]), SegmentDecoder(), np.empty((20, 3, 64, 64), np.uint8)
    for begin in range(0, 200, 20):
        decoder.rgb_planes(segment, begin, begin + 20, out)
        np.testing.assert_array_equal(out, frames[begin : begin + 20])
    assert packets == segment.packet_sizes.tolist()
