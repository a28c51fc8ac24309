"""What a game is to the rest of the project: seeds in, pictures out, keys and mouse in, a score out.

Everything that plays or records knows only `Game`. The table `GAMES` says which games there are, under the names that
`--game` takes; the engines live in modules of their own (doom.py) and are imported when a game is opened.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from p2p.actions import Action

Frame = NDArray[np.uint8]  # [Y, X, 3] RGB


@dataclass(frozen=True)
class Thing:
    """Something on the screen, where a scripted player sees it."""

    name: str
    distance: float  # map units
    bearing_deg: float  # 0 is straight ahead, positive is to the right
    lateral_speed: float = 0.0  # map units per step across the line of sight, positive is to the right

    @property
    def lateral_offset(self) -> float:
        """How far to the right of the line of sight it is, in map units."""
        return self.distance * math.sin(math.radians(self.bearing_deg))


class Game(Protocol):
    """One running game. Steps are 1/20 s of game time. After `done` only `reset`, `score` and `close` make sense."""

    def reset(self, seed: int) -> None:
        """Begin a new episode, which the seed fixes."""

    def frame(self) -> Frame:
        """The picture now: uint8 [192, 192, 3] RGB."""

    def act(self, action: Action) -> None:
        """Hold these keys and buttons and move the mouse for one step; what the game does not know has no effect."""

    def things(self) -> list[Thing]:
        """What is on the screen, for scripted players; empty where the game cannot tell."""

    @property
    def done(self) -> bool:
        """Whether the episode is over."""

    @property
    def score(self) -> float:
        """The episode's score up to now."""

    def close(self) -> None:
        """End the game and every process that it started."""


@dataclass(frozen=True)
class GameInfo:
    """An entry of the table of games."""

    name: str  # as `--game` takes it
    keys: tuple[str, ...]  # the keys that its players use; random keys are drawn from these
    buttons: tuple[str, ...]  # the mouse buttons, likewise
    mouse: bool  # whether it is played with mouse motion
    max_steps: int  # an episode has at most so many steps
    scenario: str  # the engine's name of it
    instruction: str  # what a player is to do, in words


def _table(*infos: GameInfo) -> dict[str, GameInfo]:
    return {info.name: info for info in infos}


GAMES = _table(
    GameInfo(
        "doom:health_gathering", ("w", "LeftArrow", "RightArrow"), (), False, 1050, "health_gathering", "stay alive"
    ),
    GameInfo("doom:basic", ("a", "d", "Space"), (), False, 143, "basic", "shoot the monster"),
    GameInfo(
        "doom:defend_the_center",
        ("LeftArrow", "RightArrow", "Space"),
        (),
        False,
        1045,
        "defend_the_center",
        "shoot the monsters",
    ),
    GameInfo("doom:defend_the_line", (), ("0",), True, 1045, "defend_the_line", "shoot the monsters"),
    GameInfo("doom:predict_position", (), ("0",), True, 142, "predict_position", "hit the walking monster"),
)


def game_name(name: str) -> str:
    """The table's name of a game that was written with - for _; any other name as it is."""
    wanted = name.replace("-", "_")
    return wanted if wanted in GAMES else name


def game_info(name: str) -> GameInfo:
    """The table's entry; ValueError names the games there are."""
    if name not in GAMES:
        raise ValueError(f"--game {name!r}: there is no such game; choose one of {', '.join(GAMES)}")
    return GAMES[name]


def open_game(name: str, labels: bool = False) -> Game:
    """Start a game without a window. `labels`: `things` is wanted (it costs rendering time)."""
    info = game_info(name)
    from p2p.play.doom import HeadlessDoom

    return HeadlessDoom(info, labels=labels)
