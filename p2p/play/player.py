"""Players that need no network: scripted ones that read what is on the screen, and the controls they are compared with.

A player answers each frame with the `Action` that is to be held for one step.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from p2p.actions import Action
from p2p.play.doom import TURN_DEG_PER_PIXEL
from p2p.play.games import Frame, Game, GameInfo, Thing

NOTHING = Action()


class Player(Protocol):
    """Whatever can play: a script, dice, a policy behind a socket."""

    def begin(self, game: Game, seed: int) -> None:
        """A new episode of `game` has begun."""

    def act(self, frame: Frame) -> Action:
        """What to hold for the next step, given the picture now."""


class _Scripted:
    """Common part of the scripted players: they look at the game's things, not at the picture."""

    def begin(self, game: Game, seed: int) -> None:
        self._game = game
        self._step = 0
        self._speed = 0.0

    def act(self, frame: Frame) -> Action:
        self._step += 1
        return self.choose(self._game.things())

    def choose(self, things: list[Thing]) -> Action:
        raise NotImplementedError


class HealthGatherer(_Scripted):
    """Turns to the nearest medikit (weighted by angle), walks when it is within 35 degrees; else turns right."""

    def choose(self, things: list[Thing]) -> Action:
        kits = [thing for thing in things if "Medikit" in thing.name]
        if not kits:
            return Action(("RightArrow",))
        kit = min(kits, key=lambda thing: thing.distance * (1 + abs(thing.bearing_deg) / 45))
        keys = ["w"] if abs(kit.bearing_deg) < 35 else []
        if abs(kit.bearing_deg) > 4:
            keys.append("RightArrow" if kit.bearing_deg > 0 else "LeftArrow")
        return Action(tuple(sorted(keys)))


class MedikitAvoider(_Scripted):
    """Turns right while a medikit is within 400 units and 35 degrees; walks when there is none."""

    def choose(self, things: list[Thing]) -> Action:
        kits = [thing for thing in things if "Medikit" in thing.name and thing.distance < 400]
        return Action(("RightArrow",) if any(abs(kit.bearing_deg) < 35 for kit in kits) else ("w",))


class CenterDefender(_Scripted):
    """Turns to the monster of least distance + 2 * angle within 420 units; fires every second frame when on it."""

    fires = True

    def choose(self, things: list[Thing]) -> Action:
        monsters = [thing for thing in things if _is_monster(thing) and thing.distance < 420]
        if not monsters:
            return Action(("RightArrow",))
        monster = min(monsters, key=lambda thing: thing.distance + 2 * abs(thing.bearing_deg))
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


class BasicShooter(_Scripted):
    """Strafes until the monster's lateral offset is under 14 units, fires under 22."""

    def choose(self, things: list[Thing]) -> Action:
        monsters = [thing for thing in things if _is_monster(thing)]
        if not monsters:
            return Action(("d",))
        offset = monsters[0].lateral_offset
        keys = ["Space"] if abs(offset) < 22 else []
        if abs(offset) > 14:
            keys.append("d" if offset > 0 else "a")
        return Action(tuple(sorted(keys)))


class LineDefender(_Scripted):
    """Aims with the mouse at the nearest monster, and fires with the left button when the aim is good."""

    max_pixels = 60

    def choose(self, things: list[Thing]) -> Action:
        monsters = [thing for thing in things if _is_monster(thing)]
        if not monsters:
            return NOTHING
        monster = min(monsters, key=lambda thing: thing.distance + 4 * abs(thing.bearing_deg))
        good = abs(monster.bearing_deg) < max(math.degrees(math.atan2(14, monster.distance)), 1.5)
        buttons = ("0",) if good and self._step % 2 == 0 else ()
        return Action((), buttons, _mouse_turn(monster.bearing_deg, self.max_pixels))


class RocketShooter(_Scripted):
    """Aims with the mouse at where the walking monster will be when the rocket arrives; fires once on target."""

    rocket_units_per_step = 40.0
    ready_step = 16  # the launcher is up
    max_pixels = 60

    def choose(self, things: list[Thing]) -> Action:
        monsters = [thing for thing in things if _is_monster(thing)]
        if not monsters:
            return Action((), (), self.max_pixels)
        monster = monsters[0]
        self._speed += 0.25 * (monster.lateral_speed - self._speed)
        flight_steps = monster.distance / self.rocket_units_per_step
        lead_deg = math.degrees(math.atan2(self._speed * flight_steps, monster.distance))
        target = monster.bearing_deg + lead_deg
        buttons = ("0",) if abs(target) < 2 and self._step > self.ready_step else ()
        return Action((), buttons, _mouse_turn(target, self.max_pixels))


def _is_monster(thing: Thing) -> bool:
    harmless = ("Player", "Puff", "Blood", "Dead", "Rocket", "Ball", "Medikit", "Clip", "Gib")
    return not any(word in thing.name for word in harmless)


def _mouse_turn(bearing_deg: float, max_pixels: int) -> int:
    return max(-max_pixels, min(max_pixels, round(bearing_deg / TURN_DEG_PER_PIXEL)))


_SCRIPTED: dict[str, type[_Scripted]] = {
    "doom:health_gathering": HealthGatherer,
    "doom:defend_the_center": CenterDefender,
    "doom:basic": BasicShooter,
    "doom:defend_the_line": LineDefender,
    "doom:predict_position": RocketShooter,
}
_CONTRARY: dict[str, type[_Scripted]] = {
    "doom:health_gathering": MedikitAvoider,
    "doom:defend_the_center": CenterWatcher,
}
SCRIPTED = {"expert": _SCRIPTED, "contrary": _CONTRARY}


def scripted_player(info: GameInfo, name: str = "expert") -> Player:
    """A scripted player of a game: its expert, or the contrary one, that does not do what the game is about.

    Raises:
        ValueError: for another name, or when the game has no such player.
    """
    if name not in SCRIPTED:
        raise ValueError(f"scripted player {name!r}: choose one of {', '.join(SCRIPTED)}")
    if info.name not in SCRIPTED[name]:
        kind = "scripted player" if name == "expert" else f"scripted player {name!r}"
        raise ValueError(f"{info.name} has no {kind}; those with one are {', '.join(SCRIPTED[name])}")
    return SCRIPTED[name][info.name]()


class RandomPlayer:
    """Random keys, buttons and turns of the game's own vocabulary, each choice held for 1 to 10 steps."""

    def __init__(self, info: GameInfo) -> None:
        self._info = info

    def begin(self, game: Game, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))
        self._left = 0
        self._action = NOTHING

    def act(self, frame: Frame) -> Action:
        if self._left == 0:
            self._left = int(self._rng.integers(1, 11))
            self._action = random_action(self._info, self._rng)
        self._left -= 1
        return self._action


def random_action(info: GameInfo, rng: np.random.Generator) -> Action:
    """Each key and button of the game's vocabulary is down with probability 1/2; the mouse turns by up to 60 pixels."""
    keys = tuple(key for key in info.keys if rng.random() < 0.5)
    buttons = tuple(button for button in info.buttons if rng.random() < 0.5)
    return Action(keys, buttons, int(rng.integers(-60, 61)) if info.mouse else 0)


class IdlePlayer:
    """Presses nothing."""

    def begin(self, game: Game, seed: int) -> None:
        return

    def act(self, frame: Frame) -> Action:
        return NOTHING


class BlindPlayer:
    """Draws each step's action from those that a player took, as often as it took them, without looking."""

    def __init__(self, actions: Sequence[Action]) -> None:
        if not actions:
            raise ValueError("the blind player has no actions to draw from; give at least one episode of them")
        self._actions = actions

    def begin(self, game: Game, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 2))

    def act(self, frame: Frame) -> Action:
        return self._actions[int(self._rng.integers(len(self._actions)))]


class Disturbed:
    """Executes short bursts of random actions now and then, while `intended` stays what the player would have done.

    So recordings hold mistakes and the way back from them, all labelled with what the player wanted.
    """

    def __init__(self, player: Player, info: GameInfo, rate: float, longest_steps: int = 8) -> None:
        self._player, self._info = player, info
        self._rate, self._longest = rate, longest_steps
        self.intended = NOTHING

    def begin(self, game: Game, seed: int) -> None:
        self._player.begin(game, seed)
        self._rng = np.random.default_rng((seed, 3))
        self._left = 0
        self._burst = NOTHING

    def act(self, frame: Frame) -> Action:
        self.intended = self._player.act(frame)
        if self._left == 0 and self._rng.random() < self._rate:
            self._left = int(self._rng.integers(1, self._longest + 1))
            self._burst = random_action(self._info, self._rng)
        if self._left == 0:
            return self.intended
        self._left -= 1
        return self._burst
