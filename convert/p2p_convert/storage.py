"""Where a conversion is written and read again: a folder, or a prefix in an object store (s3://bucket/prefix).

Both give a file its name only when it is complete. A store is found anew from its address in every process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from p2p_convert.files import write_file

LOCK = ".convert/lock"
_LOCK_RENEWED_S, _LOCK_STALE_S = 20, 120


class Store(Protocol):
    """Files by name ("train/index.json") below one address."""

    address: str

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file whole or not at all."""

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""

    def names(self, prefix: str = "") -> list[str]:
        """The files whose name begins so, in order."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the address alone; ValueError when another conversion does."""


def open_store(address: str) -> Store:
    """The store of a folder or of an s3:// address."""
    return S3Store(address) if address.startswith("s3://") else FolderStore(address)


def _in_use(address: str) -> ValueError:
    return ValueError(f"{address}: another conversion is writing to it; wait for it, or name another OUT")


class FolderStore:
    """A folder on a disk."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._root = Path(address)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        write_file(self._root / name, *pieces)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def names(self, prefix: str = "") -> list[str]:
        files = (path for path in self._root.rglob("*") if path.is_file() and not path.name.endswith(".part"))
        return sorted(n for n in (path.relative_to(self._root).as_posix() for path in files) if n.startswith(prefix))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The lock goes with the process."""
        path = self._root / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _in_use(self.address) from error
            yield


class S3Store:
    """A prefix in a bucket; the endpoint comes from S3_ENDPOINT_URL, keys from where boto3 finds them.

    A multipart upload and a single put show an object only when it is complete.
    """

    def __init__(self, address: str) -> None:
        parsed = urlparse(address)
        if not parsed.netloc:
            raise ValueError(f"{address}: write s3://BUCKET/PREFIX")
        self.address = address.rstrip("/")
        self._bucket = parsed.netloc
        self._prefix = parsed.path.strip("/")
        self._client = _s3_client()

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn what boto3 raises into the errors of files."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.address}/{name}"
        try:
            yield
        except ClientError as error:
            code = str(error.response["Error"]["Code"])
            if code in ("404", "NoSuchKey"):
                raise FileNotFoundError(2, "no such object", where) from error
            raise ValueError(f"{where}: the store refuses: {error}; check the bucket and the credentials") from error
        except (BotoCoreError, Boto3Error) as error:
            raise ValueError(f"{where}: the store does not answer: {error}; run the same command again") from error

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        with self._explained(name):
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=b"".join(pieces))

    def read(self, name: str) -> bytes:
        with self._explained(name):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            return bytes(answer["Body"].read())

    def names(self, prefix: str = "") -> list[str]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key[len(self._key("")) :] for key in keys)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A lock object that only one can create, renewed while it is held; one that is not renewed is stale."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._take_lock(me)
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(me, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            with self._explained(LOCK):
                self._client.delete_object(Bucket=self._bucket, Key=self._key(LOCK))

    def _take_lock(self, me: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        for _ in range(2):
            try:
                body = json.dumps({**me, "renewed": time.time()}).encode()
                self._client.put_object(Bucket=self._bucket, Key=self._key(LOCK), Body=body, IfNoneMatch="*")
                return
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    with self._explained(LOCK):
                        raise
            if not _is_stale(json.loads(self.read(LOCK)), me):
                raise _in_use(self.address)
            with self._explained(LOCK):
                self._client.delete_object(Bucket=self._bucket, Key=self._key(LOCK))
        raise _in_use(self.address)

    def _renew(self, me: dict[str, Any], stop: threading.Event) -> None:
        while not stop.wait(_LOCK_RENEWED_S):
            try:
                self.write(LOCK, json.dumps({**me, "renewed": time.time()}).encode())
            except (ValueError, OSError):  # the next renewal may succeed; the conversion has its own errors
                continue


def _is_stale(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the owner of a lock is gone: its process on this host, or nobody renewed it for long."""
    if owner["host"] == me["host"]:
        return owner["pid"] != me["pid"] and not Path(f"/proc/{owner['pid']}").exists()
    return time.time() - float(owner["renewed"]) > _LOCK_STALE_S


def _s3_client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ValueError("s3:// needs boto3: pip install boto3") from error
    patience = {"mode": "standard", "max_attempts": 12}
    config = Config(retries=patience, connect_timeout=10, read_timeout=60)
    return boto3.session.Session().client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=config)
