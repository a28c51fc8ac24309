"""ViZDoom without a display: the engine, Freedoom and the scenario maps all come in the PyPI wheel.

Two tics of the engine are one step, which is P2P's 20 Hz. The picture is rendered at 320x240 and resized by the same
function that the server uses for frames of other sizes.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from p2p.actions import Action
from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.play.games import Frame, GameInfo, Thing
from p2p.play.reaper import mark_children
from p2p.play.scratch import Scratch, engine_memory

TICS_PER_STEP = 2
TURN_DEG_PER_PIXEL = 0.1318  # of the mouse, as in the engine's window at its default sensitivity

KEY_BUTTONS = {
    "w": "MOVE_FORWARD",
    "s": "MOVE_BACKWARD",
    "a": "MOVE_LEFT",
    "d": "MOVE_RIGHT",
    "LeftArrow": "TURN_LEFT",
    "RightArrow": "TURN_RIGHT",
    "Space": "ATTACK",
    "LeftShift": "SPEED",
}
MOUSE_BUTTONS = {"0": "ATTACK"}
_BUTTONS = (*dict.fromkeys(KEY_BUTTONS.values()), "TURN_LEFT_RIGHT_DELTA")


@dataclass(frozen=True)
class Pose:
    """Where the player stands and looks: map units, and degrees against the clock from the east."""

    x: float
    y: float
    angle_deg: float


def bearing_deg(pose: Pose, x: float, y: float) -> float:
    """By how many degrees to the right the player must turn to look at (x, y): in [-180, 180)."""
    absolute = math.degrees(math.atan2(y - pose.y, x - pose.x))
    return (pose.angle_deg - absolute + 180) % 360 - 180


def button_values(action: Action) -> list[float]:
    """The engine's buttons for one step: 0 or 1, and last the turn by the mouse in degrees per tic."""
    held = {KEY_BUTTONS.get(key) for key in action.keys} | {MOUSE_BUTTONS.get(name) for name in action.buttons}
    pressed = [1.0 if button in held else 0.0 for button in _BUTTONS[:-1]]
    return [*pressed, action.dx * TURN_DEG_PER_PIXEL / TICS_PER_STEP]


SETTINGS_FILE = "engine.ini"
WINDOW_SIZES = {1: "RES_320X240", 2: "RES_640X480", 4: "RES_1280X960"}  # by --scale


def make_engine(
    info: GameInfo, scratch: Scratch, labels: bool = False, window: bool = False, ticrate: int = 35, scale: int = 1
) -> Any:
    """ViZDoom's engine with a scenario loaded.

    Args:
        scratch: where the engine starts and has its SETTINGS_FILE, made when it is not there; its shared memory
            goes with it.
        labels: let the engine say what is on the screen.
        window: run by itself in a window, `ticrate` tics a second, with the keyboard and the mouse, instead of
            step by step without one.
        scale: of the picture, which is 320 x 240 by itself.

    Raises:
        ValueError: when ViZDoom is not installed, or there is no such scale.
    """
    try:
        import vizdoom
    except ImportError as error:
        raise ValueError(f"{info.name} needs the package vizdoom: pip install 'pixel2play[play]'") from error
    if scale not in WINDOW_SIZES:
        raise ValueError(
            f"--scale {scale}: the game's window can be {', '.join(map(str, WINDOW_SIZES))} times its size"
        )
    engine = vizdoom.DoomGame()
    engine.load_config(str(Path(vizdoom.scenarios_path) / f"{info.scenario}.cfg"))
    engine.set_doom_config_path(str(scratch.path / SETTINGS_FILE))
    engine.set_available_buttons([getattr(vizdoom.Button, name) for name in _BUTTONS])
    engine.set_available_game_variables(
        [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y, vizdoom.GameVariable.ANGLE]
    )
    engine.set_screen_resolution(getattr(vizdoom.ScreenResolution, WINDOW_SIZES[scale]))
    engine.set_screen_format(vizdoom.ScreenFormat.RGB24)
    engine.set_labels_buffer_enabled(labels)
    engine.set_window_visible(window)
    engine.set_sound_enabled(False)
    engine.set_mode(vizdoom.Mode.ASYNC_SPECTATOR if window else vizdoom.Mode.PLAYER)
    engine.set_ticrate(ticrate)
    engine.set_episode_timeout(engine.get_episode_timeout() or 2100)
    before = engine_memory()
    # The engine makes a folder of its own where it starts.
    with engine_errors(info.name), contextlib.chdir(scratch.path):
        engine.init()
    scratch.remember(engine_memory() - before)
    return engine


@contextlib.contextmanager
def engine_errors(game: str) -> Iterator[None]:
    """The engine's own errors, such as its sudden end, become ValueErrors."""
    import vizdoom

    try:
        yield
    except (
        vizdoom.ViZDoomErrorException,
        vizdoom.ViZDoomIsNotRunningException,
        vizdoom.ViZDoomUnexpectedExitException,
    ) as error:
        raise ValueError(f"{game}: the game has ended: {error}") from error


class HeadlessDoom:
    """A scenario of ViZDoom, stepped as fast as it is asked to."""

    def __init__(self, info: GameInfo, labels: bool = False) -> None:
        self._info = info
        self._labels = labels
        mark_children()
        self._scratch = Scratch("doom")  # the engine writes its settings file there
        self._engine = make_engine(info, self._scratch, labels=labels)
        self._last_frame: Frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._last_places: dict[int, tuple[str, float, float]] = {}

    def reset(self, seed: int) -> None:
        with engine_errors(self._info.name):
            self._engine.set_seed(seed % 2**31)
            self._engine.new_episode()
        self._last_places = {}

    def frame(self) -> Frame:
        state = self._engine.get_state()
        if state is not None:  # there is none once the episode is over
            self._last_frame = resize(state.screen_buffer, FRAME_SIZE, FRAME_SIZE)
        return self._last_frame

    def act(self, action: Action) -> None:
        if self._labels:
            self._last_places = self._places()
        with engine_errors(self._info.name):
            self._engine.make_action(button_values(action), TICS_PER_STEP)

    def _places(self) -> dict[int, tuple[str, float, float]]:
        """Name and map position of each object on the screen, by its number."""
        state = self._engine.get_state()
        labels = state.labels if state is not None else ()
        return {
            label.object_id: (label.object_name, label.object_position_x, label.object_position_y) for label in labels
        }

    def things(self) -> list[Thing]:
        state = self._engine.get_state()
        if state is None:
            return []
        pose = Pose(*(float(value) for value in state.game_variables))
        found = []
        for number, (name, x, y) in self._places().items():
            _, old_x, old_y = self._last_places.get(number, (name, x, y))
            bearing = bearing_deg(pose, x, y)
            sight = math.radians(pose.angle_deg - bearing)  # the line of sight, against the clock from the east
            across = (x - old_x) * math.sin(sight) - (y - old_y) * math.cos(sight)
            found.append(Thing(name, math.hypot(x - pose.x, y - pose.y), bearing, across))
        return found

    @property
    def done(self) -> bool:
        return bool(self._engine.is_episode_finished())

    @property
    def score(self) -> float:
        return float(self._engine.get_total_reward())

    def close(self) -> None:
        self._engine.close()
        self._scratch.close()

    def __enter__(self) -> "HeadlessDoom":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
