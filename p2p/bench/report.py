"""A benchmark on paper: results.json, progress over time, maps with the ways drawn on, and a page with all of it."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2p.bench.scores import Row, Scored, summarise, table
from p2p.environments.doom_levels import is_level, level_map
from p2p.environments.doom_yardstick import yardstick
from p2p.files import new_file, write_file

COLOURS = {
    "policy": "#2a6fdb",
    "shuffled": "#8fb4ee",
    "expert": "#e0a100",
    "random": "#9a9a9a",
    "blind": "#5b8c5a",
    "idle": "#c9c9c9",
}
RESULTS, PAGE = "results.json", "index.html"
_STYLE = (
    "body{font:15px sans-serif;margin:2em;max-width:70em} td,th{padding:.2em .7em;text-align:right} img{max-width:100%}"
)


def write_report(folder: Path, suite: str, episodes: Sequence[Scored]) -> Path:
    """Write the results, the pictures and the page; returns the path of the page.

    Raises:
        OSError: when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = summarise(episodes)
    content = {"suite": suite, "summary": [asdict(row) for row in rows], "episodes": [asdict(e) for e in episodes]}
    write_file(folder / RESULTS, json.dumps(content, indent=1).encode() + b"\n")
    pictures = []
    for game in dict.fromkeys(row.game for row in rows if is_level(row.game)):
        played = [episode for episode in episodes if episode.game == game and episode.curve]
        if played:
            name = game.replace(":", "-")
            plot_progress(played, folder / f"{name}-progress.png")
            plot_ways(game, played, folder / f"{name}-ways.png")
            pictures.append((game, f"{name}-progress.png", f"{name}-ways.png"))
    write_file(folder / PAGE, page(suite, rows, pictures, [e for e in episodes if e.error]).encode())
    return folder / PAGE


def page(suite: str, rows: Sequence[Row], pictures: Sequence[tuple[str, str, str]], crashes: Sequence[Scored]) -> str:
    """The page as HTML."""
    head, *lines = table(rows)
    cells = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines]
    parts = [f"<!doctype html><meta charset=utf-8><title>p2p bench {html.escape(suite)}</title><style>{_STYLE}</style>"]
    parts += [f"<h1>p2p bench {html.escape(suite)}</h1><table>", *cells, "</table>"]
    for game, curve, ways in pictures:
        title = html.escape(game)
        parts += [f"<h2>{title}</h2><img src='{html.escape(curve)}'><img src='{html.escape(ways)}'>"]
    if crashes:
        parts += ["<h2>Crashes</h2><ul>"]
        parts += [f"<li>{html.escape(f'{e.game} {e.player} seed {e.seed}: {e.error}')}</li>" for e in crashes]
        parts += ["</ul>"]
    return "\n".join(parts) + "\n"


def median_curve(episodes: Sequence[Scored]) -> list[float]:
    """The median share of the way after each second; an episode that is over keeps its last share."""
    longest = max(len(episode.curve) for episode in episodes)
    return [
        statistics.median(episode.curve[min(second, len(episode.curve) - 1)] for episode in episodes)
        for second in range(longest)
    ]


def plot_progress(episodes: Sequence[Scored], path: Path) -> None:
    """Progress over time: the median of each player."""
    figure, axes = _figure(7, 3)
    for player in dict.fromkeys(episode.player for episode in episodes):
        curve = median_curve([episode for episode in episodes if episode.player == player])
        axes.plot(curve, color=COLOURS[player], label=player)
    axes.set(xlabel="seconds", ylabel="share of the way, median", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_ways(game: str, episodes: Sequence[Scored], path: Path) -> None:
    """The map from above, the shortest way dashed, and where each player was."""
    level = level_map(game)
    measured = yardstick(level.iwad, level.name)
    lines = measured.planner.level
    figure, axes = _figure(9, 8)
    for start, end, back in zip(lines.start, lines.end, lines.back, strict=True):
        axes.plot(*zip(start, end, strict=True), color="black" if back < 0 else "#cccccc", linewidth=0.6)
    axes.plot(*zip(*measured.way(), strict=True), "--", color="black", linewidth=1, label="shortest way")
    for player in reversed(list(dict.fromkeys(episode.player for episode in episodes))):
        for number, episode in enumerate(e for e in episodes if e.player == player and e.way):
            label = player if number == 0 else None
            axes.plot(*zip(*episode.way, strict=True), color=COLOURS[player], linewidth=1, alpha=0.6, label=label)
            axes.plot(*episode.way[-1], "o" if episode.end == "exit" else "x", color=COLOURS[player], markersize=5)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
    pyplot.close(figure)
