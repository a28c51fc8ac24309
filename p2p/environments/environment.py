"""The interface of every environment: Gymnasium's, with P2P's pictures and P2P's keys and mouse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from p2p.actions import BUTTON_NAMES, FRAME_RATE_HZ, KEY_NAMES, MOUSE_X_MEAN, MOUSE_Y_MEAN, Action
from p2p.config import FRAME_SIZE
from p2p.environments.game import Frame

AnyAction = Action | Mapping[str, ArrayLike]


class Environment(gymnasium.Env[Frame, Any]):
    """Steps of 1/20 s of the game's time.

    The observation is uint8 [192, 192, 3], RGB. `step` takes an `Action`, such as `Session.act` gives, or a sample of
    the action space: a Dict of `keys` [19] and `buttons` [3], each 0 or 1, and `mouse` [2], pixels to the right and
    down. `as_action` makes one of both; `Action.to_sample` goes back. What a game does not know has no effect.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAME_RATE_HZ}  # noqa: RUF012

    def __init__(self) -> None:
        self.render_mode = "rgb_array"
        self.observation_space = spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        farthest = np.array([MOUSE_X_MEAN[-1], MOUSE_Y_MEAN[-1]], np.int32)
        parts = {
            "keys": spaces.MultiBinary(len(KEY_NAMES) - 1),
            "buttons": spaces.MultiBinary(len(BUTTON_NAMES) - 1),
            "mouse": spaces.Box(-farthest, farthest, dtype=np.int32),
        }
        self.action_space = spaces.Dict(parts)

    def episode_seed(self, seed: int | None) -> int:
        """The seed of the episode that `reset(seed=seed)` begins: drawn, when none is given."""
        super().reset(seed=seed)
        return int(self.np_random.integers(2**31)) if seed is None else seed


def as_action(action: AnyAction) -> Action:
    """An action that `step` was given; ValueError when it is none."""
    return action if isinstance(action, Action) else Action.from_sample(action)
