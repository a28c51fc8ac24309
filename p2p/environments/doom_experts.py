"""Scripted agents of ViZDoom's games: they read what is on the screen from the engine's labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from p2p.actions import Action
from p2p.environments.doom_engine import TURN_DEG_PER_PIXEL, Label
from p2p.environments.game import Frame, Info


class DoomExpert(ABC):
    """Common part: chooses by `info["labels"]`, so the environment must be one with labels."""

    def reset(self, seed: int) -> None:
        self._step = 0
        self._speed = 0.0

    def act(self, observation: Frame, info: Info) -> Action:
        if "labels" not in info:
            raise ValueError("this agent needs to be told what is on the screen: open the game with labels=True")
        self._step += 1
        return self.choose(info["labels"])

    @abstractmethod
    def choose(self, labels: Sequence[Label]) -> Action:
        """The action when these are on the screen."""


class HealthGatherer(DoomExpert):
    """Turns to the nearest medikit (weighted by angle), walks when it is within 35 degrees; else turns right."""

    def choose(self, labels: Sequence[Label]) -> Action:
        kits = [label for label in labels if "Medikit" in label.name]
        if not kits:
            return Action(("RightArrow",))
        kit = min(kits, key=lambda label: label.distance * (1 + abs(label.bearing_deg) / 45))
        keys = ["w"] if abs(kit.bearing_deg) < 35 else []
        if abs(kit.bearing_deg) > 4:
            keys.append("RightArrow" if kit.bearing_deg > 0 else "LeftArrow")
        return Action(tuple(sorted(keys)))


class MedikitAvoider(DoomExpert):
    """Turns right while a medikit is within 400 units and 35 degrees; walks when there is none."""

    def choose(self, labels: Sequence[Label]) -> Action:
        kits = [label for label in labels if "Medikit" in label.name and label.distance < 400]
        return Action(("RightArrow",) if any(abs(kit.bearing_deg) < 35 for kit in kits) else ("w",))


class CenterDefender(DoomExpert):
    """Turns to the monster of least distance + 2 * angle within 420 units; fires every second frame when on it."""

    fires = True

    def choose(self, labels: Sequence[Label]) -> Action:
        monsters = [label for label in labels if _is_monster(label) and label.distance < 420]
        if not monsters:
            return Action(("RightArrow",))
        monster = min(monsters, key=lambda label: label.distance + 2 * abs(label.bearing_deg))
        angle = abs(monster.bearing_deg)
        keys = []
        if angle > 1:
            keys.append("RightArrow" if monster.bearing_deg > 0 else "LeftArrow")
        aimed = angle < max(math.degrees(math.atan2(14, monster.distance)), 1.9)
        if self.fires and aimed and self._step % 2 == 0:
            keys.append("Space")
        return Action(tuple(sorted(keys)))


class CenterWatcher(CenterDefender):
    """Turns to the monsters as CenterDefender does, and never fires."""

    fires = False


class BasicShooter(DoomExpert):
    """Strafes until the monster's lateral offset is under 14 units, fires under 22."""

    def choose(self, labels: Sequence[Label]) -> Action:
        monsters = [label for label in labels if _is_monster(label)]
        if not monsters:
            return Action(("d",))
        offset = monsters[0].lateral_offset
        keys = ["Space"] if abs(offset) < 22 else []
        if abs(offset) > 14:
            keys.append("d" if offset > 0 else "a")
        return Action(tuple(sorted(keys)))


class LineDefender(DoomExpert):
    """Aims with the mouse at the nearest monster, and fires with the left button when the aim is good."""

    max_pixels = 60

    def choose(self, labels: Sequence[Label]) -> Action:
        monsters = [label for label in labels if _is_monster(label)]
        if not monsters:
            return Action()
        monster = min(monsters, key=lambda label: label.distance + 4 * abs(label.bearing_deg))
        good = abs(monster.bearing_deg) < max(math.degrees(math.atan2(14, monster.distance)), 1.5)
        buttons = ("0",) if good and self._step % 2 == 0 else ()
        return Action((), buttons, _mouse_turn(monster.bearing_deg, self.max_pixels))


class RocketShooter(DoomExpert):
    """Aims with the mouse at where the walking monster will be when the rocket arrives; fires once on target."""

    rocket_units_per_step = 40.0
    ready_step = 16  # the launcher is up
    max_pixels = 60

    def choose(self, labels: Sequence[Label]) -> Action:
        monsters = [label for label in labels if _is_monster(label)]
        if not monsters:
            return Action((), (), self.max_pixels)
        monster = monsters[0]
        self._speed += 0.25 * (monster.lateral_speed - self._speed)
        flight_steps = monster.distance / self.rocket_units_per_step
        lead_deg = math.degrees(math.atan2(self._speed * flight_steps, monster.distance))
        target = monster.bearing_deg + lead_deg
        buttons = ("0",) if abs(target) < 2 and self._step > self.ready_step else ()
        return Action((), buttons, _mouse_turn(target, self.max_pixels))


def _is_monster(label: Label) -> bool:
    harmless = ("Player", "Puff", "Blood", "Dead", "Rocket", "Ball", "Medikit", "Clip", "Gib")
    return not any(word in label.name for word in harmless)


def _mouse_turn(bearing_deg: float, max_pixels: int) -> int:
    return max(-max_pixels, min(max_pixels, round(bearing_deg / TURN_DEG_PER_PIXEL)))
