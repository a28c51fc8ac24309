"""What came of the episodes of a benchmark: one row for each player on each game, with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from p2p.environments.doom_levels import is_level

End = Literal["exit", "dead", "time", "over", "crash"]  # "over": of a game that has no exit

Z95 = 1.96


@dataclass(frozen=True)
class Scored:
    """One episode.

    Attributes:
        score: its return; on a level, the way covered in per cent.
        curve: on a level, the share of the way that was covered, after each second.
        way: on a level, where the player was, every half second: x, y in map units.
        error: of a crash, what the environment said.
    """

    game: str
    player: str
    seed: int
    end: End
    score: float
    num_steps: int
    kills: int = 0
    curve: tuple[float, ...] = ()
    way: tuple[tuple[float, float], ...] = ()
    error: str = ""

    @property
    def progress(self) -> float:
        """The share of the way that was covered."""
        return self.curve[-1] if self.curve else 0.0


@dataclass(frozen=True)
class Row:
    """A player on a game. Crashes count as episodes without an exit, a score or progress.

    Attributes:
        exit_low, exit_high: Wilson's interval of 95 % for the share of episodes that end at the exit.
    """

    game: str
    player: str
    num_episodes: int
    exits: int
    exit_low: float
    exit_high: float
    median_progress: float
    deaths: int
    median_kills: float
    mean_score: float
    standard_error: float | None
    crashes: int


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The interval of 95 % for a share (Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, square = successes / count, Z95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise(episodes: Iterable[Scored]) -> list[Row]:
    """One row for each player and game, in the order of their first episode."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for episode in episodes:
        groups.setdefault((episode.game, episode.player), []).append(episode)
    return [_row(game, player, group) for (game, player), group in groups.items()]


def _row(game: str, player: str, group: Sequence[Scored]) -> Row:
    exits = sum(episode.end == "exit" for episode in group)
    scores = [episode.score for episode in group]
    return Row(
        game,
        player,
        len(group),
        exits,
        *wilson(exits, len(group)),
        median_progress=statistics.median(episode.progress for episode in group),
        deaths=sum(episode.end == "dead" for episode in group),
        median_kills=statistics.median(episode.kills for episode in group),
        mean_score=statistics.fmean(scores),
        standard_error=statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        crashes=sum(episode.end == "crash" for episode in group),
    )


HEAD = ("game", "player", "episodes", "exits", "95 %", "way, median", "died", "kills", "score", "± s.e.", "crashed")


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text, the head first; what a room does not have stays empty."""
    lines: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        of_level = (
            f"{row.exits / row.num_episodes:.0%}",
            f"{row.exit_low:.0%}-{row.exit_high:.0%}",
            f"{row.median_progress:.0%}",
            f"{row.deaths / row.num_episodes:.0%}",
            f"{row.median_kills:.0f}",
        )
        error = "" if row.standard_error is None else f"{row.standard_error:.1f}"
        middle = of_level if is_level(row.game) else ("",) * 5
        lines.append(
            (row.game, row.player, str(row.num_episodes), *middle, f"{row.mean_score:.1f}", error, str(row.crashes))
        )
    return lines
