"""Checkpoints under an s3:// prefix: listed by name, fetched one at a time to be evaluated.

An object appears whole; a checkpoint of several objects is whole once its last one is there (a trainer uploads
.metadata last).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from p2p.evaluate.checkpoints import ORIGINAL, POLICY, RUN, Checkpoint, kind_of, missing_names, step_of
from p2p.object_storage import ObjectFolder, StoredObject


@dataclass(frozen=True)
class RemoteCheckpoint(Checkpoint):
    """A checkpoint in object storage: its objects by name."""

    objects: dict[str, StoredObject] = field(default_factory=dict, hash=False)

    def fingerprint(self) -> str:
        return " ".join(f"{name}:{each.num_bytes}:{each.etag}" for name, each in sorted(self.objects.items()))

    def missing(self) -> str | None:
        return missing_names(self.kind, {PurePosixPath(name).name for name in self.objects})


class RemoteFolder:
    """An s3://bucket/prefix that holds checkpoints."""

    def __init__(self, url: str) -> None:
        self.store = ObjectFolder(url)

    def find(self) -> list[Checkpoint]:
        """All checkpoints under the prefix, whole or not, by step and name.

        Raises:
            ValueError: when the store cannot be listed.
        """
        objects = self.store.list()
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

    def _checkpoint(self, name: str, kind: str, objects: dict[str, StoredObject]) -> RemoteCheckpoint:
        shown = self.store.prefix.rpartition("/")[2] if name == "." else name
        return RemoteCheckpoint(Path(name), kind, step_of(PurePosixPath(name).name), shown, objects)

    def fetch(self, checkpoint: Checkpoint, scratch: Path) -> Checkpoint:
        """The same checkpoint with its files in a local folder below `scratch`.

        Raises:
            ValueError: when an object cannot be had.
        """
        assert isinstance(checkpoint, RemoteCheckpoint)
        folder = scratch / (
            checkpoint.path.parent.name if checkpoint.kind == ORIGINAL else checkpoint.path.name or "policy"
        )
        for name, stored in checkpoint.objects.items():
            try:
                self.store.download(name, folder / PurePosixPath(name).name, stored.num_bytes)
            except FileNotFoundError as error:  # the trainer keeps the newest ones only
                raise ValueError(f"{self.store.url}/{name} is no longer there") from error
        path = folder / checkpoint.path.name if checkpoint.kind == ORIGINAL else folder
        return Checkpoint(path, checkpoint.kind, checkpoint.step, checkpoint.name)
