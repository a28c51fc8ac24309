"""Streaming's downloader of s3:// with the client of p2p.object_storage."""

from __future__ import annotations

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
        extra = {"RequestPayer": "requester"} if place.netloc in self._requester_pays_buckets else {}
        try:
            client = object_storage.client(self.patience_s, self.unsigned)
            found = client.head_object(Bucket=place.netloc, Key=place.path.lstrip("/"), **extra)
        except ClientError as error:
            if error.response["Error"]["Code"] != "400":
                raise
            self._create_s3_client(unsigned=True)
            return self.stat(remote)
        return StoredObject(int(found["ContentLength"]), str(found["ETag"]))

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        self._s3_client = object_storage.client(self.patience_s, self.unsigned)
        super()._download_file_impl(remote, local, timeout)

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 0.0) -> None:
        """Called when the store answers 400: a public bucket may want no keys."""
        if self.unsigned:
            raise StorageError("the store answers 400, with keys and without; check the address and S3_ENDPOINT_URL")
        self.unsigned = unsigned

    def clean_up(self) -> None:
        """Nothing: the client survives failures, and another thread may be using it."""
