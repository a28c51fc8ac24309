"""Sockets: where a server listens, what it may replace there, and how a client connects."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

BACKLOG = 128
_PROBE_TIMEOUT_S = 2.0


def parse_address(text: str) -> tuple[str, int]:
    """'127.0.0.1:9000' -> ('127.0.0.1', 9000); '[::1]:9000' is understood too.

    Raises:
        ValueError: when it is not host:port.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"address {text!r}: expected host:port, such as 127.0.0.1:9000")
    return host.strip("[]"), int(port)


def listen_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening socket at `path`, with these permissions from its first moment.

    A socket that nobody answers on any more is replaced if it belongs to this user.

    Raises:
        ValueError: when the path is taken: by something that is no socket, by another user, by a live server.
    """
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ValueError(f"{path}: cannot listen there: {error.strerror or error}") from error
    finally:
        os.umask(previous)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _clear_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{path}: cannot listen there: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ValueError(f"{path}: exists and is not a socket; it was left alone. Name another path with --socket")
    if found.st_uid != os.geteuid():
        raise ValueError(
            f"{path}: is a socket of another user (uid {found.st_uid}); it was left alone. "
            "Name another path with --socket"
        )
    if somebody_answers(path):
        raise ValueError(f"{path}: another server answers there. Stop it, or name another path with --socket")
    path.unlink(missing_ok=True)


def somebody_answers(path: Path) -> bool:
    """Whether a process listens on the socket file; one with a full queue counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def remove_unix(path: Path, inode: int) -> None:
    """Remove the socket file, unless another server has put its own there since."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass


def listen_tcp(address: str) -> socket.socket:
    """A listening socket at host:port.

    Raises:
        ValueError: when the address is malformed, unknown or in use.
    """
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"address {address!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise ValueError(f"address {address!r}: cannot listen there: {error.strerror}") from error
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def connect(path: Path | None, tcp: str | None, timeout_s: float = 10.0) -> socket.socket:
    """A client's connection to a Unix socket, or to host:port.

    Raises:
        ValueError: when nobody answers there.
    """
    if tcp is not None:
        host, port = parse_address(tcp)
        try:
            connection = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise ValueError(f"{tcp}: cannot connect: {error}; does a server run there?") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise ValueError(f"{path}: cannot connect: {error.strerror or error}; does a server run there?") from error
    return connection
