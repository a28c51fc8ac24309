"""One task: its recordings into shards, and a report of what came of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from p2p.format import RecordingEntry, encode_segment
from p2p.game_names import canonical
from p2p.hub.archive import BadArchive
from p2p_convert.errors import Rejected
from p2p_convert.plan import Options, Task
from p2p_convert.segments import Converted, convert_recording
from p2p_convert.sources import FolderSource, Unusable
from p2p_convert.statistics import Stats, add_stats, recording_stats
from p2p_convert.storage import open_store
from p2p_convert.writer import Pieces, SortedRecordings, StreamPart, describe_recording

DAMAGED_ARCHIVE = "damaged archive"


def run_task(task: Task) -> dict[str, Any]:
    """Convert the recordings of a task; returns its report, which is in OUT as well.

    The report: streams {name: {shards, recordings}}, rejected [{recording, where, reason, message}],
    counts {oddity: number}, stats {game: counts}. A task that has a report is not done again.

    Raises:
        OSError: when files cannot be read; ValueError: when they cannot be written, for example to a full disk.
            Nothing half-written has its final name then.
    """
    store = open_store(task.out)
    with contextlib.suppress(FileNotFoundError):
        return json.loads(store.read(task.report_name))
    parts: dict[str, StreamPart] = {}
    rejected: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    stats: Stats = {}
    for stream, recording, samples in _in_order(task, rejected, counts, stats):
        if stream not in parts:
            options = task.options
            parts[stream] = StreamPart(store, stream, task.number, options.shard_bytes, options.compression)
        parts[stream].add(recording, samples)
    report = {
        "streams": {name: part.finish() for name, part in sorted(parts.items())},
        "rejected": rejected,
        "counts": dict(sorted(counts.items())),
        "stats": stats,
    }
    store.check(task.lease)
    store.write(task.report_name, json.dumps(report, sort_keys=True).encode() + b"\n")
    return report


def _in_order(
    task: Task, rejected: list[dict[str, str]], counts: Counter[str], stats: Stats
) -> Iterator[tuple[str, RecordingEntry, Iterable[Pieces]]]:
    """(stream, recording, samples) by id; what else there is to report goes into the last three arguments."""
    converted = _converted(task, rejected, counts, stats)
    if isinstance(task.source, FolderSource):  # is in order
        for stream, recording in converted:
            yield stream, describe_recording(recording), map(encode_segment, recording.segments)
        return
    with contextlib.closing(SortedRecordings()) as waiting:
        try:
            for stream, recording in converted:
                waiting.add(stream, recording)
        except BadArchive as error:  # only its end shows whether what was read before is right
            lost = {"reason": DAMAGED_ARCHIVE, "message": str(error)}
            where = task.source.archive
            rejected += [{"recording": name, "where": where, **lost} for name in ["", *waiting.ids]]
            counts.clear()
            stats.clear()
            return
        yield from waiting


def _converted(
    task: Task, rejected: list[dict[str, str]], counts: Counter[str], stats: Stats
) -> Iterator[tuple[str, Converted]]:
    """(stream, recording) as the source gives them."""
    for raw in task.source.recordings():
        try:
            if isinstance(raw, Unusable):
                raise raw.verdict
            converted = convert_recording(raw, task.options.encoding)
        except Rejected as verdict:
            rejected.append(
                {"recording": raw.id, "where": raw.where, "reason": verdict.reason, "message": verdict.message}
            )
            continue
        converted = replace(converted, game=canonical(converted.game, task.options.game_aliases))
        counts.update(converted.counts)
        add_stats(stats, converted.game, recording_stats(converted))
        yield stream_name(task.is_validation(raw.id), converted.game, task.options), converted
        del raw, converted  # before the next one is read


def stream_name(is_validation: bool, game: str, options: Options) -> str:
    """The folder, below OUT, of the stream that a recording belongs to."""
    split = "val" if is_validation else "train"
    if not options.by_game:
        return split
    return f"{split}/{re.sub(r'[^A-Za-z0-9._-]+', '_', game).strip('._') or 'unnamed'}"
