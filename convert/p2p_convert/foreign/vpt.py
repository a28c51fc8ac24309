"""OpenAI's VPT contractor format: NAME.mp4 at 20 frames a second and NAME.jsonl, a line for each frame.

Three of its quirks are dealt with as its own loader does, or more carefully: in some recordings the attack button is
held from the first line on though nobody holds it; the wheel that changes the hotbar was not recorded, so a change
counts as its key; and while a menu is open, the cursor was not drawn into the video, so that nobody could learn from
those frames: their actions count as not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2p import gate
from p2p.actions import Action
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording, Imported, pairs
from p2p_convert.foreign.keys import Vocabulary, annotate, motion
from p2p_convert.foreign.video import Clip

_MAX_LINE_BYTES = 1 << 20
_MAX_NAMES = 256  # held at once
_ATTACK = 0


def find(root: Path) -> list[ForeignRecording]:
    """The pairs of .jsonl and .mp4 in a folder."""
    return pairs(root, "vpt", (".jsonl",), (".mp4",), "Minecraft")


def read(recording: ForeignRecording, budget: Budget) -> Imported:
    """Raises: Refused, naming the line."""
    lines, video = recording.paths.values()
    reader = _Reader(Vocabulary("vpt"))
    actions: list[Action | None] = []
    with gate.open_regular(lines) as file:
        while line := file.readline(_MAX_LINE_BYTES + 1):
            if not line.strip():
                continue
            if len(actions) >= MAX_FRAMES:
                raise Rejected("too long", f"{lines}: more than {MAX_FRAMES} lines, that is 24 hours")
            where = f"{lines}, line {len(actions) + 1}"
            actions.append(reader.action(gate.mapping(gate.parse_json(line, where, _MAX_LINE_BYTES), where), where))
            if len(actions) % 1024 == 0:
                budget.check(len(actions))
    return Imported(Clip(video), annotate(actions), reader.vocabulary.counts)


class _Reader:
    """Lines to actions; remembers what a line alone does not tell."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._attack_is_stuck: bool | None = None
        self._hotbar: int | None = None

    def action(self, line: dict[str, Any], where: str) -> Action | None:
        """What was done after the frame of this line; None while a menu is open."""
        mouse = gate.mapping(line.get("mouse"), f"{where}: mouse")
        keyboard = gate.mapping(line.get("keyboard"), f"{where}: keyboard")
        keys = _names(keyboard.get("keys"), f"{where}: keyboard.keys")
        buttons = self._buttons(mouse, where)
        keys += self._hotbar_key(line, where)
        dx, dy = (motion(mouse.get(name), f"{where}: mouse.{name}") for name in ("dx", "dy"))
        if line.get("isGuiOpen") is True:
            self.vocabulary.counts[
                "vpt: frames with an open menu, their actions not known: no cursor in the video"
            ] += 1
            return None
        return Action(self.vocabulary.keys(keys), self.vocabulary.buttons(map(str, buttons)), dx, dy)

    def _buttons(self, mouse: dict[str, Any], where: str) -> list[int]:
        """Those held, less an attack button that was never pressed."""
        held, new = (
            [
                gate.whole_number(b, f"{where}: mouse.{name}", 0, 31)
                for b in _list(mouse.get(name), f"{where}: mouse.{name}")
            ]
            for name in ("buttons", "newButtons")
        )
        if self._attack_is_stuck is None:
            self._attack_is_stuck = new == [_ATTACK]
        elif _ATTACK in new:
            self._attack_is_stuck = False
        if self._attack_is_stuck:
            self.vocabulary.counts["vpt: frames with an attack button that nobody pressed, left out"] += _ATTACK in held
            held = [button for button in held if button != _ATTACK]
        return held

    def _hotbar_key(self, line: dict[str, Any], where: str) -> list[str]:
        if line.get("hotbar") is None:
            return []
        slot = gate.whole_number(line["hotbar"], f"{where}: hotbar", 0, 8)
        before, self._hotbar = self._hotbar, slot
        return [] if before is None or before == slot else [str(slot + 1)]


def _names(value: object, where: str) -> list[str]:
    return [gate.text(name, where, 100) for name in _list(value, where)]


def _list(value: object, where: str) -> list[Any]:
    return gate.sequence(value, where, _MAX_NAMES)
