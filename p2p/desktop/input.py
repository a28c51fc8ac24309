"""Keys and mouse as real input events, by XTEST."""

from collections import Counter
from typing import Any

from p2p.actions import Action

KEYSYMS = {
    "Space": "space",
    "DownArrow": "Down",
    "UpArrow": "Up",
    "LeftArrow": "Left",
    "RightArrow": "Right",
    "LeftShift": "Shift_L",
    "RightShift": "Shift_R",
}  # the other keys of the action space have X's own names
MOUSE_BUTTONS = {"0": 1, "1": 3, "2": 2}


class InputDevice:
    """Holds keys and buttons down and moves the mouse, by events that programs take for real ones.

    `sent` counts the events by (kind, code), so that whoever watches the display can tell them from a person's.
    """

    def __init__(self, connection: Any) -> None:
        from Xlib import XK, X

        self._connection, self._x = connection, X
        self._keysym = XK.string_to_keysym
        self._down: set[tuple[str, int]] = set()
        self.sent: Counter[tuple[str, int]] = Counter()
        self.unknown: Counter[str] = Counter()

    def hold(self, action: Action) -> None:
        """Exactly these keys and buttons are down from now on; the mouse moves once by (dx, dy)."""
        wanted = {code for key in action.keys if (code := self._key(key)) is not None}
        wanted |= {("button", MOUSE_BUTTONS[name]) for name in action.buttons if name in MOUSE_BUTTONS}
        for device, number in sorted(self._down - wanted):
            self._send(f"{device} up", number)
        for device, number in sorted(wanted - self._down):
            self._send(f"{device} down", number)
        self._down = wanted
        if action.dx or action.dy:
            self._send("motion", 0, action.dx, action.dy)
        self._connection.flush()

    def release(self) -> None:
        """Nothing is held any more."""
        self.hold(Action())
        self._connection.sync()

    def _key(self, name: str) -> tuple[str, int] | None:
        code = self._connection.keysym_to_keycode(self._keysym(KEYSYMS.get(name, name)))
        if not code:
            self.unknown[name] += 1
            return None
        return "key", code

    def _send(self, kind: str, code: int, dx: int = 0, dy: int = 0) -> None:
        from Xlib.ext import xtest

        types = {
            "key down": self._x.KeyPress,
            "key up": self._x.KeyRelease,
            "button down": self._x.ButtonPress,
            "button up": self._x.ButtonRelease,
            "motion": self._x.MotionNotify,
        }
        self.sent[kind, code] += 1
        detail = 1 if kind == "motion" else code  # for motion: relative
        xtest.fake_input(self._connection, types[kind], detail, x=dx, y=dy)
