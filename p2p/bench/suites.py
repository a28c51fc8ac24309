"""Which games a suite consists of."""

from __future__ import annotations

from p2p.environments import doom_levels
from p2p.environments.registry import game_names

ALL = "all"


def suites() -> dict[str, list[str]]:
    """The games of each suite, by its name."""
    doom = [name for name in game_names() if name.startswith(doom_levels.PREFIX)]
    rooms = [name for name in doom if not doom_levels.is_level(name)]
    levels = [name for name in doom if doom_levels.is_level(name)]
    return {"doom-rooms": rooms, "doom-levels": levels, ALL: [*rooms, *levels]}


def games_of(suite: str) -> list[str]:
    """The games of a suite, or the one game of that name.

    Raises:
        ValueError: when there is no such suite.
    """
    known = suites()
    if suite in known:
        return known[suite]
    if ":" in suite:
        return [suite]
    raise ValueError(f"--suite {suite!r}: choose one of {', '.join(known)}, or name one game")
