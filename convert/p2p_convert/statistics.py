"""Counts of a dataset per game, collected during the conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from p2p import gate
from p2p.actions import (
    BUTTON_NAMES,
    FRAME_RATE_HZ,
    KEY_NAMES,
    NUM_BUTTONS,
    NUM_KEYS,
    NUM_MOUSE_X,
    NUM_MOUSE_Y,
    mouse_x_bins,
    mouse_y_bins,
)
from p2p.console import aligned
from p2p.format import UNKNOWN
from p2p.gate import mapping, parse_json, sequence, whole_number
from p2p_convert.segments import Converted

Stats = dict[str, dict[str, Any]]

MAX_BYTES = 1 << 26  # of a stats.json
_HISTOGRAMS = {"keys": NUM_KEYS, "buttons": NUM_BUTTONS, "mouse_x": NUM_MOUSE_X, "mouse_y": NUM_MOUSE_Y}
_SUMS = ("recordings", "frames", "user_rows", "system_rows")
_MOST = 1 << 53


def recording_stats(converted: Converted) -> dict[str, Any]:
    """The counts of one recording; histograms are over labelled rows, held keys once per row."""
    labelled = converted.taken != UNKNOWN
    actions = converted.actions
    motion = actions.mouse_px[labelled]
    return {
        "recordings": 1,
        "frames": converted.num_frames,
        "user_rows": converted.num_user,
        "system_rows": converted.num_system,
        "keys": _held(actions.keys[labelled], NUM_KEYS),
        "buttons": _held(actions.buttons[labelled], NUM_BUTTONS),
        "mouse_x": np.bincount(mouse_x_bins(motion[:, 0]), minlength=NUM_MOUSE_X).tolist(),
        "mouse_y": np.bincount(mouse_y_bins(motion[:, 1]), minlength=NUM_MOUSE_Y).tolist(),
    }


def _held(ids: Any, num_choices: int) -> list[int]:
    """How often each id is held; id 0 counts the rows that hold nothing."""
    counts = np.bincount(ids.ravel(), minlength=num_choices)
    counts[0] = int(np.count_nonzero(~ids.any(axis=1)))
    return counts.tolist()


def add_stats(total: Stats, game: str, counts: Mapping[str, Any]) -> None:
    """Add counts to a game's."""
    have = total.setdefault(game, {})
    for name, value in counts.items():
        if isinstance(value, list):
            have[name] = [a + b for a, b in zip(have.get(name, [0] * len(value)), value, strict=True)]
        else:
            have[name] = have.get(name, 0) + value


def decode(content: bytes, where: str) -> tuple[Stats, dict[str, int]]:
    """(counts per game, oddities by kind) of a stats.json, which may be a stranger's; `where` names it in errors.

    Raises:
        ValueError: when it holds anything else.
    """
    stored = mapping(parse_json(content, where, MAX_BYTES), where)
    counts = mapping(stored.get("counts"), f"{where}: counts")
    oddities = {kind: whole_number(count, f"{where}: counts", 0, _MOST) for kind, count in counts.items()}
    games: Stats = {}
    for number, (game, stats) in enumerate(mapping(stored.get("games"), f"{where}: games").items()):
        here = f"{where}: game {number}"
        stats = mapping(stats, here)
        games[game] = {name: whole_number(stats.get(name), f"{here}: {name}", 0, _MOST) for name in _SUMS}
        for name, length in _HISTOGRAMS.items():
            values = sequence(stats.get(name), f"{here}: {name}", length)
            values = [*values, *[None] * (length - len(values))]  # a missing one is no number
            games[game][name] = [whole_number(value, f"{here}: {name}", 0, _MOST) for value in values]
    return games, oddities


def table(stats: Stats) -> str:
    """One line a game, most frames first, and the sum."""
    total: Stats = {}
    for counts in stats.values():
        add_stats(total, "all games", counts)
    rows = [*sorted(stats.items(), key=lambda item: (-item[1]["frames"], item[0])), *total.items()]
    head = ["game", "recordings", "frames", "hours", "user", "system", "most held"]
    return aligned([head, *(_row(name or "(unnamed)", counts) for name, counts in rows)], left=(0, len(head) - 1))


def keys_table(stats: Stats) -> list[str]:
    """Every key and button of the action space, with the rows of all games that hold it, most held first.

    Those that are never held stand last: a recorder that leaves a key out of its lists, as some leave LeftShift, shows.
    """
    total: Stats = {}
    for counts in stats.values():
        add_stats(total, "all games", counts)
    if not total:
        return []
    names = [*KEY_NAMES[1:], *(f"mouse {name}" for name in BUTTON_NAMES[1:])]
    rows: list[int] = [*total["all games"]["keys"][1:], *total["all games"]["buttons"][1:]]
    held = sorted(zip(rows, names, strict=True), key=lambda row: (-row[0], row[1]))
    never = ", ".join(name for count, name in held if not count)
    lines = [f"{count:>12,}  {name}" for count, name in held if count]
    return ["rows that hold each key or button:", *lines, *([f"never held: {never}"] if never else [])]


def _row(name: str, counts: Mapping[str, Any]) -> list[str]:
    steps = max(1, counts["frames"] - counts["recordings"])
    hours = counts["frames"] / FRAME_RATE_HZ / 3600
    held = [*_named(KEY_NAMES, counts["keys"]), *_named([f"mouse {b}" for b in BUTTON_NAMES], counts["buttons"])]
    most = ", ".join(name for _, name in sorted(held, reverse=True)[:4])
    shares = (f"{counts[name] / steps:.1%}" for name in ("user_rows", "system_rows"))
    numbers = (f"{counts['recordings']:,}", f"{counts['frames']:,}", f"{hours:.2f}")
    return [gate.printable(name)[:32], *numbers, *shares, most]


def _named(names: Iterable[str], counts: Iterable[int]) -> list[tuple[int, str]]:
    return [(count, name) for index, (name, count) in enumerate(zip(names, counts, strict=True)) if index and count]
