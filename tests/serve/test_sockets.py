"""Where a server may listen: only where nothing of value is lost, and where no other server listens or is about to."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2p.sockets import connect_tcp, connect_unix
from p2p_serve.sockets import UnixListener, listen_tcp, who_can_reach
from tests.serve.live import connect, environment, noise, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def leave_stale(path: Path) -> None:
    """A socket file as a killed server leaves it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_its_mode(path: Path, mode: int) -> None:
    UnixListener(path, mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_that_is_no_socket_is_never_touched(path: Path, tmp_path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ValueError, match="is not a socket; it was left alone; name another path with --there"):
        UnixListener(path, option="--there")
    assert path.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match="is not a socket; it was left alone"):
        UnixListener(link)
    assert link.is_symlink()


def test_a_socket_on_which_somebody_answers_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:  # a program that knows nothing of locks
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ValueError, match="another server answers there"):
            UnixListener(path)
        connect_unix(path).close()


def test_a_second_server_learns_which_process_has_the_path(path: Path) -> None:
    first = UnixListener(path)
    with pytest.raises(ValueError, match=rf"another process \(process {os.getpid()}\) is using it; stop it, or"):
        UnixListener(path)
    connect_unix(path).close()
    first.close()
    UnixListener(path).close()
    assert not path.exists()


def test_a_stale_socket_of_this_user_is_replaced(path: Path) -> None:
    leave_stale(path)
    listener = UnixListener(path)
    connect_unix(path).close()
    listener.close()


def test_of_many_that_find_a_stale_socket_one_listens_and_it_is_reached(path: Path) -> None:
    num_servers, num_rounds = 8, 20
    for _ in range(num_rounds):
        leave_stale(path)
        found: list[UnixListener] = []
        barrier = threading.Barrier(num_servers)

        def start(found: list[UnixListener] = found, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                found.append(UnixListener(path))
            except ValueError:
                return

        threads = [threading.Thread(target=start) for _ in range(num_servers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (listener,) = found
        connect_unix(path).close()
        listener.socket.accept()[0].close()
        listener.close()


SLOW_SERVER = """
import logging, os, sys
from pathlib import Path
from p2p_serve.app import AppOptions, run
from p2p_serve.players import EchoPlayer

class Slow(EchoPlayer):
    def act(self, frame, marks):
        os.read(0, 1)
        return super().act(frame, marks)

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
sys.exit(run([Slow()], AppOptions(Path(sys.argv[1]))))
"""


def test_a_server_that_starts_while_the_old_one_stops_keeps_its_socket(path: Path, repository: Path) -> None:
    command = [sys.executable, "-u", "-c", SLOW_SERVER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(repository), **pipes) as old:  # type: ignore[call-overload]
        assert "listening on" in old.stdout.readline()
        with connect(path) as client:
            client.send(noise(0), 1)
            while "connected" not in old.stdout.readline():
                pass
            old.send_signal(signal.SIGTERM)  # it cannot end before the frame is answered
            new = wait_until(lambda: _listener(path), "the old server lets the new one in")
            old.stdin.write("\n")
            old.stdin.close()
            assert old.wait(60) == 0
    assert path.is_socket()
    connect_unix(path).close()
    new.close()
    assert not path.exists()


def _listener(path: Path) -> UnixListener | None:
    try:
        return UnixListener(path)
    except ValueError:
        return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_stale_socket_of_another_user_is_left_alone(path: Path) -> None:
    leave_stale(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(ValueError, match="a socket of another user"):
        UnixListener(path)
    assert path.is_socket()


def test_a_socket_that_replaced_the_own_one_is_not_removed(path: Path) -> None:
    listener = UnixListener(path)
    path.unlink()
    leave_stale(path)
    listener.close()
    assert path.is_socket()
    path.unlink()
    listener.close()


@pytest.mark.parametrize("place", ["/nowhere/at/all/s", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_used_is_named(place: str) -> None:
    with pytest.raises(ValueError, match=f"{place}: cannot listen there"):
        UnixListener(Path(place))


def test_a_tcp_port_in_use_is_named() -> None:
    with listen_tcp("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match="cannot listen there"):
            listen_tcp(f"127.0.0.1:{port}")
        with connect_tcp(f"127.0.0.1:{port}") as connection:
            assert connection.family == socket.AF_INET


def test_a_tcp_listener_says_who_can_reach_it() -> None:
    with listen_tcp("127.0.0.1:0") as listener:
        warning = who_can_reach(listener)
    assert "every user of this machine can connect" in warning
    assert "no password" in warning
    with listen_tcp("0.0.0.0:0") as listener:
        warning, port = who_can_reach(listener), listener.getsockname()[1]
    for words in ("the whole network can connect", "unencrypted", f"ssh -N -L {port}:127.0.0.1:{port}"):
        assert words in warning
    assert "user of this machine" not in warning
