"""A conversion as fixed tasks: what each converts and what its output is called hang on the input alone.

So the result is the same with any number of workers, and after any number of interruptions. A task that is done
has a report, OUT/.convert/task-NNNNN.json; a conversion goes on with those that have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from p2p.format import FORMAT_VERSION
from p2p.hub.archive import BadArchive
from p2p_convert import hub
from p2p_convert.decoding import ALL, DECODE
from p2p_convert.sources import (
    ArchiveSource,
    FolderSource,
    Source,
    find_archives,
    find_recordings,
    num_bytes,
    split_position,
    validation_ids,
)
from p2p_convert.storage import Store
from p2p_convert.transcode import Encoding

PLAN = ".convert/plan.json"
_TASK_BYTES = 128 << 20
_TASK_RECORDINGS = 16
_SCANNED_BYTES = 2 << 30  # archives of more than this are not read beforehand for the names in them


@dataclass(frozen=True)
class Options:
    """What shapes the output of a conversion."""

    val_fraction: float = 0.01
    compression: str = ""
    shard_bytes: int = 64 << 20
    by_game: bool = False
    encoding: Encoding | None = None
    game_aliases: Mapping[str, str] = field(default_factory=dict)
    decode: str = ALL

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--split val={self.val_fraction}: write a fraction in [0, 1), such as val=0.01")
        if not 1 << 16 <= self.shard_bytes < 1 << 32:
            raise ValueError(f"--shard-mb gives {self.shard_bytes} bytes; write 1 to 4000")
        if self.decode not in DECODE:
            raise ValueError(f"--decode {self.decode}: write {', '.join(DECODE[:-1])} or {DECODE[-1]}")
        algorithm, _, level = self.compression.partition(":")
        if self.compression and (algorithm != "zstd" or not (level or "3").isdigit()):
            raise ValueError(f"--compression {self.compression}: write none, zstd or zstd:LEVEL")


@dataclass(frozen=True)
class Task:
    """Some recordings, converted together into shards of their own; `lease` names whose work it is.

    `deadly` are those that a process died of, which are not tried again.
    """

    number: int
    source: Source
    options: Options
    out: str
    validation: frozenset[str] | None = field(default_factory=frozenset)
    lease: str = ""
    deadly: frozenset[str] = frozenset()

    def is_validation(self, recording: str) -> bool:
        """Whether a recording belongs to the validation split; by its position alone where no list was made."""
        if self.validation is None:
            return split_position(recording) < self.options.val_fraction
        return recording in self.validation

    @property
    def report_name(self) -> str:
        """The file of the task's report in OUT."""
        return f".convert/task-{self.number:05d}.json"


@dataclass(frozen=True)
class Plan:
    """All tasks; duplicates are folders whose name another one has already."""

    tasks: tuple[Task, ...]
    num_folders: int
    duplicates: tuple[tuple[str, str], ...]
    identity: str


def make_plan(raw: Sequence[str | Path], out: str, options: Options) -> Plan:
    """The plan for the recordings below the folders, and in the archives, `raw`.

    Raises:
        ValueError: when there are none.
    """
    roots = [str(root) for root in raw]
    archives = [archive for root in roots for archive in find_archives(root)]
    on_disk = [Path(root) for root in roots if not root.startswith(hub.PREFIX)]
    folders = sorted((f for root in on_disk for f in find_recordings(root)), key=lambda f: (f.name, str(f)))
    first: dict[str, Path] = {}
    duplicates = []
    for folder in folders:
        if folder.name in first:
            duplicates.append((folder.name, str(folder)))
        else:
            first[folder.name] = folder
    if not first and not archives:
        raise ValueError(
            f"{', '.join(map(str, raw))}: no recording in it; a recording is a folder with annotation.proto and "
            "192x192.mp4, and an archive of recordings is a .tar.gz"
        )
    in_archives = _names(archives)
    validation = None if in_archives is None else validation_ids([*first, *in_archives], options.val_fraction)
    tasks: list[Task] = []
    for group in _group(list(first.values())):
        source = FolderSource(tuple(str(f) for f, _ in group), sum(size for _, size in group))
        tasks.append(Task(len(tasks), source, options, out, validation))
    for archive in sorted(archives, key=lambda a: (Path(a.archive).name, a.archive)):
        tasks.append(Task(len(tasks), archive, options, out, validation))
    described = {
        "format": FORMAT_VERSION,
        "options": {**asdict(options), "decode": None},  # what is stored does not hang on it: another may go on
        "tasks": [[_file_names(task.source), task.source.num_bytes] for task in tasks],
        "validation": None if validation is None else sorted(validation),
    }
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Plan(tuple(tasks), len(first), tuple(duplicates), identity)


def _names(archives: Sequence[ArchiveSource]) -> list[str] | None:
    """All ids in the archives; None when they are too large to be read for that."""
    if sum(archive.num_bytes for archive in archives) > _SCANNED_BYTES:
        return None
    names = []
    for archive in archives:
        try:
            names += archive.names()
        except BadArchive:  # reported when it is converted
            return None
    return names


def _file_names(source: Source) -> list[str]:
    if isinstance(source, ArchiveSource):
        return [Path(source.archive).name]
    return [Path(folder).name for folder in source.folders]


def _group(folders: Sequence[Path]) -> list[list[tuple[Path, int]]]:
    groups: list[list[tuple[Path, int]]] = []
    total = 0
    for folder in folders:
        size = num_bytes(folder)
        if not groups or len(groups[-1]) == _TASK_RECORDINGS or total + size > _TASK_BYTES:
            groups.append([])
            total = 0
        groups[-1].append((folder, size))
        total += size
    return groups


def claim(store: Store, plan: Plan) -> list[Task]:
    """Note in OUT which conversion it holds; returns the tasks that are still to do.

    Raises:
        ValueError: when it holds another one.
    """
    names = set(store.names())
    if PLAN in names:
        try:
            identity = json.loads(store.read(PLAN)).get("identity")
        except json.JSONDecodeError:
            identity = None
        if identity != plan.identity:
            raise ValueError(
                f"{store.address}: holds a conversion of other recordings or with other options; "
                "name another OUT, or remove this one"
            )
    elif any(name.endswith("index.json") for name in names):
        raise ValueError(f"{store.address}: holds shards that this program did not write; name another OUT")
    else:
        note: dict[str, Any] = {"identity": plan.identity, "num_tasks": len(plan.tasks), "folders": plan.num_folders}
        store.write(PLAN, json.dumps(note, sort_keys=True).encode() + b"\n")
    return [task for task in plan.tasks if task.report_name not in names]
