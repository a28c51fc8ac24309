"""A policy behind a socket: against a real server and against peers that misbehave; what it does with answers."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.agents.remote import RemoteAgent, tell
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
    with closing(RemoteAgent(echo)) as agent:
        assert agent.act(FRAME, {}) == Action(("w",))
        assert agent.act(FRAME[:96], {}) == Action(("w",))


def test_a_frame_is_answered_in_a_process_with_many_open_files(echo: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while files.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        with closing(RemoteAgent(echo)) as agent:
            assert agent.act(FRAME, {}) == Action(("w",))


def test_each_episode_is_a_session_of_its_own(echo: str) -> None:
    agent = RemoteAgent(echo)
    for seed in range(3):
        agent.reset(seed)
        assert agent.act(FRAME, {}).keys == ("w",)
    agent.close()


def test_an_older_answer_is_not_taken_for_the_newest(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 2)
        connection.sendall(encode_action(Action(("s",)), 0) + encode_action(Action(("w",)), 1))

    with closing(RemoteAgent(peer(behave))) as agent:
        agent.send(FRAME, {})
        assert agent.act(FRAME, {}).keys == ("w",)


def test_what_came_before_the_server_hung_up_is_not_lost(peer: Peer) -> None:
    hung_up = threading.Event()

    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(encode_action(Action(("w",)), 0))
        connection.close()
        hung_up.set()

    with closing(RemoteAgent(peer(behave))) as agent:
        agent.send(FRAME, {})
        assert hung_up.wait(20)
        assert agent.answers(time.monotonic() + 20) == [(Action(("w",)), 0)]
        with pytest.raises(ValueError, match="closed the connection"):
            agent.answers(time.monotonic() + 20)


def test_a_server_that_hangs_up_is_reported(peer: Peer) -> None:
    with (
        closing(RemoteAgent(peer(lambda connection: None))) as agent,
        pytest.raises(ValueError, match=r"peer\.sock: the "),
    ):
        agent.act(FRAME, {})


def test_an_answer_that_is_no_message_is_reported(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(struct.pack("<I", 3) + b"\xff\xff\xff")

    with closing(RemoteAgent(peer(behave))) as agent:
        with pytest.raises(ValueError, match="Action"):
            agent.act(FRAME, {})


def test_a_server_that_does_not_answer_is_given_up(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.recv(1)  # until the client leaves

    with (
        closing(RemoteAgent(peer(behave), timeout_s=0.3)) as agent,
        pytest.raises(ValueError, match="no answer to frame 0"),
    ):
        agent.act(FRAME, {})


def test_a_server_that_floods_does_not_keep_the_client_from_its_clock(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        answers = encode_action(Action(("w",)), 1000) * 4000
        end_s = time.monotonic() + 10
        with suppress(OSError):  # the client has gone
            while time.monotonic() < end_s:
                connection.sendall(answers)

    with (
        closing(RemoteAgent(peer(behave), timeout_s=0.5)) as agent,
        pytest.raises(ValueError, match="no answer to frame 0 within"),
    ):
        agent.act(FRAME, {})


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
            RemoteAgent(str(tmp_path / "s")).reset()
        with pytest.raises(ValueError, match="another user listens there"):
            tell(str(tmp_path / "s"), "open the door")
        for listener in (frames, texts):
            with listener.accept()[0] as accepted:
                assert accepted.recv(1) == b""
        with closing(RemoteAgent(str(tmp_path / "s"), any_user=True)) as agent:
            agent.send(FRAME, {})
            with frames.accept()[0] as accepted:
                assert receive(accepted, 1) == [0]
