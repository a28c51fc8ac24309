"""`index.json` of a stream: its shards, as Streaming knows them, and our table of recordings.

An index may come from a stranger, and it names files and sizes. `decode_index` lets nothing through that was not
checked: names are plain names of shards, hashes are there, numbers are bounded and fit each other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import ACTION_SPACE_VERSION, FRAME_RATE_HZ
from p2p.format import columns as c
from p2p.format.recordings import FIELDS, Lists, RecordingEntry, Recordings, texts
from p2p.format.shard import HASH_DIGITS, MAX_SHARD_BYTES, shard_config
from p2p.format.shard_table import Shards
from p2p.gate import Refused, mapping, parse_json, plain_name, sequence, shown, text, whole_number

MAX_INDEX_BYTES = 1 << 28
MAX_STREAM_FRAMES = 1 << 32  # 60,000 hours
_MAX_RECORDINGS = 1 << 22
_MAX_SHARDS = 1 << 20
_MAX_GAME_CHARACTERS = 1000
_MAX_COLUMNS = 100

_SHARD_NAME = re.compile(r"shard\.\d{1,9}(\.\d{1,9})?\.mds")
_COMPRESSION = re.compile(r"zstd(:\d{1,2})?")
_PACKED = ".zstd"
_HEXADECIMAL = re.compile(r"[0-9a-f]*")

Numbers = NDArray[np.int64]


def shard_entry(
    num_samples: int, raw_data: Mapping[str, Any], zip_data: Mapping[str, Any] | None, compression: str | None
) -> dict[str, Any]:
    """The entry of one shard in `index.json`; raw_data and zip_data are {basename, bytes, hashes}."""
    return {
        **shard_config(compression, raw_data["hashes"]),
        "raw_data": dict(raw_data),
        "zip_data": dict(zip_data) if zip_data else None,
        "samples": num_samples,
        "size_limit": None,
    }


def layout_of(entry: Mapping[str, Any]) -> c.Layout:
    """The columns of a shard's samples, by its entry in the index."""
    return tuple(zip(entry["column_names"], entry["column_sizes"], strict=True))


def encode_index(shards: Sequence[Mapping[str, Any]], recordings: Sequence[RecordingEntry]) -> bytes:
    """The bytes of a stream's `index.json`."""
    table = {name: [getattr(r, name) for r in recordings] for name in FIELDS}
    ours = {
        "format": c.FORMAT_NAME,
        "version": list(c.FORMAT_VERSION),
        "action_space_version": ACTION_SPACE_VERSION,
        "frame_rate_hz": FRAME_RATE_HZ,
        "recordings": table,
    }
    index = {"version": 2, "shards": [dict(s) for s in shards], c.INDEX_KEY: ours}
    return json.dumps(index, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def decode_index(data: bytes, where: str) -> tuple[Shards, Recordings]:
    """The shard entries and the recordings of an `index.json`; `where` names it in errors.

    Raises:
        Refused: when it is not JSON, not ours, of a newer major version, or says what cannot be.
    """
    try:
        index = parse_json(data, where, MAX_INDEX_BYTES)
    except Refused as error:
        raise Refused(f"{where}: not a JSON file ({error}); convert the recordings again") from error
    ours = index.get(c.INDEX_KEY) if isinstance(index, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != c.FORMAT_NAME:
        raise Refused(f"{where}: not an index of {c.FORMAT_NAME}; make it with `p2p-convert RAW OUT`")
    is_newer = _check_version(ours.get("version"), where)
    try:
        whole_number(
            ours.get("action_space_version"), "action_space_version", ACTION_SPACE_VERSION, ACTION_SPACE_VERSION
        )
        whole_number(ours.get("frame_rate_hz"), "frame_rate_hz", FRAME_RATE_HZ, FRAME_RATE_HZ)
        entries = sequence(index.get("shards"), "shards", _MAX_SHARDS)
        layouts = _Layouts(is_newer)
        shards = Shards(_shard(entry, f"shard {number}", layouts) for number, entry in enumerate(entries))
        _check_unique([entry["raw_data"]["basename"] for entry in entries], "shards")
        num_samples = int(shards.samples.sum())
        return shards, _recordings(mapping(ours.get("recordings"), "recordings"), num_samples)
    except Refused as error:
        raise Refused(f"{where}: a damaged index ({error}); convert the recordings again") from error


def _check_version(version: Any, where: str) -> bool:
    """Refuse what a newer major version wrote; whether a newer minor one did."""
    if not isinstance(version, list) or len(version) != 2 or not all(type(part) is int for part in version):
        raise Refused(f"{where}: format version {shown(version)}; expected [major, minor]")
    major, minor = version
    if major != c.FORMAT_VERSION[0]:
        todo = "upgrade p2p" if major > c.FORMAT_VERSION[0] else "convert the recordings again"
        raise Refused(
            f"{where}: {c.FORMAT_NAME} version {major}.{minor}; this p2p reads {c.FORMAT_VERSION[0]}.x: {todo}"
        )
    return bool(minor > c.FORMAT_VERSION[1])


# ------------------------------------------------------------------ shards


def _shard(entry: Any, where: str, layouts: _Layouts) -> dict[str, Any]:
    """The entry with the keys that we know, checked."""
    entry = mapping(entry, where)
    if entry.get("format") != "mds" or entry.get("version") != 2:
        raise Refused(f"{where}: format {shown(entry.get('format'))}, version {shown(entry.get('version'))}; not MDS 2")
    layout = layouts.of(entry, where)
    raw = _file(entry.get("raw_data"), f"{where}: raw_data")
    if not _SHARD_NAME.fullmatch(raw["basename"]):
        raise Refused(f"{where}: {shown(raw['basename'])} is no name of a shard; expected shard.00000.000.mds")
    packed, compression = entry.get("zip_data"), entry.get("compression")
    if (packed is None) != (compression is None):
        raise Refused(f"{where}: compression {shown(compression)}, but zip_data {shown(packed)}")
    if compression is not None:
        if not isinstance(compression, str) or not _COMPRESSION.fullmatch(compression):
            raise Refused(f"{where}: compression {shown(compression)}; expected zstd, zstd:LEVEL or null")
        packed = _file(packed, f"{where}: zip_data")
        if packed["basename"] != raw["basename"] + _PACKED:
            raise Refused(f"{where}: {shown(packed['basename'])} is not {raw['basename']}{_PACKED}")
    least = sum(4 if size is None else size for _, size in layout)  # of an empty sample
    samples = whole_number(entry.get("samples"), f"{where}: samples", 1, max(1, raw["bytes"] // least))
    return {
        **shard_entry(samples, raw, packed, compression),
        **layouts.columns,
    }


class _Layouts:
    """The columns of shards, which are looked at when they differ from the last shard's."""

    def __init__(self, is_newer: bool) -> None:
        self._is_newer = is_newer
        self._given: tuple[Any, ...] = ()
        self._layout: c.Layout = ()
        self.columns: dict[str, list[Any]] = {}

    def of(self, entry: Mapping[str, Any], where: str) -> c.Layout:
        given = tuple(entry.get(f"column_{kind}") for kind in ("names", "encodings", "sizes"))
        if given != self._given:
            self._layout = _layout(entry, where, self._is_newer)
            self._given = given
            names, sizes = map(list, zip(*self._layout, strict=True))
            self.columns = {"column_names": names, "column_sizes": sizes, "column_encodings": list(given[1] or ())}
        return self._layout


def _layout(entry: Mapping[str, Any], where: str, is_newer: bool) -> c.Layout:
    """The columns: ours, and of a newer minor version perhaps some more."""
    names, encodings, sizes = (
        sequence(entry.get(f"column_{kind}"), f"{where}: column_{kind}", _MAX_COLUMNS)
        for kind in ("names", "encodings", "sizes")
    )
    if not len(names) == len(encodings) == len(sizes):
        raise Refused(f"{where}: {len(names)} columns, {len(encodings)} encodings, {len(sizes)} sizes")
    found: dict[str, tuple[str, int | None]] = {}
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        text(encoding, f"{where}: encoding", 100)
        if size is not None:
            whole_number(size, f"{where}: column_sizes", 1, c.MAX_JSON_COLUMN_BYTES)
        found[plain_name(name, f"{where}: column")] = (encoding, size)
    wrong = [name for name, encoding in c.COLUMNS.items() if found.get(name) != (encoding, c.FIXED_SIZE.get(encoding))]
    extra = [] if is_newer else sorted(found.keys() - c.COLUMNS.keys())
    if wrong or extra or len(found) != len(names):
        raise Refused(f"{where}: its columns are not those of the format: {shown(wrong or extra or names)}")
    return tuple((name, size) for name, (_, size) in found.items())


def _file(info: Any, where: str) -> dict[str, Any]:
    """{basename, bytes, hashes} of one file."""
    info = mapping(info, where)
    hashes = mapping(info.get("hashes"), f"{where}: hashes")
    if not hashes:
        raise Refused(f"{where}: no hash; a file cannot be checked without one")
    for algorithm, digest in hashes.items():
        digits = HASH_DIGITS.get(algorithm)
        if digits is None:
            raise Refused(f"{where}: hash {shown(algorithm)} is not known; known are {', '.join(HASH_DIGITS)}")
        if not isinstance(digest, str) or len(digest) != digits or not _HEXADECIMAL.fullmatch(digest):
            raise Refused(f"{where}: {algorithm} {shown(digest)}; expected {digits} hexadecimal digits")
    return {
        "basename": plain_name(info.get("basename"), f"{where}: basename"),
        "bytes": whole_number(info.get("bytes"), f"{where}: bytes", 1, MAX_SHARD_BYTES),
        "hashes": dict(hashes),
    }


# ------------------------------------------------------------------ recordings


def _recordings(table: Mapping[str, Any], num_samples: int) -> Recordings:
    """The table, checked column by column; the stream has `num_samples` stored samples."""
    columns = {name: sequence(table.get(name), name, _MAX_RECORDINGS) for name in FIELDS}
    ids, games = columns["id"], columns["game"]
    if any(len(column) != len(ids) for column in columns.values()):
        raise Refused(f"columns of {sorted({len(column) for column in columns.values()})} recordings")
    for number, name in enumerate(ids):
        plain_name(name, f"recording {number}")
    for number, game in enumerate(games):
        text(game, f"recording {number}: game", _MAX_GAME_CHARACTERS)
    _check_unique(ids, "recordings")
    frames = _numbers(columns["num_frames"], "num_frames", c.MAX_RECORDING_FRAMES)
    if int(frames.sum(dtype=np.int64)) > MAX_STREAM_FRAMES:
        raise Refused(f"{int(frames.sum(dtype=np.int64))} frames in all; a stream has at most {MAX_STREAM_FRAMES}")
    first = _numbers(columns["first_sample"], "first_sample", num_samples)
    segments = _lists(columns["segment_frames"], "segment_frames")
    labels = {name: _numbers(columns[name], name, c.MAX_RECORDING_FRAMES) for name in ("num_user", "num_system")}
    runs = _lists(columns["system_runs"], "system_runs", 2)
    if ids:
        _check_segments(ids, segments, first, frames, num_samples)
        _check_labels(ids, runs, labels["num_user"], labels["num_system"], frames)
    numbers = {"num_frames": frames, **labels}
    return Recordings(
        {"first_sample": first, **{name: values.astype(np.int32) for name, values in numbers.items()}},
        {"id": texts(ids), "game": texts(games), "segment_frames": segments, "system_runs": runs},
    )


def _check_segments(ids: list[str], segments: Lists, first: Numbers, frames: Numbers, num_samples: int) -> None:
    """Segments hold the frames of their recording, in samples that the stream has and no other recording uses."""
    counts, lengths = segments.counts, segments.values
    _refuse(ids, counts == 0, "no segment")
    begins = segments.ends - counts
    _refuse(ids, np.minimum.reduceat(lengths, begins) == 0, "a segment without frames")
    _refuse(ids, np.add.reduceat(lengths, begins, dtype=np.int64) != frames, "its segments do not hold num_frames")
    order = np.argsort(first, kind="stable")
    next_first = np.empty_like(first)
    next_first[order] = [*first[order][1:], num_samples]
    _refuse(ids, first + counts > next_first, "its samples are another's, or lie beyond the last shard")


def _check_labels(ids: list[str], runs: Lists, num_user: Numbers, num_system: Numbers, frames: Numbers) -> None:
    """Runs of system actions ascend inside their recording and add up to num_system."""
    begins, ends = runs.values.T
    owner = np.repeat(np.arange(len(ids)), runs.counts)
    wrong = (begins >= ends) | (ends > frames[owner])
    wrong[1:] |= (owner[1:] == owner[:-1]) & (begins[1:] < ends[:-1])
    _refuse(ids, np.bincount(owner[wrong], minlength=len(ids)) > 0, "system_runs that do not ascend inside it")
    in_runs = np.bincount(owner, weights=ends - begins, minlength=len(ids))
    _refuse(ids, (in_runs != num_system) | (num_user + num_system > frames), "num_user and num_system do not fit")


def _lists(nested: list[Any], where: str, width: int = 0) -> Lists:
    """Lists of numbers of frames, int32, or of runs of `width` such numbers."""
    if not set(map(type, nested)) <= {list}:
        raise Refused(f"{where}: expected a list of lists")
    flat, counts = list(chain.from_iterable(nested)), np.fromiter(map(len, nested), np.int64, len(nested))
    if width:
        if not set(map(type, flat)) <= {list} or not set(map(len, flat)) <= {width}:
            raise Refused(f"{where}: a run is not [begin, end]")
        flat = list(chain.from_iterable(flat))
    numbers = _numbers(flat, where, c.MAX_RECORDING_FRAMES).astype(np.int32)
    return Lists(numbers.reshape(-1, width) if width else numbers, counts)


def _numbers(values: list[Any], where: str, high: int) -> Numbers:
    """Whole numbers in 0 .. high."""
    if not set(map(type, values)) <= {int} or (values and not 0 <= min(values) <= max(values) <= high):
        wrong = next(value for value in values if type(value) is not int or not 0 <= value <= high)
        raise Refused(f"{where} holds {shown(wrong)}; expected whole numbers in 0..{high}")
    return np.array(values, np.int64)


def _refuse(ids: list[str], wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise Refused(f"recording {ids[int(wrong.argmax())]}: {what}")


def _check_unique(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise Refused(f"two {what} with the name {shown(twice)}")
