"""A program in a window on an X display, which runs by itself: pixels are grabbed, keys and mouse are real events.

This is what Recap does on Windows, on any X display (a virtual one when there is none).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from p2p.actions import Action
from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.desktop.capture import WindowCapture
from p2p.desktop.display import find_window, focus, open_display, virtual_display
from p2p.desktop.input import InputDevice
from p2p.desktop.person import PersonWatch, SharedControls
from p2p.environments.environment import AnyAction, Environment, as_action
from p2p.environments.game import Frame, Outcome


class WindowedProgram(Protocol):
    """What has the window; it goes on by itself."""

    @property
    def title(self) -> str:
        """Part of the window's title."""

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
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


class WindowEnv(Environment):
    """A program that goes on by itself, and whoever sits before it: an agent, or a person, to whom the agent yields.

    `hold` executes an answer at once; `observe` returns what `step` does without doing anything; `step` is both, and
    does not wait: `rollout` keeps the pace. Of a step, `info` says who did it: `user`, what a person did, or `system`,
    what the agent did (an Action; None for who did not play), and `time_ns`, when the picture was grabbed (monotonic).
    The reward is the program's score, at the end of the episode.

    `program`, `device` and `person` (a `PersonWatch`) are those of the window; `description` says what was found.

    Args:
        open_program: starts it; called when there is a display.
    """

    def __init__(self, open_program: Callable[[], WindowedProgram]) -> None:
        super().__init__()
        self._was_moved = False
        with ExitStack() as stack:
            name = os.environ.get("DISPLAY") or stack.enter_context(_own_display())
            self.program = open_program()
            stack.callback(self.program.close)
            connection = open_display(name)
            stack.callback(connection.close)
            window = find_window(connection, self.program.title, self.program.process)
            geometry = window.get_geometry()
            self._capture = WindowCapture(name, window.id, geometry.width, geometry.height)
            stack.callback(self._capture.close)
            self.device = InputDevice(connection)
            stack.callback(self.device.release)
            self.person = PersonWatch(name, self.device)
            stack.callback(self.person.close)
            self._controls = SharedControls(self.device, self.person)
            focus(connection, window)
            self.description = f"display {name}, window {window.get_wm_name()!r}, {geometry.width} x {geometry.height}"
            self._stack = stack.pop_all()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        if not self._was_moved:
            self.device.hold(Action(dx=1))  # the first motion after the focus is swallowed
            self._was_moved = True
        self._controls.release()
        self.program.new_episode(self.episode_seed(seed))
        now_ns = time.monotonic_ns()
        return self.render(), {"user": None, "system": None, "time_ns": now_ns}

    def step(self, action: AnyAction) -> Outcome:
        self.hold(as_action(action))
        return self.observe()

    def hold(self, action: Action) -> None:
        """Exactly these keys and buttons are down from now on, the mouse moves; nothing, while a person plays."""
        self._controls.execute(action)

    def observe(self) -> Outcome:
        """The picture now, and what was done since the last one."""
        user, system = self._controls.done()
        over = self.program.done
        now_ns = time.monotonic_ns()
        info = {"user": user, "system": system, "time_ns": now_ns}
        return self.render(), self.program.score if over else 0.0, over, False, info

    def render(self) -> Frame:
        """The window now, uint8 [192, 192, 3].

        Raises:
            ValueError: when it is gone, with how the program ended if it did.
        """
        try:
            picture = self._capture.grab()
        except ValueError as error:
            raise ValueError(self.program.ended() or str(error)) from error
        return resize(picture, FRAME_SIZE, FRAME_SIZE)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def _own_display() -> Iterator[str]:
    """A virtual display, which the programs started meanwhile find in their environment."""
    with virtual_display() as name:
        os.environ["DISPLAY"] = name
        try:
            yield name
        finally:
            del os.environ["DISPLAY"]
