"""A conversion as fixed tasks: what each converts and what its output is called hang on the input alone.

So the result is the same with any number of workers, and after any number of interruptions. A task that is done
has a report, OUT/.convert/task-NNNNN.json; a conversion goes on with those that have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from p2p.format import FORMAT_VERSION
from p2p_convert.files import write_file
from p2p_convert.sources import FolderSource, find_recordings, num_bytes, validation_ids

_TASK_BYTES = 128 << 20
_TASK_RECORDINGS = 16


@dataclass(frozen=True)
class Options:
    """What shapes the output of a conversion."""

    val_fraction: float = 0.01
    compression: str = ""
    shard_bytes: int = 64 << 20
    by_game: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--split val={self.val_fraction}: write a fraction in [0, 1), such as val=0.01")
        if not 1 << 16 <= self.shard_bytes < 1 << 32:
            raise ValueError(f"--shard-mb gives {self.shard_bytes} bytes; write 1 to 4000")
        algorithm, _, level = self.compression.partition(":")
        if self.compression and (algorithm != "zstd" or not (level or "3").isdigit()):
            raise ValueError(f"--compression {self.compression}: write none, zstd or zstd:LEVEL")


@dataclass(frozen=True)
class Task:
    """Some recordings, converted together into shards of their own."""

    number: int
    source: FolderSource
    options: Options
    out: str
    validation: frozenset[str] = field(default_factory=frozenset)

    @property
    def report_file(self) -> Path:
        return Path(self.out) / ".convert" / f"task-{self.number:05d}.json"


@dataclass(frozen=True)
class Plan:
    """All tasks; duplicates are folders whose name another one has already."""

    tasks: tuple[Task, ...]
    num_recordings: int
    duplicates: tuple[tuple[str, str], ...]
    identity: str


def make_plan(raw: Sequence[Path], out: Path, options: Options) -> Plan:
    """The plan for the recordings below the folders `raw`.

    Raises:
        ValueError: when there are none.
    """
    folders = sorted((f for root in raw for f in find_recordings(root)), key=lambda f: (f.name, str(f)))
    first: dict[str, Path] = {}
    duplicates = []
    for folder in folders:
        if folder.name in first:
            duplicates.append((folder.name, str(folder)))
        else:
            first[folder.name] = folder
    validation = validation_ids(list(first), options.val_fraction)
    tasks: list[Task] = []
    for group in _group(list(first.values())):
        source = FolderSource(tuple(str(f) for f, _ in group), sum(size for _, size in group))
        mine = frozenset(f.name for f, _ in group) & validation
        tasks.append(Task(len(tasks), source, options, str(out), mine))
    described = {
        "format": FORMAT_VERSION,
        "options": asdict(options),
        "tasks": [[sorted(t.validation), [Path(f).name for f in t.source.folders], t.source.num_bytes] for t in tasks],
    }
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Plan(tuple(tasks), len(first), tuple(duplicates), identity)


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


def claim(out: Path, plan: Plan) -> None:
    """Note in OUT which conversion it holds.

    Raises:
        ValueError: when it holds another one.
    """
    path = out / ".convert" / "plan.json"
    if path.is_file():
        try:
            identity = json.loads(path.read_bytes()).get("identity")
        except json.JSONDecodeError:
            identity = None
        if identity != plan.identity:
            raise ValueError(
                f"{out}: holds a conversion of other recordings or with other options; "
                "name another OUT, or remove this folder"
            )
        return
    if any(out.glob("*/index.json")) or (out / "index.json").exists():
        raise ValueError(f"{out}: holds shards that this program did not write; name another OUT")
    note: dict[str, Any] = {"identity": plan.identity, "num_tasks": len(plan.tasks), "recordings": plan.num_recordings}
    write_file(path, json.dumps(note, sort_keys=True).encode() + b"\n")
