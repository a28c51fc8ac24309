"""The games doom:IWAD:MAP, whole levels of Freedoom: which are listed, how one is opened, who plays it by script."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.actions import FRAME_RATE_HZ, Action
from p2p.environments.doom_engine import LevelMap
from p2p.environments.doom_yardstick import MAX_SECONDS, yardstick
from p2p.environments.game import EnvOptions, Frame, Game, Info

if TYPE_CHECKING:
    import gymnasium

PREFIX = "doom:"
IWADS = ("freedoom1", "freedoom2")
NO_MONSTERS = "no_monsters"
LISTED = ("freedoom2:MAP01", "freedoom1:E1M1", "freedoom1:E3M1", "freedoom1:E2M2", "freedoom1:E1M5", "freedoom2:MAP02")
TICS_PER_SECOND = 35  # of the engine, when it keeps its own time
KEYS = ("w", "s", "a", "d", "e", "LeftShift", "1", "2", "3", "4")
_MAP_NAME = re.compile(r"E[1-4]M[1-9]|MAP[0-3][0-9]")


def names() -> Iterable[str]:
    """Those whose way the planner finds and its player walks; any other map can be named too."""
    return [f"{PREFIX}{level}{suffix}" for level in LISTED for suffix in ("", f":{NO_MONSTERS}")]


def is_level(name: str) -> bool:
    """Whether a name is one of a level rather than of a scenario."""
    return name.removeprefix(PREFIX).partition(":")[0] in IWADS


def level_map(name: str) -> LevelMap:
    """The level of a name, doom:IWAD:MAP or doom:IWAD:MAP:no_monsters.

    Raises:
        ValueError: for another name.
    """
    iwad, _, rest = name.removeprefix(PREFIX).partition(":")
    level, _, option = rest.partition(":")
    if iwad not in IWADS or not _MAP_NAME.fullmatch(level) or option not in ("", NO_MONSTERS):
        raise ValueError(
            f"--game {gate.shown(name)}: expected doom:IWAD:MAP or doom:IWAD:MAP:{NO_MONSTERS}, with "
            f"{' or '.join(IWADS)} and a map such as E1M1 or MAP01"
        )
    return LevelMap(iwad, level, monsters=not option)


def game(name: str) -> Game:
    """The game of a level."""
    level = level_map(name)
    agents = {"expert": lambda: LevelAgent(level)}
    max_steps = MAX_SECONDS * FRAME_RATE_HZ
    return Game(f"{PREFIX}{level}", _make, KEYS, ("0",), True, max_steps, "find the exit", agents)


def _make(game: Game, options: EnvOptions) -> gymnasium.Env[Frame, Any]:
    level = level_map(game.name)
    if options.window:
        from p2p.environments.doom_window import DoomWindow
        from p2p.environments.window import WindowEnv

        endless = replace(level, max_tics=MAX_SECONDS * TICS_PER_SECOND)
        return WindowEnv(lambda: DoomWindow(endless, options.scale))
    from p2p.environments.doom_level_env import DoomLevelEnv

    return DoomLevelEnv(level, options.labels, options.pictures)


class LevelAgent:
    """The scripted player of a level: chooses by `info["view"]`, so the environment must be one with labels."""

    def __init__(self, level: LevelMap) -> None:
        from p2p.levels.expert import LevelExpert

        self._expert = LevelExpert(yardstick(level.iwad, level.name).planner)

    def reset(self, seed: int) -> None:
        self._expert.reset(seed)

    def act(self, observation: Frame, info: Info) -> Action:
        if "view" not in info:
            raise ValueError("this agent needs to be told what is around it: open the game with labels=True")
        return self._expert.act(info["view"])
