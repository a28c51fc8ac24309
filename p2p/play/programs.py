"""What has a window and goes on by itself: ViZDoom's engine, which still tells time and pose, or any other program."""

import os
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from p2p.play.games import GameInfo, game_info
from p2p.play.reaper import mark_children
from p2p.play.scratch import Scratch

PROGRAM = "program:"
DOOM_TITLE = "VIZDOOM"
TICRATE = 40  # of the engine: two tics are 1/20 s

DOOM_BINDINGS = {
    "w": "+forward",
    "s": "+back",
    "a": "+moveleft",
    "d": "+moveright",
    "leftarrow": "+left",
    "rightarrow": "+right",
    "space": "+attack",
    "mouse1": "+attack",
    "shift": "+speed",
}


class WindowedProgram(Protocol):
    """What has the window; it goes on by itself."""

    @property
    def title(self) -> str:
        """Part of the window's title."""

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The process whose end means that no window will come, if there is one."""

    def new_episode(self, seed: int) -> None: ...

    @property
    def done(self) -> bool: ...

    @property
    def score(self) -> float: ...

    def state(self) -> str:
        """What the program itself says of the game, in a few words; empty where it says nothing."""

    def ended(self) -> str:
        """How the program came to its end, or nothing while it runs."""

    def close(self) -> None: ...


class DoomWindow:
    """ViZDoom in a window, with the keyboard and the mouse; the engine still tells time and pose."""

    def __init__(self, info: GameInfo, scale: int = 1) -> None:
        from p2p.play.doom import SETTINGS_FILE, make_engine

        self.title, self.process = DOOM_TITLE, None
        self._info, self._ended = info, ""
        mark_children()
        self._scratch = Scratch("doom")
        settings = "\n".join(f"{key}={command}" for key, command in DOOM_BINDINGS.items())
        # The engine reads bindings from this file only: as command-line arguments it ignores them without a word.
        content = f"[GlobalSettings]\nUse_Mouse=true\n[Doom.Bindings]\n{settings}\n"
        (self._scratch.path / SETTINGS_FILE).write_text(content)
        self._engine = make_engine(info, self._scratch, window=True, ticrate=TICRATE, scale=scale)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="doom", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        """The engine runs by itself; what is known of it goes on only when it is asked to advance."""
        while not self._closing.is_set():
            try:
                with self._asking():
                    if not self._engine.is_episode_finished():
                        self._engine.advance_action(1)
            except ValueError as error:
                self._ended = str(error)
                return
            self._closing.wait(0.002)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One question to the engine at a time; its errors are ValueErrors."""
        from p2p.play.doom import engine_errors

        with self._lock, engine_errors(self._info.name):
            yield

    def new_episode(self, seed: int) -> None:
        with self._asking():
            self._engine.set_seed(seed % 2**31)
            self._engine.new_episode()

    @property
    def done(self) -> bool:
        with self._asking():
            return bool(self._engine.is_episode_finished())

    @property
    def score(self) -> float:
        with self._asking():  # this mode loses rewards; the time alive does not lie
            return float(self._engine.get_episode_time())

    def ended(self) -> str:
        return self._ended

    def state(self) -> str:
        import vizdoom

        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        with self._asking():
            x, y, angle = (self._engine.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        return f"position {x:.0f} {y:.0f}, angle {angle:.0f}"

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._engine.close()
        self._scratch.close()


class Program:
    """Any program that opens a window; nothing is known of it but its pixels."""

    def __init__(self, command: str, title: str = "") -> None:
        arguments = shlex.split(command)
        if not arguments:
            raise ValueError(f"--game {PROGRAM!r}: name a command, such as program:'crispy-doom -window'")
        mark_children()
        self.title, self._name = title, arguments[0]
        self.done, self.score = False, float("nan")
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


def open_program(game: str, title: str, scale: int = 1) -> WindowedProgram:
    """Start what `--game` names, in a window `scale` times as large as by itself.

    Raises:
        ValueError: when it cannot be started, or not at that scale.
    """
    if not game.startswith(PROGRAM):
        return DoomWindow(game_info(game), scale)
    if scale != 1:
        raise ValueError(f"--scale {scale}: a program decides itself how large its window is; use its own options")
    return Program(game.removeprefix(PROGRAM), title)
