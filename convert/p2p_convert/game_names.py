"""One name for each game: recordings spell them in different ways."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path


def load_aliases(extra: Path | None = None) -> dict[str, str]:
    """{misspelt name: name} of game_names.json beside this file, and of a file of the same form.

    Raises:
        ValueError: when the file is not {"aliases": {name: name}}.
    """
    texts = {"game_names.json": resources.files("p2p_convert").joinpath("game_names.json").read_text()}
    if extra is not None:
        texts[str(extra)] = extra.read_text()
    aliases: dict[str, str] = {}
    for where, text in texts.items():
        try:
            table = json.loads(text)["aliases"]
            aliases.update({spelling(wrong): spelling(right) for wrong, right in table.items()})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{where}: expected {{"aliases": {{"misspelt name": "name"}}}} ({error})') from error
    return aliases


def spelling(name: str) -> str:
    """The name in lower case, with dashes for blanks and underscores; a subtype follows a slash."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def canonical(name: str, aliases: Mapping[str, str]) -> str:
    """The name to use for a game: of the whole, or else of the part before the slash."""
    name = spelling(name)
    if name in aliases:
        return aliases[name]
    game, slash, subtype = name.partition("/")
    return aliases.get(game, game) + slash + subtype
