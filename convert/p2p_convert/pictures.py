"""Histograms of a dataset as PNG files; needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from p2p.actions import BUTTON_NAMES, FRAME_RATE_HZ, KEY_NAMES, MOUSE_X_MEAN, MOUSE_Y_MEAN
from p2p_convert.statistics import Stats, add_stats

_LABELS = {
    "keys": ("keys held", ["none", *KEY_NAMES[1:]]),
    "buttons": ("mouse buttons held", ["none", "left", "right", "middle"][: len(BUTTON_NAMES)]),
    "mouse_x": ("mouse to the right, px per frame", [str(v) for v in MOUSE_X_MEAN]),
    "mouse_y": ("mouse down, px per frame", [str(v) for v in MOUSE_Y_MEAN]),
}


def write_pictures(stats: Stats, folder: Path) -> list[Path]:
    """actions.png (all games together) and games.png (hours per game); returns their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [_actions(stats, folder / "actions.png"), _games(stats, folder / "games.png")]


def _actions(stats: Stats, path: Path) -> Path:
    from matplotlib import pyplot

    total: Stats = {}
    for counts in stats.values():
        add_stats(total, "all", counts)
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for axis, (name, (title, labels)) in zip(axes.flat, _LABELS.items(), strict=True):
        counts = total["all"][name]
        axis.bar(range(len(counts)), counts)
        axis.set_xticks(range(len(counts)), labels, rotation=90)
        axis.set_yscale("symlog")
        axis.set_title(title)
        axis.set_ylabel("labelled frames")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def _games(stats: Stats, path: Path) -> Path:
    from matplotlib import pyplot

    games = sorted(stats, key=lambda game: stats[game]["frames"])
    hours = [stats[game]["frames"] / FRAME_RATE_HZ / 3600 for game in games]
    labelled = [(stats[game]["user_rows"] + stats[game]["system_rows"]) / FRAME_RATE_HZ / 3600 for game in games]
    figure, axis = pyplot.subplots(figsize=(10, 1 + 0.3 * len(games)), layout="constrained")
    axis.barh(games, hours, color="lightgray", label="recorded")
    axis.barh(games, labelled, height=0.4, label="with known actions")
    axis.set_xlabel("hours")
    axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path
