"""Other programs' names of keys and buttons, in the names of our vocabulary; what has no place there is counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from p2p import gate
from p2p.actions import BUTTON_NAMES, IGNORED_KEYS, KEY_NAMES, Action
from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p.recording.annotation import frame_message

KEYS = frozenset(KEY_NAMES[1:])
BUTTONS = frozenset(BUTTON_NAMES[1:])
_MOST_NAMES = 100  # of a recording, in the counts
_LONGEST_NAME = 40
MOST_MOTION_PX = 1_000_000
_PREFIX = re.compile(r"^(key\.keyboard\.|keyboard[._]|key[._]|vk[._])")
_DOM_CODE = re.compile(r"^(key([a-z])|digit([0-9]))$")

# Spellings without case, dots, dashes and blanks: of Minecraft (LWJGL), pynput, pygame, browsers and Windows.
_SPELLINGS = {
    **{name.lower(): name for name in (*KEY_NAMES[1:], *IGNORED_KEYS)},
    **{
        f"{side}{key}": f"{side.capitalize()}Arrow" for side in ("left", "right", "up", "down") for key in ("", "arrow")
    },
    **{f"arrow{side}": f"{side.capitalize()}Arrow" for side in ("left", "right", "up", "down")},
    **dict.fromkeys(("shift", "lshift", "shiftl", "shiftleft"), "LeftShift"),
    **dict.fromkeys(("rshift", "shiftr", "shiftright"), "RightShift"),
    **dict.fromkeys(("ctrl", "control", "lctrl", "ctrll", "controlleft", "lcontrol"), "LeftControl"),
    **dict.fromkeys(("rctrl", "ctrlr", "controlright", "rcontrol"), "RightControl"),
    **dict.fromkeys(("alt", "lalt", "altl", "altleft"), "LeftAlt"),
    **dict.fromkeys(("spacebar", ""), "Space"),
    **dict.fromkeys(("esc",), "Escape"),
    **dict.fromkeys(("return",), "Enter"),
}
_BUTTON_SPELLINGS = {
    **{name: name for name in BUTTON_NAMES[1:]},
    **dict.fromkeys(("left", "lmb", "mouseleft", "leftbutton", "buttonleft", "mousebuttonleft"), "0"),
    **dict.fromkeys(("right", "rmb", "mouseright", "rightbutton", "buttonright", "mousebuttonright"), "1"),
    **dict.fromkeys(("middle", "mmb", "mousemiddle", "middlebutton", "buttonmiddle", "mousebuttonmiddle"), "2"),
}


def key_name(spelling: str) -> str:
    """Our name of a key ("key.keyboard.left.shift" -> "LeftShift"); the same text where we have none."""
    if spelling == " ":
        return "Space"
    bare = _PREFIX.sub("", spelling.lower())
    code = _DOM_CODE.match(bare)
    if code:
        return code[2] or code[3]
    return _SPELLINGS.get(re.sub(r"[._\- ]", "", bare) or spelling, spelling)


def button_name(spelling: str) -> str:
    """Our name of a mouse button ("left" -> "0"); the same text where we have none."""
    return _BUTTON_SPELLINGS.get(re.sub(r"[._\- ]", "", spelling.lower()), spelling)


class Vocabulary:
    """Names of a recording brought into ours; those without a place are left out and counted, once per frame."""

    def __init__(self, importer: str) -> None:
        self.counts: Counter[str] = Counter()
        self._importer = importer

    def keys(self, spellings: Iterable[str]) -> tuple[str, ...]:
        return self._known("key", (key_name(each) for each in spellings), KEYS)

    def buttons(self, spellings: Iterable[str]) -> tuple[str, ...]:
        return self._known("button", (button_name(each) for each in spellings), BUTTONS)

    def without_place(self, what: str, num_frames: int = 1) -> None:
        """Count something that frames hold and our actions do not."""
        if not num_frames:
            return
        shown = gate.shown(what, quote=False)
        name = f"{self._importer}: without a place in the action space: {shown[:_LONGEST_NAME]}"
        if name not in self.counts and len(self.counts) >= _MOST_NAMES:
            name = f"{self._importer}: without a place in the action space: more names than are counted"
        self.counts[name] += num_frames

    def _known(self, kind: str, names: Iterable[str], place: frozenset[str]) -> tuple[str, ...]:
        found = []
        for name in dict.fromkeys(names):
            if name in place:
                found.append(name)
            else:
                self.without_place(f"{kind} {name}")
        return tuple(found)


def annotate(actions: Sequence[Action | None], times_ns: Sequence[int] | None = None) -> VideoAnnotation:
    """The annotation of a recording: `actions[i]`, of the person, followed frame i; None is not known.

    `times_ns`: when each frame was taken, where the video's own times do not tell.
    """
    annotation = VideoAnnotation()
    for frame, action in enumerate([None, *actions[:-1]]):
        message = frame_message(action, None)
        if times_ns is not None:
            message.frame_time = times_ns[frame]
        annotation.frame_annotations.append(message)
    return annotation


def motion(value: object, where: str) -> int:
    """A mouse motion in whole pixels, of any finite number that a mouse can give.

    Raises:
        Refused: for anything else.
    """
    return round(gate.number(value, where, -MOST_MOTION_PX, MOST_MOTION_PX))
