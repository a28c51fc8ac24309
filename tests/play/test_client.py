"""The client against a real server and against peers that misbehave; the ticks of real-time play."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.play.client import Client, PolicyPlayer, tell
from p2p.play.realtime import RealtimeLoop, Ticker, TickStatistics
from p2p.protocol import MessageReader, encode_action, parse_frame
from p2p.sockets import connect

FRAME = np.full((192, 192, 3), 7, np.uint8)
Peer = Callable[[Callable[[socket.socket], None]], str]


def receive(connection: socket.socket, count: int) -> list[int]:
    """The ids of the next `count` frames."""
    reader, ids = MessageReader(), []
    while len(ids) < count:
        ids += [parse_frame(payload).id for payload in reader.feed(connection.recv(1 << 16))]
    return ids


def test_a_frame_is_answered(echo: str) -> None:
    with Client(echo) as client:
        assert client.ask(FRAME) == Action(("w",))
        assert client.ask(FRAME[:96]) == Action(("w",))


def test_a_frame_is_answered_in_a_process_with_many_open_files(echo: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while files.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        with Client(echo) as client:
            assert client.ask(FRAME) == Action(("w",))


def test_each_episode_is_a_session_of_its_own(echo: str) -> None:
    player = PolicyPlayer(echo)
    for seed in range(3):
        player.begin(None, seed)  # type: ignore[arg-type]
        assert player.act(FRAME).keys == ("w",)
    player.close()


def test_an_older_answer_is_not_taken_for_the_newest(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 2)
        connection.sendall(encode_action(Action(("s",)), 0) + encode_action(Action(("w",)), 1))

    with Client(peer(behave)) as client:
        client.send(FRAME)
        assert client.ask(FRAME).keys == ("w",)


def test_what_came_before_the_server_hung_up_is_not_lost(peer: Peer) -> None:
    hung_up = threading.Event()

    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(encode_action(Action(("w",)), 0))
        connection.close()
        hung_up.set()

    with Client(peer(behave)) as client:
        client.send(FRAME)
        assert hung_up.wait(20)
        assert client.answers(time.monotonic() + 20) == [(Action(("w",)), 0)]
        with pytest.raises(ValueError, match="closed the connection"):
            client.answers(time.monotonic() + 20)


def test_a_server_that_hangs_up_is_reported(peer: Peer) -> None:
    with Client(peer(lambda connection: None)) as client, pytest.raises(ValueError, match=r"peer\.sock: the "):
        client.ask(FRAME)


def test_an_answer_that_is_no_message_is_reported(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(struct.pack("<I", 3) + b"\xff\xff\xff")

    with Client(peer(behave)) as client, pytest.raises(ValueError, match="Action"):
        client.ask(FRAME)


def test_a_server_that_does_not_answer_is_given_up(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.recv(1)  # until the client leaves

    with Client(peer(behave), timeout_s=0.3) as client, pytest.raises(ValueError, match="no answer to frame 0"):
        client.ask(FRAME)


def test_a_server_that_floods_does_not_keep_the_client_from_its_clock(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        answers = encode_action(Action(("w",)), 1000) * 4000
        end_s = time.monotonic() + 10
        with suppress(OSError):  # the client has gone
            while time.monotonic() < end_s:
                connection.sendall(answers)

    with Client(peer(behave), timeout_s=0.5) as client, pytest.raises(ValueError, match="no answer to frame 0 within"):
        client.ask(FRAME)


@pytest.mark.parametrize("address", ["/nowhere/at/all.sock", "127.0.0.1:1"])
def test_no_server_is_one_clear_message(address: str) -> None:
    with pytest.raises(ValueError, match="cannot connect"):
        connect(address)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
def test_another_users_server_sees_no_frame_and_hears_no_instruction(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as frames, socket.socket(socket.AF_UNIX) as texts:
        frames.bind(str(tmp_path / "s"))
        texts.bind(str(tmp_path / "s.text"))
        os.seteuid(12345)
        try:
            frames.listen()
            texts.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(ValueError, match="another user listens there"):
            Client(str(tmp_path / "s"))
        with pytest.raises(ValueError, match="another user listens there"):
            tell(str(tmp_path / "s"), "open the door")
        for listener in (frames, texts):
            with listener.accept()[0] as accepted:
                assert accepted.recv(1) == b""
        with Client(str(tmp_path / "s"), any_user=True) as client, frames.accept()[0] as accepted:
            client.send(FRAME)
            assert receive(accepted, 1) == [0]


# ------------------------------------------------------------------ ticks


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ticks_in_time_are_not_skipped() -> None:
    clock = Clock()
    ticker = Ticker(20, clock)
    for index in range(1, 50):
        assert ticker.deadline_s == pytest.approx(100 + index * 0.05)
        clock.now = ticker.deadline_s
        assert ticker.advance() == 0


def test_late_ticks_are_dropped_and_not_caught_up() -> None:
    clock = Clock()
    ticker = Ticker(20, clock)
    clock.now = 100.18  # the boundaries at .05, .10 and .15 have passed
    assert ticker.advance() == 2
    assert ticker.deadline_s == pytest.approx(100.20)
    clock.now = 100.201
    assert ticker.advance() == 0
    assert ticker.deadline_s == pytest.approx(100.25)


def test_twenty_ticks_take_a_second(echo: str) -> None:
    statistics = TickStatistics()
    with Client(echo) as client:
        client.ask(FRAME)
        loop = RealtimeLoop(client, statistics)
        start = time.monotonic()
        for _ in range(20):
            loop.tick(FRAME)
        elapsed = time.monotonic() - start
    assert statistics.num_ticks == 20
    due_s = 0.05 * (20 + statistics.num_skipped)
    assert due_s - 0.001 <= elapsed < due_s + 0.5
    assert len(statistics.latencies_s) >= 10
    assert "20 ticks at 20 Hz" in statistics.summary()


def test_an_answer_is_executed_when_it_comes_and_not_when_the_tick_is_over(echo: str) -> None:
    executed: list[Action] = []
    give_up_s = time.monotonic() + 20

    def clock() -> float:  # stands still until something was executed
        return 200.0 if executed or time.monotonic() > give_up_s else 100.0

    statistics = TickStatistics()
    with Client(echo) as client:
        assert RealtimeLoop(client, statistics, clock).tick(FRAME, executed.append) == Action(("w",))
    assert executed == [Action(("w",))]
    assert (statistics.num_late, len(statistics.latencies_s)) == (0, 1)


def test_a_late_answer_is_executed_too_and_the_motion_of_both_counts(peer: Peer) -> None:
    first = threading.Event()

    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        assert first.wait(20)
        connection.sendall(encode_action(Action(("w",), (), 12, 3), 0))
        receive(connection, 1)
        connection.sendall(encode_action(Action((), ("0",), -2, 1), 1))
        connection.recv(1)

    executed: list[Action] = []
    statistics = TickStatistics()
    with Client(peer(behave)) as client:
        loop = RealtimeLoop(client, statistics)
        assert loop.tick(FRAME, executed.append) == Action()
        first.set()
        done = [loop.tick(FRAME, executed.append)]
        while len(executed) < 2 and len(done) < 200:
            done.append(loop.tick(FRAME, executed.append))
    assert executed == [Action(("w",), (), 12, 3), Action((), ("0",), -2, 1)]
    assert (sum(action.dx for action in done), sum(action.dy for action in done)) == (10, 4)
    assert (done[-1].keys, done[-1].buttons) == ((), ("0",))
    assert statistics.num_late >= 1


def test_without_an_answer_the_keys_stay_and_the_mouse_rests(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(encode_action(Action(("w",), ("0",), 12, 3), 0))
        while connection.recv(1 << 16):  # the later frames get no answer
            pass

    statistics = TickStatistics()
    with Client(peer(behave)) as client:
        client.send(FRAME)
        assert client.answers(time.monotonic() + 20)
        loop = RealtimeLoop(client, statistics)
        loop._held = Action(("w",), ("0",), 12, 3)
        assert loop.tick(FRAME) == Action(("w",), ("0",), 0, 0)
        assert loop.tick(FRAME) == Action(("w",), ("0",), 0, 0)
    assert statistics.num_late == 2
    assert statistics.late_share == pytest.approx(1.0)
