"""The format's round trip, and a stream that an earlier commit wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from p2p.actions import NUM_BUTTONS, NUM_KEYS
from p2p.format import (
    MAX_BUTTONS,
    MAX_KEYS,
    RecordingEntry,
    Segment,
    Text,
    Video,
    decode_index,
    decode_segment,
    encode_index,
    encode_segment,
    shard_entry,
)
from tests.data.conftest import open_dataset, read_all
from tests.data.making import digest

STORED = Path(__file__).parent / "stream_1_0"

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)


def texts(end: int) -> st.SearchStrategy[Text]:
    """An instruction that begins before frame `end`."""
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 4))
    return st.builds(
        Text,
        frame=st.integers(0, end - 1),
        num_rows=st.integers(0, 2**31 - 1),
        version=st.text(),
        provider=st.text(),
        instruction=st.text(),
        embeddings=st.dictionaries(st.text(), arrays.arrays(np.float32, shapes, elements=finite), max_size=2),
    )


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    n, num_hidden = draw(st.integers(1, 20)), draw(st.integers(0, 3))
    p, first = n + num_hidden, draw(st.integers(0, 2**20))
    sizes = draw(arrays.arrays(np.uint32, p, elements=st.integers(0, 50)))
    frames = draw(st.permutations([*range(n), *[-1] * num_hidden]))
    starts = sorted({0} | draw(st.sets(st.integers(0, p - 1))))
    ids = {"keys": (MAX_KEYS, NUM_KEYS), "buttons": (MAX_BUTTONS, NUM_BUTTONS)}
    return Segment(
        recording=draw(names),
        index=draw(st.integers(0, 99)),
        first_frame=first,
        num_frames=n,
        video=Video("h264", 192, draw(st.integers(1, 4096)), draw(st.binary()), reordered=draw(st.booleans())),
        packets=[draw(st.binary(min_size=int(size), max_size=int(size))) for size in sizes],
        packet_sizes=sizes,
        packet_frames=np.array(frames, np.int32),
        packet_starts=np.array(starts, np.int32),
        mouse_px=draw(arrays.arrays(np.int32, (n, 2))),
        taken=draw(arrays.arrays(np.uint8, n, elements=st.integers(0, 2))),
        texts=tuple(draw(st.lists(texts(first + n), max_size=3))),
        annotation=draw(st.binary()),
        source=draw(st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers()), max_size=2)),
        **{
            name: draw(arrays.arrays(np.uint8, (n, slots), elements=st.integers(0, choices - 1)))
            for name, (slots, choices) in ids.items()
        },
    )


@settings(max_examples=60, deadline=None)
@given(segments())
def test_a_segment_comes_back_as_it_was(segment: Segment) -> None:
    back = decode_segment(b"".join(encode_segment(segment)), with_annotation=True)
    for name in ("recording", "index", "first_frame", "num_frames", "video", "annotation", "source"):
        assert getattr(back, name) == getattr(segment, name)
    assert bytes(back.payload()) == b"".join(segment.packets)
    for name in ("packet_sizes", "packet_frames", "packet_starts", "keys", "buttons", "mouse_px", "taken"):
        np.testing.assert_array_equal(getattr(back, name), getattr(segment, name))
    assert len(back.texts) == len(segment.texts)
    for ours, theirs in zip(back.texts, segment.texts, strict=True):
        assert {**vars(ours), "embeddings": None} == {**vars(theirs), "embeddings": None}
        assert ours.embeddings.keys() == theirs.embeddings.keys()
        for tokenizer, embedding in theirs.embeddings.items():
            assert ours.embeddings[tokenizer].tobytes() == embedding.tobytes()
            assert ours.embeddings[tokenizer].shape == embedding.shape


@settings(max_examples=60, deadline=None)
@given(segments(), st.data())
def test_a_sample_of_another_length_is_refused(segment: Segment, data: st.DataObject) -> None:
    sample = b"".join(encode_segment(segment))
    cut = data.draw(st.integers(0, len(sample) - 1))
    for wrong in (sample[:cut], sample + b"x"):
        with pytest.raises(ValueError, match="sample"):
            decode_segment(wrong)


def test_the_table_of_recordings_comes_back() -> None:
    recordings = [
        RecordingEntry("b", "doom", 30, 0, (20, 10), ((0, 5), (7, 9)), 12, 7),
        RecordingEntry("a", "", 1, 2, (1,), (), 0, 0),
    ]
    file = {"basename": "shard.00000.000.mds", "bytes": 1000, "hashes": {"xxh3_64": "0123456789abcdef"}}
    packed = {**file, "basename": "shard.00001.000.mds"}
    shards = [
        shard_entry(2, file, None, None),
        shard_entry(1, packed, {**packed, "basename": "shard.00001.000.mds.zstd"}, "zstd:3"),
    ]
    for some_shards, some_recordings in ((shards, recordings), ([], [])):
        found_shards, found = decode_index(encode_index(some_shards, some_recordings), "here")
        assert (list(found_shards), list(found)) == (some_shards, some_recordings)
        assert list(found.by_id()) == sorted(some_recordings, key=lambda recording: recording.id)


def test_a_stored_stream_of_version_1_0_is_read_for_ever(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "stream")
    samples = read_all(open_dataset(tmp_path / "stream", size=(32, 32), num_timesteps=10))
    found = [(s["recording"], s["start"], *(digest(s[name])[:12] for name in CONTENTS)) for s in samples]
    assert found == EXPECTED


CONTENTS = ("frames", "actions", "user_mask", "system_mask", "valid_mask", "text")
EXPECTED: list[tuple[object, ...]] = [
    ("one", 0, "8d57d10ea0da", "ac5d9668770a", "592711ec8188", "10a0a15a9fc1", "ffadf8d89d37", "cfa27cb9237e"),
    ("one", 10, "0694fab88768", "b21bfb9d4d34", "ffadf8d89d37", "01d448afd928", "ffadf8d89d37", "cc5fcf760ddd"),
    ("one", 20, "91a5cf2b3213", "dbe71249ca2a", "ae780e5e4490", "01d448afd928", "ae780e5e4490", "7b6436b0c98f"),
    ("two", 0, "2eca9e8df62b", "afc308ac3898", "ffadf8d89d37", "01d448afd928", "ffadf8d89d37", "7b6436b0c98f"),
    ("two", 10, "d37f351f87f2", "133336031ef0", "96eeff563b31", "01d448afd928", "96eeff563b31", "7b6436b0c98f"),
]
