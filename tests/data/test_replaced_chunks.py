"""A chunk whose packets do not decode is never trained on: another stands in, the same one again after a restart."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import av.logging
import numpy as np
import pytest

from p2p.data import ShardError, collate
from p2p.data.video import SegmentDecoder, Undecodable
from p2p_convert.segments import RawRecording, convert_recording
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.making import annotation, video_bytes
from tests.data.test_hostile_segments import columns_of, joined, rewrite_shard

NUM_FRAMES = 101


def damaged(sample: bytes, packets: slice) -> bytes:
    """The sample with some of its packets filled with noise."""
    columns = columns_of(sample)
    edges = np.concatenate([[0], np.cumsum(np.frombuffer(columns["packet_sizes"], "<u4"), dtype=np.int64)])
    begin, end = int(edges[packets.start]), int(edges[packets.stop])
    noise = np.random.default_rng(0).bytes(end - begin)
    columns["packets"] = columns["packets"][:begin] + noise + columns["packets"][end:]
    return joined(columns)


@pytest.fixture
def half_damaged(make_stream: Make) -> Path:
    """Recordings good and bad, of 101 frames each; of bad the frames from 20 to 39 do not decode."""
    video = video_bytes(NUM_FRAMES, gop=20, b_frames=0)
    stream = make_stream({name: (video, annotation(NUM_FRAMES)) for name in ("bad", "good")})
    rewrite_shard(stream, lambda samples: [damaged(samples[0], slice(20, 40)), samples[1]])
    return stream


def seen(samples: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(s["recording"], s["start"], s["replaced"]) for s in samples]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_another_chunk_of_the_recording_stands_in_and_is_counted(half_damaged: Path, num_workers: int) -> None:
    found = seen(read_all(open_dataset(half_damaged), num_workers))
    assert len(found) == 20
    replaced = [each for each in found if each[2]]
    assert len(replaced) == 2
    assert all(name == of == "bad" and start not in (20, 30) for name, start, of in replaced)
    assert sorted(found) == sorted(seen(read_all(open_dataset(half_damaged))))


def test_what_stands_in_is_the_same_for_a_run_that_is_resumed(half_damaged: Path) -> None:
    def second_epoch() -> list[tuple[str, int, str]]:
        dataset = open_dataset(half_damaged, phase="random", shuffle=True, batch_size=1)
        read_all(dataset)
        return seen(read_all(dataset))

    first = second_epoch()
    assert any(of for _, _, of in first)
    assert second_epoch() == first


def test_frames_that_stand_in_are_those_of_their_place(half_damaged: Path) -> None:
    samples = read_all(open_dataset(half_damaged))
    frames = {s["start"]: s["frames"] for s in samples if s["recording"] == "good"}
    for sample in samples:
        np.testing.assert_array_equal(sample["frames"], frames[sample["start"]])


def test_a_recording_without_one_good_chunk_is_replaced_by_another(make_stream: Make) -> None:
    video = video_bytes(NUM_FRAMES, gop=20, b_frames=0)
    stream = make_stream({name: (video, annotation(NUM_FRAMES)) for name in ("bad", "good")})
    rewrite_shard(stream, lambda samples: [damaged(samples[0], slice(0, NUM_FRAMES)), samples[1]])
    found = seen(read_all(open_dataset(stream)))
    assert len(found) == 20
    assert {(name, of) for name, _, of in found} == {("good", ""), ("good", "bad")}


def test_a_stream_without_one_good_chunk_is_an_error(make_stream: Make) -> None:
    stream = make_stream({"bad": (video_bytes(NUM_FRAMES, gop=20, b_frames=0), annotation(NUM_FRAMES))})
    rewrite_shard(stream, lambda samples: [damaged(samples[0], slice(0, NUM_FRAMES))])
    with pytest.raises(ShardError, match=r"recording bad, segment 0: frame 0 .*neither do other chunks"):
        read_all(open_dataset(stream))


def test_a_batch_says_which_of_its_chunks_were_replaced(half_damaged: Path) -> None:
    dataset = open_dataset(half_damaged)
    batch = collate([dataset[number] for number in range(20)])
    assert sorted(batch["replaced"]) == [""] * 18 + ["bad"] * 2


@pytest.mark.parametrize("preset", ["ultrafast", "medium"])  # with CAVLC, and with CABAC
def test_noise_in_a_packet_is_noticed_and_says_nothing_on_the_terminal(
    preset: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the noise is no valid picture; some of it is, which nobody can tell."""
    files = {
        "192x192.mp4": video_bytes(60, gop=30, preset=preset, size=96),
        "annotation.proto": annotation(60).SerializeToString(),
    }
    (segment,) = convert_recording(RawRecording("r", "r", files)).segments
    payload, places = bytes(segment.payload()), np.cumsum(segment.packet_sizes, dtype=np.int64).tolist()
    av.logging.set_level(av.logging.ERROR)  # as torchvision does when it is imported
    rng, decoder, noticed = np.random.default_rng(0), SegmentDecoder(), 0
    for place in places[:-1:2]:
        harmed = payload[: place + 24] + rng.bytes(24) + payload[place + 48 :]
        try:
            list(decoder.frames(dataclasses.replace(segment, packets=(harmed,)), 0, 60))
        except Undecodable as error:
            noticed += "recording r, segment 0" in str(error)
    assert noticed >= 0.5 * 30
    assert len(list(decoder.frames(segment, 0, 60))) == 60  # the decoder is as new afterwards
    assert not [record for record in caplog.records if record.name.startswith("libav")]
    assert capfd.readouterr() == ("", "")


def test_pictures_far_larger_than_the_shard_says_are_not_decoded() -> None:
    """A packet of a few hundred bytes can ask for a picture of any size."""
    files = {"192x192.mp4": video_bytes(2, size=2048), "annotation.proto": annotation(2).SerializeToString()}
    (segment,) = convert_recording(RawRecording("r", "r", files)).segments
    small = dataclasses.replace(segment, video=dataclasses.replace(segment.video, width=64, height=64))
    with pytest.raises(Undecodable):
        list(SegmentDecoder().frames(small, 0, 2))
    assert len(list(SegmentDecoder().frames(segment, 0, 2))) == 2


def test_copies_are_as_replaced_as_originals(half_damaged: Path, tmp_path: Path) -> None:
    """The hash is right, so that no download can help."""
    remote = tmp_path / "remote"
    shutil.copytree(half_damaged, remote)
    copied = open_dataset(tmp_path / "cache", local=str(tmp_path / "cache"), remote=str(remote))
    assert seen(read_all(copied)) == seen(read_all(open_dataset(half_damaged)))
