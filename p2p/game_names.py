"""One name for each game: people type them, and spell them in different ways."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from p2p import gate

MAX_BYTES = 1 << 20
_MAX_CHARACTERS = 255
_MAX_FOLDER_BYTES = 120
_DASHES = re.compile(r"[-_\s.=/]+")


def load_aliases(extra: Path | None = None) -> dict[str, str]:
    """{misspelt name: name} of game_names.json beside this file, and of a file of the same form; of games and subtypes.

    Raises:
        ValueError: when the file is not {"aliases": {name: name}}.
    """
    texts = {"game_names.json": resources.files("p2p").joinpath("game_names.json").read_bytes()}
    if extra is not None:
        texts[str(extra)] = gate.read_regular(extra, MAX_BYTES)
    aliases: dict[str, str] = {}
    for where, content in texts.items():
        table = gate.parse_json(content, where)
        names = table.get("aliases") if isinstance(table, dict) else None
        if not isinstance(names, dict):
            raise gate.Refused(f'{where}: expected {{"aliases": {{"misspelt name": "name"}}}}')
        aliases.update({spelling(wrong): spelling(_text(right, where)) for wrong, right in names.items()})
    return aliases


def _text(value: Any, where: str) -> str:
    return gate.text(value, f"{where}: a name", _MAX_CHARACTERS)


def fold(name: str) -> str:
    """One name as it is compared: without case, with one dash for blanks and - _ . = / in a row."""
    return _DASHES.sub("-", name.casefold()).strip("-")


def spelling(name: str) -> str:
    """A game, or GAME/SUBTYPE, each as `fold` gives it."""
    game, slash, subtype = name.partition("/")
    return fold(game) + slash + fold(subtype)


def canonical(name: str, aliases: Mapping[str, str]) -> str:
    """The name to use for a game: of the whole, or else of the game and of the subtype after the slash."""
    name = spelling(name)
    if name in aliases:
        return aliases[name]
    game, slash, subtype = name.partition("/")
    return aliases.get(game, game) + slash + aliases.get(subtype, subtype)


def folder_name(game: str) -> str:
    """A plain name for the folder of a game; different games have different ones.

    Letters, marks and digits of any script, dashes and dots stay, a slash becomes an underscore. A name that would lose
    anything else, or is long, gets a tilde and the beginning of its SHA-256 instead.
    """
    kept = "".join(c if c in "-." or unicodedata.category(c)[0] in "LMN" else "_" for c in game).strip("._")
    is_whole = kept.replace("_", "/") == game == unicodedata.normalize("NFC", game) != ""
    if is_whole and len(kept.encode()) <= _MAX_FOLDER_BYTES:
        return kept
    begin = kept.encode()[:_MAX_FOLDER_BYTES].decode(errors="ignore") or "unnamed"
    return f"{begin}~{hashlib.sha256(game.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
