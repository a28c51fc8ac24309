"""Checkpoints under an s3:// prefix: listed by name, fetched one at a time to be evaluated.

S3_ENDPOINT_URL and the AWS_* variables say where and as whom. An object appears whole; a checkpoint of several
objects is whole once its last one is there (a trainer uploads .metadata last).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from p2p.evaluate.checkpoints import ORIGINAL, POLICY, RUN, Checkpoint, kind_of, missing_names, step_of


@dataclass(frozen=True)
class RemoteCheckpoint(Checkpoint):
    """A checkpoint in object storage; `objects` maps its object names to (bytes, etag)."""

    objects: dict[str, tuple[int, str]] = field(default_factory=dict, hash=False)

    def fingerprint(self) -> str:
        return " ".join(f"{name}:{size}:{etag}" for name, (size, etag) in sorted(self.objects.items()))

    def missing(self) -> str | None:
        return missing_names(self.kind, {PurePosixPath(name).name for name in self.objects})


class RemoteFolder:
    """An s3://bucket/prefix that holds checkpoints."""

    def __init__(self, url: str) -> None:
        parsed = urlparse(url)
        if parsed.scheme != "s3" or not parsed.netloc:
            raise ValueError(f"{url!r}: write a folder, or s3://bucket/prefix")
        self.url, self.bucket, self.prefix = url, parsed.netloc, parsed.path.strip("/")
        self._client: Any = None

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            config = Config(connect_timeout=20, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"})
            self._client = boto3.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=config)
        return self._client

    def objects(self) -> dict[str, tuple[int, str]]:
        """(bytes, etag) of every object, by its name below the prefix.

        Raises:
            ValueError: when the store cannot be listed.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        skip = f"{self.prefix}/" if self.prefix else ""
        try:
            pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=skip)
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        except (BotoCoreError, ClientError) as error:
            raise ValueError(
                f"{self.url}: {error}. Check the bucket, S3_ENDPOINT_URL and the AWS_* variables"
            ) from error
        return {entry["Key"][len(skip) :]: (int(entry["Size"]), str(entry["ETag"])) for entry in entries}

    def find(self) -> list[Checkpoint]:
        """All checkpoints under the prefix, whole or not, by step and name."""
        objects = self.objects()
        folders: dict[str, set[str]] = {}
        for name in objects:
            parent = str(PurePosixPath(name).parent)
            folders.setdefault(parent, set()).add(PurePosixPath(name).name)
        found: list[Checkpoint] = []
        for folder, names in folders.items():
            kind = kind_of(PurePosixPath(folder).name, names)
            if kind in (RUN, POLICY):
                inside = {name: objects[name] for name in objects if str(PurePosixPath(name).parent) == folder}
                found.append(self._checkpoint(folder, str(kind), inside))
            for name in sorted(names):
                if name.endswith(".ckpt"):
                    path = name if folder == "." else f"{folder}/{name}"
                    config = str(PurePosixPath(path).parent / "model_config.yaml")
                    inside = {part: objects[part] for part in (path, config) if part in objects}
                    found.append(self._checkpoint(path, ORIGINAL, inside))
        return sorted(found, key=lambda c: (c.step is None, c.step or 0, c.name))

    def _checkpoint(self, name: str, kind: str, objects: dict[str, tuple[int, str]]) -> RemoteCheckpoint:
        shown = self.prefix.rpartition("/")[2] if name == "." else name
        return RemoteCheckpoint(Path(name), kind, step_of(PurePosixPath(name).name), shown, objects)

    def fetch(self, checkpoint: Checkpoint, scratch: Path) -> Checkpoint:
        """The same checkpoint with its files in a local folder below `scratch`.

        Raises:
            ValueError: when an object cannot be had.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        assert isinstance(checkpoint, RemoteCheckpoint)
        folder = scratch / (
            checkpoint.path.parent.name if checkpoint.kind == ORIGINAL else checkpoint.path.name or "policy"
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name in checkpoint.objects:
            key = f"{self.prefix}/{name}" if self.prefix else name
            try:
                self._s3().download_file(self.bucket, key, str(folder / PurePosixPath(name).name))
            except (BotoCoreError, ClientError) as error:
                raise ValueError(f"{self.url}/{name}: {error}") from error
        path = folder / checkpoint.path.name if checkpoint.kind == ORIGINAL else folder
        return Checkpoint(path, checkpoint.kind, checkpoint.step, checkpoint.name)
