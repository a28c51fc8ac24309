"""Where a server listens, and what it may replace there."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import IO

from p2p.files import take
from p2p.sockets import parse_address

BACKLOG = 128
_PROBE_TIMEOUT_S = 2.0
_MAX_PATH_BYTES = 107  # sun_path of unix(7), and its closing zero


class UnixListener:
    """A listening Unix socket, whose path is this server's alone from before it looks there until it has left.

    The path's lock is `.NAME.lock` beside the socket, so that everyone who would listen there meets at the same one,
    whatever environment he was started in. Another user who holds that name first can only keep us out, as he could
    with the socket's own name.

    Args:
        path: where to listen; a socket that nobody answers on any more is replaced if it belongs to this user.
        mode: the permissions, from the socket's first moment.
        option: the option of the command that names the path, for errors.

    Raises:
        ValueError: when the path is taken: by something that is no socket, by another user, by a live server.
    """

    def __init__(self, path: Path, mode: int = 0o600, option: str = "--socket") -> None:
        self.path = path
        self._advice = f"name another path with {option}"
        self._lock = self._take()
        try:
            self._clear_stale()
            self.socket = self._bind(mode)
        except BaseException:
            self._lock.close()
            raise
        found = path.lstat()
        self._identity = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Leave the path: remove the socket file, then let the next server in. To be called before the socket is
        closed: until then no other file can have the number of this one. A second call does nothing."""
        if self._lock.closed:
            return
        try:
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            pass
        finally:
            self._lock.close()

    def close(self) -> None:
        """Leave the path and stop listening."""
        self.remove()
        self.socket.close()

    def _take(self) -> IO[bytes]:
        num_bytes = len(os.fsencode(self.path))
        if num_bytes > _MAX_PATH_BYTES:
            raise ValueError(f"{self.path}: cannot listen there: {num_bytes} bytes long, at most {_MAX_PATH_BYTES}")
        try:
            return take(self.path.with_name(f".{self.path.name}.lock"), str(self.path), f"stop it, or {self._advice}")
        except OSError as error:
            raise ValueError(
                f"{self.path}: cannot listen there: {error.filename}: {error.strerror}; {self._advice}"
            ) from error

    def _clear_stale(self) -> None:
        path = self.path
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ValueError(f"{path}: cannot listen there: {error.strerror}") from error
        if not stat.S_ISSOCK(found.st_mode):
            raise ValueError(f"{path}: exists and is not a socket; it was left alone; {self._advice}")
        if found.st_uid != os.geteuid():
            raise ValueError(
                f"{path}: is a socket of another user (uid {found.st_uid}); it was left alone; {self._advice}"
            )
        if _somebody_answers(path):
            raise ValueError(f"{path}: another server answers there; stop it, or {self._advice}")
        path.unlink(missing_ok=True)

    def _bind(self, mode: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(self.path))
        except OSError as error:
            listener.close()
            raise ValueError(f"{self.path}: cannot listen there: {error.strerror or error}") from error
        finally:
            os.umask(previous)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener


def _somebody_answers(path: Path) -> bool:
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


def who_can_reach(listener: socket.socket) -> str:
    """A warning in words: who else can connect to a TCP listener, and what to do about it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return f"every user of this machine can connect to {host}:{port}: the protocol has no password"
    return (
        f"the whole network can connect to {host}:{port}: the protocol has no password, and frames and keys travel "
        f"unencrypted. Listen on 127.0.0.1:{port} instead, and let ssh carry it: ssh -N -L {port}:127.0.0.1:{port} "
        "THIS-MACHINE, typed where the game runs"
    )
