"""One task: its recordings into shards, and a report of what came of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from p2p_convert.errors import Rejected
from p2p_convert.files import write_file
from p2p_convert.plan import Options, Task
from p2p_convert.segments import convert_recording
from p2p_convert.statistics import Stats, add_stats, recording_stats
from p2p_convert.writer import StreamPart


def run_task(task: Task) -> dict[str, Any]:
    """Convert the recordings of a task; returns its report, which is on the disk as well.

    The report: streams {name: {shards, recordings}}, rejected [{recording, where, reason, message}],
    counts {oddity: number}, stats {game: counts}. A task that has a report is not done again.

    Raises:
        OSError: when files cannot be read or written; nothing half-written has its final name then.
    """
    if task.report_file.is_file():
        return json.loads(task.report_file.read_bytes())
    parts: dict[str, StreamPart] = {}
    rejected: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    stats: Stats = {}
    for raw in task.source.recordings():
        try:
            converted = convert_recording(raw)
        except Rejected as verdict:
            rejected.append(
                {"recording": raw.id, "where": raw.where, "reason": verdict.reason, "message": verdict.message}
            )
            continue
        stream = stream_name(raw.id in task.validation, converted.game, task.options)
        if stream not in parts:
            parts[stream] = StreamPart(
                Path(task.out) / stream, task.number, task.options.shard_bytes, task.options.compression
            )
        parts[stream].add(converted)
        counts.update(converted.counts)
        add_stats(stats, converted.game, recording_stats(converted))
    report = {
        "streams": {name: part.finish() for name, part in sorted(parts.items())},
        "rejected": rejected,
        "counts": dict(sorted(counts.items())),
        "stats": stats,
    }
    write_file(task.report_file, json.dumps(report, sort_keys=True).encode() + b"\n")
    return report


def stream_name(is_validation: bool, game: str, options: Options) -> str:
    """The folder, below OUT, of the stream that a recording belongs to."""
    split = "val" if is_validation else "train"
    if not options.by_game:
        return split
    return f"{split}/{re.sub(r'[^A-Za-z0-9._-]+', '_', game).strip('._') or 'unnamed'}"
