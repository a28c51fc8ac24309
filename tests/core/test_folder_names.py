"""Folders of games: readable, plain, and never one for two games."""

from __future__ import annotations

import itertools
import random

import pytest

from p2p.game_names import canonical, folder_name
from p2p.gate import plain_name


@pytest.mark.parametrize(
    ("game", "folder"),
    [
        ("doom", "doom"),
        ("roblox/be-a-shark", "roblox_be-a-shark"),
        ("half-life-2", "half-life-2"),
        ("原神", "原神"),
        ("ведьмак-3", "ведьмак-3"),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_names_of_any_script_are_kept(game: str, folder: str) -> None:
    assert folder_name(game) == folder


ODD = [
    "",
    "/",
    "..",
    ".",
    "unnamed",
    "★",
    "★★",
    "!!!",
    "a:b",
    "a b",
    "a_b",
    "a/b",
    "a//b",
    "/a",
    "a/",
    "a.",
    ".a",
    "a",
    "~",
]
ODD += [
    "\x1b[2J",
    "x" * 300,
    "x" * 301,
    "e\u0301",
    "\u00e9",
    "\ud800",
    "a\u202eb",
    "a\0b",
    "CON",
    "原" * 100,
    "原" * 101,
]


def test_no_two_games_share_a_folder_and_every_folder_has_a_plain_name() -> None:
    draw = random.Random(4)
    letters = "ab.-_/ :~é★\u0301\n"
    games = {*ODD, *("".join(draw.choices(letters, k=draw.randrange(6))) for _ in range(3000))}
    folders = {game: folder_name(game) for game in games}
    assert len(set(folders.values())) == len(games)
    for folder in folders.values():
        assert plain_name(folder, "here") == folder
        assert not folder.startswith(".")
        assert len(folder.encode()) <= 140


def test_what_is_read_as_one_game_has_one_folder() -> None:
    for one, other in itertools.pairwise(("Be_A Shark", "be-a-shark", "BE.A=SHARK")):
        assert folder_name(canonical(one, {})) == folder_name(canonical(other, {}))
