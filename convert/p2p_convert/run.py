"""A whole conversion: lock OUT, run what is not done, join the reports into one index per stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2p.format import RecordingEntry, encode_index, entry_from_json
from p2p_convert import reports
from p2p_convert.executors import EXECUTORS
from p2p_convert.plan import Options, Plan, Task, claim, make_plan
from p2p_convert.statistics import Stats, add_stats
from p2p_convert.storage import Store, open_store

Progress = Callable[[Task, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """What a conversion gave: recordings per stream, rejections by reason, oddities, counts per game."""

    recordings: Mapping[str, int]
    frames: Mapping[str, int]
    rejected: Sequence[Mapping[str, str]]
    counts: Mapping[str, int]
    stats: Stats

    @property
    def reasons(self) -> Counter[str]:
        return Counter(r["reason"] for r in self.rejected)


def convert(
    raw: Sequence[str | Path],
    out: str | Path,
    options: Options,
    num_workers: int = 1,
    max_rejected: float = 0.5,
    executor: str = "local",
    progress: Progress | None = None,
    started: Callable[[Plan, Sequence[Task]], None] | None = None,
    break_lock: bool = False,
) -> Summary:
    """Convert the recordings below `raw` into streams below `out`.

    `executor` names one of EXECUTORS. `started` hears of the plan and of its tasks that are still to do, `progress`
    of each task done. `break_lock` takes OUT, in a store, from a conversion that is gone without giving it back.

    Raises:
        ValueError: when there is nothing to convert, OUT holds something else or is in use, or more than the
            share `max_rejected` of the recordings was rejected (OUT/rejected.jsonl lists them).
    """
    plan = make_plan(raw, str(out), options)
    store = open_store(str(out))
    with store.locked(break_lock) as hold:
        open_tasks = [replace(task, lease=hold.token) for task in claim(store, plan)]
        if started:
            started(plan, open_tasks)
        for task, report in EXECUTORS[executor](open_tasks, num_workers):
            hold.check()
            if progress:
                progress(task, report)
        hold.check()
        return finish(plan, store, max_rejected)


def finish(plan: Plan, store: Store, max_rejected: float) -> Summary:
    """Join the reports of all tasks; the indexes come last, so that a stream with an index is complete.

    Raises:
        ValueError: when too much was rejected, or a shard that was written is no longer there.
    """
    shards: dict[str, list[dict[str, Any]]] = {}
    recordings: dict[str, list[RecordingEntry]] = {}
    rejected = [_duplicate(name, where, "another folder has this name") for name, where in plan.duplicates]
    counts: Counter[str] = Counter()
    stats: Stats = {}
    sizes = store.sizes()
    for task in plan.tasks:
        report = reports.decode(store.read(task.report_name), f"{store.address}/{task.report_name}")
        for missing in reports.missing_shards(report, sizes):
            raise ValueError(
                f"{store.address}/{missing}: gone or cut off since it was written; run the same command again"
            )
        for stream, part in report["streams"].items():
            first = sum(shard["samples"] for shard in shards.setdefault(stream, []))
            shards[stream] += part["shards"]
            recordings.setdefault(stream, []).extend(_entry(r, first) for r in part["recordings"])
        rejected += report["rejected"]
        counts.update(report["counts"])
        for game, game_stats in report["stats"].items():
            add_stats(stats, game, game_stats)
    rejected += _drop_duplicates(recordings)
    store.write("rejected.jsonl", "".join(json.dumps(r, sort_keys=True) + "\n" for r in rejected).encode())
    _check_share(rejected, sum(map(len, recordings.values())) + len(rejected), max_rejected, store)
    store.write("stats.json", json.dumps({"counts": counts, "games": stats}, sort_keys=True, indent=1).encode())
    for stream in sorted(shards):
        store.write(f"{stream}/index.json", encode_index(shards[stream], recordings[stream]))
    return Summary(
        recordings={stream: len(r) for stream, r in recordings.items()},
        frames={stream: sum(r.num_frames for r in rows) for stream, rows in recordings.items()},
        rejected=rejected,
        counts=counts,
        stats=stats,
    )


def _drop_duplicates(recordings: dict[str, list[RecordingEntry]]) -> list[dict[str, str]]:
    """Take recordings whose id came before out of the tables (their samples stay, unused); returns the verdicts."""
    seen: set[str] = set()
    verdicts = []
    for stream in sorted(recordings):
        kept = []
        for entry in recordings[stream]:
            if entry.id not in seen:
                kept.append(entry)
                seen.add(entry.id)
                continue
            message = f"{entry.id} came before, from another archive or folder"
            verdicts.append(_duplicate(entry.id, stream, message))
        recordings[stream] = kept
    return verdicts


def _duplicate(recording: str, where: str, message: str) -> dict[str, str]:
    return {"recording": recording, "where": where, "reason": "duplicate id", "message": message}


def _entry(values: Mapping[str, Any], first_sample: int) -> RecordingEntry:
    entry = entry_from_json(values)
    return replace(entry, first_sample=entry.first_sample + first_sample)


def _check_share(rejected: Sequence[Mapping[str, str]], total: int, max_rejected: float, store: Store) -> None:
    if len(rejected) < total and len(rejected) <= max_rejected * total:
        return
    reasons = Counter(r["reason"] for r in rejected)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    example = rejected[0]
    raise ValueError(
        f"{len(rejected)} of {total} recordings were rejected ({listed}), allowed are {max_rejected:.0%}; first: "
        f"{example['reason']}: {example['message']}; all are in {store.address}/rejected.jsonl"
    )
