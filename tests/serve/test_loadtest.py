"""The load test against servers that misbehave."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from p2p.actions import Action
from p2p.protocol import encode_action
from p2p_serve.cli import main
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
def test_another_users_server_gets_no_frame_unless_that_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    command = ["loadtest", "--socket", str(path), "--fps", "100", "--seconds", "0.1", "--size", "2x2"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.seteuid(12345)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        assert main(command) == 2
        assert "another user listens there" in capsys.readouterr().err
        with listener.accept()[0] as accepted:
            assert accepted.recv(1) == b""

        def hang_up() -> None:
            with listener.accept()[0] as accepted:
                accepted.recv(1)

        server = threading.Thread(target=hang_up)
        server.start()
        assert main([*command, "--any-user"]) == 2
        assert "the server closed the connection" in capsys.readouterr().err
        server.join()
