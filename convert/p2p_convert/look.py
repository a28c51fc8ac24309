"""`p2p-convert verify | inspect | stats OUT`: proofs, a look inside, and the counts of a conversion."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2p import gate
from p2p.format import COLUMNS, SYSTEM, USER, Segment, version_text
from p2p_convert import statistics
from p2p_convert.reading import read_index, read_segments, read_shard, stream_names
from p2p_convert.sources import find_recordings
from p2p_convert.storage import Store, open_store


def run(command: str, arguments: Sequence[str]) -> Iterator[str]:
    """The lines that a command prints.

    Raises:
        ValueError: for a wrong address or, from verify, when something is wrong with the data.
    """
    parser = argparse.ArgumentParser(prog=f"p2p-convert {command}", description=_HELP[command])
    parser.add_argument("out", metavar="OUT", help="what a conversion wrote: folder or s3://bucket/prefix")
    if command == "verify":
        parser.add_argument("--decode", action="store_true", help="decode every frame")
        parser.add_argument("--against", metavar="RAW", help="compare bytes and frames with the raw recordings")
    if command == "inspect":
        parser.add_argument("--sample", type=int, metavar="K", help="show the columns of stored sample K")
    if command == "stats":
        parser.add_argument("--pictures", metavar="DIR", help="write histograms as PNG files there")
    args = parser.parse_args(arguments)
    store = open_store(args.out)
    if command == "verify":
        return _verify(store, args.decode, args.against)
    if command == "inspect":
        return _inspect(store, args.sample)
    return _stats(store, args.pictures)


_HELP = {
    "verify": "Read every shard and prove that it is whole and what the index says.",
    "inspect": "Show what a conversion holds.",
    "stats": "Hours, labels, keys and mouse per game.",
}


def _verify(store: Store, decode: bool, against: str | None) -> Iterator[str]:
    from p2p_convert.verify import compare_with_source, verify_stream

    problems: list[str] = []
    folders = {folder.name: folder for folder in find_recordings(Path(against))} if against else {}
    for stream in stream_names(store):
        found, recordings, frames = verify_stream(store, stream, decode)
        if against and not found:
            found = compare_with_source(store, stream, folders)
        problems += found
        checked = "equal to the source" if against else "decoded" if decode else "whole"
        verdict = f"{len(found)} problems" if found else checked
        yield f"{store.address}/{stream}: {recordings:,} recordings, {frames:,} frames: {verdict}"
        yield from (f"  {problem}" for problem in found[:20])
    if problems:
        raise ValueError(f"{store.address}: {len(problems)} problems, the first: {problems[0]}")


def _inspect(store: Store, sample: int | None) -> Iterator[str]:
    if sample is not None and sample < 0:
        raise ValueError(f"--sample is {sample}; samples are numbered from 0")
    num_before = 0
    for stream in stream_names(store):
        entries, recordings = read_index(store, stream)
        num_samples = sum(entry["samples"] for entry in entries)
        num_bytes = sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in entries)
        yield (
            f"{store.address}/{stream}: format {version_text()}, {len(entries)} shards, {num_bytes:,} bytes, "
            f"{num_samples} samples, {len(recordings)} recordings"
        )
        if sample is None:
            for recording in recordings[:20]:
                yield (
                    f"  {gate.printable(recording.id)}: {recording.num_frames} frames in "
                    f"{len(recording.segment_frames)} segments, "
                    f"{recording.num_user} user and {recording.num_system} system actions, game {recording.game!r}"
                )
            if len(recordings) > 20:
                yield f"  ... and {len(recordings) - 20} more"
        elif sample < num_before + num_samples:
            yield from _dump(store, stream, entries, sample - num_before)
            return
        num_before += num_samples
    if sample is not None:
        raise ValueError(f"--sample is {sample}; {store.address} has {num_before} samples, numbered from 0")


def _dump(store: Store, stream: str, entries: Sequence[dict[str, Any]], sample: int) -> Iterator[str]:
    """The columns of one sample."""
    for entry in entries:
        if sample < entry["samples"]:
            break
        sample -= entry["samples"]
    yield f"sample {sample} of {entry['raw_data']['basename']}, {len(read_shard(store, stream, entry)[sample]):,} bytes"
    for number, segment in enumerate(read_segments(store, stream, entry, with_annotation=True)):
        if number == sample:
            yield from describe_segment(segment)


def describe_segment(segment: Segment) -> Iterator[str]:
    """One line for each column."""
    shown: dict[str, object] = {
        "recording": segment.recording,
        "segment": segment.index,
        "first_frame": segment.first_frame,
        "num_frames": segment.num_frames,
        "video": json.dumps({**vars(segment.video), "extradata": f"{len(segment.video.extradata)} bytes"}),
        "packets": f"{len(segment.payload()):,} bytes, the first {bytes(segment.payload()[:16]).hex(' ')}",
        "packet_sizes": _values(segment.packet_sizes),
        "packet_frames": _values(segment.packet_frames),
        "packet_starts": _values(segment.packet_starts),
        "keys": _values(segment.keys),
        "buttons": _values(segment.buttons),
        "mouse_px": _values(segment.mouse_px),
        "taken": f"{_values(segment.taken)}: {np.count_nonzero(segment.taken == USER)} user, "
        f"{np.count_nonzero(segment.taken == SYSTEM)} system",
        "text_frames": [text.frame for text in segment.texts],
        "text_rows": [text.num_rows for text in segment.texts],
        "texts": [
            (text.version, text.instruction, {k: v.shape for k, v in text.embeddings.items()}) for text in segment.texts
        ],
        "text_values": f"{sum(v.size for text in segment.texts for v in text.embeddings.values())} float32",
        "annotation": f"{len(segment.annotation):,} bytes when unpacked",
        "source": json.dumps(segment.source),
    }
    return (f"  {name:14} {COLUMNS[name]:6} {shown[name]}" for name in COLUMNS)


def _values(values: np.ndarray[Any, Any]) -> str:
    first = np.array2string(values[:6], separator=" ", max_line_width=10_000).replace("\n", "")
    return f"{values.dtype}{list(values.shape)} {first}{' ...' if len(values) > 6 else ''}"


def _stats(store: Store, pictures: str | None) -> Iterator[str]:
    where = f"{store.address}/stats.json"
    try:
        content = store.read("stats.json", statistics.MAX_BYTES)
    except FileNotFoundError as error:
        raise ValueError(f"{where}: no such file; expected the OUT of a p2p-convert that has ended") from error
    games, counts = statistics.decode(content, where)
    yield from statistics.table(games).splitlines()
    yield from statistics.keys_table(games)
    for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"{count:>10,} x {gate.shown(kind, quote=False)}"
    if pictures:
        from p2p_convert.pictures import write_pictures

        for path in write_pictures(games, Path(pictures)):
            yield f"wrote {path}"
