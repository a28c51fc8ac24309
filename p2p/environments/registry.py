"""Which games there are, by the names that `--game` takes, and `make_env`, which opens one.

What stands before the first colon of a name is its family: one of FAMILIES, or an entry point of another package in
the group "p2p.environments", whose name is that word and whose value is a module (or object) as `game.Family` says.
"""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.environments import doom, programs
from p2p.environments.game import Agent, EnvOptions, Family, Frame, Game

if TYPE_CHECKING:
    import gymnasium

GROUP = "p2p.environments"
FAMILIES: dict[str, Family] = {"doom": doom, "program": programs}
AGENT_NAMES = ("expert", "contrary")  # those that a game may bring

_log = logging.getLogger(__name__)


def game_names() -> list[str]:
    """The games that can be listed; programs cannot. A package whose games cannot be loaded gets a line in the log."""
    families = [*FAMILIES.values()]
    for entry in entry_points(group=GROUP):
        try:
            families.append(_load(entry))
        except ValueError as error:
            _log.warning("%s", error)
    return [name for family in families for name in family.names()]


def find_game(name: str) -> Game:
    """The game of a name.

    Raises:
        ValueError: when there is none; the message names those there are.
    """
    prefix = name.partition(":")[0]
    family = FAMILIES.get(prefix) or next(map(_load, entry_points(group=GROUP, name=prefix)), None)
    if family is None:
        raise ValueError(f"--game {gate.shown(name)}: there is no such game; choose one of {', '.join(game_names())}")
    return family.game(name)


def game_name(name: str) -> str:
    """The listed name that was written with - for _; any other name as it is."""
    wanted = name.replace("-", "_")
    return wanted if wanted in game_names() else name


def _load(entry: EntryPoint) -> Family:
    try:
        family: Family = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the games {entry.name}: of {entry.value} cannot be loaded: {error}") from error
    return family


def make_env(
    name: str,
    *,
    labels: bool = False,
    pictures: bool = True,
    window: bool = False,
    title: str = "",
    scale: int = 1,
) -> gymnasium.Env[Frame, Any]:
    """Open a game: a Gymnasium environment with observations uint8 [192, 192, 3], 20 steps a second.

    `env.step` takes what `Session.act` returns, or a sample of `env.action_space` (`environment.Environment`).

        env = p2p.make_env("doom:health_gathering")
        observation, info = env.reset(seed=7)
        observation, reward, terminated, truncated, info = env.step(p2p.Action(keys=("w",)))
        env.close()

    Args:
        name: such as "doom:health_gathering", or "program:COMMAND" for any program that opens a window.
        labels: `info["labels"]` lists what is on the screen, for scripted agents; it costs time.
        pictures: False: observations are black, for agents that do not look; `env.render()` still draws one.
        window: the game runs by itself in a window, with real keys and mouse; `rollout` keeps its pace.
        title: part of the title of a program's window.
        scale: the window is so many times as large.

    Raises:
        ValueError: when there is no such game, or it cannot be opened like this.
    """
    game = find_game(name)
    return game.make(game, EnvOptions(labels, pictures, window, title, scale))


def make_agent(game: Game, name: str = "expert") -> Agent:
    """A scripted agent of a game: its expert, or the contrary one, that does not do what the game is about.

    Raises:
        ValueError: for another name, or when the game has no such agent.
    """
    if name not in AGENT_NAMES:
        raise ValueError(f"scripted player {name!r}: choose one of {', '.join(AGENT_NAMES)}")
    if name not in game.agents:
        kind = "scripted player" if name == "expert" else f"scripted player {name!r}"
        having = [other for other in game_names() if name in find_game(other).agents]
        raise ValueError(f"{game.name} has no {kind}; those with one are {', '.join(having)}")
    return game.agents[name]()
