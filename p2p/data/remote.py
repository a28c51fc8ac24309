"""The place that shards are copied from: another folder, s3://, or one of the other stores that Streaming knows."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from p2p import object_storage
from p2p.data.errors import ShardError
from p2p.gate import Refused, open_regular
from p2p.object_storage import StorageError, StoredObject, is_missing, is_refusal

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_REQUESTER_PAYS = "MOSAICML_STREAMING_AWS_REQUESTER_PAYS"  # Streaming's list of buckets
_No = (FileNotFoundError, PermissionError, ImportError, StorageError, Refused)
T = TypeVar("T")


class Remote:
    """The files at an address; a store that fails is asked again until `patience_s` are over."""

    def __init__(self, address: str, patience_s: float) -> None:
        self.address, self.patience_s = address.rstrip("/"), patience_s
        self._unsigned = False

    def etag(self, name: str) -> str | None:
        """Of an object in S3; None where there is no such thing.

        Raises:
            ShardError: when it is not there, or the store fails for too long.
        """
        if not self.address.startswith("s3://"):
            return None
        try:
            return str(self._patiently(lambda url: self._stat(url).etag, name))
        except ShardError as error:
            if is_missing(error.__cause__):
                raise ShardError(f"{self.address}/{name}: no such object there; {self._near(name)}") from None
            raise

    def _near(self, name: str) -> str:
        """What to do about an address without an index: the one above one's shards is easily taken for theirs."""
        from botocore.exceptions import ClientError

        for part in ("train", "val"):
            with contextlib.suppress(ClientError, StorageError):
                self._stat(f"{self.address}/{part}/{name}")
                return f"did you mean {self.address}/{part}?"
        return "expected shards written by `p2p-convert RAW OUT`; check the address, then start again"

    def fetch(self, name: str, path: Path, max_bytes: int) -> None:
        """Write a file of at most `max_bytes` to `path`.

        Raises:
            ShardError: as `etag`, or when it is longer. OSError: when the disk is full.
        """
        self._patiently(lambda url: self._fetch(url, path, max_bytes), name)

    def _patiently(self, call: Callable[[str], T], name: str) -> T:
        url = f"{self.address}/{name}"
        deadline = time.monotonic() + self.patience_s  # a client of S3 may use it up alone
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call(url)
            except Exception as error:  # of any store: reported, and tried again or raised
                if isinstance(error, OSError) and error.errno == 28:
                    raise
                if isinstance(error, _No) or is_refusal(error) or time.monotonic() + pause_s > deadline:
                    raise ShardError(
                        f"{url}: cannot be downloaded: {type(error).__name__}: {error}; "
                        "check the address, the credentials and the store, then start again"
                    ) from error
                logger.warning("%s: %s: %s; trying again in %g s", url, type(error).__name__, error, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _fetch(self, url: str, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith("s3://"):
            self._fetch_object(url, path, max_bytes)
        elif "://" not in url:
            copy_file(url, path, max_bytes)
        else:
            from streaming.base.storage.download import CloudDownloader  # takes seconds

            path.unlink(missing_ok=True)
            CloudDownloader.get(url).download(url, str(path))

    # ------------------------------------------------------------------ S3

    def _stat(self, url: str) -> StoredObject:
        from botocore.exceptions import ClientError

        try:
            return object_storage.described(self._s3().head_object(**_place(url)), "ContentLength", url)
        except ClientError as error:
            if error.response["Error"]["Code"] != "400":
                raise
        if self._unsigned:
            raise StorageError("the store answers 400, with keys and without; check the address and S3_ENDPOINT_URL")
        self._unsigned = True  # a public bucket may want no keys
        return self._stat(url)

    def _fetch_object(self, url: str, path: Path, max_bytes: int) -> None:
        from boto3.s3.transfer import TransferConfig

        _check_size(self._stat(url).num_bytes, max_bytes)
        place = _place(url)
        bucket, key = place.pop("Bucket"), place.pop("Key")
        config = TransferConfig(use_threads=False)
        with open(path, "wb") as file:
            object_storage.download_into(file, self._s3(), bucket, key, max_bytes, ExtraArgs=place, Config=config)

    def _s3(self) -> Any:
        return object_storage.client(self.patience_s, self._unsigned)


def copy_file(source: str, path: Path, max_bytes: int) -> None:
    """Copy a regular file of at most `max_bytes`."""
    with open_regular(source) as file, open(path, "wb") as copy:
        _check_size(os.fstat(file.fileno()).st_size, max_bytes)
        shutil.copyfileobj(file, copy, 1 << 20)


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise StorageError(f"{num_bytes} bytes; at most {max_bytes} are expected")


def _place(url: str) -> dict[str, str]:
    """Where an object lies, as boto3 names it, and who pays."""
    parts = urlsplit(url)
    pays = parts.netloc in os.environ.get(_REQUESTER_PAYS, "").split(",")
    payer = {"RequestPayer": "requester"} if pays else {}
    return {"Bucket": parts.netloc, "Key": parts.path.lstrip("/"), **payer}
