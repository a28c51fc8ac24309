"""A folder in object storage (s3://bucket/prefix): list, upload, download, delete.

S3_ENDPOINT_URL and the AWS_* variables say where and as whom, as Composer and Streaming read them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse


class ObjectFolder:
    """Names inside are relative to the folder's URL."""

    def __init__(self, url: str):
        parsed = urlparse(url)
        if parsed.scheme != "s3" or not parsed.netloc:
            raise ValueError(f"save_folder is {url!r}; write a local folder, or s3://bucket/prefix")
        self.url, self.bucket, self.prefix = url, parsed.netloc, parsed.path.strip("/")
        self._client: Any = None

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            config = Config(connect_timeout=20, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"})
            self._client = boto3.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=config)
        return self._client

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every object, by name.

        Raises:
            ValueError: the bucket is not there, or may not be read.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(""))
        try:
            objects = [entry for page in pages for entry in page.get("Contents", [])]
        except (BotoCoreError, ClientError) as error:
            raise ValueError(
                f"save_folder {self.url}: {error}. Check the bucket, S3_ENDPOINT_URL and the AWS_* variables"
            ) from error
        skip = len(self._key(""))
        return {entry["Key"][skip:]: int(entry["Size"]) for entry in objects}

    def upload(self, path: Path, name: str) -> None:
        self._s3().upload_file(str(path), self.bucket, self._key(name))

    def download(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._s3().download_file(self.bucket, self._key(name), str(path))

    def delete(self, names: list[str]) -> None:
        for name in names:
            self._s3().delete_object(Bucket=self.bucket, Key=self._key(name))
