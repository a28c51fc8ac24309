"""Monsters and items: whom to shoot at, from where, and what is worth a few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2p.actions import Action
from p2p.levels.route import Planner
from p2p.levels.sight import sees
from p2p.levels.view import Seen, View
from p2p.levels.walking import Move, act_on, turn_pixels

SIGHT = 1400.0  # farther away nobody is worth a shot
ENGAGE = 700.0  # nearer than this it stands and fights
RETREAT = 160.0
AIM_GAIN, AIM_PX = 0.55, 130
EYES = 41.0  # above the feet
ITEM_REACH = 220.0
BEST_WEAPONS = (4, 3, 2)
HALF_HEIGHT = 30.0  # of a monster
USEFUL_BELOW = {"Stimpack": 90, "Medikit": 75, "Soulsphere": 150, "Megasphere": 150}  # health
WEAPONS = {"Shotgun": 3, "Chaingun": 4}
AMMUNITION = ("Clip", "ClipBox", "Shell", "ShellBox", "Backpack")


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
    now, eye = view.situation, (view.x, view.y, view.z + EYES)
    found = []
    for thing in view.things:
        if thing.category != "Monster":
            continue
        away = view.distance(thing.x, thing.y)
        noticed = thing.on_screen or (view.hurt_steps < 20 and away < 600)
        middle = (thing.x, thing.y, thing.z + HALF_HEIGHT)
        if away < SIGHT and noticed and sees(planner.level, now.floor, now.ceiling, eye, middle):
            found.append((away + 3 * abs(view.bearing_deg(thing.x, thing.y)), thing.number, thing))
    return Fight(min(found)[2]) if found else None


def _better_weapon(view: View) -> str:
    for weapon in BEST_WEAPONS:
        if weapon in view.owned:
            return "" if weapon == view.weapon else str(weapon)
    return ""


def useful_item(view: View, planner: Planner) -> Seen | None:
    """Something near, straight ahead to walk to, that is needed."""
    found = [(view.distance(thing.x, thing.y), thing.number, thing) for thing in view.things if _is_useful(thing, view)]
    for away, _, thing in sorted(found):
        if away < ITEM_REACH and planner.ground.straight_to(view.x, view.y, thing.x, thing.y, view.situation):
            return thing
    return None


def _is_useful(thing: Seen, view: View) -> bool:
    if thing.category == "Health":
        return view.health <= USEFUL_BELOW.get(thing.name, 0)
    if thing.category == "Armor":
        return thing.name != "ArmorBonus" and view.armor < 50
    if thing.category == "Weapon":
        return thing.name in WEAPONS and WEAPONS[thing.name] not in view.owned
    return thing.category == "Ammo" and view.ammo < 40 and thing.name in AMMUNITION
