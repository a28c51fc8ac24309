"""The action space: tables, ids <-> names of keys and buttons and pixels of mouse motion (numpy only).

One action per frame is a row of ids: first the key slots, then the mouse-button slots, then the bin of the
horizontal and of the vertical mouse motion, in the autoregressive order of the action decoder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ACTION_SPACE_VERSION = 1
FRAME_RATE_HZ = 20  # frames, and actions, a second
HEADS = ("keys", "buttons", "mouse_x", "mouse_y")

KEY_NAMES = (
    *("_no_key", "Space", "1", "2", "3", "4", "a", "d", "e", "f", "q", "w", "s", "z"),
    *("DownArrow", "UpArrow", "LeftArrow", "RightArrow", "LeftShift", "RightShift"),
)
BUTTON_NAMES = ("_no_button", "0", "1", "2")  # "0" is the left, "1" the right, "2" the middle button

_IGNORED = """F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 F11 F12 F20 PrintScreen Pause Equal Semicolon LeftBracket
RightBracket LeftWin End Subtract Menu Period Comma LeftAlt RightAlt LeftControl RightControl Delete Add Decimal
Minus PageDown PageUp Home CapsLock Backslash Multiply GraveAccent RightWin ScrollLock NumLock Apostrophe Insert
Divide Escape Tab Enter BackQuote Slash Backspace VolumeMute VolumeDown VolumeUp
0 5 6 7 8 9 b c g h i j k l m n o p r t u v x y"""
IGNORED_KEYS = frozenset(_IGNORED.split())  # they occur in recordings; dropped without a report

MOUSE_X_EDGES = np.array(
    [
        *(-500.1, -144.1, -76.1, -46.1, -29.1, -18.1, -11.1, -6.1, -3.1, -1.1, -0.1),
        *(0, 1, 3, 6, 11, 18, 29, 46, 76, 144, 500),
    ],
    dtype=np.float64,
)
MOUSE_Y_EDGES = np.array(
    [-150.1, -24.1, -12.1, -7.1, -4.1, -3.1, -1.1, -0.1, 0, 1, 3, 4, 7, 12, 24, 150], dtype=np.float64
)
MOUSE_X_MEAN = (
    *(-501, -322, -110, -61, -38, -24, -15, -9, -5, -2, -1, 0),
    *(1, 2, 5, 9, 15, 24, 38, 61, 110, 322, 501),
)
MOUSE_Y_MEAN = (-151, -87, -18, -10, -6, -4, -2, -1, 0, 1, 2, 4, 6, 10, 18, 87, 151)
MOUSE_X_CONSERVATIVE = (
    *(-501, -145, -77, -47, -30, -19, -12, -7, -4, -2, -1, 0),
    *(1, 2, 4, 7, 12, 19, 30, 47, 77, 145, 501),
)
MOUSE_Y_CONSERVATIVE = (-151, -25, -13, -8, -5, -4, -2, -1, 0, 1, 2, 4, 5, 8, 13, 25, 151)
MOUSE_X_STD_PX, MOUSE_Y_STD_PX = 96.0, 22.0

NUM_KEYS = len(KEY_NAMES)
NUM_BUTTONS = len(BUTTON_NAMES)
NUM_MOUSE_X = len(MOUSE_X_EDGES) + 1
NUM_MOUSE_Y = len(MOUSE_Y_EDGES) + 1
NUM_CHOICES = dict(zip(HEADS, (NUM_KEYS, NUM_BUTTONS, NUM_MOUSE_X, NUM_MOUSE_Y), strict=True))  # V of each head
NO_MOUSE_X = int(np.searchsorted(MOUSE_X_EDGES, 0))
NO_MOUSE_Y = int(np.searchsorted(MOUSE_Y_EDGES, 0))

_KEY_IDS = {name: index for index, name in enumerate(KEY_NAMES)}
_BUTTON_IDS = {name: index for index, name in enumerate(BUTTON_NAMES)}

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Action:
    """What is held and moved during one frame, as names and pixels (dx to the right, dy down)."""

    keys: tuple[str, ...] = ()
    buttons: tuple[str, ...] = ()
    dx: int = 0
    dy: int = 0

    def at_rest(self) -> Action:
        """The same keys and buttons without motion, which belongs to one step."""
        return Action(self.keys, self.buttons)

    def followed_by(self, later: Action) -> Action:
        """Both in one step: the keys and buttons of the later one stay down, motion of the mouse adds up."""
        return Action(later.keys, later.buttons, self.dx + later.dx, self.dy + later.dy)

    def to_sample(self) -> dict[str, NDArray[Any]]:
        """As in the environments' action space: `keys` int8 [19] in the order of KEY_NAMES[1:], each 1 while it is
        down; `buttons` int8 [3], likewise; `mouse` int32 [2], dx and dy. Names that are not of these are left out.
        """
        return {
            "keys": np.array([name in self.keys for name in KEY_NAMES[1:]], dtype=np.int8),
            "buttons": np.array([name in self.buttons for name in BUTTON_NAMES[1:]], dtype=np.int8),
            "mouse": np.array([self.dx, self.dy], dtype=np.int32),
        }

    @staticmethod
    def from_sample(sample: Mapping[str, ArrayLike]) -> Action:
        """The action of a sample of the environments' action space (`to_sample`); motion is rounded to whole pixels.

        Raises:
            ValueError: when a part is missing, has another shape, or holds something else than 0 and 1, or pixels.
        """
        keys, buttons = _held(sample, "keys", KEY_NAMES[1:]), _held(sample, "buttons", BUTTON_NAMES[1:])
        dx, dy = _part(sample, "mouse", 2)
        return Action(keys, buttons, round(dx), round(dy))


def _held(sample: Mapping[str, ArrayLike], part: str, names: tuple[str, ...]) -> tuple[str, ...]:
    values = _part(sample, part, len(names))
    if any(value not in (0, 1) for value in values):
        raise ValueError(f"{part} of an action is {values}: expected 0 or 1 for each of {', '.join(names)}")
    return tuple(sorted(name for name, value in zip(names, values, strict=True) if value))


def _part(sample: Mapping[str, ArrayLike], part: str, size: int) -> list[float]:
    if not isinstance(sample, Mapping) or part not in sample:
        raise ValueError(f"an action without {part!r}: expected an Action, or keys [19], buttons [3] and mouse [2]")
    try:
        values = np.asarray(sample[part], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{part} of an action: expected {size} numbers ({error})") from error
    if values.shape != (size,) or not (np.abs(values) < 2**31).all():
        raise ValueError(f"{part} of an action has shape {list(values.shape)} or no finite numbers: expected [{size}]")
    return [float(value) for value in values]


def encode_keys(names: Iterable[str], max_keys: int = 4, unknown: Counter[str] | None = None) -> list[int]:
    """Ids of the keys held: distinct, ascending, the lowest `max_keys` of them, padded with 0.

    A name that is neither a key of the action space nor in IGNORED_KEYS is counted in `unknown` as "key NAME".
    """
    ids: set[int] = set()
    for name in names:
        index = _KEY_IDS.get(name)
        if index is not None:
            ids.add(index)
        elif unknown is not None and name not in IGNORED_KEYS:
            unknown[f"key {name}"] += 1
    return _slots(ids, max_keys)


def encode_buttons(names: Iterable[str], max_buttons: int = 2, unknown: Counter[str] | None = None) -> list[int]:
    """Ids of the mouse buttons held, as `encode_keys`; a foreign name is counted as "button NAME"."""
    ids: set[int] = set()
    for name in names:
        index = _BUTTON_IDS.get(name)
        if index is not None:
            ids.add(index)
        elif unknown is not None:
            unknown[f"button {name}"] += 1
    return _slots(ids, max_buttons)


def _slots(ids: set[int], num_slots: int) -> list[int]:
    kept = sorted(ids)[:num_slots]
    return kept + [0] * (num_slots - len(kept))


def mouse_x_bins(dx: ArrayLike) -> Ids:
    """Bins of horizontal motions in pixels, of any shape: the number of edges strictly less than each."""
    return np.searchsorted(MOUSE_X_EDGES, np.asarray(dx, dtype=np.float64), side="left").astype(np.int64)


def mouse_y_bins(dy: ArrayLike) -> Ids:
    """Bins of vertical motions in pixels, of any shape: the number of edges strictly less than each."""
    return np.searchsorted(MOUSE_Y_EDGES, np.asarray(dy, dtype=np.float64), side="left").astype(np.int64)


def mouse_bin_range(edges: NDArray[np.float64], index: int) -> tuple[int, int]:
    """The lowest and highest whole pixel motion [a, b] that the bin `index` stands for.

    The outermost bins are open; one pixel beyond their edge stands for each of them.
    """
    if index <= 0:
        return (round(edges[0] - 1),) * 2
    if index >= len(edges):
        return (round(edges[-1] + 1),) * 2
    low, high = float(edges[index - 1]), float(edges[index])
    if high == 0:
        return 0, 0
    first, last = (low + 0.1, high + 0.1 - 1) if high < 0 else (low + 1, high)
    return round(first), max(round(first), round(last))


def sample_truncated_normal(low: int, high: int, std: float, rng: np.random.Generator) -> int:
    """A whole number in [low, high] drawn from a normal with mean 0, truncated to that range and rounded."""
    if low >= high:
        return low
    if low > 0:  # the lower tail keeps its precision far from 0, the upper one does not
        return -sample_truncated_normal(-high, -low, std, rng)
    normal = NormalDist(0.0, std)
    below, above = normal.cdf(low), normal.cdf(high)
    quantile = min(max(below + (above - below) * rng.random(), math.ulp(0.0)), 1 - 2**-53)
    return round(min(max(normal.inv_cdf(quantile), low), high))


@dataclass(frozen=True)
class ActionSpace:
    """The layout of one action's A ids: key slots, button slots, horizontal and vertical motion.

    Raises:
        ValueError: when `max_keys` is not in 1..6 or `max_mouse_buttons` not in 1..3.
    """

    max_keys: int = 4
    max_mouse_buttons: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.max_keys <= 6:
            raise ValueError(f"max_keys is {self.max_keys}; write a number from 1 to 6")
        if not 1 <= self.max_mouse_buttons <= 3:
            raise ValueError(f"max_mouse_buttons is {self.max_mouse_buttons}; write a number from 1 to 3")

    @property
    def num_slots(self) -> int:
        """A, the number of ids of one action."""
        return self.max_keys + self.max_mouse_buttons + 2

    @property
    def key_slots(self) -> slice:
        return slice(0, self.max_keys)

    @property
    def button_slots(self) -> slice:
        return slice(self.max_keys, self.max_keys + self.max_mouse_buttons)

    @property
    def mouse_x_slot(self) -> int:
        return self.max_keys + self.max_mouse_buttons

    @property
    def mouse_y_slot(self) -> int:
        return self.mouse_x_slot + 1

    @cached_property
    def head_slots(self) -> dict[str, slice]:
        """The slots of each of HEADS, as slices of the last dimension of ids [..., A]."""
        x, y = self.mouse_x_slot, self.mouse_y_slot
        slots = (self.key_slots, self.button_slots, slice(x, x + 1), slice(y, y + 1))
        return dict(zip(HEADS, slots, strict=True))

    @cached_property
    def slot_heads(self) -> tuple[str, ...]:
        """The name in HEADS of each slot."""
        return tuple(head for head, slots in self.head_slots.items() for _ in range(slots.start, slots.stop))

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """V of each slot."""
        return tuple(NUM_CHOICES[head] for head in self.slot_heads)

    @property
    def nothing(self) -> Ids:
        """int64 [A]: no key, no button, no motion."""
        ids = np.zeros(self.num_slots, dtype=np.int64)
        ids[self.mouse_x_slot], ids[self.mouse_y_slot] = NO_MOUSE_X, NO_MOUSE_Y
        return ids

    def encode(
        self,
        keys: Iterable[str],
        buttons: Iterable[str],
        dx: float,
        dy: float,
        unknown: Counter[str] | None = None,
    ) -> Ids:
        """Ids int64 [A] of what is held and of a motion in pixels; foreign names are counted in `unknown`."""
        ids = np.empty(self.num_slots, dtype=np.int64)
        ids[self.key_slots] = encode_keys(keys, self.max_keys, unknown)
        ids[self.button_slots] = encode_buttons(buttons, self.max_mouse_buttons, unknown)
        ids[self.mouse_x_slot] = mouse_x_bins(dx)
        ids[self.mouse_y_slot] = mouse_y_bins(dy)
        return ids

    def encode_action(self, action: Action, unknown: Counter[str] | None = None) -> Ids:
        """`encode` of an Action."""
        return self.encode(action.keys, action.buttons, action.dx, action.dy, unknown)

    def decode(self, ids: NDArray[Any], mouse_sampling: str = "mean", rng: np.random.Generator | None = None) -> Action:
        """Names and pixels of ids [A]; names are distinct and sorted as strings, id 0 is left out.

        Args:
            mouse_sampling: "mean" or "conservative" (a fixed motion per bin), or "truncated_normal" (drawn).
            rng: where "truncated_normal" draws from; without it a fresh unseeded one.

        Raises:
            ValueError: for a wrong number of ids, an id outside its slot's range, or an unknown `mouse_sampling`.
        """
        row = [int(i) for i in ids]
        if len(row) != self.num_slots or any(not 0 <= i < v for i, v in zip(row, self.num_choices, strict=True)):
            raise ValueError(f"action ids {row}: expected {self.num_slots} ids, each below {self.num_choices}")
        keys = sorted({KEY_NAMES[i] for i in row[self.key_slots] if i})
        buttons = sorted({BUTTON_NAMES[i] for i in row[self.button_slots] if i})
        dx, dy = decode_mouse(row[self.mouse_x_slot], row[self.mouse_y_slot], mouse_sampling, rng)
        return Action(tuple(keys), tuple(buttons), dx, dy)


def decode_mouse(
    x_bin: int, y_bin: int, mouse_sampling: str = "mean", rng: np.random.Generator | None = None
) -> tuple[int, int]:
    """(dx, dy) in whole pixels of the two bins; see `ActionSpace.decode`."""
    if mouse_sampling == "mean":
        return MOUSE_X_MEAN[x_bin], MOUSE_Y_MEAN[y_bin]
    if mouse_sampling == "conservative":
        return MOUSE_X_CONSERVATIVE[x_bin], MOUSE_Y_CONSERVATIVE[y_bin]
    if mouse_sampling != "truncated_normal":
        raise ValueError(f"mouse_sampling is {mouse_sampling!r}; choose mean, conservative or truncated_normal")
    rng = rng or np.random.default_rng()
    dx = sample_truncated_normal(*mouse_bin_range(MOUSE_X_EDGES, x_bin), MOUSE_X_STD_PX, rng)
    dy = sample_truncated_normal(*mouse_bin_range(MOUSE_Y_EDGES, y_bin), MOUSE_Y_STD_PX, rng)
    return dx, dy
