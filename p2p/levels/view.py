"""What a scripted player of levels is told in each step. No network is: it gets pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2p.levels.mechanisms import Key
from p2p.levels.targets import Situation


@dataclass(frozen=True)
class Seen:
    """Something on the map. `category` is the engine's: Monster, Health, Ammo, Armor, Weapon, Key, ..."""

    number: int
    name: str
    category: str
    x: float
    y: float
    z: float
    on_screen: bool


@dataclass(frozen=True)
class View:
    """The game now, as a scripted player is told.

    Attributes:
        step: of the episode, from 0.
        x, y, z: of the player's feet; vx, vy: its velocity in map units per tic.
        angle_deg: where it looks, against the clock from the east.
        hurt_steps: how many steps ago it last lost health; large: never.
        weapon, ammo: the one in its hands, by its number key, and how often it can still fire.
        owned: numbers of the weapons that it has ammunition for.
    """

    step: int
    x: float
    y: float
    z: float
    vx: float
    vy: float
    angle_deg: float
    health: float
    armor: float
    hurt_steps: int
    weapon: int
    ammo: float
    owned: tuple[int, ...]
    situation: Situation
    things: Sequence[Seen]

    @property
    def keys(self) -> frozenset[Key]:
        """Of doors."""
        return self.situation.keys

    def distance(self, x: float, y: float) -> float:
        """From the player to a point."""
        return math.hypot(x - self.x, y - self.y)

    def bearing_deg(self, x: float, y: float) -> float:
        """By how many degrees to the right the player must turn to look at a point: in [-180, 180)."""
        absolute = math.degrees(math.atan2(y - self.y, x - self.x))
        return (self.angle_deg - absolute + 180) % 360 - 180
