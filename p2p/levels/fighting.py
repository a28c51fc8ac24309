"""Monsters and items: whom to shoot at, from where, and what is worth a few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2p.actions import Action
from p2p.levels.route import Planner
from p2p.levels.view import Seen, View
from p2p.levels.walking import Move, act_on, turn_pixels

SIGHT = 1400.0  # farther away nobody is worth a shot
ENGAGE = 700.0  # nearer than this it stands and fights
RETREAT = 160.0
AIM_GAIN, AIM_PX = 0.55, 130
EYES = 41.0  # above the feet
ITEM_REACH = 220.0
BEST_WEAPONS = (4, 3, 2)
MELEE = ("Demon", "Spectre", "LostSoul")


@dataclass(frozen=True)
class Fight:
    """One monster to fight now."""

    monster: Seen

    def action(self, view: View, move: Move, keys: tuple[str, ...]) -> Action:
        """Turn to it, fire when the aim is good, and do not stand still."""
        monster = self.monster
        bearing = view.bearing_deg(monster.x, monster.y)
        away = view.distance(monster.x, monster.y)
        good = abs(bearing) < max(math.degrees(math.atan2(12, away)), 1.2)
        fires = ("0",) if good else ()
        look = (monster.x, monster.y)
        if away > ENGAGE:  # keep going, and shoot on the way
            action = act_on(Move(move.x, move.y, look, move.speed, move.pass_by), view, keys, fires)
        else:
            action = act_on(self._dodge(view, away), view, keys, fires)
        weapon = _better_weapon(view)
        held = (*action.keys, weapon) if weapon else action.keys
        return Action(tuple(sorted(held)), action.buttons, turn_pixels(bearing, AIM_GAIN, AIM_PX))

    def _dodge(self, view: View, away: float) -> Move:
        """Sideways, the other way every second or so; away from what is near."""
        ux, uy = (self.monster.x - view.x) / max(away, 1), (self.monster.y - view.y) / max(away, 1)
        side = 1 if (view.step // 14) % 2 else -1
        back = 60 if away < RETREAT else 0
        x, y = view.x + side * 60 * uy - back * ux, view.y - side * 60 * ux - back * uy
        return Move(x, y, (self.monster.x, self.monster.y))


def find_fight(view: View, planner: Planner) -> Fight | None:
    """The monster to fight: the one that is nearest and least aside among those that can be hit."""
    if view.ammo <= 0 and not any(weapon in view.owned for weapon in BEST_WEAPONS):
        return None
    found = []
    for thing in view.things:
        if thing.category != "Monster":
            continue
        away = view.distance(thing.x, thing.y)
        bearing = abs(view.bearing_deg(thing.x, thing.y))
        noticed = thing.on_screen or (view.hurt_steps < 20 and away < 600)
        if away < SIGHT and noticed and planner.sees(view.x, view.y, view.z + EYES, thing.x, thing.y, thing.z + 30, view.situation):
            found.append((away + 3 * bearing, thing.number, thing))
    return Fight(min(found)[2]) if found else None


def _better_weapon(view: View) -> str:
    for weapon in BEST_WEAPONS:
        if weapon in view.owned:
            return "" if weapon == view.weapon else str(weapon)
    return ""


def useful_item(view: View, planner: Planner) -> Seen | None:
    """Something near, straight ahead to walk to, that is needed."""
    found = []
    for thing in view.things:
        away = view.distance(thing.x, thing.y)
        if away < ITEM_REACH and _is_useful(thing, view) and planner.straight_to(view.x, view.y, thing.x, thing.y, view.situation):
            found.append((away, thing.number, thing))
    return min(found)[2] if found else None


def _is_useful(thing: Seen, view: View) -> bool:
    if thing.category == "Health":
        big = thing.name in ("Stimpack", "Medikit")
        return view.health < (90 if thing.name == "Stimpack" else 76) if big else thing.name in ("Soulsphere", "Megasphere")
    if thing.category == "Armor":
        return thing.name != "ArmorBonus" and view.armor < 50
    if thing.category == "Weapon":
        numbers = {"Shotgun": 3, "Chaingun": 4}
        return thing.name in numbers and numbers[thing.name] not in view.owned
    return thing.category == "Ammo" and view.ammo < 40 and thing.name in ("Clip", "ClipBox", "Shell", "ShellBox", "Backpack")
