"""Object storage (s3://bucket/prefix): the only client, how long it retries, and its errors in words.

S3_ENDPOINT_URL and the AWS_* variables say where and as whom. A request that fails for a passing reason (no
connection, no answer, 5xx, "slow down") is sent again until PATIENCE_S have gone by since its first failure, so an
outage of that length is outlasted and every wait has an end. A refusal (wrong key, missing bucket) is an error at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

from p2p import gate
from p2p.files import new_file

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0  # without a single byte
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 8.0
_REPORTED_AFTER_S = 5.0
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PASSING_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")
_MISSING_CODES = ("404", "NoSuchKey")
_UNMET_CODES = ("412", "PreconditionFailed", "409", "ConditionalRequestConflict")


class StorageError(ValueError):
    """An address that the store refuses, or a store that stays out of reach; the message says what to do."""


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells of an object; the etag changes when it is written again."""

    num_bytes: int
    etag: str


@dataclass(frozen=True)
class Version:
    """An object as it was read once: its content, its etag, and how long ago it was written, by the store's clock.

    A store that does not say what time it is gives an age of 0.
    """

    content: bytes
    etag: str
    age_s: float


class ObjectFolder:
    """The objects below s3://bucket/prefix; their names are relative to it.

    An object appears whole or not at all. All methods raise StorageError when the store refuses or stays out of
    reach for `patience_s`, and FileNotFoundError for an object that is not there. What a store says is a stranger's:
    a listed name is a plain relative path, and no more is read than was asked for, or the method raises StorageError.
    """

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        parsed = urlparse(url)
        if parsed.scheme != "s3" or not parsed.netloc:
            raise StorageError(f"{url!r}: write a local folder, or s3://bucket/prefix")
        self.url, self.bucket, self.prefix = url.rstrip("/"), parsed.netloc, parsed.path.strip("/")
        self.name = self.prefix.rpartition("/")[2]
        self.patience_s = patience_s

    def list(self, prefix: str = "") -> dict[str, StoredObject]:
        """The objects whose names begin with `prefix`, in order of their names; folder markers are left out."""
        with _explained(f"{self.url}/{prefix}"):
            pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        found = {}
        for entry in entries:
            key = str(_said(entry, "Key", self.url))
            if not key.endswith("/"):  # an empty object that some tools make for a folder
                found[self._name(key)] = described(entry, "Size", self.url)
        return dict(sorted(found.items()))

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of an object of at most `max_bytes`."""
        content = io.BytesIO()
        with _explained(f"{self.url}/{name}"):
            download_into(content, self._s3(), self.bucket, self._key(name), max_bytes)
        return content.getvalue()

    def look(self, name: str, max_bytes: int) -> Version:
        """A small object with its etag and its age."""
        from botocore import exceptions

        with _explained(f"{self.url}/{name}"):
            for is_last in (False, False, True):
                answer = self._s3().get_object(Bucket=self.bucket, Key=self._key(name))
                content = io.BytesIO()
                bounded = _Bounded(content, f"{self.url}/{name}", max_bytes)
                try:
                    for piece in answer["Body"].iter_chunks():
                        bounded.write(piece)
                    break
                except (exceptions.HTTPClientError, exceptions.IncompleteReadError):
                    if is_last:
                        raise
        return Version(content.getvalue(), str(_said(answer, "ETag", f"{self.url}/{name}")), _age_s(answer))

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        with _explained(f"{self.url}/{name}"):
            self._s3().put_object(Bucket=self.bucket, Key=self._key(name), Body=b"".join(pieces))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there yet; False when it is: another's, or one's own whose answer was lost."""
        with _explained(f"{self.url}/{name}"):
            return self._if_it_holds("put_object", Key=self._key(name), Body=content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, etag: str) -> bool:
        """Write an object that still has this etag; False when it has not, or when only the answer was lost.

        A store that does not know the condition writes in any case: look again where it matters.
        """
        with _explained(f"{self.url}/{name}"):
            return self._if_it_holds("put_object", Key=self._key(name), Body=content, IfMatch=etag)

    def delete_version(self, name: str, etag: str) -> bool:
        """Delete an object that still has this etag; False as `replace`."""
        with _explained(f"{self.url}/{name}"):
            return self._if_it_holds("delete_object", Key=self._key(name), IfMatch=etag)

    def upload(self, path: Path, name: str) -> None:
        with _explained(f"{self.url}/{name}"):
            self._s3().upload_file(str(path), self.bucket, self._key(name))

    def download(self, name: str, path: Path, max_bytes: int) -> None:
        """Write an object of at most `max_bytes` to `path`; folders above it are made.

        Raises:
            Refused: when the name climbs or is no plain relative path, so that a path built from it stays below.
        """
        gate.plain_path(name, self.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(f"{self.url}/{name}"), new_file(path) as file:
            download_into(file, self._s3(), self.bucket, self._key(name), max_bytes)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with _explained(f"{self.url}/{name}"):
                self._s3().delete_object(Bucket=self.bucket, Key=self._key(name))

    def _if_it_holds(self, operation: str, **arguments: Any) -> bool:
        """Whether a conditional request was carried out; False when its condition did not hold."""
        from botocore.exceptions import ClientError

        try:
            getattr(self._s3(), operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            if _code(error) in _UNMET_CODES:
                return False
            raise
        return True

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _name(self, key: str) -> str:
        """The name, below the prefix, of a listed key."""
        begin = self._key("")
        try:
            if not key.startswith(begin):
                raise gate.Refused(f"{gate.shown(key)} does not begin with {gate.shown(begin)}")
            return gate.plain_path(key[len(begin) :], "the listing")
        except gate.Refused as error:
            raise StorageError(f"{self.url}: {error}; delete or rename that object, or take another prefix") from None

    def _s3(self) -> Any:
        return client(self.patience_s)


class _Bounded:
    """A file or memory that takes so many bytes and no more, wherever they are written."""

    def __init__(self, file: BinaryIO, where: str, max_bytes: int) -> None:
        self._file, self._where, self._max_bytes = file, where, max_bytes
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self._max_bytes:
            raise StorageError(f"{self._where}: longer than {self._max_bytes} bytes, the most that is read of it")
        return self._file.write(data)


def download_into(file: BinaryIO, s3: Any, bucket: str, key: str, max_bytes: int, **options: Any) -> None:
    """Write an object to an open file; a store can send more than it said before. `options` are boto3's.

    Raises:
        StorageError: when it is longer than `max_bytes`. What boto3 raises.
    """
    s3.download_fileobj(bucket, key, _Bounded(file, f"s3://{bucket}/{key}", max_bytes), **options)


def described(answer: Mapping[str, Any], size: str, where: str) -> StoredObject:
    """What an answer tells of an object, its size under that name.

    Raises:
        StorageError: when it does not tell.
    """
    return StoredObject(int(_said(answer, size, where)), str(_said(answer, "ETag", where)))


def _said(answer: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in answer:
        raise StorageError(f"{where}: an answer without {name}: no object store gives that; check S3_ENDPOINT_URL")
    return answer[name]


def _age_s(answer: dict[str, Any]) -> float:
    """Seconds from an object's last change to the answer that holds it, both by the store's clock."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    changed = answer.get("LastModified")
    try:
        return (parsedate_to_datetime(date) - changed).total_seconds() if isinstance(changed, datetime) else 0.0
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0


def client(patience_s: float = PATIENCE_S, unsigned: bool = False) -> Any:
    """A boto3 client that outlasts what passes within `patience_s`; `unsigned` reads public buckets without keys.

    Making one takes a good part of a second, so a process keeps it, for all threads; a process that was forked makes
    its own, or it would share the connections of the other.

    Raises:
        StorageError: when boto3 is not installed, or what the environment says is no address.
    """
    named = tuple(sorted((k, v) for k, v in os.environ.items() if k == "S3_ENDPOINT_URL" or k.startswith("AWS_")))
    return _make_client(os.getpid(), named, patience_s, unsigned)


@functools.lru_cache(maxsize=8)
def _make_client(process: int, environment: tuple[tuple[str, str], ...], patience_s: float, unsigned: bool) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise StorageError("s3:// needs boto3; it comes with: pip install 'pixel2play[data]'") from error
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 1},  # botocore counts attempts: _Patience looks at the clock
        signature_version=UNSIGNED if unsigned else None,
    )
    endpoint = os.environ.get("S3_ENDPOINT_URL")
    try:
        made = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3_ENDPOINT_URL is {endpoint!r}: {error}") from error
    made.meta.events.register("needs-retry.s3", _Patience(patience_s), unique_id="p2p-patience")
    return made


class _Patience:
    """botocore asks it after every attempt; its answer is the pause before the next one, or None to give up."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s

    def __call__(
        self,
        attempts: int,
        operation: Any,
        request_dict: dict[str, Any],
        response: Any,
        caught_exception: Any,
        **_: Any,
    ) -> float | None:
        if not _passes(response, caught_exception):
            return None
        now = time.monotonic()
        memory = request_dict["context"].setdefault("p2p_patience", {"first": now, "reported": False})
        left_s = memory["first"] + self.patience_s - now
        if left_s <= 0:
            return None
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(attempts - 1, 20), _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
        if not memory["reported"] and now - memory["first"] > _REPORTED_AFTER_S:
            memory["reported"] = True
            reason = caught_exception or f"HTTP status {response[0].status_code}"
            name = f"{operation.name} {request_dict['url'].partition('?')[0]}"
            logger.warning("%s: %s; trying again for %.0f s altogether", name, reason, self.patience_s)
        return min(pause_s, left_s)


def _passes(response: Any, caught_exception: Any) -> bool:
    """Whether the failure of an attempt may be over with the next one; False also for a success."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    if response is None:
        return isinstance(caught_exception, NoConnection | HTTPClientError)
    http, parsed = response
    return http.status_code in _PASSING_STATUS or parsed.get("Error", {}).get("Code") in _PASSING_CODES


def is_refusal(error: BaseException) -> bool:
    """Whether a store's answer is final: asking again would give the same."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status not in _PASSING_STATUS and _code(error) not in _PASSING_CODES
    passing = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
    )
    return isinstance(error, exceptions.BotoCoreError) and not isinstance(error, passing)


def is_missing(error: BaseException | None) -> bool:
    """Whether a store's answer is that there is no such object."""
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and _code(error) in _MISSING_CODES


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code"))


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what boto3 raises into StorageError and FileNotFoundError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError) as error:
        cause = getattr(error, "last_exception", None) or error  # of a download
        if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):  # of an upload
            cause = error.__context__
        if isinstance(cause, ClientError) and _code(cause) in _MISSING_CODES:
            raise FileNotFoundError(2, "no such object", where) from error
        if is_refusal(cause):
            advice = "check the bucket, S3_ENDPOINT_URL, and the keys in the AWS_* variables"
            raise StorageError(f"{where}: the store refuses: {cause}; {advice}") from error
        advice = "check S3_ENDPOINT_URL and the network, then start again: what is finished is kept"
        raise StorageError(f"{where}: the store does not answer: {cause}; {advice}") from error
