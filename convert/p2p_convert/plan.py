"""A conversion as fixed tasks: what each converts and what its output is called hang on the input alone.

So the result is the same with any number of workers, and after any number of interruptions. A task that is done
has a report, OUT/.convert/task-NNNNN.json; a conversion goes on with those that have none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from p2p import gate
from p2p.format import FORMAT_VERSION
from p2p.hub.archive import BadArchive
from p2p_convert import hub, reports
from p2p_convert.amend import Amendments
from p2p_convert.decoding import ALL, DECODE
from p2p_convert.foreign import ForeignRecording
from p2p_convert.foreign import find as find_foreign
from p2p_convert.sources import (
    ArchiveSource,
    FolderSource,
    ForeignSource,
    Source,
    find_archives,
    find_recordings,
    num_bytes,
    split_position,
    validation_ids,
)
from p2p_convert.storage import Store
from p2p_convert.transcode import Encoding

logger = logging.getLogger(__name__)
_Kind = TypeVar("_Kind")

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
    amend: Amendments = Amendments()
    origin: str = ""  # the format of others' recordings; "": by what a folder holds
    game: str = ""  # of others' recordings

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--split val={self.val_fraction}: write a fraction in [0, 1), such as val=0.01")
        if not 1 << 16 <= self.shard_bytes < 1 << 32:
            raise ValueError(f"--shard-mb gives {self.shard_bytes} bytes; write 1 to 4000")
        if self.decode not in DECODE:
            raise ValueError(f"--decode {self.decode}: write {', '.join(DECODE[:-1])} or {DECODE[-1]}")
        if self.compression not in ("", "zstd", *(f"zstd:{level}" for level in range(1, 23))):
            raise ValueError(f"--compression {self.compression}: write none, zstd or zstd:LEVEL, from 1 to 22")


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
    foreign, ours = _foreign(on_disk, options)
    folders = sorted((f for root in ours for f in find_recordings(root)), key=lambda f: (f.name, str(f)))
    first: dict[str, Path] = {}
    duplicates = []
    for folder in folders:
        if folder.name in first:
            duplicates.append((folder.name, str(folder)))
        else:
            first[folder.name] = folder
    others: dict[str, ForeignRecording] = {}
    for each in foreign:
        if each.id in first or each.id in others:
            duplicates.append((each.id, each.where))
        else:
            others[each.id] = each
    if not first and not archives and not others:
        raise ValueError(
            f"{', '.join(map(str, raw))}: no recording in it; a recording is a folder with annotation.proto and "
            "192x192.mp4, and an archive of recordings is a .tar.gz; docs/importing.md has others' formats"
        )
    in_archives = _names(archives, options.val_fraction)
    validation = None if in_archives is None else validation_ids([*first, *others, *in_archives], options.val_fraction)
    tasks: list[Task] = []
    for group in _group(list(first.values()), num_bytes):
        source: Source = FolderSource(tuple(str(f) for f, _ in group), sum(size for _, size in group))
        tasks.append(Task(len(tasks), source, options, out, validation))
    for foreign_group in _group(sorted(others.values(), key=lambda each: each.id), _foreign_bytes):
        source = ForeignSource(tuple(each for each, _ in foreign_group), sum(size for _, size in foreign_group))
        tasks.append(Task(len(tasks), source, options, out, validation))
    for archive in sorted(archives, key=lambda a: (Path(a.archive).name, a.archive)):
        tasks.append(Task(len(tasks), archive, options, out, validation))
    described = {
        "format": FORMAT_VERSION,
        "options": _identifying(options),
        "tasks": [[_file_names(task.source), task.source.num_bytes] for task in tasks],
        "validation": None if validation is None else sorted(validation),
    }
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Plan(tuple(tasks), len(first) + len(others), tuple(duplicates), identity)


def _foreign(roots: Sequence[Path], options: Options) -> tuple[list[ForeignRecording], list[Path]]:
    """The recordings that others made, and the folders that hold our own."""
    found, ours = [], []
    for root in roots:
        recordings = find_foreign(root, options.origin, options.game)
        if recordings is None:
            ours.append(root)
        else:
            found += recordings
    return found, ours


def _foreign_bytes(recording: ForeignRecording) -> int:
    return sum(path.stat().st_size for path in recording.paths.values())


def _identifying(options: Options) -> dict[str, Any]:
    """The options by which one conversion goes on as another; what is stored does not hang on how much is decoded."""
    described = {**asdict(options), "decode": None}
    for name in ("origin", "game"):  # where they say nothing, as before there were any
        if not described[name]:
            del described[name]
    return described


def _names(archives: Sequence[ArchiveSource], val_fraction: float) -> list[str] | None:
    """All ids in the archives, for the split; None when they are too large to be read for that, or damaged."""
    if sum(archive.num_bytes for archive in archives) > _SCANNED_BYTES:
        return None
    if val_fraction == 0:
        return []
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
    if isinstance(source, ForeignSource):
        return [f"{each.importer}:{each.game}:{each.part}:{each.id}" for each in source.foreign]
    return [Path(folder).name for folder in source.folders]


def _group(recordings: Sequence[_Kind], measure: Callable[[_Kind], int]) -> list[list[tuple[_Kind, int]]]:
    groups: list[list[tuple[_Kind, int]]] = []
    total = 0
    for recording in recordings:
        size = measure(recording)
        if not groups or len(groups[-1]) == _TASK_RECORDINGS or total + size > _TASK_BYTES:
            groups.append([])
            total = 0
        groups[-1].append((recording, size))
        total += size
    return groups


def claim(store: Store, plan: Plan) -> list[Task]:
    """Note in OUT which conversion it holds; returns the tasks that are still to do.

    To do are also those whose report is damaged, or whose shards are gone or cut off, and damaged archives.

    Raises:
        ValueError: when it holds another one, or a file was changed after it was converted.
    """
    sizes = store.sizes()
    if PLAN in sizes:
        if _identity(store) != plan.identity:
            raise _other(store, "")
    elif any(name.endswith("index.json") for name in sizes):
        raise ValueError(f"{store.address}: holds shards that this program did not write; name another OUT")
    else:
        note: dict[str, Any] = {"identity": plan.identity, "num_tasks": len(plan.tasks), "folders": plan.num_folders}
        store.write(PLAN, json.dumps(note, sort_keys=True).encode() + b"\n")
    return [task for task in plan.tasks if not _is_done(store, task, sizes)]


def _is_done(store: Store, task: Task, sizes: Mapping[str, int]) -> bool:
    """Whether a task has a report that holds; one that does not is removed."""
    if task.report_name not in sizes:
        return False
    where = f"{store.address}/{task.report_name}"
    try:
        report = reports.decode(store.read(task.report_name), where)
        missing = next(reports.missing_shards(report, sizes), "")
        problem = f"{missing} is gone or cut off" if missing else ""
    except gate.Refused as error:
        report, problem = {}, str(error)
    if not problem and report.get("sources"):  # older reports have none
        changed = reports.changed_file(report["sources"], task.source)
        if changed and not reports.is_to_be_tried_again(report):
            raise _other(store, f": {gate.printable(changed)} has changed since it was converted")
    if problem or reports.is_to_be_tried_again(report):
        logger.warning("%s: %s; that task is done again", where, problem or "an archive was damaged")
        store.delete([task.report_name])
        return False
    return True


def _identity(store: Store) -> Any:
    where = f"{store.address}/{PLAN}"
    try:
        return gate.mapping(gate.parse_json(store.read(PLAN), where), where).get("identity")
    except gate.Refused as error:
        raise ValueError(f"{error}; the plan is damaged: name another OUT, or remove this one") from error


def _other(store: Store, why: str) -> ValueError:
    return ValueError(
        f"{store.address}: holds a conversion of other recordings or with other options{why}; "
        "name another OUT, or remove this one"
    )
