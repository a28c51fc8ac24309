"""Clients that err, stall or flood: what is no frame is dropped and counted, and the others play on."""

from __future__ import annotations

import gc
import logging
import resource
import struct
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2p.actions import Action
from p2p.proto import video_inference_pb2 as messages
from p2p.protocol import MAX_MESSAGE_BYTES, encode_frame, frame_message
from p2p_serve.connection import Connection
from p2p_serve.latency import LatencyLog
from p2p_serve.players import EchoPlayer
from tests.serve.live import Client, GatedPlayer, connect, noise, serving, wait_until

BEYOND_BELIEF = {
    "a length of 4 GiB": b"\xff\xff\xff\xff",
    "a length just beyond the limit": struct.pack("<I", MAX_MESSAGE_BYTES + 1),
    "big-endian length": struct.pack(">I", 110592) + bytes(1000),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}
NO_FRAME = {
    "not protobuf": b"\x04\x00\x00\x00\xff\xff\xff\xff",
    "an empty message": bytes(4),
    "a frame without pixels": struct.pack("<I", 4) + b"\x08\x04\x10\x04",
    "four bytes a pixel": frame_message(messages.Frame(width=4, height=4, data=bytes(64)).SerializeToString()),
}


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("name", BEYOND_BELIEF)
def test_a_length_beyond_belief_closes_its_connection_with_one_clear_line(
    echo: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with connect(echo) as client:
        client.ask(noise(0), 0)
        client.socket.sendall(BEYOND_BELIEF[name])
        assert client.is_closed_by_the_server()
    with connect(echo) as client:
        client.ask(noise(0), 1)
    lines = [record.message for record in caplog.records if record.message.startswith("client 1: closed: ")]
    assert len(lines) == 1
    assert "\n" not in lines[0]


@pytest.mark.parametrize("name", NO_FRAME)
def test_what_is_no_frame_is_dropped_counted_and_logged_once_and_play_goes_on(
    echo: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with connect(echo) as client:
        client.ask(noise(0), 0)
        for frame_id in range(1, 4):
            client.socket.sendall(NO_FRAME[name])
            client.ask(noise(0), frame_id)
    wait_until(lambda: "client 1: the client left" in caplog.text, "the session's end is logged")
    lines = [record.message for record in caplog.records if record.message.startswith("client 1: ")]
    assert ["connected" in lines[0], "dropped: " in lines[1], "the client left" in lines[2]] == [True] * 3
    assert len(lines) == 3
    assert "answered 4 · dropped 0 · malformed 3" in lines[2]


def test_frames_that_the_client_left_out_are_counted(echo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with connect(echo) as client:
        for frame_id in (1, 2, 5, 6):  # Recap counts what it captures, and sends what it can
            client.ask(noise(0), frame_id)
        client.socket.sendall(NO_FRAME["not protobuf"])  # in the place of frame 7
        client.ask(noise(0), 8)
    wait_until(lambda: "client 1: the client left" in caplog.text, "the session's end is logged")
    assert "answered 5 · dropped 0 · not sent by the client 2 · malformed 1" in caplog.text


def test_a_frame_beyond_the_limit_is_read_past_and_the_next_is_answered(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(path, [EchoPlayer()], max_frame_pixels=96 * 96), connect(path) as client:
        for frame_id in range(3):
            client.send(noise(0, (96, 97)), 2 * frame_id)
            client.ask(noise(0, (96, 96)), 2 * frame_id + 1)
    assert caplog.text.count("a frame may have at most 9216 pixels (--max-frame)") == 1
    assert "answered 3 · dropped 0 · too large 3" in caplog.text


def test_of_a_flood_in_one_read_the_newest_is_answered(path: Path) -> None:
    message = encode_frame(noise(0, (1, 1)), 7)
    with serving(path, [EchoPlayer()]) as server, connect(path) as client:
        client.socket.sendall(message * 3000 + encode_frame(noise(0, (1, 1)), 8))
        while client.receive()[1] != 8:
            pass
        (session,) = server.sessions
        wait_until(
            lambda: session.latency.num_answered + session.latency.num_dropped == 3001, "every frame is accounted for"
        )
        assert session.latency.num_dropped > 2000


def test_a_flood_of_clients_does_not_flood_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path, [EchoPlayer()]):
        for _ in range(300):
            with connect(path) as client:
                client.ask(noise(0, (1, 1)), 1)
    assert 90 < len(caplog.records) < 200  # of more than 600


def test_a_message_that_is_cut_off_is_noted(echo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with connect(echo) as client:
        client.ask(noise(0), 0)
        client.socket.sendall(encode_frame(noise(0), 1)[:1000])
    with connect(echo) as client:
        client.ask(noise(0), 2)
    wait_until(lambda: "in the middle of a message (1000 bytes of it had come)" in caplog.text, "the log says so")


def test_a_half_sent_message_is_waited_for_only_so_long(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path, [EchoPlayer()], message_timeout_s=0.1), connect(path) as client:
        client.ask(noise(0), 0)
        client.socket.sendall(encode_frame(noise(0), 1)[:1000])
        assert client.is_closed_by_the_server()
    assert "closed: a message of which 1000 bytes came within 0.1 s" in caplog.text


def test_a_message_that_comes_byte_by_byte_is_understood(echo: Path) -> None:
    message = encode_frame(noise(0, (2, 2)), 9)
    with connect(echo) as client:
        for value in message:
            client.socket.sendall(bytes([value]))
        assert client.receive()[1] == 9


def test_a_client_that_never_reads_takes_no_memory(path: Path) -> None:
    long_answer = Action(tuple("w" * 1000 for _ in range(10)))
    with serving(path, [EchoPlayer(long_answer)]) as server:
        with connect(path) as deaf:
            message = encode_frame(noise(0, (2, 2)), 1)
            (session,) = wait_until(lambda: server.sessions, "the session begins")

            def still_deaf() -> bool:
                deaf.socket.sendall(message)
                return session.latency.num_unread > 300

            wait_until(still_deaf, "answers are thrown away")
            transport = session._transport
            assert transport is not None
            assert transport.get_write_buffer_size() <= 64 * 1024
        with connect(path) as client:
            assert client.ask(noise(0), 2) == long_answer


def test_a_hundred_clients_at_once_and_the_next_is_served(path: Path) -> None:
    with serving(path, [EchoPlayer()], grace_s=0.2):
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(path)) for _ in range(100)]
            for client in clients:
                try:
                    client.send(noise(0), 3)
                except OSError:  # refused at once: too many wait
                    pass
            served = [client for client in clients if answered(client)]
            assert len(served) >= 1
        with connect(path) as client:
            client.ask(noise(0), 4)


def answered(client: Client) -> bool:
    try:
        return client.receive()[1] == 3
    except (EOFError, ConnectionError):
        return False


def test_huge_frames_do_not_pile_up(path: Path) -> None:
    player = GatedPlayer()
    message = encode_frame(noise(0, (1080, 1920)), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(path, [player]) as server, connect(path) as client:
        client.send(noise(0), 0)
        assert player.entered.acquire(timeout=60)
        (session,) = server.sessions
        channel = session.channel
        assert channel is not None
        for _ in range(30):
            client.socket.sendall(message)
        wait_until(lambda: channel.num_dropped == 29, "the server has read them all")
        for _ in range(2):
            player.gate.release()
        assert [client.receive()[1] for _ in range(2)] == [0, 1]
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 100  # 30 such frames are 178 MiB


@pytest.mark.parametrize(
    ("seconds_between", "num_frames", "gives_way"), [(9.0, 30, True), (1.1, 30, True), (0.9, 30, False)]
)
def test_a_client_of_less_than_a_frame_a_second_gives_way(
    path: Path, seconds_between: float, num_frames: int, gives_way: bool
) -> None:
    now = [0.0]
    with serving(path, [EchoPlayer()], clock=lambda: now[0], grace_s=0.05), connect(path) as slow:
        for frame_id in range(num_frames):
            slow.ask(noise(0, (1, 1)), frame_id)
            now[0] += seconds_between
        with connect(path) as second:
            if gives_way:
                second.ask(noise(0), 1)
                assert slow.is_closed_by_the_server()
            else:
                assert second.is_closed_by_the_server()
                slow.ask(noise(0), 1)


def test_what_is_no_frame_does_not_keep_a_place(path: Path) -> None:
    now = [0.0]
    with serving(path, [EchoPlayer()], clock=lambda: now[0], grace_s=0.05) as server, connect(path) as babbler:
        babbler.ask(noise(0), 0)
        for count in range(1, 100):
            now[0] += 0.2
            babbler.socket.sendall(NO_FRAME["an empty message"])
            wait_until(lambda count=count: server.sessions[0].latency.num_malformed == count, "it has come")
        with connect(path) as second:
            second.ask(noise(0), 1)
            assert babbler.is_closed_by_the_server()


@pytest.mark.parametrize("size", [(1080, 1920), (1, 1)])
def test_beside_a_client_of_large_frames_or_of_a_flood_another_plays_on_and_neither_is_lost(
    path: Path, size: tuple[int, int]
) -> None:
    last = encode_frame(noise(0, (1, 1)), 2)
    message = encode_frame(noise(0, size), 1)
    with serving(path, [EchoPlayer(), EchoPlayer()]), connect(path) as greedy, connect(path) as other:
        other.ask(noise(0), 0)
        sender = threading.Thread(
            target=lambda: greedy.socket.sendall(message * min(20000, 2**26 // len(message)) + last)
        )
        sender.start()
        for frame_id in range(1, 50):
            other.ask(noise(0), frame_id)
        while greedy.receive()[1] != 2:
            pass
        sender.join()


def test_sessions_that_have_ended_leave_nothing_behind_that_must_be_collected(path: Path) -> None:
    """Cycles with buffers in them, collected late, made the memory of a server creep up over thousands of sessions."""

    def num_left() -> int:
        return sum(type(found) in (Connection, LatencyLog) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        with serving(path, [EchoPlayer()]):
            before = num_left()
            for _ in range(30):
                with connect(path) as client:
                    client.ask(noise(0, (1, 1)), 1)
            wait_until(lambda: num_left() <= before + 2, "all but the newest are gone")
    finally:
        gc.enable()
