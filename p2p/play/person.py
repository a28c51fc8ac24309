"""Sees what a person does at the keyboard and mouse of an X display, while `Hands` sends events to the same display.

The display reports every raw event (XInput 2), sent or real. Those that `Hands` has counted are its own; any other one
is a person's, whatever it came from.
"""

import struct
from collections import Counter
from typing import Any

from p2p.actions import Action
from p2p.play.realtime import at_rest, followed_by
from p2p.play.x11 import KEYSYMS, MOUSE_BUTTONS, Hands, open_display

RESUME_KEY = "F9"
_WHEEL = range(4, 8)  # the buttons that X makes of it: up, down, left, right
_HEADER = struct.Struct("<HIIHHI4x")  # device, time, detail, source, 32-bit words of the valuator mask, flags
_KINDS = {13: "key down", 14: "key up", 15: "button down", 16: "button up", 17: "motion"}
_VALUE = struct.Struct("<iI")  # whole part, fraction
_BUTTON_NAMES = {code: name for name, code in MOUSE_BUTTONS.items()}


def raw_motion(data: bytes) -> tuple[float, float]:
    """(dx, dy) of the data of a raw motion event; what it does not name is 0."""
    num_words = _HEADER.unpack_from(data)[4]
    start = _HEADER.size
    mask = int.from_bytes(data[start : start + 4 * num_words], "little")
    offset, moved = start + 4 * num_words, [0.0, 0.0]
    for axis in range(32 * num_words):
        if mask >> axis & 1:
            whole, fraction = _VALUE.unpack_from(data, offset)
            offset += _VALUE.size
            if axis < 2:
                moved[axis] = whole + fraction / 2**32
    return moved[0], moved[1]


class PersonWatch:
    """Who plays: the model, until a person presses a key or a mouse button; the person, until RESUME_KEY is pressed.

    With `yield_to_motion`, a person's mouse motion is enough; the wheel, whose notches are buttons to X, never is.
    Call `update` once a tick. `active` says whether the person has the controls.
    """

    def __init__(self, display_name: str, hands: Hands, yield_to_motion: bool = False) -> None:
        from Xlib import XK
        from Xlib.ext import xinput

        self._connection = open_display(display_name)
        self._hands, self._yield_to_motion = hands, yield_to_motion
        self._seen: Counter[tuple[str, int]] = Counter()
        self._names = self._key_names(XK)
        self._resume = self._connection.keysym_to_keycode(XK.string_to_keysym(RESUME_KEY))
        self._down: set[str] = set()
        self._buttons: set[str] = set()
        self.active = False
        self.num_takeovers = 0
        mask = 0
        for kind in _KINDS:
            mask |= 1 << kind
        root = self._connection.screen().root
        root.xinput_select_events([(xinput.AllMasterDevices, mask)])
        self._connection.sync()

    def _key_names(self, keysyms: Any) -> dict[int, str]:
        """The action space's name of each key code, for the keys that it has."""
        from p2p.actions import KEY_NAMES

        names = {}
        for name in KEY_NAMES[1:]:
            code = self._connection.keysym_to_keycode(keysyms.string_to_keysym(KEYSYMS.get(name, name)))
            if code:
                names[code] = name
        return names

    def update(self) -> Action:
        """Take in what happened since the last call; returns what the person holds, and moved meanwhile."""
        dx = dy = 0.0
        while self._connection.pending_events():
            event = self._connection.next_event()
            kind = _KINDS.get(getattr(event, "evtype", 0))
            if kind is None:
                continue
            code = _HEADER.unpack_from(event.data)[2]
            key = (kind, 0 if kind == "motion" else code)
            if self._seen[key] < self._hands.sent[key]:
                self._seen[key] += 1
                continue
            if kind == "motion":
                moved = raw_motion(event.data)
                dx, dy = dx + moved[0], dy + moved[1]
            self._note(kind, code)
        return Action(tuple(sorted(self._down)), tuple(sorted(self._buttons)), round(dx), round(dy))

    def _note(self, kind: str, code: int) -> None:
        """One event of a person."""
        if kind in ("key down", "key up") and code == self._resume:
            self.active = self.active and kind != "key down"
            return
        if not self.active and self._takes_over(kind, code):
            self.active = True
            self.num_takeovers += 1
            self._hands.release()
        name = self._names.get(code) if kind.startswith("key") else _BUTTON_NAMES.get(code)
        held = self._down if kind.startswith("key") else self._buttons
        if name is not None and kind.endswith("down"):
            held.add(name)
        elif name is not None and kind.endswith("up"):
            held.discard(name)

    def _takes_over(self, kind: str, code: int) -> bool:
        """Letting go of a key is no wish to play, nor is a mouse that is pushed aside."""
        if kind == "motion":
            return self._yield_to_motion
        return kind == "key down" or (kind == "button down" and code not in _WHEEL)

    def close(self) -> None:
        """Stop watching."""
        self._connection.close()


class Controls:
    """The controls that model and person share: the model's answers are executed at once unless a person plays."""

    def __init__(self, hands: Hands, person: PersonWatch) -> None:
        self._hands, self._person = hands, person
        self._by_model, self._by_person = Action(), Action()  # since the last `done`

    def execute(self, answer: Action) -> None:
        """Do what the model answered; while a person plays, it is thrown away."""
        self._look()
        if not self._person.active:
            self._hands.hold(answer)
            self._by_model = followed_by(self._by_model, answer)

    def done(self) -> tuple[Action | None, Action | None]:
        """What the (person, model) did since the last call; only who plays now did anything."""
        self._look()
        by_model, by_person = self._by_model, self._by_person
        self._by_model, self._by_person = at_rest(by_model), at_rest(by_person)
        return (by_person, None) if self._person.active else (None, by_model)

    def release(self) -> None:
        """The model lets go of everything."""
        self._hands.release()
        self._by_model = Action()

    def _look(self) -> None:
        self._by_person = followed_by(self._by_person, self._person.update())
        if self._person.active:  # it let go of the model's keys
            self._by_model = Action()
