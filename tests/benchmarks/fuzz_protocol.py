"""Mutated messages against the parsers and a live server; prints a summary without any of the bytes.

    python tests/benchmarks/fuzz_protocol.py [--messages 1000000] [--connections 2000] [--seed 0]

Exits with 1 when anything but a protocol error came out of a parser, when the server did not serve the next good
client, or when its memory grew.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "serve")]

from p2p.actions import Action, ActionSpace  # noqa: E402 (runs from a bare checkout)
from p2p.proto import video_annotation_pb2  # noqa: E402
from p2p.protocol import (  # noqa: E402
    MAX_MESSAGE_BYTES,
    MessageReader,
    ProtocolError,
    encode_action,
    encode_frame,
    frame_message,
    parse_action,
    parse_frame,
)
from p2p.recording import action_message, executed_action, parse_annotation, text_spans  # noqa: E402
from p2p_serve.players import EchoPlayer  # noqa: E402
from tests.serve.live import Client, connect, serving, wait_until  # noqa: E402

SPACE = ActionSpace()
LENGTHS = (0, 1, 3, 4, 2**16, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1, 2**31 - 1, 2**31, 2**32 - 1)
VARINTS = (b"\x00", b"\x7f", b"\xff\x01", b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\x80" * 9 + b"\x00")
ALLOWED_GROWTH_MIB = 150


# ------------------------------------------------------------------ mutation


def seeds() -> list[bytes]:
    """Good messages of every kind, small, so that a mutation hits the structure more often than the pixels."""
    frames = [
        encode_frame(np.full((h, w, 3), 7, dtype=np.uint8), i) for i, (h, w) in enumerate([(1, 1), (2, 3), (8, 8)])
    ]
    actions = [encode_action(Action(), 0), encode_action(Action(("w", "a"), ("0", "2"), -30, 500), 2**31 - 1)]
    annotation = video_annotation_pb2.VideoAnnotation()
    for keys in ((), ("w",), ("w", "Foo")):
        frame = annotation.frame_annotations.add()
        frame.user_action.CopyFrom(action_message(Action(keys, ("0",), 3, -3)))
        text = frame.frame_text_annotation.add(instruction="go", duration=1.5)
        text.frame_text_annotator.version = "v"
        text.text_embedding_dict["v"].text_embeddings["gemma"].values.extend([0.5, 1.5])
        text.text_embedding_dict["v"].text_embeddings["gemma"].shape.extend([1, 2])
    return [*frames, *actions, frame_message(annotation.SerializeToString())]


def mutate(message: bytes, rng: random.Random) -> bytes:
    """One to four changes of a message with its length prefix; half of the time the prefix is made right again."""
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        MUTATIONS[rng.randrange(len(MUTATIONS))](data, rng)
    if len(data) >= 4 and rng.random() < 0.5:
        data[:4] = struct.pack("<I", len(data) - 4)
    return bytes(data)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randint(0, len(data)) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.randbytes(rng.randint(1, 8))


def _remove(data: bytearray, rng: random.Random) -> None:
    place = rng.randint(0, len(data))
    del data[place : place + rng.randint(1, 8)]


def _double(data: bytearray, rng: random.Random) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = data[place : place + rng.randint(1, 32)]


def _length(data: bytearray, rng: random.Random) -> None:
    data[:4] = struct.pack("<I", rng.choice(LENGTHS))


def _varint(data: bytearray, rng: random.Random) -> None:
    place = rng.randint(0, len(data))
    data[place : place + 1] = rng.choice(VARINTS)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _cut, _insert, _remove, _double, _length, _varint),
)


# ------------------------------------------------------------------ parsers


def fuzz_parsers(num_messages: int, seed: int) -> Counter[str]:
    """What became of each mutated message; any error that is not a ValueError passes through, with its traceback."""
    rng, outcomes, originals = random.Random(seed), Counter[str](), seeds()
    for number in range(num_messages):
        outcomes[_parse(mutate(originals[number % len(originals)], rng), rng)] += 1
    return outcomes


def _parse(message: bytes, rng: random.Random) -> str:
    reader, payloads = MessageReader(), []
    cut = rng.randint(0, len(message))
    try:
        for part in (message[:cut], message[cut:]):
            payloads += reader.feed(part)
    except ProtocolError:
        return "length refused"
    if reader.num_pending_bytes > len(message):
        raise AssertionError("the reader keeps more than it was given")
    outcome = "unfinished"
    for payload in payloads:
        outcome = _parse_payload(payload)
    return outcome


def _parse_payload(payload: bytes) -> str:
    understood = []
    for name, parse in (("frame", _as_frame), ("action", parse_action), ("annotation", _as_annotation)):
        try:
            parse(payload)
        except ValueError:
            continue
        understood.append(name)
    return "understood as " + " or ".join(understood) if understood else "message refused"


def _as_frame(payload: bytes) -> None:
    frame = parse_frame(payload)
    if frame.image.nbytes > len(payload):
        raise AssertionError("a frame is larger than its message")


def _as_annotation(payload: bytes) -> None:
    annotation = parse_annotation(payload, "fuzz")
    for frame in annotation.frame_annotations:
        executed_action(frame)
    text_spans(annotation, ["v", ""])


# ------------------------------------------------------------------ live server


def fuzz_server(num_connections: int, seed: int) -> Counter[str]:
    """Bad clients of every kind against a live server; after each handful a good one must be answered."""
    rng, outcomes, originals = random.Random(seed), Counter[str](), seeds()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        with serving(path, [EchoPlayer()], message_timeout_s=0.05, grace_s=0.2, idle_takeover_s=1.0):
            for number in range(num_connections):
                kind = ATTACKS[number % len(ATTACKS)]
                try:
                    with connect(path) as client:
                        kind(client, rng, originals)
                except OSError:
                    outcomes["cut by the server while sending"] += 1
                outcomes[kind.__name__.strip("_").replace("_", " ")] += 1
                if number % 20 == 19:
                    good_client(path, number)
                    outcomes["good client served"] += 1
            crowd(path)
            outcomes["crowd of 100"] += 1
            good_client(path, 1)
            outcomes["good client served"] += 1
    return outcomes


def good_client(path: Path, frame_id: int) -> None:
    """Asks until it is answered: while another connection is being closed, a client may have to wait its turn."""

    def answered() -> bool:
        with connect(path) as client:
            try:
                client.send(np.zeros((4, 4, 3), dtype=np.uint8), frame_id)
                return client.receive()[1] == frame_id
            except (EOFError, ConnectionError):
                return False

    wait_until(answered, "a good client is served", 30)


def crowd(path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(connect(path))
            try:
                client.send(np.zeros((2, 2, 3), dtype=np.uint8), 1)
            except OSError:
                continue


def _mutated_messages(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    for _ in range(20):
        client.socket.sendall(mutate(rng.choice(originals), rng))


def _random_bytes(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(rng.randbytes(rng.randint(1, 5000)))


def _cut_off(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    message = rng.choice(originals)
    client.socket.sendall(message * 3 + message[: rng.randrange(len(message))])


def _reset(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(originals[0])
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _length_of_4_gib(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(b"\xff\xff\xff\xff" + bytes(100))


def _zero_size(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(bytes(4 * rng.randint(1, 1000)))


def _huge_frame(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(encode_frame(np.zeros((1080, 1920, 3), dtype=np.uint8), 3))


def _half_a_huge_frame(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    client.socket.sendall(struct.pack("<I", MAX_MESSAGE_BYTES) + bytes(4 * 2**20))


def _never_reads(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    for _ in range(300):
        client.socket.sendall(originals[0])


def _says_nothing(client: Client, rng: random.Random, originals: list[bytes]) -> None:
    pass


ATTACKS = (
    *(_mutated_messages, _random_bytes, _cut_off, _reset, _length_of_4_gib),
    *(_zero_size, _huge_frame, _half_a_huge_frame, _never_reads, _says_nothing),
)


# ------------------------------------------------------------------ summary


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(title: str, outcomes: Counter[str], seconds: float) -> Iterator[str]:
    yield f"{title}: {outcomes.total():,} in {seconds:.1f} s"
    for name, count in outcomes.most_common():
        yield f"  {count:>9,}  {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    begin = time.monotonic()
    print(*report("mutated messages", fuzz_parsers(args.messages, args.seed), time.monotonic() - begin), sep="\n")
    fuzz_server(min(args.connections, 100), args.seed)  # buffers reach the size that they keep
    before, begin = memory_mib(), time.monotonic()
    outcomes = fuzz_server(args.connections, args.seed + 1)
    grown = memory_mib() - before
    print(*report("connections to a live server", outcomes, time.monotonic() - begin), sep="\n")
    print(
        f"peak memory grew by {grown:.1f} MiB (allowed {ALLOWED_GROWTH_MIB}); threads left {threading.active_count()}"
    )
    print("no crash, every good client was served" if grown < ALLOWED_GROWTH_MIB else "memory grew")
    return 0 if grown < ALLOWED_GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
