"""Where a server may listen: only where nothing of value is lost."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from p2p_serve.sockets import connect, listen_tcp, listen_unix, parse_address, remove_unix


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    with listen_unix(path, mode):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_that_is_no_socket_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ValueError, match="is not a socket; it was left alone"):
        listen_unix(path)
    assert path.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match="is not a socket; it was left alone"):
        listen_unix(link)
    assert link.is_symlink()


def test_a_socket_on_which_somebody_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_unix(path):
        with pytest.raises(ValueError, match="another server answers there"):
            listen_unix(path)
        with connect(path, None):
            pass


def test_a_stale_socket_of_this_user_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path).close()
    assert path.is_socket()
    with listen_unix(path), connect(path, None):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_stale_socket_of_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path).close()
    os.chown(path, 12345, 12345)
    with pytest.raises(ValueError, match="a socket of another user"):
        listen_unix(path)
    assert path.is_socket()


def test_only_the_own_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_unix(path):
        inode = path.stat().st_ino
        remove_unix(path, inode + 1)
        assert path.is_socket()
        remove_unix(path, inode)
        assert not path.exists()
        remove_unix(path, inode)


@pytest.mark.parametrize("path", ["/nowhere/at/all/s", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_used_is_named(path: str) -> None:
    with pytest.raises(ValueError, match="cannot listen there"):
        listen_unix(Path(path))


def test_tcp_addresses() -> None:
    assert parse_address("127.0.0.1:9000") == ("127.0.0.1", 9000)
    assert parse_address("[::1]:9000") == ("::1", 9000)
    for text in ("9000", ":9000", "localhost", "localhost:port", "localhost:70000"):
        with pytest.raises(ValueError, match="expected host:port"):
            parse_address(text)


def test_a_tcp_port_in_use_is_named() -> None:
    with listen_tcp("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match="cannot listen there"):
            listen_tcp(f"127.0.0.1:{port}")
        with connect(None, f"127.0.0.1:{port}") as connection:
            assert connection.family == socket.AF_INET


def test_a_client_learns_that_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot connect"):
        connect(tmp_path / "s", None)
    with pytest.raises(ValueError, match="cannot connect"):
        connect(None, "127.0.0.1:1")
