"""Framing and messages of the real-time protocol, without any socket."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.actions import Action
from p2p.proto import video_inference_pb2 as messages
from p2p.protocol import (
    MAX_MESSAGE_BYTES,
    MessageReader,
    ProtocolError,
    encode_action,
    encode_frame,
    frame_message,
    next_frame_id,
    num_missing_frames,
    parse_action,
    parse_frame,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


@given(height=st.integers(1, 9), width=st.integers(1, 9), frame_id=INT32, seed=st.integers(0, 99))
def test_a_frame_comes_back(height: int, width: int, frame_id: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (payload,) = MessageReader().feed(encode_frame(image, frame_id))
    frame = parse_frame(payload)
    assert frame.id == frame_id
    np.testing.assert_array_equal(frame.image, image)


@given(keys=st.lists(st.text()), buttons=st.lists(st.text()), dx=INT32, dy=INT32, frame_id=INT32)
def test_an_action_comes_back(keys: list[str], buttons: list[str], dx: int, dy: int, frame_id: int) -> None:
    action = Action(tuple(keys), tuple(buttons), dx, dy)
    (payload,) = MessageReader().feed(encode_action(action, frame_id))
    assert parse_action(payload) == (action, frame_id)


@given(payloads=st.lists(st.binary(max_size=30), max_size=6), cuts=st.lists(st.integers(0, 250), max_size=10))
def test_however_the_stream_is_cut_the_messages_are_the_same(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame_message, payloads))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader, found = MessageReader(), []
    for begin, end in itertools.pairwise(places):
        found += reader.feed(stream[begin:end])
    assert found == payloads
    assert reader.num_pending_bytes == 0


@pytest.mark.parametrize("length", [MAX_MESSAGE_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_and_not_kept(length: int) -> None:
    reader = MessageReader()
    with pytest.raises(ProtocolError, match=f"a message of {length} bytes is announced"):
        reader.feed(struct.pack("<I", length) + b"x" * 1000)
    assert reader.num_pending_bytes == 0


def test_an_announced_message_takes_no_memory_before_it_comes() -> None:
    reader = MessageReader()
    assert reader.feed(struct.pack("<I", MAX_MESSAGE_BYTES)) == []
    assert reader.num_pending_bytes == 4


@given(sizes=st.lists(st.integers(0, 40), max_size=8), cut=st.integers(1, 60))
def test_messages_beyond_what_is_kept_are_read_past_and_counted(sizes: list[int], cut: int) -> None:
    stream = b"".join(frame_message(bytes([size]) * size) for size in sizes)
    reader, found = MessageReader(max_kept_bytes=20), []
    for begin in range(0, len(stream), cut):
        found += reader.feed(stream[begin : begin + cut])
    assert found == [bytes([size]) * size for size in sizes if size <= 20]
    assert reader.num_skipped == sum(size > 20 for size in sizes)
    assert reader.num_pending_bytes == 0


@pytest.mark.parametrize(
    ("last_id", "frame_id", "num_between", "missing"),
    [
        (1, 2, 0, 0),
        (1, 5, 0, 3),
        (1, 5, 2, 1),
        (1, 5, 9, 0),
        (5, 5, 0, 0),
        (5, 1, 0, 0),  # a new count
        (0, 10**9, 0, 0),
        (2**31 - 1, 0, 0, 0),
        (2**31 - 1, -(2**31), 0, 0),
        (2**31 - 2, 1, 0, 2),
        (-1, 1, 0, 1),
        (-(2**31), 2**31 - 1, 0, 0),
    ],
)
def test_gaps_in_the_ids_are_frames_that_the_client_left_out(
    last_id: int, frame_id: int, num_between: int, missing: int
) -> None:
    assert num_missing_frames(last_id, frame_id, num_between) == missing


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_protocol_error(payload: bytes) -> None:
    try:
        frame = parse_frame(payload)
    except ProtocolError:
        return
    assert frame.image.shape[2] == 3


@given(st.binary(max_size=200))
def test_any_bytes_are_an_action_or_a_protocol_error(payload: bytes) -> None:
    try:
        action, _ = parse_action(payload)
    except ProtocolError:
        return
    assert all(isinstance(key, str) for key in action.keys)


@pytest.mark.parametrize(
    ("width", "height", "num_bytes"), [(0, 0, 0), (4, 4, 47), (4, 4, 49), (-4, -4, 48), (2**31 - 1, 2**31 - 1, 12)]
)
def test_a_frame_whose_size_and_data_disagree_is_refused(width: int, height: int, num_bytes: int) -> None:
    payload = messages.Frame(width=width, height=height, data=bytes(num_bytes), id=7).SerializeToString()
    with pytest.raises(ProtocolError, match=f"frame 7 is {width} x {height} with {num_bytes} bytes"):
        parse_frame(payload)


def test_hand_written_bytes_are_understood() -> None:
    # field 1 (width) 2, field 2 (height) 1, field 3 (data) 6 bytes, field 4 (id) 300, an unknown field 9
    payload = b"\x08\x02\x10\x01\x1a\x06\x01\x02\x03\x04\x05\x06\x20\xac\x02\x48\x05"
    frame = parse_frame(payload)
    assert frame.id == 300
    assert frame.image.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_ids_start_anew_when_an_int32_is_used_up() -> None:
    assert next_frame_id(5) == 6
    assert next_frame_id(2**31 - 1) == 0


def test_what_is_no_picture_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_frame(np.zeros((3, 4, 4), dtype=np.uint8), 0)
