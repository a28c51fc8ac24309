"""The load test against servers that misbehave."""

from __future__ import annotations

import socket
import threading

import pytest

from p2p.actions import Action
from p2p.protocol import encode_action
from p2p_serve.loadtest import run_load


@pytest.mark.parametrize("frame_ids", [(99,), (0, 0)])
def test_an_answer_to_what_was_not_asked_is_reported(frame_ids: tuple[int, ...]) -> None:
    ours, theirs = socket.socketpair()

    def behave() -> None:
        theirs.recv(1)
        for frame_id in frame_ids:
            theirs.sendall(encode_action(Action(), frame_id))

    server = threading.Thread(target=behave)
    server.start()
    with ours, theirs:
        with pytest.raises(ValueError, match=f"answered frame {frame_ids[-1]}, which was not sent or has its answer"):
            run_load(ours, 100.0, 0.1, (2, 2))
        server.join()


def test_a_server_that_hangs_up_is_reported() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ValueError, match="closed the connection"):
        run_load(ours, 100.0, 0.1, (2, 2))
