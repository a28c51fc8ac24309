"""What is fuzzed: for each reader of what comes from outside, good inputs, a mutator that knows the form, and a run.

A run must end, within seconds and bounded memory, with a value or a ValueError; anything else is a finding. Without a
mutator of its own a reader gets libFuzzer's changes of bytes.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "convert")]

Mutator = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """`seeds()` are inputs to begin with, good ones mostly; `run(data)` reads one."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], None]
    mutator: Mutator | None = None


@cache
def scratch() -> Path:
    """A folder in memory for readers that take a path."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="p2p-fuzz-", dir=memory if memory.is_dir() else None)
    scratch.folder = folder  # type: ignore[attr-defined]  # it goes with the process
    return Path(folder.name)


def as_file(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------ mutators

WILD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 255, 256, 2**31, 2**32, 2**63, 10**10, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *("", "..", "../x", "/etc/passwd", "a/b", "x" * 300, "\x1b[2J", "\ud800", "\0", "NaN"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000),
)

WILD_INTEGERS = (-(2**63), -1, 0, 1, 2, 255, 2**31, 2**40, 2**63 - 1)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Changes one to three places of a JSON text: another value, one left out, one doubled, two exchanged."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        value = _change(value, rng)
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _change(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        kind = rng.random()
        if kind < 0.06:
            del value[key]
        elif kind < 0.1 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        elif kind < 0.14:
            value[key] = copy.deepcopy(value[rng.choice(keys)])
        elif kind < 0.16 and isinstance(value, dict):
            value[rng.choice(("x", "", "..", "__metadata__"))] = copy.deepcopy(value[key])
        else:
            value[key] = _change(value[key], rng)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, -value, 2 ** rng.randrange(64)))
    return copy.deepcopy(rng.choice(WILD))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, bytes set to extremes, taken out, put in, doubled, the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(changed))
        kind, length = rng.randrange(6), rng.choice((1, 1, 2, 4, 8, 32))
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = rng.randbytes(length)
        elif kind == 4:
            changed[place:place] = changed[place : place + length]
        elif rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def mutate_segment(data: bytes, rng: random.Random) -> bytes:
    """Changes one or two columns and keeps the sizes right, mostly."""
    from p2p.format.columns import COLUMNS, LAYOUT

    variable = [name for name, size in LAYOUT if size is None]
    if len(data) < 4 * len(variable):
        return mutate_bytes(data, rng)
    sizes = dict(zip(variable, np.frombuffer(data[: 4 * len(variable)], "<u4").tolist(), strict=False))
    columns: dict[str, bytes] = {}
    begin = 4 * len(variable)
    for name, size in LAYOUT:
        end = begin + (sizes.get(name, 0) if size is None else size)
        columns[name] = data[begin:end]
        begin = end
    if begin != len(data) or rng.random() < 0.2:
        return mutate_bytes(data, rng)
    for name in rng.sample(sorted(columns), rng.randint(1, 2)):
        if COLUMNS[name] == "json" and rng.random() < 0.9:
            columns[name] = mutate_json(columns[name], rng)
        elif COLUMNS[name] == "int":
            columns[name] = rng.choice(WILD_INTEGERS).to_bytes(8, "little", signed=True)
        else:
            columns[name] = mutate_bytes(columns[name], rng)
    head = np.array([len(columns[name]) for name in variable], "<u4").tobytes()
    return head + b"".join(columns[name] for name, _ in LAYOUT)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Changes the header and keeps its length right, mostly."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or not 0 < length <= len(data) - 8:
        return mutate_bytes(data, rng)
    header = mutate_json(data[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.9 else rng.choice((0, 7, len(data), 2**31, 2**63))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def mutate_archive(data: bytes, rng: random.Random) -> bytes:
    """Changes the tar inside and makes the headers' and gzip's checksums right again, mostly."""
    try:
        tar = bytearray(gzip.decompress(data))
    except (OSError, EOFError, ValueError, ImportError):
        return mutate_bytes(data, rng)
    except Exception as error:  # zlib.error has no base class of its own
        if type(error).__name__ != "error":
            raise
        return mutate_bytes(data, rng)
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    headers = [k for k in range(0, len(tar) - 511, 512) if tar[k + 257 : k + 262] == b"ustar"] or [0]
    place = rng.choice(headers)
    tar[place : place + 512] = mutate_bytes(bytes(tar[place : place + 512]), rng).ljust(512, b"\0")[:512]
    if rng.random() < 0.9:
        header = tar[place : place + 512]
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        tar[place + 148 : place + 156] = f"{total:06o}\0 ".encode()
    return gzip.compress(bytes(tar), 1)


# ------------------------------------------------------------------ good inputs


@cache
def video() -> bytes:
    from tests.data.making import video_bytes

    return video_bytes(24, gop=8, size=48)


@cache
def raw_annotation(num_frames: int = 24) -> bytes:
    from p2p.actions import Action
    from p2p.proto import video_annotation_pb2 as messages
    from p2p.recording import action_message

    annotation = messages.VideoAnnotation()
    annotation.metadata.id, annotation.metadata.env.env = "one", "game"
    for number in range(num_frames):
        frame = annotation.frame_annotations.add()
        frame.user_action.CopyFrom(
            action_message(Action(("w",) if number % 3 else ("Foo",), ("0",), number - 3, -number))
        )
        if number % 8 == 1:
            text = frame.frame_text_annotation.add(instruction="go", duration=0.35)
            text.frame_text_annotator.version = "p2p"
            tensor = text.text_embedding_dict["p2p"].text_embeddings["gemma"]
            tensor.values.extend([0.5, 1.5])
            tensor.shape.extend([1, 2])
    return annotation.SerializeToString()


@cache
def converted() -> Any:
    from p2p_convert.segments import RawRecording, convert_recording

    return convert_recording(RawRecording("one", "one", {"annotation.proto": raw_annotation(), "192x192.mp4": video()}))


def segment_seeds() -> list[bytes]:
    from p2p.format import encode_segment

    return [b"".join(bytes(piece) for piece in encode_segment(segment)) for segment in converted().segments]


def index_seeds() -> list[bytes]:
    from p2p.format import RecordingEntry, encode_index, shard_entry

    def described(name: str) -> dict[str, Any]:
        return {"basename": name, "bytes": 1000, "hashes": {"xxh3_64": "0123456789abcdef"}}

    plain = shard_entry(3, described("shard.00000.000.mds"), None, None)
    packed = shard_entry(2, described("shard.00001.000.mds"), described("shard.00001.000.mds.zstd"), "zstd")
    rows = [
        RecordingEntry("a", "game", 300, 0, (256, 44), ((0, 10), (20, 30)), 200, 20),
        RecordingEntry("b", "game", 600, 2, (256, 300, 44), (), 600, 0),
    ]
    return [encode_index([plain, packed], rows), encode_index([plain], rows[:1])]


def config_seeds() -> list[bytes]:
    from p2p.config import PolicyConfig, SamplingConfig, save_policy_config

    small = PolicyConfig(
        dim=32, num_layers=2, num_heads=2, decoder_num_heads=2, num_timesteps=4, attention_history=(4, 2)
    )
    other = PolicyConfig(image_encoder="small_cnn", sampling=SamplingConfig(temperature=0.5, top_p=0.9))
    seeds = []
    for config in (small, other):
        path = scratch() / "seed.yaml"
        save_policy_config(config, path)
        seeds.append(path.read_bytes())
    return [*seeds, b"dim: ${oc.env:HOME}\n", b"a: &a [1, 2]\nb: [*a, *a]\n"]


def manifest_seeds() -> list[bytes]:
    from p2p.manifest import FileRecord, Manifest

    files = {"a": FileRecord(3, "0" * 64), "config.yaml": FileRecord(0, "f" * 64)}
    return [Manifest("checkpoint", files, {"step": 10, "finite": True}).encode(), Manifest("checkpoint", {}).encode()]


def safetensors_seeds() -> list[bytes]:
    from safetensors.numpy import save

    return [
        save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int64)}),
        save({"a": np.zeros(0, np.float32)}, {"format": "pt"}),
    ]


def checkpoint_seeds() -> list[bytes]:
    import torch
    import torch.distributed.checkpoint as dcp

    folder = scratch() / "checkpoint"
    weights = {"policy.a": torch.zeros(3, 4), "policy.b": torch.ones(5, dtype=torch.int64)}
    state = {"state": {"model": weights, "rng": torch.zeros(2), "step": 7, "names": ["a", "b"]}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return [(folder / ".metadata").read_bytes()]


def archive_seeds() -> list[bytes]:
    files = {
        "batch/one/annotation.proto": raw_annotation(),
        "batch/one/192x192.mp4": video(),
        f"{'d' * 120}/two/a.mp4": b"x",
    }
    seeds = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", format=form) as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        seeds.append(content.getvalue())
    return seeds


def protocol_seeds() -> list[bytes]:
    from p2p.actions import Action
    from p2p.protocol import encode_action, encode_frame

    frame = encode_frame(np.full((2, 3, 3), 7, np.uint8), 1)
    return [frame, frame * 2, encode_action(Action(("w", "a"), ("0",), -30, 500), 2**31 - 1)]


# ------------------------------------------------------------------ readers


def run_index(data: bytes) -> None:
    from p2p.data.table import ChunkTable
    from p2p.format import decode_index

    shards, recordings = decode_index(data, "index.json")
    ChunkTable(recordings, shards.samples, 200)


def run_segment(data: bytes) -> None:
    from p2p.data.video import SegmentDecoder
    from p2p.format import decode_segment

    segment = decode_segment(data, with_annotation=True)
    for _ in SegmentDecoder().frames(segment, 0, segment.num_frames):
        pass


def run_annotation(data: bytes) -> None:
    from p2p.recording import executed_action, parse_annotation, text_spans
    from p2p_convert.annotations import extract

    annotation = parse_annotation(data, "annotation.proto")
    for frame in annotation.frame_annotations:
        executed_action(frame)
    text_spans(annotation, ["p2p"])
    extract(annotation, 24, Counter())


def run_config(data: bytes) -> None:
    from p2p.config import load_policy_config

    load_policy_config(as_file("config.yaml", data))


def run_manifest(data: bytes) -> None:
    from p2p.manifest import decode_manifest

    decode_manifest(data, "checkpoint", "manifest.json")


def run_safetensors(data: bytes) -> None:
    from p2p.model.tensor_file import read_safetensors

    with open(as_file("model.safetensors", data), "rb") as file:
        for tensor in read_safetensors(file, "model.safetensors", "cpu").values():
            tensor.sum()


def run_checkpoint(data: bytes) -> None:
    from p2p.checkpoints.layout import needed_bytes, parse_layout

    needed_bytes(parse_layout(data, ".metadata"))


def run_archive(data: bytes) -> None:
    from p2p_convert.sources import ArchiveSource, Unusable

    for recording in ArchiveSource(str(as_file("batch.tar.gz", data)), len(data)).recordings():
        if not isinstance(recording, Unusable):
            assert sum(len(content) for content in recording.files.values() if isinstance(content, bytes)) < 2**30


def run_protocol(data: bytes) -> None:
    from p2p.protocol import MessageReader, parse_action, parse_frame

    reader = MessageReader()
    half = len(data) // 2
    for payload in [*reader.feed(data[:half]), *reader.feed(data[half:])]:
        for parse in (parse_frame, parse_action):
            try:
                parse(payload)
            except ValueError:
                continue
    assert reader.num_pending_bytes <= len(data)


def run_video(data: bytes) -> None:
    from p2p_convert.segments import RawRecording, convert_recording

    convert_recording(RawRecording("one", "one", {"annotation.proto": raw_annotation(), "192x192.mp4": data}))


def wad_seeds() -> list[bytes]:
    from tests.levels.tiny_wad import box, tiny_wad

    return [tiny_wad([box(0, 0, 256, 256), box(256, 0, 512, 256, floor=16, tag=7)], (64, 64), things=[(9, 9, 2035)])]


def run_wad(data: bytes) -> None:
    from p2p.levels.wad import read_level

    level = read_level(as_file("map.wad", data), "MAP01")
    assert len(level.front) == len(level.back) == len(level.start)
    assert level.front.max(initial=-1) < len(level.floor)


TARGETS: dict[str, Target] = {
    "index": Target(index_seeds, run_index, mutate_json),
    "segment": Target(segment_seeds, run_segment, mutate_segment),
    "annotation": Target(lambda: [raw_annotation(3), raw_annotation()], run_annotation),
    "config": Target(config_seeds, run_config),
    "manifest": Target(manifest_seeds, run_manifest, mutate_json),
    "safetensors": Target(safetensors_seeds, run_safetensors, mutate_safetensors),
    "checkpoint": Target(checkpoint_seeds, run_checkpoint),
    "archive": Target(archive_seeds, run_archive, mutate_archive),
    "protocol": Target(protocol_seeds, run_protocol),
    "wad": Target(wad_seeds, run_wad),
    "video": Target(lambda: [video()], run_video),
}
