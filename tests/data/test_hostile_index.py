"""An index that a stranger wrote names files and sizes: nothing is believed, read, written or deleted unchecked."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.format import MAX_RECORDING_FRAMES, decode_index
from tests.data.conftest import open_dataset, read_all

STORED = Path(__file__).parent / "stream_1_0"
Index = dict[str, Any]


def stored() -> Index:
    index: Index = json.loads((STORED / "index.json").read_text())
    return index


def set_in(*path: Any) -> Callable[[Index], None]:
    """Sets what lies at path[:-1] to path[-1]."""

    def change(index: Index) -> None:
        place: Any = index
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


SHARD, TABLE = ("shards", 0), ("p2p", "recordings")
WRONG = {
    "climbing raw name": set_in(*SHARD, "raw_data", "basename", "../../.bashrc"),
    "absolute raw name": set_in(*SHARD, "raw_data", "basename", "/etc/passwd"),
    "hidden raw name": set_in(*SHARD, "raw_data", "basename", ".bashrc"),
    "raw name of another file": set_in(*SHARD, "raw_data", "basename", "index.json"),
    "raw name of a number": set_in(*SHARD, "raw_data", "basename", 7),
    "name beside the packed one": set_in(
        *SHARD, {**stored()["shards"][0], "compression": "zstd", "zip_data": stored()["shards"][0]["raw_data"]}
    ),
    "packed file without compression": set_in(*SHARD, "zip_data", stored()["shards"][0]["raw_data"]),
    "compression without packed file": set_in(*SHARD, "compression", "zstd:3"),
    "compression of another kind": set_in(*SHARD, "compression", "gz"),
    "no hash": set_in(*SHARD, "raw_data", "hashes", {}),
    "unknown hash": set_in(*SHARD, "raw_data", "hashes", {"crc32": "00000000"}),
    "hash of wrong length": set_in(*SHARD, "raw_data", "hashes", {"sha256": "00"}),
    "hash that is no number": set_in(*SHARD, "raw_data", "hashes", {"xxh3_64": "../../../../etcx"}),
    "negative bytes": set_in(*SHARD, "raw_data", "bytes", -1),
    "bytes beyond MDS": set_in(*SHARD, "raw_data", "bytes", 1 << 40),
    "bytes of a fraction": set_in(*SHARD, "raw_data", "bytes", 17458.5),
    "samples that no file of its size holds": set_in(*SHARD, "samples", 17458),
    "no samples": set_in(*SHARD, "samples", 0),
    "another container": set_in(*SHARD, "format", "json"),
    "pickled columns": set_in(*SHARD, "column_encodings", ["pkl"] * 19),
    "columns of another size": set_in(*SHARD, "column_sizes", [1 << 60] * 19),
    "missing columns": set_in(*SHARD, "column_names", ["packets"]),
    "shards that are no list": set_in("shards", {"0": 1}),
    "shard that is no object": set_in("shards", [3]),
    "two shards of one name": set_in("shards", stored()["shards"] * 2),
    "climbing id": set_in(*TABLE, "id", ["../one", "two"]),
    "id that steers a terminal": set_in(*TABLE, "id", ["\x1b]0;", "two"]),
    "two recordings of one id": set_in(*TABLE, "id", ["one", "one"]),
    "columns of different lengths": set_in(*TABLE, "id", ["one"]),
    "missing column": set_in(*TABLE, "id", None),
    "endless game": set_in(*TABLE, "game", ["x" * 100_000, "quake"]),
    "endless recording": set_in(*TABLE, "num_frames", [10**10, 12]),
    "negative frames": set_in(*TABLE, "num_frames", [-25, 12]),
    "frames as text": set_in(*TABLE, "num_frames", ["25", 12]),
    "frames as truth": set_in(*TABLE, "num_frames", [True, 12]),
    "frames that no segment holds": set_in(*TABLE, "num_frames", [26, 12]),
    "huge number": set_in(*TABLE, "first_sample", [0, 10**400]),
    "sample beyond the shards": set_in(*TABLE, "first_sample", [0, 2]),
    "sample of another": set_in(*TABLE, "first_sample", [1, 1]),
    "segments as a number": set_in(*TABLE, "segment_frames", [25, [12]]),
    "no segment": set_in(
        *TABLE, {**stored()["p2p"]["recordings"], "num_frames": [0, 12], "segment_frames": [[], [12]]}
    ),
    "empty segment": set_in(*TABLE, "segment_frames", [[25], [12, 0]]),
    "negative segment": set_in(*TABLE, "segment_frames", [[25], [13, -1]]),
    "run beyond the end": set_in(*TABLE, "system_runs", [[[22, 26]], []]),
    "run backwards": set_in(*TABLE, "system_runs", [[[8, 4]], []]),
    "runs that overlap": set_in(*TABLE, "system_runs", [[[4, 7], [6, 7]], []]),
    "run of three": set_in(*TABLE, "system_runs", [[[4, 8, 9]], []]),
    "runs that are no list": set_in(*TABLE, "system_runs", [{"4": 8}, []]),
    "more labels than frames": set_in(*TABLE, "num_user", [22, 11]),
    "labels that no run holds": set_in(*TABLE, "num_system", [3, 0]),
    "another action space": set_in("p2p", "action_space_version", 2),
    "another frame rate": set_in("p2p", "frame_rate_hz", 60),
    "version of three parts": set_in("p2p", "version", [1, 0, 0]),
    "version of text": set_in("p2p", "version", "10"),
    "table that is a list": set_in("p2p", "recordings", []),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_index_that_cannot_be_is_refused_and_named(kind: str) -> None:
    index = stored()
    WRONG[kind](index)
    with pytest.raises(ValueError, match=r"^some/index\.json: ") as caught:
        decode_index(json.dumps(index).encode(), "some/index.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_what_is_wrong_in_these_tests_is_the_change_alone() -> None:
    shards, recordings = decode_index(json.dumps(stored()).encode(), "index.json")
    assert [shard["raw_data"]["basename"] for shard in shards] == ["shard.00000.000.mds"]
    assert [recording.id for recording in recordings] == ["one", "two"]


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"p2p": NaN}', b"\xff\xfe", b"null", b"[]", b'{"p2p": []}'])
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^some/index\.json: not a"):
        decode_index(content, "some/index.json")


def endless(num_recordings: int, num_frames: int) -> bytes:
    """An index that promises as many recordings of so many frames, in shards of plausible sizes."""
    index = stored()
    index["shards"][0].update(samples=num_recordings)
    index["shards"][0]["raw_data"]["bytes"] = 4_000_000_000
    index["p2p"]["recordings"] = {
        "id": [f"r{i}" for i in range(num_recordings)],
        "game": [""] * num_recordings,
        "num_frames": [num_frames] * num_recordings,
        "first_sample": list(range(num_recordings)),
        "segment_frames": [[num_frames]] * num_recordings,
        "system_runs": [[]] * num_recordings,
        "num_user": [num_frames] * num_recordings,
        "num_system": [0] * num_recordings,
    }
    return json.dumps(index).encode()


def test_a_promise_of_endless_frames_takes_no_memory(tmp_path: Path) -> None:
    too_many, many = endless(3000, MAX_RECORDING_FRAMES), endless(2000, MAX_RECORDING_FRAMES)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="frames in all"):
            decode_index(too_many, "index.json")
        (tmp_path / "index.json").write_bytes(many)
        assert open_dataset(tmp_path, num_timesteps=10).num_samples == 2000 * MAX_RECORDING_FRAMES // 10
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_newer_minor_version_may_have_more_columns(tmp_path: Path) -> None:
    """The promise of the format: an older reader passes over what it does not know."""
    from p2p.format import content_damage, shard_head, split_samples

    index = stored()
    shard = index["shards"][0]
    content = (STORED / "shard.00000.000.mds").read_bytes()
    samples = []
    for sample in split_samples(memoryview(content), 2, ""):
        sizes, columns = bytes(sample[:64]), bytes(sample[64:])  # 16 columns of variable length
        samples.append(sizes + (5).to_bytes(4, "little") + columns + b"later")
    made = shard_head([len(sample) for sample in samples]) + b"".join(samples)
    shard["column_names"].append("wishes")
    shard["column_encodings"].append("str")
    shard["column_sizes"].append(None)
    from xxhash import xxh3_64_hexdigest

    shard["raw_data"] = {
        "basename": "shard.00000.000.mds",
        "bytes": len(made),
        "hashes": {"xxh3_64": xxh3_64_hexdigest(made)},
    }
    shard["wishes"] = index["p2p"]["wishes"] = "also later"
    with pytest.raises(ValueError, match="columns are not those of the format"):
        decode_index(json.dumps(index).encode(), "index.json")
    index["p2p"]["version"] = [1, 1]
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "shard.00000.000.mds").write_bytes(made)
    assert content_damage(made, shard["raw_data"]) == ""
    new, old = (read_all(open_dataset(folder, size=(32, 32), num_timesteps=10)) for folder in (tmp_path, STORED))
    assert len(new) == len(old) == 5
    assert all(
        (a["frames"] == b["frames"]).all() and (a["text"] == b["text"]).all() for a, b in zip(new, old, strict=True)
    )
