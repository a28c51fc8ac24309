"""A whole level of Doom without a display: the reward is the way covered, in per cent, and the exit is its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.environments.doom_engine import (
    LEVEL_KEY_BUTTONS,
    LEVEL_VARIABLES,
    TICS_PER_STEP,
    LevelMap,
    button_values,
    engine_errors,
    running_engine,
)
from p2p.environments.doom_yardstick import max_seconds, yardstick
from p2p.environments.environment import AnyAction, Environment, as_action
from p2p.environments.game import Frame
from p2p.levels.mechanisms import Key
from p2p.levels.progress import Progress
from p2p.levels.targets import Situation
from p2p.levels.view import Seen, View

START_STEPS = 10  # of random keys before an episode, so that seeds differ where nothing else is random
SETTLING_TICS = 20  # of rest: the weapon swings by at most 16 units, and each drawing takes off one
KEY_COLOURS: dict[str, Key] = {"Blue": "blue", "Yellow": "yellow", "Red": "red"}
LONG_AGO = 1_000_000


class DoomLevelEnv(Environment):
    """Terminated: the exit was reached, or the player is dead; truncated: the time is over.

    `info` holds `progress` (0 to 1), `exited`, `dead`, `kills`, `health` and `position` (x, y): for scores and
    drawings, not for a policy.

    Args:
        labels: `info["view"]` is a `View`, for the scripted player; it costs rendering time.
        pictures: False: observations are black, which saves time; `render` draws one all the same.
        seconds: how long an episode lasts; 0: as long as the way allows (`max_seconds`).
    """

    def __init__(self, level: LevelMap, labels: bool = False, pictures: bool = True, seconds: float = 0) -> None:
        super().__init__()
        self._yardstick = yardstick(level.iwad, level.name)
        seconds = seconds or max_seconds(self._yardstick.length)
        num_steps = START_STEPS + round(seconds * FRAME_RATE_HZ)
        self._level = replace(level, max_tics=num_steps * TICS_PER_STEP)
        self._labels, self._pictures = labels, pictures
        self._stack = ExitStack()
        self._engine = self._stack.enter_context(running_engine(self._level, labels=labels))
        self._picture: Frame = np.zeros(self.observation_space.shape or (), np.uint8)
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        episode_seed = self.episode_seed(seed)
        self._step, self._health, self._hurt_step = 0, 100.0, -LONG_AGO
        self._progress, self._rewarded = Progress(self._yardstick), 0.0
        self._heights: Situation | None = None
        self._had_keys: frozenset[Key] = frozenset()
        self._told: dict[str, Any] = {}
        with engine_errors(str(self._level)):
            self._forget_last_episode()
            self._engine.set_seed(episode_seed % 2**31)
            self._engine.new_episode()
            self._had_keys = self._keys_left()
            for action in start_actions(episode_seed):
                self._engine.make_action(button_values(action, LEVEL_KEY_BUTTONS), TICS_PER_STEP)
        return self._observe(), self._told

    def _forget_last_episode(self) -> None:
        """Two things outlive an episode in the engine: a key that chooses a weapon, and how far the weapon
        swings, which follows the player's speed by a step each time it is drawn.
        """
        self._engine.new_episode()
        for _ in range(SETTLING_TICS):
            self._engine.make_action(button_values(Action(), LEVEL_KEY_BUTTONS))

    def step(self, action: AnyAction) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        with engine_errors(str(self._level)):
            self._engine.make_action(button_values(as_action(action), LEVEL_KEY_BUTTONS), TICS_PER_STEP)
        self._step += 1
        picture = self._observe()
        over = bool(self._engine.is_episode_finished())
        truncated = over and bool(self._engine.is_episode_timeout_reached())
        dead = bool(self._engine.is_player_dead())
        exited = over and not truncated and not dead
        if exited:
            self._progress.finish()
        share = self._progress.share
        reward, self._rewarded = 100 * (share - self._rewarded), share
        self._told = {**self._told, "progress": share, "dead": dead, "exited": exited}
        return picture, reward, over and not truncated, truncated, self._told

    def render(self) -> Frame:
        """The picture now, uint8 [192, 192, 3]; the last one, once the episode is over."""
        state = self._engine.get_state()
        if state is not None:
            self._picture = resize(state.screen_buffer, FRAME_SIZE, FRAME_SIZE)
        return self._picture

    def _observe(self) -> Frame:
        """The picture; what else there is to tell is kept in `_told`."""
        self._state = self._engine.get_state()
        if self._state is not None:  # there is none once the episode is over
            if self._pictures:
                self._picture = resize(self._state.screen_buffer, FRAME_SIZE, FRAME_SIZE)
            variables = dict(zip(LEVEL_VARIABLES, map(float, self._state.game_variables), strict=True))
            self._tell(variables)
        return self._picture

    def _tell(self, variables: Mapping[str, float]) -> None:
        now = self._situation()
        x, y, health = variables["POSITION_X"], variables["POSITION_Y"], variables["HEALTH"]
        if health < self._health:
            self._hurt_step = self._step
        self._health = health
        self._told = {
            "progress": self._progress.update(x, y, now),
            "exited": False,
            "dead": False,
            "kills": int(variables["KILLCOUNT"]),
            "health": health,
            "position": (x, y),
        }
        if self._labels:
            self._told["view"] = self._view(variables, now)

    def _situation(self) -> Situation:
        sectors = self._state.sectors
        floor = np.array([int(sector.floor_height) for sector in sectors], np.int64)
        ceiling = np.array([int(sector.ceiling_height) for sector in sectors], np.int64)
        moving: frozenset[int] = frozenset()
        if self._heights is not None:
            changed = (floor != self._heights.floor) | (ceiling != self._heights.ceiling)
            moving = frozenset(np.flatnonzero(changed).tolist())
        self._heights = Situation(floor, ceiling, self._had_keys - self._keys_left(), moving)
        return self._heights

    def _keys_left(self) -> frozenset[Key]:
        """The colours of keys that still lie on the map."""
        state = self._engine.get_state()
        names = [thing.name for thing in state.objects if thing.category == "Key"] if state is not None else []
        return frozenset(key for name in names for word, key in KEY_COLOURS.items() if name.startswith(word))

    def _view(self, variables: Mapping[str, float], now: Situation) -> View:
        on_screen = {label.object_id for label in self._state.labels}
        things = [
            Seen(t.id, t.name, t.category, t.position_x, t.position_y, t.position_z, t.id in on_screen)
            for t in self._state.objects
        ]
        return View(
            step=self._step,
            x=variables["POSITION_X"],
            y=variables["POSITION_Y"],
            z=variables["POSITION_Z"],
            vx=variables["VELOCITY_X"],
            vy=variables["VELOCITY_Y"],
            angle_deg=variables["ANGLE"],
            health=variables["HEALTH"],
            armor=variables["ARMOR"],
            hurt_steps=self._step - self._hurt_step,
            weapon=int(variables["SELECTED_WEAPON"]),
            ammo=variables["SELECTED_WEAPON_AMMO"],
            owned=tuple(n for n in (2, 3, 4) if variables[f"WEAPON{n}"] and variables[f"AMMO{n}"] > 0),
            situation=now,
            things=things,
        )

    def close(self) -> None:
        self._stack.close()


def start_actions(seed: int) -> list[Action]:
    """The random keys before an episode."""
    rng = np.random.default_rng((seed, 4))
    turn = int(rng.integers(-60, 61))
    keys = [("w",), ("s",), ("a",), ("d",), ()]
    choices = rng.integers(len(keys), size=2).tolist()
    return [Action(keys[choices[2 * step // START_STEPS]], (), turn) for step in range(START_STEPS)]
