"""Counts of a dataset per game, collected during the conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from p2p import gate
from p2p.actions import (
    BUTTON_NAMES,
    KEY_NAMES,
    NUM_BUTTONS,
    NUM_KEYS,
    NUM_MOUSE_X,
    NUM_MOUSE_Y,
    mouse_x_bins,
    mouse_y_bins,
)
from p2p.format import FRAME_RATE_HZ, UNKNOWN
from p2p_convert.segments import Converted

Stats = dict[str, dict[str, Any]]


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


def table(stats: Stats) -> str:
    """One line a game, most frames first, and the sum."""
    total: Stats = {}
    for counts in stats.values():
        add_stats(total, "all games", counts)
    rows = [*sorted(stats.items(), key=lambda item: (-item[1]["frames"], item[0])), *total.items()]
    head = f"{'game':32} {'recordings':>10} {'frames':>11} {'hours':>8} {'user':>6} {'system':>6}  most held"
    return "\n".join([head, *(_row(name or "(unnamed)", counts) for name, counts in rows)])


def _row(name: str, counts: Mapping[str, Any]) -> str:
    steps = max(1, counts["frames"] - counts["recordings"])
    hours = counts["frames"] / FRAME_RATE_HZ / 3600
    held = [*_named(KEY_NAMES, counts["keys"]), *_named([f"mouse {b}" for b in BUTTON_NAMES], counts["buttons"])]
    most = ", ".join(name for _, name in sorted(held, reverse=True)[:4])
    return (
        f"{gate.printable(name)[:32]:32} {counts['recordings']:>10,} {counts['frames']:>11,} {hours:>8.2f} "
        f"{counts['user_rows'] / steps:>6.1%} {counts['system_rows'] / steps:>6.1%}  {most}"
    )


def _named(names: Iterable[str], counts: Iterable[int]) -> list[tuple[int, str]]:
    return [(count, name) for index, (name, count) in enumerate(zip(names, counts, strict=True)) if index and count]
