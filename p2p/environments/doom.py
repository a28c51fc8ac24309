"""The games of ViZDoom: the engine, Freedoom and the scenario maps all come in its PyPI wheel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.environments import doom_levels
from p2p.environments.doom_experts import (
    BasicShooter,
    CenterDefender,
    CenterWatcher,
    HealthGatherer,
    LineDefender,
    MedikitAvoider,
    RocketShooter,
)
from p2p.environments.game import Agent, EnvOptions, Frame, Game

if TYPE_CHECKING:
    import gymnasium

PREFIX = "doom:"


def _make(game: Game, options: EnvOptions) -> gymnasium.Env[Frame, Any]:
    scenario = game.name.removeprefix(PREFIX)
    if options.window:
        from p2p.environments.doom_window import DoomWindow
        from p2p.environments.window import WindowEnv

        return WindowEnv(lambda: DoomWindow(scenario, options.scale))
    from p2p.environments.doom_env import DoomEnv

    return DoomEnv(scenario, options.labels, options.pictures)


def _game(
    scenario: str,
    instruction: str,
    max_steps: int,
    keys: tuple[str, ...],
    expert: Callable[[], Agent],
    contrary: Callable[[], Agent] | None = None,
) -> Game:
    """One that is played with keys; without any, with the mouse and its left button."""
    buttons = () if keys else ("0",)
    agents = {"expert": expert, **({"contrary": contrary} if contrary else {})}
    return Game(PREFIX + scenario, _make, keys, buttons, not keys, max_steps, instruction, agents)


ARROWS = ("LeftArrow", "RightArrow")
_GAMES = [
    _game("health_gathering", "stay alive", 1050, ("w", *ARROWS), HealthGatherer, MedikitAvoider),
    _game("basic", "shoot the monster", 143, ("a", "d", "Space"), BasicShooter),
    _game("defend_the_center", "shoot the monsters", 1045, (*ARROWS, "Space"), CenterDefender, CenterWatcher),
    _game("defend_the_line", "shoot the monsters", 1045, (), LineDefender),
    _game("predict_position", "hit the walking monster", 142, (), RocketShooter),
]
_BY_NAME = {game.name: game for game in _GAMES}


def names() -> Iterable[str]:
    return [*_BY_NAME, *doom_levels.names()]


def game(name: str) -> Game:
    if doom_levels.is_level(name):
        return doom_levels.game(name)
    if name not in _BY_NAME:
        raise ValueError(f"--game {gate.shown(name)}: there is no such game; choose one of {', '.join(names())}")
    return _BY_NAME[name]
