"""A client's way to a server: addresses, and whose process it is that listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.sockets import check_peer, connect, connect_tcp, connect_unix, parse_address

STRANGER = 12345


@pytest.fixture
def strangers_socket(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """A path on which a process of another user listens."""
    if os.geteuid() != 0:
        pytest.skip("only root can listen as another user")
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.seteuid(STRANGER)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        listener.settimeout(20)
        yield path, listener


def test_a_server_of_another_user_gets_not_a_byte(strangers_socket: tuple[Path, socket.socket]) -> None:
    path, listener = strangers_socket
    with pytest.raises(ValueError, match=rf"{path}: another user listens there \(uid {STRANGER}, process \d+\)"):
        connect(str(path))
    connection, _ = listener.accept()
    assert connection.recv(100) == b""
    connection.close()


def test_a_server_of_another_user_is_reached_by_those_who_mean_it(strangers_socket: tuple[Path, socket.socket]) -> None:
    path, listener = strangers_socket
    with connect(str(path), any_user=True) as connection:
        connection.sendall(b"hello")
        accepted, _ = listener.accept()
        assert accepted.recv(100) == b"hello"
        accepted.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_roots_server_is_trusted_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(str(path))
        listener.listen()
        connection.connect(str(path))
        os.seteuid(STRANGER)
        try:
            check_peer(connection, str(path))
        finally:
            os.seteuid(0)


def test_tcp_addresses() -> None:
    assert parse_address("127.0.0.1:9000") == ("127.0.0.1", 9000)
    assert parse_address("[::1]:9000") == ("::1", 9000)
    for text in ("9000", ":9000", "localhost", "localhost:port", "localhost:70000", "localhost:\N{SUPERSCRIPT TWO}"):
        with pytest.raises(ValueError, match="expected host:port"):
            parse_address(text)


def test_a_client_learns_that_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot connect"):
        connect_unix(tmp_path / "s")
    with pytest.raises(ValueError, match="cannot connect"):
        connect_tcp("127.0.0.1:1")
    with pytest.raises(ValueError, match="expected host:port"):
        connect("localhost:70000")
