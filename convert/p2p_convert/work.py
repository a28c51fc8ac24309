"""One task: its recordings into shards, and a report of what came of them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.format import RecordingEntry, encode_segment
from p2p.game_names import canonical, folder_name
from p2p.hub.archive import BadArchive
from p2p.recording.memory import limited_memory
from p2p_convert import foreign, reports
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording
from p2p_convert.plan import Options, Task
from p2p_convert.segments import RawRecording, convert_recording
from p2p_convert.sources import ArchiveSource, Unusable
from p2p_convert.statistics import Stats, add_stats, recording_stats
from p2p_convert.storage import open_store
from p2p_convert.writer import Pieces, SortedRecordings, StreamPart, describe_recording

_notes: Path | None = None
_log = logging.getLogger(__name__)
_MACHINE_IS_OUT = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_REASONS: dict[type[Exception], str] = {
    MemoryError: "needs too much memory",
    gate.Refused: "unusable",
    FileNotFoundError: "unreadable file",
    PermissionError: "unreadable file",
    OSError: "unreadable file",
}


def run_task(task: Task) -> dict[str, Any]:
    """Convert the recordings of a task; returns its report, which is in OUT as well.

    The report: streams {name: {shards, recordings}}, rejected [{recording, where, reason, message}],
    counts {oddity: number}, stats {game: counts}, sources {file: what tells its content}. A task that has a report is
    not done again.

    Raises:
        OSError: when files cannot be read; ValueError: when they cannot be written, for example to a full disk.
            Nothing half-written has its final name then.
    """
    store = open_store(task.out)
    with contextlib.suppress(FileNotFoundError):
        return reports.decode(store.read(task.report_name), f"{store.address}/{task.report_name}")
    stamps = reports.stamps(task.source)
    parts: dict[str, StreamPart] = {}
    rejected: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    stats: Stats = {}
    for stream, recording, samples in _in_order(task, rejected, counts, stats, stamps):
        if stream not in parts:
            options = task.options
            parts[stream] = StreamPart(store, stream, task.number, options.shard_bytes, options.compression, task.lease)
        parts[stream].add(recording, samples)
    report = {
        "streams": {name: part.finish() for name, part in sorted(parts.items())},
        "rejected": rejected,
        "counts": dict(sorted(counts.items())),
        "stats": stats,
        "sources": stamps,
    }
    store.check(task.lease)
    store.write(task.report_name, reports.encode(report))
    return report


def _in_order(
    task: Task, rejected: list[dict[str, str]], counts: Counter[str], stats: Stats, stamps: reports.Stamps
) -> Iterator[tuple[str, RecordingEntry, Iterable[Pieces]]]:
    """(stream, recording, samples) by id; what else there is to report goes into the last four arguments."""
    converted = _converted(task, rejected, counts, stats, stamps)
    if not isinstance(task.source, ArchiveSource):  # is in order
        yield from converted
        return
    with contextlib.closing(SortedRecordings()) as waiting:
        try:
            for stream, recording, samples in converted:
                waiting.add(stream, recording, samples)
        except BadArchive as error:  # only its end shows whether what was read before is right
            lost = {"reason": reports.DAMAGED_ARCHIVE, "message": str(error)}
            where = task.source.archive
            rejected += [{"recording": name, "where": where, **lost} for name in ["", *waiting.ids]]
            counts.clear()
            stats.clear()
            return
        yield from waiting


def _converted(
    task: Task, rejected: list[dict[str, str]], counts: Counter[str], stats: Stats, stamps: reports.Stamps
) -> Iterator[tuple[str, RecordingEntry, list[Pieces]]]:
    """(stream, recording, samples) as the source gives them.

    Whatever one recording does to the program costs that recording alone: it is rejected by its name. A machine that
    is out of room, or of open files, is no recording's fault, and ends the conversion.
    """
    for raw in task.source.recordings():
        try:
            with limited_memory(), _noted(task.number, raw.id):
                done = _convert(raw, task)
        except Exception as error:  # the one place that takes any: it counts and reports
            if isinstance(error, OSError) and error.errno in _MACHINE_IS_OUT:
                raise
            rejected.append(_verdict(raw, error))
            reports.add_samples(stamps, raw.id, _files(raw))
            continue
        game = done.recording.game
        add_stats(stats, game, done.stats)
        counts.update(done.counts)
        if isinstance(raw, ForeignRecording):  # whose files are large, and may be those of many recordings
            reports.add_samples(stamps, raw.id, raw.paths)
        else:
            reports.add_hashes(stamps, raw.id, done.source)
        yield stream_name(task.is_validation(raw.id), game, task.options), done.recording, done.samples
        del raw, done  # before the next one is read


@dataclass(frozen=True)
class _Done:
    """A recording as it will be stored, and what it adds to the report."""

    recording: RecordingEntry
    samples: list[Pieces]
    counts: Counter[str]
    stats: dict[str, Any]
    source: Mapping[str, Mapping[str, Any]]


def _files(raw: RawRecording | Unusable | ForeignRecording) -> Mapping[str, bytes | Path]:
    if isinstance(raw, ForeignRecording):
        return raw.paths
    return raw.files if isinstance(raw, RawRecording) else {}


def _convert(raw: RawRecording | Unusable | ForeignRecording, task: Task) -> _Done:
    if isinstance(raw, Unusable):
        raise raw.verdict
    if raw.id in task.deadly:
        raise Rejected("kills its process", f"{raw.where}: the process that converted it alone died")
    gate.plain_name(raw.id, f"{gate.shown(raw.where, quote=False)}: as the id of a recording")
    encoding = task.options.encoding
    if isinstance(raw, ForeignRecording):
        raw, encoding = foreign.read(raw, encoding), None
    converted = convert_recording(raw, encoding, task.options.decode, task.options.amend)
    converted = replace(converted, game=canonical(converted.game, task.options.game_aliases))
    samples = [encode_segment(segment) for segment in converted.segments]
    source = converted.segments[0].source or {}
    return _Done(describe_recording(converted), samples, converted.counts, recording_stats(converted), source)


def _verdict(raw: RawRecording | Unusable | ForeignRecording, error: Exception) -> dict[str, str]:
    """What the report says about a recording that was not converted."""
    if isinstance(error, Rejected):
        reason, message = error.reason, error.message
    else:
        reason, message = _REASONS.get(type(error), "unusable"), f"{raw.where}: {str(error) or type(error).__name__}"
        if not isinstance(error, (ValueError, OSError, MemoryError)):  # a mistake of this program's, too
            reason, message = "unexpected error", f"{raw.where}: {error!r}"
            _log.warning("%s", gate.printable(message), exc_info=error)
    verdict = {"recording": raw.id, "where": raw.where, "reason": reason, "message": message}
    return {name: gate.printable(value) for name, value in verdict.items()}


def keep_notes(folder: str) -> None:
    """For a worker process: to write down in this folder which recording it is at, should it die of it."""
    global _notes  # of the process
    _notes = Path(folder)


@contextlib.contextmanager
def _noted(task: int, recording: str) -> Iterator[None]:
    if _notes is None:
        yield
        return
    note = _notes / str(os.getpid())
    with contextlib.suppress(OSError):  # no room for it: then a death has no name
        note.write_text(json.dumps([task, recording]))
    yield
    note.unlink(missing_ok=True)


def read_notes(folder: str) -> list[tuple[int, str]]:
    """(number of the task, recording) that each worker process was at."""
    noted = []
    for file in Path(folder).iterdir():
        with contextlib.suppress(ValueError):  # died while it wrote
            number, recording = json.loads(file.read_text())
            noted.append((int(number), str(recording)))
    return noted


def stream_name(is_validation: bool, game: str, options: Options) -> str:
    """The folder, below OUT, of the stream that a recording belongs to."""
    split = "val" if is_validation else "train"
    return f"{split}/{folder_name(game)}" if options.by_game else split
