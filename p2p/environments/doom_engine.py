"""ViZDoom's engine: how it is started, what P2P's keys are to it, and where things are on its map."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.actions import Action
from p2p.processes.scratch import Scratch, engine_memory

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


@dataclass(frozen=True)
class Label:
    """Something on the screen, as a scripted agent sees it."""

    name: str
    distance: float  # map units
    bearing_deg: float  # 0 is straight ahead, positive is to the right
    lateral_speed: float = 0.0  # map units per step across the line of sight, positive is to the right

    @property
    def lateral_offset(self) -> float:
        """How far to the right of the line of sight it is, in map units."""
        return self.distance * math.sin(math.radians(self.bearing_deg))


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
    scenario: str, scratch: Scratch, labels: bool = False, window: bool = False, ticrate: int = 35, scale: int = 1
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
        raise ValueError(f"doom:{scenario} needs the package vizdoom: pip install 'pixel2play[play]'") from error
    if scale not in WINDOW_SIZES:
        raise ValueError(
            f"--scale {scale}: the game's window can be {', '.join(map(str, WINDOW_SIZES))} times its size"
        )
    engine = vizdoom.DoomGame()
    engine.load_config(str(Path(vizdoom.scenarios_path) / f"{scenario}.cfg"))
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
    with engine_errors(scenario), contextlib.chdir(scratch.path):
        engine.init()
    scratch.remember(engine_memory() - before)
    return engine


@contextlib.contextmanager
def engine_errors(scenario: str) -> Iterator[None]:
    """The engine's own errors, such as its sudden end, become ValueErrors."""
    import vizdoom

    try:
        yield
    except (
        vizdoom.ViZDoomErrorException,
        vizdoom.ViZDoomIsNotRunningException,
        vizdoom.ViZDoomUnexpectedExitException,
    ) as error:
        raise ValueError(f"doom:{scenario}: the game has ended: {error}") from error
