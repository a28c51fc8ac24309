"""Any program that opens a window, by the command that starts it; nothing is known of it but its pixels."""

import os
import shlex
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from p2p.environments.game import EnvOptions, Frame, Game
from p2p.processes.reaper import mark_children
from p2p.processes.scratch import Scratch

if TYPE_CHECKING:
    import gymnasium

PREFIX = "program:"


class Program:
    """Any program that opens a window; nothing is known of it but its pixels."""

    def __init__(self, command: str, title: str = "") -> None:
        arguments = shlex.split(command)
        if not arguments:
            raise ValueError(f"--game {PREFIX!r}: name a command, such as program:'crispy-doom -window'")
        mark_children()
        self.title, self._name = title, arguments[0]
        self.done, self.score = False, 0.0
        self._scratch = Scratch("program")
        environment = {**os.environ, "SDL_AUDIODRIVER": "dummy"}
        try:
            self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                arguments,
                cwd=self._scratch.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for us; we end the game
            )
        except OSError as error:
            self._scratch.close()
            raise ValueError(f"{arguments[0]}: cannot be started: {error.strerror or error}") from error

    def new_episode(self, seed: int) -> None:
        return

    def state(self) -> str:
        return ""

    def ended(self) -> str:
        status = self.process.poll() if self.process is not None else None
        return "" if status is None else f"{self._name}: the game has ended, with status {status}"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._scratch.close()


def _make(game: Game, options: EnvOptions) -> "gymnasium.Env[Frame, Any]":
    from p2p.environments.window import WindowEnv

    if options.scale != 1:
        raise ValueError(
            f"--scale {options.scale}: a program decides itself how large its window is; use its own options"
        )
    return WindowEnv(lambda: Program(game.name.removeprefix(PREFIX), options.title))


def names() -> Iterable[str]:
    return ()


def game(name: str) -> Game:
    return Game(name, _make)
