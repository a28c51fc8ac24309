"""OWAMcap, the format of Open World Agents: NAME.mcap with the events of keyboard and mouse, NAME.mkv with the screen.

The messages are JSON and are read as such; of the format's own packages only mcap, the container's, is needed. Events
and frames have the same clock (log_time); which frame of the video a screen message means, its pts_ns says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from p2p import gate
from p2p.actions import Action
from p2p_convert.budget import Budget
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording, Imported, pairs, require
from p2p_convert.foreign.keys import MOST_MOTION_PX, Vocabulary, annotate, motion
from p2p_convert.foreign.video import Clip, times

_MAX_RECORD_BYTES = 64 << 20
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_MESSAGES = 20_000_000
_MOST_NS = 1 << 63
_ABSOLUTE = 1  # of us_flags
_FLAGS = (("0", 0x001, 0x002), ("1", 0x004, 0x008), ("2", 0x010, 0x020))  # button, down, up
_OTHER_FLAGS = (("button x1", 0x040), ("button x2", 0x100), ("wheel", 0x400), ("wheel", 0x800))
_MOUSE_KEYS = frozenset((1, 2, 4, 5, 6))  # virtual keys that are buttons of the mouse

# Windows' virtual keys; those of letters and digits are their characters.
_VIRTUAL_KEYS = {
    **{code: chr(code).lower() for code in (*range(0x30, 0x3A), *range(0x41, 0x5B))},
    **{0x10: "LeftShift", 0xA0: "LeftShift", 0xA1: "RightShift", 0x20: "Space"},
    **{0x25: "LeftArrow", 0x26: "UpArrow", 0x27: "RightArrow", 0x28: "DownArrow"},
    **{0x08: "Backspace", 0x09: "Tab", 0x0D: "Enter", 0x14: "CapsLock", 0x1B: "Escape"},
    **{0x11: "LeftControl", 0xA2: "LeftControl", 0xA3: "RightControl"},
    **{0x12: "LeftAlt", 0xA4: "LeftAlt", 0xA5: "RightAlt"},
    **{0x70 + number: f"F{number + 1}" for number in range(12)},
}


def find(root: Path) -> list[ForeignRecording]:
    """The pairs of .mcap and .mkv (or .mp4) in a folder."""
    found = pairs(root, "owa", (".mcap",), (".mkv", ".mp4"), "")
    if found:
        require("mcap")
    return found


def read(recording: ForeignRecording, budget: Budget) -> Imported:
    """Raises: Rejected or Refused, naming the message."""
    path, video = recording.paths.values()
    clip = Clip(video)
    vocabulary = Vocabulary("owa")
    log = _read_log(path, video.name, vocabulary, budget)
    shown = times(clip, budget)
    if not log.screen or not len(shown):
        raise Rejected("no video", f"{path}: no message of the screen, or no frame in {video.name}")
    return Imported(clip, annotate(_actions(log, _frame_ns(log, shown), vocabulary)), vocabulary.counts)


# ------------------------------------------------------------------ events


@dataclass(frozen=True)
class _Event:
    """What changes at a time: keys and buttons pressed and released, or all that are held; motion in pixels."""

    time_ns: int
    pressed: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    held: tuple[str, ...] | None = None
    dx: int = 0
    dy: int = 0


@dataclass
class _Log:
    """The events of keys, of the mouse as the device reports it (raw) and as the cursor moves, and screen messages."""

    keys: list[_Event] = field(default_factory=list)
    raw: list[_Event] = field(default_factory=list)
    cursor: list[_Event] = field(default_factory=list)
    screen: list[tuple[int, int]] = field(default_factory=list)  # (pts_ns, time_ns)
    position: tuple[int, int] | None = None


def _read_log(path: Path, video: str, vocabulary: Vocabulary, budget: Budget) -> _Log:
    log = _Log()
    with gate.open_regular(path) as file:
        for number, (kind, time_ns, data) in enumerate(_messages(file, path)):
            where = f"{path}, message {number} ({kind})"
            if number >= _MAX_MESSAGES:
                raise Rejected("too long", f"{path}: more than {_MAX_MESSAGES} messages")
            gate.whole_number(time_ns, f"{where}: log_time", 0, _MOST_NS)
            message = gate.mapping(gate.parse_json(data, where, _MAX_MESSAGE_BYTES), where)
            _note(log, kind, time_ns, message, video, vocabulary, where)
            if number % 4096 == 0:
                budget.check(number // 64)
    return log


_KINDS = {
    f"desktop/{name}": name
    for name in ("KeyboardEvent", "KeyboardState", "RawMouseEvent", "MouseEvent", "ScreenCaptured")
}


def _messages(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(kind, time in ns, JSON) of each message of a kind that is read, as they stand in the file."""
    from mcap.exceptions import McapError
    from mcap.records import Channel, Chunk, Message, Schema
    from mcap.stream_reader import StreamReader, breakup_chunk
    from zstandard import ZstdError

    kinds: dict[int, str] = {}  # of a schema
    channels: dict[int, str] = {}
    try:
        for outer in StreamReader(
            file, emit_chunks=True, validate_crcs=True, record_size_limit=_MAX_RECORD_BYTES
        ).records:
            if isinstance(outer, Chunk) and outer.uncompressed_size > _MAX_RECORD_BYTES:
                raise gate.Refused(f"{path}: a chunk of {outer.uncompressed_size} bytes; at most {_MAX_RECORD_BYTES}")
            for record in breakup_chunk(outer, validate_crc=True) if isinstance(outer, Chunk) else [outer]:
                if isinstance(record, Schema) and record.name in _KINDS:
                    kinds[record.id] = _KINDS[record.name]
                elif isinstance(record, Channel) and record.schema_id in kinds:
                    channels[record.id] = kinds[record.schema_id]
                elif isinstance(record, Message) and record.channel_id in channels:
                    yield channels[record.channel_id], record.log_time, record.data
    except gate.Refused:
        raise
    except (McapError, ZstdError, struct.error, ValueError, RuntimeError, EOFError, ArithmeticError) as error:
        raise gate.Refused(f"{path}: no MCAP file, or damaged: {gate.shown(str(error), quote=False)}") from error


def _note(
    log: _Log, kind: str, time_ns: int, message: dict[str, Any], video: str, vocabulary: Vocabulary, where: str
) -> None:
    if kind == "ScreenCaptured":
        log.screen.append((_frame_of(message, video, where), time_ns))
    elif kind == "KeyboardEvent":
        name = _key(message.get("vk"), f"{where}: vk")
        change = gate.text(message.get("event_type"), f"{where}: event_type", 10)
        if change not in ("press", "release"):
            raise gate.Refused(f"{where}: event_type is {gate.shown(change)}; expected press or release")
        is_press = change == "press"
        log.keys.append(_Event(time_ns, (name,) if is_press else (), () if is_press else (name,)))
    elif kind == "KeyboardState":
        codes = gate.sequence(message.get("buttons"), f"{where}: buttons", 256)
        held = tuple(_key(code, f"{where}: buttons") for code in codes if code not in _MOUSE_KEYS)
        log.keys.append(_Event(time_ns, held=held))
    elif kind == "RawMouseEvent":
        log.raw.append(_raw(time_ns, message, vocabulary, where))
    else:
        log.cursor.append(_cursor(log, time_ns, message, vocabulary, where))


def _frame_of(message: dict[str, Any], video: str, where: str) -> int:
    """The time in the video, in ns, of the frame that a screen message means."""
    place = gate.mapping(message.get("media_ref"), f"{where}: media_ref")
    name = gate.text(place.get("uri"), f"{where}: media_ref.uri", 1 << 16)
    if Path(name).name != video:
        raise gate.Refused(f"{where}: its picture lies in {gate.shown(name)}; expected a frame of {video} beside it")
    return gate.whole_number(place.get("pts_ns"), f"{where}: media_ref.pts_ns", 0, _MOST_NS)


def _key(code: object, where: str) -> str:
    number = gate.whole_number(code, where, 0, 0xFFFF)
    return _VIRTUAL_KEYS.get(number, f"with the virtual code {number}")


def _raw(time_ns: int, message: dict[str, Any], vocabulary: Vocabulary, where: str) -> _Event:
    flags = gate.whole_number(message.get("button_flags", 0), f"{where}: button_flags", 0, 0xFFF)
    for what, flag in _OTHER_FLAGS:
        if flags & flag:
            vocabulary.without_place(what)
    pressed = tuple(button for button, down, _ in _FLAGS if flags & down)
    released = tuple(button for button, _, up in _FLAGS if flags & up)
    right, down = (motion(message.get(name), f"{where}: {name}") for name in ("last_x", "last_y"))
    if gate.whole_number(message.get("us_flags", 0), f"{where}: us_flags", 0, 0xFFFF) & _ABSOLUTE:
        vocabulary.without_place("motion of a device with absolute positions")
        right = down = 0
    return _Event(time_ns, pressed, released, dx=right, dy=down)


def _cursor(log: _Log, time_ns: int, message: dict[str, Any], vocabulary: Vocabulary, where: str) -> _Event:
    kind = gate.text(message.get("event_type"), f"{where}: event_type", 10)
    if kind == "scroll":
        vocabulary.without_place("wheel")
        return _Event(time_ns)
    if kind == "click":
        (button,) = vocabulary.buttons([gate.text(message.get("button"), f"{where}: button", 20)]) or ("",)
        held = (button,) if button else ()
        return _Event(
            time_ns, held if message.get("pressed") is True else (), () if message.get("pressed") is True else held
        )
    x, y = (motion(message.get(name), f"{where}: {name}") for name in ("x", "y"))
    before, log.position = log.position or (x, y), (x, y)
    return _Event(time_ns, dx=x - before[0], dy=y - before[1])


# ------------------------------------------------------------------ frames


def _frame_ns(log: _Log, shown: NDArray[np.float64]) -> NDArray[np.int64]:
    """The log's time of each frame of the video, ns, by the screen messages around it."""
    pts, when = np.array(sorted(log.screen), np.float64).T
    # Offsets are small where times since 1970 are not: those keep their nanoseconds only as whole numbers.
    first = min(time_ns for _, time_ns in log.screen)
    offset = np.interp(shown * 1e9, pts, when - first - pts)
    return (shown * 1e9 + offset).astype(np.int64) + first


def _actions(log: _Log, frame_ns: NDArray[np.int64], vocabulary: Vocabulary) -> list[Action]:
    """What was held and moved between each frame and the next; the last one's is nothing."""
    mouse = log.raw or log.cursor  # the device's own motion, where it was recorded: a game may hold the cursor
    keys, buttons = _held(log.keys, frame_ns), _held(mouse, frame_ns)
    motions = np.zeros((len(frame_ns), 2), np.int64)
    if mouse:
        step = np.searchsorted(frame_ns, [event.time_ns for event in mouse], side="left") - 1
        moved = np.clip([(event.dx, event.dy) for event in mouse], -MOST_MOTION_PX, MOST_MOTION_PX)
        inside = (step >= 0) & (step < len(frame_ns) - 1)
        np.add.at(motions, step[inside], moved[inside])
    return [
        Action(vocabulary.keys(sorted(down)), vocabulary.buttons(sorted(clicked)), int(x), int(y))
        for down, clicked, (x, y) in zip(keys, buttons, motions.clip(-MOST_MOTION_PX, MOST_MOTION_PX), strict=True)
    ]


def _held(events: list[_Event], frame_ns: NDArray[np.int64]) -> list[set[str]]:
    """What was held at any time in (frame i, frame i + 1]."""
    ordered = sorted(events, key=lambda event: event.time_ns)
    held: set[str] = set()
    found: list[set[str]] = []
    position = 0
    for end in [*frame_ns.tolist(), None]:
        during = set(held)
        while end is not None and position < len(ordered) and ordered[position].time_ns <= end:
            event = ordered[position]
            held = set(event.held) if event.held is not None else (held | set(event.pressed)) - set(event.released)
            during |= {*event.pressed, *held}
            position += 1
        found.append(during)
    return [*found[1:-1], set()]
