"""ViZDoom without a display, stepped as fast as it is asked to.

Two tics of the engine are one step, which is P2P's 20 Hz. The picture is rendered at 320x240 and resized by the same
function that the server uses for frames of other sizes.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import numpy as np

from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.environments.doom_engine import (
    TICS_PER_STEP,
    Label,
    Pose,
    bearing_deg,
    button_values,
    engine_errors,
    running_engine,
)
from p2p.environments.environment import AnyAction, Environment, as_action
from p2p.environments.game import Frame, Outcome


class DoomEnv(Environment):
    """A scenario of ViZDoom. Terminated: the player is dead or has done it; truncated: the time is over.

    Args:
        labels: `info["labels"]` is a list of Label, of what is on the screen; it costs rendering time.
        pictures: False: observations are black, which saves time; `render` draws one all the same.
    """

    def __init__(self, scenario: str, labels: bool = False, pictures: bool = True) -> None:
        super().__init__()
        self._scenario, self._labels, self._pictures = scenario, labels, pictures
        self._stack = ExitStack()
        self._engine = self._stack.enter_context(running_engine(scenario, labels=labels))
        self._picture: Frame = np.zeros(self.observation_space.shape or (), np.uint8)
        self._last_places: dict[int, tuple[str, float, float]] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        episode_seed = self.episode_seed(seed)
        with engine_errors(self._scenario):
            self._engine.set_seed(episode_seed % 2**31)
            self._engine.new_episode()
        self._last_places = {}
        return self._observation(), self._info()

    def step(self, action: AnyAction) -> Outcome:
        with engine_errors(self._scenario):
            reward = self._engine.make_action(button_values(as_action(action)), TICS_PER_STEP)
        over = self._engine.is_episode_finished()
        truncated = over and self._engine.is_episode_timeout_reached()
        return self._observation(), float(reward), over and not truncated, truncated, self._info()

    def render(self) -> Frame:
        """The picture now, uint8 [192, 192, 3]; the last one, once the episode is over."""
        state = self._engine.get_state()
        if state is not None:
            self._picture = resize(state.screen_buffer, FRAME_SIZE, FRAME_SIZE)
        return self._picture

    def _observation(self) -> Frame:
        return self.render() if self._pictures else self._picture

    def _info(self) -> dict[str, Any]:
        return {"labels": self._find_labels()} if self._labels else {}

    def _find_labels(self) -> list[Label]:
        state = self._engine.get_state()
        if state is None:
            return []
        pose = Pose(*(float(value) for value in state.game_variables))
        places = {
            label.object_id: (label.object_name, label.object_position_x, label.object_position_y)
            for label in state.labels
        }
        found = []
        for number, (name, x, y) in places.items():
            _, old_x, old_y = self._last_places.get(number, (name, x, y))
            bearing = bearing_deg(pose, x, y)
            sight = math.radians(pose.angle_deg - bearing)  # the line of sight, against the clock from the east
            across = (x - old_x) * math.sin(sight) - (y - old_y) * math.cos(sight)
            found.append(Label(name, math.hypot(x - pose.x, y - pose.y), bearing, across))
        self._last_places = places
        return found

    def close(self) -> None:
        self._stack.close()
