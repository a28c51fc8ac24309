"""ViZDoom's engine: how it is started, what P2P's keys are to it, and where things are on its map."""

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.actions import Action
from p2p.processes.reaper import mark_children
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
LEVEL_KEY_BUTTONS = {
    **KEY_BUTTONS,
    "e": "USE",
    **{str(number): f"SELECT_WEAPON{number}" for number in range(1, 5)},
}
MOUSE_BUTTONS = {"0": "ATTACK"}


@dataclass(frozen=True)
class LevelMap:
    """A whole level of a game file that comes with ViZDoom, from its start, at normal skill.

    `iwad`: freedoom1 or freedoom2. `name`: such as MAP01. `max_tics`: then the episode is over.
    """

    iwad: str
    name: str
    monsters: bool = True
    max_tics: int = 2100

    @property
    def path(self) -> Path:
        """The WAD file.

        Raises:
            ValueError: when ViZDoom is not installed.
        """
        spec = importlib.util.find_spec("vizdoom")
        if spec is None or spec.origin is None:
            raise ValueError(f"doom:{self} needs the package vizdoom: pip install 'pixel2play[play]'")
        return Path(spec.origin).parent / f"{self.iwad}.wad"

    def __str__(self) -> str:
        return f"{self.iwad}:{self.name}" + ("" if self.monsters else ":no_monsters")


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


def button_names(keys: Mapping[str, str]) -> list[str]:
    """The engine's buttons for a game with these keys: each once, and last the mouse."""
    return [*dict.fromkeys(keys.values()), "TURN_LEFT_RIGHT_DELTA"]


def button_values(action: Action, keys: Mapping[str, str] = KEY_BUTTONS) -> list[float]:
    """The engine's buttons for one step: 0 or 1, and last the turn by the mouse in degrees per tic."""
    held = {keys.get(key) for key in action.keys} | {MOUSE_BUTTONS.get(name) for name in action.buttons}
    pressed = [1.0 if button in held else 0.0 for button in button_names(keys)[:-1]]
    return [*pressed, action.dx * TURN_DEG_PER_PIXEL / TICS_PER_STEP]


_SETTINGS_FILE = "engine.ini"
NORMAL_SKILL = 3
LEVEL_START_TIC = 10  # before it, the player of a level does not move
POSE_VARIABLES: tuple[str, ...] = ("POSITION_X", "POSITION_Y", "ANGLE")
LEVEL_VARIABLES: tuple[str, ...] = (
    *("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "VELOCITY_X", "VELOCITY_Y", "HEALTH", "ARMOR", "KILLCOUNT"),
    *("SELECTED_WEAPON", "SELECTED_WEAPON_AMMO", "WEAPON2", "WEAPON3", "WEAPON4", "AMMO2", "AMMO3", "AMMO4"),
)
WINDOW_SIZES = {1: "RES_320X240", 2: "RES_640X480", 4: "RES_1280X960"}  # by --scale


@contextlib.contextmanager
def running_engine(
    content: str | LevelMap,
    settings: str = "",
    labels: bool = False,
    window: bool = False,
    ticrate: int = 35,
    scale: int = 1,
) -> Iterator[Any]:
    """ViZDoom's engine with a scenario or a level loaded, which ends with the block and leaves nothing.

    Args:
        content: the name of a scenario, or a level.
        settings: the content of its settings file, if it is not to make one: bindings are read from there only.
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
        raise ValueError(f"doom:{content} needs the package vizdoom: pip install 'pixel2play[play]'") from error
    if scale not in WINDOW_SIZES:
        raise ValueError(
            f"--scale {scale}: the game's window can be {', '.join(map(str, WINDOW_SIZES))} times its size"
        )
    mark_children()
    with closing(Scratch("doom")) as scratch:
        if settings:
            (scratch.path / _SETTINGS_FILE).write_text(settings)
        engine = vizdoom.DoomGame()
        _load(engine, content)
        _set_up(engine, labels, window, scale)
        engine.set_doom_config_path(str(scratch.path / _SETTINGS_FILE))
        engine.set_ticrate(ticrate)
        before = engine_memory()
        # The engine makes a folder of its own where it starts.
        with engine_errors(str(content)), contextlib.chdir(scratch.path):
            engine.init()
        scratch.remember(engine_memory() - before)
        try:
            yield engine
        finally:
            engine.close()


def _set_up(engine: Any, labels: bool, window: bool, scale: int) -> None:
    import vizdoom

    engine.set_screen_resolution(getattr(vizdoom.ScreenResolution, WINDOW_SIZES[scale]))
    engine.set_screen_format(vizdoom.ScreenFormat.RGB24)
    engine.set_labels_buffer_enabled(labels)
    engine.set_window_visible(window)
    engine.set_sound_enabled(False)
    engine.set_mode(vizdoom.Mode.ASYNC_SPECTATOR if window else vizdoom.Mode.PLAYER)


def _load(engine: Any, content: str | LevelMap) -> None:
    import vizdoom

    if isinstance(content, str):
        engine.load_config(str(Path(vizdoom.scenarios_path) / f"{content}.cfg"))
        engine.set_episode_timeout(engine.get_episode_timeout() or 2100)
        keys, variables = KEY_BUTTONS, POSE_VARIABLES
    else:
        engine.set_doom_game_path(str(content.path))
        engine.set_doom_map(content.name)
        engine.set_doom_skill(NORMAL_SKILL)
        if not content.monsters:
            engine.add_game_args("-nomonsters")
        engine.set_episode_start_time(LEVEL_START_TIC)
        engine.set_episode_timeout(content.max_tics)
        engine.set_objects_info_enabled(True)
        engine.set_sectors_info_enabled(True)
        keys, variables = LEVEL_KEY_BUTTONS, LEVEL_VARIABLES
    engine.set_available_buttons([getattr(vizdoom.Button, name) for name in button_names(keys)])
    engine.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in variables])


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
