"""Streaming's downloader of s3:// with the client of p2p.object_storage."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from streaming.base.storage.download import S3Downloader

from p2p import object_storage
from p2p.object_storage import StorageError, StoredObject


class PatientS3Downloader(S3Downloader):
    """Every process has a client of its own: workers that share one from before a fork read each other's answers."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.patience_s = patience_s
        self.unsigned = False

    def stat(self, remote: str) -> StoredObject:
        """Size and ETag of an object, by one request.

        Raises:
            StorageError, or an error of botocore, when the store refuses or stays out of reach.
        """
        from botocore.exceptions import ClientError

        place = urlsplit(remote)
        try:
            client = object_storage.client(self.patience_s, self.unsigned)
            found = client.head_object(Bucket=place.netloc, Key=place.path.lstrip("/"), **self._extra(place.netloc))
        except ClientError as error:
            if error.response["Error"]["Code"] != "400":
                raise
            self._create_s3_client(unsigned=True)
            return self.stat(remote)
        return object_storage.described(found, "ContentLength", remote)

    def fetch(self, remote: str, local: Path, max_bytes: int) -> None:
        """Write an object to a file, at most `max_bytes` of it; `stat` has found it before.

        Raises:
            As `stat`; StorageError also when it is longer.
        """
        from boto3.s3.transfer import TransferConfig

        place = urlsplit(remote)
        client = object_storage.client(self.patience_s, self.unsigned)
        local.parent.mkdir(parents=True, exist_ok=True)
        with open(local, "wb") as file:
            object_storage.download_into(
                file,
                client,
                place.netloc,
                place.path.lstrip("/"),
                max_bytes,
                ExtraArgs=self._extra(place.netloc),
                Config=TransferConfig(use_threads=False),
            )

    def _extra(self, bucket: str) -> dict[str, str]:
        return {"RequestPayer": "requester"} if bucket in self._requester_pays_buckets else {}

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 0.0) -> None:
        """Called when the store answers 400: a public bucket may want no keys."""
        if self.unsigned:
            raise StorageError("the store answers 400, with keys and without; check the address and S3_ENDPOINT_URL")
        self.unsigned = unsigned

    def clean_up(self) -> None:
        """Nothing: the client survives failures, and another thread may be using it."""
