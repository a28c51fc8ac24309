"""What an annotation leaves out of its actions, put back from its input events. Off unless asked for.

Only what is converted changes: the annotation.proto that is stored stays as it was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from google.protobuf.unknown_fields import UnknownFieldSet

from p2p.proto.video_annotation_pb2 import FrameAnnotation, MouseAction, VideoAnnotation
from p2p_convert.errors import Rejected

_BUTTONS = {"Left": "0", "Right": "1", "Middle": "2"}  # as input events call them, and as actions do
_HOT_KEYS = ("LeftBracket", "RightBracket")  # of Recap: they start, stop and hand over, and no game hears them
_ORIGIN_KNOWN = 6  # the first version whose events say whether a program made them
_SYSTEM_BUTTONS = 10  # field of MouseAction in version 5
_MOST_PX = 2**31 - 1

_Input = tuple[str, str, bool]  # kind of event, name, whether a program made it


@dataclass(frozen=True)
class Amendments:
    """join_taps: a key or button pressed and released between two frames counts as held at the second.

    repair_version_5: actions of the system get the buttons and the motion that version 5 keeps elsewhere.
    """

    join_taps: bool = False
    repair_version_5: bool = False

    def apply(self, annotation: VideoAnnotation, counts: Counter[str], where: str) -> None:
        """Amend the annotation in place, and count what was added.

        Raises:
            Rejected: when motion adds up to what no number holds.
        """
        if self.repair_version_5 and annotation.version == 5:
            for index, frame in enumerate(annotation.frame_annotations):
                if frame.system_action.is_known:
                    counts["actions of the system with buttons or motion put back"] += _repair(frame, index, where)
        if self.join_taps:
            down: set[_Input] = set()
            for frame in annotation.frame_annotations:
                taps = _taps(frame, annotation.version >= _ORIGIN_KNOWN, down)
                counts["taps between two frames joined"] += _join(frame, taps)


def _taps(frame: FrameAnnotation, knows_origin: bool, down: set[_Input]) -> list[_Input]:
    """What is pressed and released within the events of a frame, by whom the frame's action is.

    `down` is what was held before, and is brought up to date: a key that is held gives presses again and again.
    """
    pressed: set[_Input] = set()
    taps: dict[_Input, None] = {}
    for event in frame.input_events:
        kind = event.WhichOneof("event")
        if kind not in ("keyboard_event", "mouse_event"):
            continue
        change = getattr(event, kind)
        name = change.key if kind == "keyboard_event" else _BUTTONS.get(change.button, change.button)
        found = (kind, name, knows_origin and event.simulated)
        if not change.pressed:
            down.discard(found)
            if found in pressed:
                taps[found] = None
        elif found not in down:
            down.add(found)
            pressed.add(found)
    is_system = knows_origin and frame.system_action.is_known
    return [tap for tap in taps if tap[2] == is_system]


def _join(frame: FrameAnnotation, taps: list[_Input]) -> int:
    """Add taps to the action that is known; returns how many were not in it."""
    action = frame.system_action if frame.system_action.is_known else frame.user_action
    if not taps or not action.is_known:
        return 0
    held = {"keyboard_event": set(action.keyboard.keys), "mouse_event": set(action.mouse.buttons_down)}
    new = [(kind, name) for kind, name, _ in taps if name not in held[kind] and name not in _HOT_KEYS]
    for kind, name in new:
        (action.keyboard.keys if kind == "keyboard_event" else action.mouse.buttons_down).append(name)
    return len(new)


def _repair(frame: FrameAnnotation, index: int, where: str) -> int:
    """1 when something was put back, else 0."""
    buttons = _system_buttons(frame.user_action.mouse)
    moves = [event.mouse_delta_event for event in frame.input_events if event.HasField("mouse_delta_event")]
    right, down = sum(move.x for move in moves), sum(move.y for move in moves)
    if max(abs(right), abs(down)) > _MOST_PX:
        raise Rejected("implausible motion", f"{where}: the mouse moves by ({right}, {down}) in annotation {index}")
    if not buttons and not right and not down:
        return 0
    mouse = frame.system_action.mouse
    mouse.buttons_down.extend(buttons)
    mouse.mouse_delta_px.x, mouse.mouse_delta_px.y = right, down
    return 1


def _system_buttons(mouse: MouseAction) -> list[str]:
    unknown = UnknownFieldSet(mouse)
    fields = [unknown[number] for number in range(len(unknown))]
    found = [field.data for field in fields if field.field_number == _SYSTEM_BUTTONS and field.wire_type == 2]
    return [name.decode("utf-8", "replace") for name in found]
