"""The lease of a prefix in an object store: one conversion writes there, as long as it renews an object.

Whether a lease has run out is told by the store's clock alone. Every change of the object is conditional on the version
that was looked at, and looked at again afterwards: on a store that does not know If-Match two conversions may both
believe for one renewal that they hold it, no longer. Who lost it writes no report and no index any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from p2p import gate
from p2p.files import InUse, runtime_folder, take, write_file
from p2p.object_storage import PATIENCE_S, ObjectFolder, StorageError, Version

LOCK = ".convert/lock"
RENEWED_S = 20.0
EXPIRED_S = 3 * PATIENCE_S  # longer than its owner may have to wait for the store
_IMPATIENCE_S = 5.0  # of a renewal, which comes again, and of giving back what a failed conversion held
_MAX_BYTES = 4096
ELSEWHERE = "wait for it, or name another OUT"
_BREAK = "if it is gone for good, run the same command with --break-lock"


class LeaseLost(ValueError):  # noqa: N818  a verdict on a place
    """Another conversion holds the lease now, or somebody removed it."""


class Lease:
    """A lease that is held; `token` names it."""

    def __init__(self, url: str, token: str) -> None:
        self.token = token
        self._url = url
        self._lock = threading.Lock()
        self._num_renewals = 0
        self._lost = ""

    def check(self, patience_s: float = PATIENCE_S) -> None:
        """Renew the lease, which shows that it still is ours.

        Raises:
            LeaseLost: when it is not. StorageError: when the store does not say.
        """
        objects = ObjectFolder(self._url, patience_s=patience_s)
        with self._lock:
            for _ in range(2):  # the second time after a write of ours whose answer was lost
                if self._lost or not (version := held(objects, self.token)):
                    break
                self._num_renewals += 1
                with contextlib.suppress(FileNotFoundError):
                    if objects.replace(LOCK, self._content(), version.etag):
                        return
            if not self._lost and held(objects, self.token):
                return
            self._lost = self._lost or "it was broken, or had run out and was taken over"
        raise LeaseLost(
            f"{self._url}/{LOCK}: this conversion no longer holds it: {self._lost}; nothing more is written here; "
            "when no other conversion is under way, run the same command again to go on"
        )

    def take(self, break_it: bool) -> None:
        """Make the lease ours.

        Raises:
            InUse: when it is somebody else's. ValueError: when the object is no lease.
        """
        objects = ObjectFolder(self._url)
        if break_it:
            objects.delete([LOCK])
        whose = ""
        for _ in range(3):
            if not objects.create(LOCK, self._content()):
                try:
                    found = objects.look(LOCK, _MAX_BYTES)
                except FileNotFoundError:  # given back in the meantime
                    continue
                except StorageError as error:
                    raise StorageError(f"{error}; {_BREAK}") from error
                whose = self._judge(found)
                if whose:
                    break
                with contextlib.suppress(FileNotFoundError):
                    objects.replace(LOCK, self._content(), found.etag)
            if held(objects, self.token):
                return
        raise InUse(f"{self._url}: another conversion{whose} is writing to it; {ELSEWHERE}")

    def give_back(self, patience_s: float = PATIENCE_S) -> None:
        """Remove the object if it is ours still."""
        objects = ObjectFolder(self._url, patience_s=patience_s)
        version = held(objects, self.token)
        if version:
            with contextlib.suppress(FileNotFoundError):
                objects.delete_version(LOCK, version.etag)

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it now and then, in a thread."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(RENEWED_S):
                with contextlib.suppress(StorageError, LeaseLost):  # the conversion asks and is told
                    self.check(_IMPATIENCE_S)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _judge(self, found: Version) -> str:
        """Whose it is, in words, while he may live; "" when it may be taken."""
        where = f"{self._url}/{LOCK}"
        try:
            content = gate.mapping(gate.parse_json(found.content, where), where)
            token = gate.text(content.get("token", ""), f"{where}: token", 100)
            host = gate.text(content.get("host", ""), f"{where}: host", 300)
        except gate.Refused as error:
            raise ValueError(f"{where}: not the lock of a conversion ({error}); {_BREAK}") from error
        if token in (self.token, _predecessor(self._url)) or found.age_s > EXPIRED_S:
            return ""
        left_s = max(0.0, EXPIRED_S - found.age_s)
        return f" (on {gate.shown(host)}, last heard of {found.age_s:.0f} s ago, given up in {left_s:.0f} s; {_BREAK})"

    def _content(self) -> bytes:
        facts = {"token": self.token, "host": socket.gethostname(), "renewals": self._num_renewals}
        return json.dumps({**facts, "pid": os.getpid()}).encode()


def held(objects: ObjectFolder, token: str) -> Version | None:
    """The lock object of a prefix, when it is that of the lease of this name."""
    try:
        found = objects.look(LOCK, _MAX_BYTES)
        content = gate.parse_json(found.content, LOCK)
    except (FileNotFoundError, gate.Refused):
        return None
    return found if isinstance(content, dict) and content.get("token") == token else None


@contextlib.contextmanager
def leased(url: str, break_it: bool = False) -> Iterator[Lease]:
    """Hold the prefix alone.

    On this machine a kernel's lock stands before the lease: who gets it knows that no conversion here is alive, and
    takes over at once what the last one, that was killed, had not given back.

    Raises:
        InUse (a ValueError): when another conversion holds it.
    """
    lease = Lease(url, secrets.token_hex(16))
    with take(_local(url, "lock"), url, ELSEWHERE):
        lease.take(break_it)
        write_file(_local(url, "token"), lease.token.encode())
        try:
            with lease.renewed():
                yield lease
        except BaseException:  # says more than a lease that cannot be given back; nobody renews it, so it runs out
            with contextlib.suppress(ValueError, OSError):
                lease.give_back(_IMPATIENCE_S)
            raise
        lease.give_back()


def _local(url: str, kind: str) -> Path:
    place = f"{os.environ.get('S3_ENDPOINT_URL', '')} {url}"
    return runtime_folder() / f"p2p-convert-{hashlib.sha256(place.encode()).hexdigest()[:16]}.{kind}"


def _predecessor(url: str) -> str:
    """The token of the last conversion of this user, on this machine, into that place; "-" when there was none."""
    try:
        return gate.read_regular(_local(url, "token"), 100).decode("ascii", "replace") or "-"
    except FileNotFoundError:
        return "-"
