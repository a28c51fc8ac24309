"""Sees what a person does at keyboard and mouse of an X display, while InputDevice sends events to the same display.

The display reports every raw event (XInput 2), sent or real. Those that it has counted are its own; any other one
is a person's, whatever it came from.
"""

import struct
from collections import Counter
from typing import Any

from p2p.actions import Action
from p2p.desktop.display import open_display
from p2p.desktop.input import KEYSYMS, MOUSE_BUTTONS, InputDevice

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
    """Who plays: the agent, until a person presses a key or a mouse button; the person, until RESUME_KEY is pressed.

    With `yield_to_motion`, a person's mouse motion is enough; the wheel, whose notches are buttons to X, never is.
    With `always`, it is the person from the beginning and to the end. Call `update` once a tick. `active` says
    whether the person has the controls.
    """

    def __init__(self, display_name: str, device: InputDevice, yield_to_motion: bool = False) -> None:
        from Xlib import XK
        from Xlib.ext import xinput

        self._connection = open_display(display_name)
        self._device, self.yield_to_motion, self.always = device, yield_to_motion, False
        self._seen: Counter[tuple[str, int]] = Counter()
        self._names = self._key_names(XK)
        self._resume = self._connection.keysym_to_keycode(XK.string_to_keysym(RESUME_KEY))
        self._down: set[str] = set()
        self._buttons: set[str] = set()
        self._took_over = False
        self.num_takeovers = 0
        mask = 0
        for kind in _KINDS:
            mask |= 1 << kind
        root = self._connection.screen().root
        root.xinput_select_events([(xinput.AllMasterDevices, mask)])
        self._connection.sync()

    @property
    def active(self) -> bool:
        """Whether the person has the controls."""
        return self.always or self._took_over

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
            if self._seen[key] < self._device.sent[key]:
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
            self._took_over = self._took_over and kind != "key down"
            return
        if not self.active and self._takes_over(kind, code):
            self._took_over = True
            self.num_takeovers += 1
            self._device.release()
        name = self._names.get(code) if kind.startswith("key") else _BUTTON_NAMES.get(code)
        held = self._down if kind.startswith("key") else self._buttons
        if name is not None and kind.endswith("down"):
            held.add(name)
        elif name is not None and kind.endswith("up"):
            held.discard(name)

    def _takes_over(self, kind: str, code: int) -> bool:
        """Letting go of a key is no wish to play, nor is a mouse that is pushed aside."""
        if kind == "motion":
            return self.yield_to_motion
        return kind == "key down" or (kind == "button down" and code not in _WHEEL)

    def close(self) -> None:
        """Stop watching."""
        self._connection.close()


class SharedControls:
    """The controls that an agent and a person share: answers are executed at once unless the person plays."""

    def __init__(self, device: InputDevice, person: PersonWatch) -> None:
        self._device, self._person = device, person
        self._by_agent, self._by_person = Action(), Action()  # since the last `done`

    def execute(self, answer: Action) -> None:
        """Do what the agent answered; while a person plays, it is thrown away."""
        self._update()
        if not self._person.active:
            self._device.hold(answer)
            self._by_agent = self._by_agent.followed_by(answer)

    def done(self) -> tuple[Action | None, Action | None]:
        """What the (person, agent) did since the last call; only who plays now did anything."""
        self._update()
        by_agent, by_person = self._by_agent, self._by_person
        self._by_agent, self._by_person = by_agent.at_rest(), by_person.at_rest()
        return (by_person, None) if self._person.active else (None, by_agent)

    def release(self) -> None:
        """The agent lets go of everything."""
        self._device.release()
        self._by_agent = Action()

    def _update(self) -> None:
        self._by_person = self._by_person.followed_by(self._person.update())
        if self._person.active:  # the agent's keys were let go of
            self._by_agent = Action()
