"""How a client reaches a server: an address becomes a connected socket, after a look at who listens there.

Whoever comes first can listen on a path in a folder that everybody may write, such as /tmp. So a client asks the kernel
whose process a Unix socket belongs to before it sends a frame or obeys an action.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from pathlib import Path

DEFAULT_SOCKET = "/tmp/uds.recap"  # where Recap looks for a server
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_ADVICE = "does a server run there? start one: p2p-serve --policy DIR"


def parse_address(text: str) -> tuple[str, int]:
    """'127.0.0.1:9000' -> ('127.0.0.1', 9000); '[::1]:9000' is understood too.

    Raises:
        ValueError: when it is not host:port.
    """
    host, _, port = text.rpartition(":")
    if not host or not _is_number(port) or not 0 <= int(port) <= 65535:
        raise ValueError(f"address {text!r}: expected host:port, such as 127.0.0.1:9000")
    return host.strip("[]"), int(port)


def connect(address: str, timeout_s: float = 10.0, any_user: bool = False) -> socket.socket:
    """A connected socket; `address` is the path of a Unix socket or HOST:PORT.

    Raises:
        ValueError: when nobody answers there, or somebody else than this user or root (see `check_peer`).
    """
    _, colon, port = address.rpartition(":")
    if colon and _is_number(port) and "/" not in address:
        return connect_tcp(address, timeout_s)
    return connect_unix(address, timeout_s, any_user)


def connect_tcp(address: str, timeout_s: float = 10.0) -> socket.socket:
    """A connection to HOST:PORT. Nothing is known of who answers there.

    Raises:
        ValueError: when the address is malformed or nobody answers.
    """
    host_and_port = parse_address(address)
    try:
        connection = socket.create_connection(host_and_port, timeout=timeout_s)
    except OSError as error:
        raise ValueError(f"{address}: cannot connect ({error.strerror or error}); {_ADVICE}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def connect_unix(path: Path | str, timeout_s: float = 10.0, any_user: bool = False) -> socket.socket:
    """A connection to a Unix socket.

    Raises:
        ValueError: when nobody answers there; unless `any_user`, as `check_peer`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        if not any_user:
            check_peer(connection, str(path))
    except OSError as error:
        connection.close()
        raise ValueError(f"{path}: cannot connect ({error.strerror or error}); {_ADVICE}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def check_peer(connection: socket.socket, where: str) -> None:
    """See to it that the process that listens on a Unix socket is this user's or root's.

    Raises:
        ValueError: when it is somebody else's; nothing has been sent yet.
    """
    size = _CREDENTIALS.size
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid not in (os.geteuid(), 0):
        raise ValueError(
            f"{where}: another user listens there ({_user_name(uid)}, process {pid}), who would see every frame and "
            "choose every key; nothing was sent. Let your own server listen on another path (--socket), "
            "or write --any-user if you mean that server"
        )


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name}, uid {uid}"
    except KeyError:
        return f"uid {uid}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
