"""What came of the episodes that were played: a row for each player, as a table and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from p2p.files import write_file

POLICY = "policy"
SHUFFLED = "shuffled"
DESCRIPTIONS = {
    POLICY: "the policy",
    SHUFFLED: "the policy, shown frames of other moments",
    "expert": "the scripted player that was recorded",
    "contrary": "the scripted player that does not do what the game is about",
    "random": "random keys, held 1 to 10 steps",
    "blind": "the scripted player's keys at its rates, without looking",
    "idle": "no key",
}


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode that was played."""

    player: str
    seed: int
    score: float
    num_steps: int
    presses: dict[str, int]  # in how many steps each key or mouse button ("mouse 0") was down
    text: str | None = None  # what the policy was told, as in `PlannedEpisode`


@dataclass(frozen=True)
class Row:
    """A player's scores in one line; of a policy, with one instruction."""

    player: str
    text: str | None
    num_episodes: int
    mean: float
    standard_error: float | None  # of one episode there is none
    lowest: float
    highest: float


def summarise(episodes: Sequence[PlayedEpisode]) -> list[Row]:
    """One row per player and instruction, in the order of their first episode."""
    rows = []
    for player, text in dict.fromkeys((episode.player, episode.text) for episode in episodes):
        scores = [episode.score for episode in episodes if (episode.player, episode.text) == (player, text)]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
        rows.append(Row(player, text, len(scores), statistics.fmean(scores), error, min(scores), max(scores)))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that also reads well on a terminal."""
    head = ("player", "episodes", "mean score", "± s.e.", "lowest", "highest", "")
    cells = [head] + [
        (
            row.player,
            str(row.num_episodes),
            f"{row.mean:.1f}",
            "" if row.standard_error is None else f"{row.standard_error:.1f}",
            f"{row.lowest:.0f}",
            f"{row.highest:.0f}",
            _describe(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column in (0, len(head) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("| " + " | ".join(padded) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:-1]), "-" * widths[-1]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _describe(row: Row) -> str:
    told = "" if row.text is None else f", told {row.text!r}" if row.text else ", told nothing"
    return DESCRIPTIONS.get(row.player, "") + told


def write_results(path: Path, game: str, episodes: Sequence[PlayedEpisode]) -> None:
    """All episodes and the summary as JSON."""
    content = {
        "game": game,
        "summary": [asdict(row) for row in summarise(episodes)],
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


def read_results(path: Path) -> list[PlayedEpisode]:
    """The episodes of a file of `write_results`."""
    return [PlayedEpisode(**entry) for entry in json.loads(path.read_text())["episodes"]]
