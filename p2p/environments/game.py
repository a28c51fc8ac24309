"""What is known of a game before it is opened, and what an agent is; CONTRIBUTING.md shows how to add a game."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2p.actions import Action

if TYPE_CHECKING:
    import gymnasium

Frame = NDArray[np.uint8]  # [Y, X, 3] RGB
Info = Mapping[str, Any]  # what an environment says beside its picture
Outcome = tuple[Frame, Any, bool, bool, dict[str, Any]]  # what `Env.step` returns


class Agent(Protocol):
    """Whatever can play: a script, dice, a policy, a person."""

    def reset(self, seed: int) -> None:
        """A new episode has begun; the seed fixes what the agent draws."""

    def act(self, observation: Frame, info: Info) -> Action:
        """What to hold for the next step, given the picture uint8 [Y, X, 3] now and what the environment says."""


@dataclass(frozen=True)
class EnvOptions:
    """How a game is opened; `registry.make_env` says what each means. A game refuses what it cannot do."""

    labels: bool = False
    pictures: bool = True
    window: bool = False
    title: str = ""
    scale: int = 1


@dataclass(frozen=True)
class Game:
    """An entry of the table of games.

    Args:
        name: as `--game` takes it, with what stands before the first colon deciding who knows it.
        make: opens it, as a Gymnasium environment with the spaces of `environment.Environment`.
        keys: those that its agents use; random keys are drawn from these. `buttons`, of the mouse, likewise.
        mouse: whether it is played with mouse motion.
        max_steps: an episode has at most so many steps.
        instruction: what an agent is to do, in words.
        agents: what plays it without learning: "expert", and "contrary", that does not do what the game is about.
    """

    name: str
    make: Callable[[Game, EnvOptions], gymnasium.Env[Frame, Any]]
    keys: tuple[str, ...] = ()
    buttons: tuple[str, ...] = ()
    mouse: bool = False
    max_steps: int = 0
    instruction: str = ""
    agents: Mapping[str, Callable[[], Agent]] = field(default_factory=dict)


class Family(Protocol):
    """All games whose names begin alike; a module with these two functions is one."""

    def names(self) -> Iterable[str]:
        """Those that can be listed."""

    def game(self, name: str) -> Game:
        """The game of a name; ValueError when there is none."""
