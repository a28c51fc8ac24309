"""The report that a task leaves in OUT: what came of it, and what it was made of.

A task with a report is not done again, so a report is looked at before it is believed: it must be whole, the shards
that it names must lie there with their sizes, and its sources must be what they were. Hashes of shards are not compared
here, that would mean reading all of OUT; `p2p-convert verify` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from p2p import gate
from p2p.format import RecordingEntry, entry_from_json
from p2p.manifest import MANIFEST, describe
from p2p_convert import hub
from p2p_convert.sources import ArchiveSource, FolderSource, ForeignSource, Source, wanted_files

DAMAGED_ARCHIVE = "damaged archive"
Stamps = dict[str, dict[str, Any]]  # {file: its bytes, and what else tells its content}
_MAX_BYTES = 1 << 30
_MAX_SHARDS = 1_000_000
_MOST = 1 << 53
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of an archive: with its last bytes, which are gzip's checksum


def encode(report: Mapping[str, Any]) -> bytes:
    """The bytes of a report."""
    return json.dumps(report, sort_keys=True).encode() + b"\n"


def decode(content: bytes, where: str) -> dict[str, Any]:
    """The report in these bytes; `where` names them in errors.

    Raises:
        Refused: when they are cut off or damaged.
    """
    report = gate.mapping(gate.parse_json(content, where, _MAX_BYTES), where)
    for name, part in gate.mapping(report.get("streams"), f"{where}: streams").items():
        here = f"{where}: stream {gate.shown(name)}"
        gate.plain_path(name, where)
        shards = gate.sequence(gate.mapping(part, here).get("shards"), f"{here}: shards", _MAX_SHARDS)
        for shard in shards:
            gate.whole_number(gate.mapping(shard, here).get("samples"), f"{here}: samples", 1, _MOST)
            _stored(shard, here)
        for entry in gate.sequence(part.get("recordings"), f"{here}: recordings", _MAX_SHARDS):
            _check_recording(entry, here)
    for verdict in gate.sequence(report.get("rejected"), f"{where}: rejected", _MOST):
        texts = gate.mapping(verdict, f"{where}: rejected")
        if not all(isinstance(texts.get(key), str) for key in ("recording", "where", "reason", "message")):
            raise gate.Refused(f"{where}: rejected: expected recording, where, reason and message")
    for kind, count in gate.mapping(report.get("counts"), f"{where}: counts").items():
        gate.whole_number(count, f"{where}: counts: {gate.shown(kind)}", 0, _MOST)
    gate.mapping(report.get("stats"), f"{where}: stats")
    gate.mapping(report.get("sources", {}), f"{where}: sources")
    return report


def _check_recording(entry: Any, where: str) -> RecordingEntry:
    try:
        return entry_from_json(gate.mapping(entry, where))
    except (KeyError, TypeError, ValueError) as error:
        raise gate.Refused(f"{where}: a recording is damaged: {gate.shown(str(error), quote=False)}") from error


def _stored(shard: Mapping[str, Any], where: str) -> tuple[str, int]:
    """(file name, bytes) of a shard as it lies in OUT."""
    file = gate.mapping(shard.get("zip_data") or shard.get("raw_data"), f"{where}: a shard")
    name = gate.plain_name(file.get("basename"), f"{where}: a shard")
    return name, gate.whole_number(file.get("bytes"), f"{where}: {name}", 0, 1 << 32)


def missing_shards(report: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    """The shards of a decoded report that do not lie in OUT with the size they had; `sizes` lists OUT."""
    for stream, part in report["streams"].items():
        for shard in part["shards"]:
            name, num_bytes = _stored(shard, stream)
            if sizes.get(f"{stream}/{name}") != num_bytes:
                yield f"{stream}/{name}"


def is_to_be_tried_again(report: Mapping[str, Any]) -> bool:
    """Whether an archive was damaged: it may have been replaced, or have arrived damaged from the Hub."""
    return any(verdict["reason"] == DAMAGED_ARCHIVE for verdict in report["rejected"])


# ------------------------------------------------------------------ sources


def stamps(source: Source) -> Stamps:
    """What tells the files of a source, cheaply, before they are read.

    A recording's file by size and time of change, an archive by its size and samples of its bytes (of a .tar.gz that is
    exact, for gzip's checksum is among them), one of the Hub by its hash. Where files lie does not matter.
    """
    if isinstance(source, ForeignSource):
        files = {f"{each.id}/{name}": path for each in source.foreign for name, path in each.paths.items()}
        return _by_time_of_change(files)
    if isinstance(source, FolderSource):
        files = {f"{Path(f).name}/{name}": Path(f) / name for f in source.folders for name in _stamped(Path(f))}
        return _by_time_of_change(files)
    if source.archive.startswith(hub.PREFIX):
        return {Path(source.archive).name: {"bytes": source.num_bytes, "digest": source.digest}}
    return {Path(source.archive).name: {"bytes": source.num_bytes, "samples": _samples(Path(source.archive))}}


def _by_time_of_change(files: Mapping[str, Path]) -> Stamps:
    found = {name: path.stat() for name, path in files.items()}
    return {name: {"bytes": each.st_size, "mtime_ns": each.st_mtime_ns} for name, each in found.items()}


def _stamped(folder: Path) -> list[str]:
    return [*wanted_files(folder), *([MANIFEST] if (folder / MANIFEST).is_file() else [])]


def changed_file(recorded: Mapping[str, Any], source: Source) -> str:
    """The first file of a source whose content is not the one that was converted; "" when there is none.

    A file with another time of change but the same SHA-256 is the same: it was copied, or touched. A manifest that
    comes or goes tells nothing of what was stored; where the recording was rejected, it may have been the reason.
    """
    now = stamps(source)
    for name in sorted({*recorded, *now}):
        then, found = recorded.get(name), now.get(name)
        if then == found or (PurePath(name).name == MANIFEST and not (isinstance(then, dict) and "samples" in then)):
            continue
        if not isinstance(then, dict) or found is None or then.get("bytes") != found["bytes"]:
            return name
        if "mtime_ns" not in found:
            return name
        if then.get("mtime_ns") != found["mtime_ns"] and not _has_content(then, _path(source, name)):
            return name
    return ""


def add_hashes(stamps: Stamps, recording: str, source: Mapping[str, Mapping[str, Any]]) -> None:
    """Add what a converted recording says of its files, where they are files of their own, not of an archive."""
    for name, facts in source.items():
        if f"{recording}/{name}" in stamps:
            stamps[f"{recording}/{name}"]["sha256"] = facts["sha256"]


def add_samples(stamps: Stamps, recording: str, files: Mapping[str, bytes | Path]) -> None:
    """Add what tells the files of a rejected recording, which may have any size, or not be readable."""
    for name, path in files.items():
        if isinstance(path, Path) and f"{recording}/{name}" in stamps:
            with contextlib.suppress(OSError, gate.Refused):
                stamps[f"{recording}/{name}"]["samples"] = _samples(path)


def _has_content(stamp: Mapping[str, Any], path: Path) -> bool:
    if "sha256" in stamp:
        return bool(stamp["sha256"] == describe(path).sha256)
    return "samples" in stamp and bool(stamp["samples"] == _samples(path))


def _path(source: Source, name: str) -> Path:
    assert not isinstance(source, ArchiveSource)
    folder, _, file = name.rpartition("/")
    if isinstance(source, ForeignSource):
        return next(each for each in source.foreign if each.id == folder).paths[file]
    return next(Path(f) for f in source.folders if Path(f).name == folder) / file


def _samples(path: Path) -> str:
    digest = hashlib.sha256()
    with gate.open_regular(path) as file:
        size = file.seek(0, 2)
        last = max(0, size - _SAMPLE_BYTES)
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
