"""The way through a level of Freedoom, found once in a process, and how long an episode on it lasts."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from p2p.environments.doom_engine import LevelMap

if TYPE_CHECKING:
    from p2p.levels.progress import Yardstick

MAX_SECONDS = 600
BASE_SECONDS, UNITS_PER_SECOND = 60, 50.0  # of an episode: a minute, and a second for so many units of the way


@lru_cache(maxsize=4)
def yardstick(iwad: str, name: str) -> Yardstick:
    """The way through a level; it takes seconds to find.

    Raises:
        ValueError: when there is no such map, or no way through it is found.
    """
    from p2p.levels.progress import Yardstick
    from p2p.levels.route import Planner
    from p2p.levels.wad import read_level

    return Yardstick(Planner(read_level(LevelMap(iwad, name).path, name)))


def max_seconds(length: float) -> float:
    """How long an episode on a level lasts whose way is so long."""
    return min(MAX_SECONDS, BASE_SECONDS + length / UNITS_PER_SECOND)
