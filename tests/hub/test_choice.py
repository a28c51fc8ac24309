"""`p2p download data --game`: the archives of a game, by a table that names none of them."""

from __future__ import annotations

import io
import logging
import os
import random
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from p2p import game_names
from p2p.cli import main
from p2p.game_names import canonical, load_aliases
from p2p.hub.choice import Search, recordings_of_game
from tests.hub.stand_in import HubStandIn
from tests.hub.test_download import DATASET, MakeHub, archive, found_below

Row = tuple[str, str, str]  # id, env, subtype


def uuids(count: int, seed: int = 0) -> list[str]:
    """Ids as recorders make them: UUIDs of version 7, here in the order of time."""
    draw = random.Random(seed)
    times = sorted(draw.sample(range(1 << 40), count))
    return [
        str(uuid.UUID(int=(0x019 << 116) | (t << 76) | (7 << 76) | (1 << 63) | draw.getrandbits(62))) for t in times
    ]


def table(rows: Sequence[Row], **columns: Any) -> bytes:
    """The dataset's table as it is known: a binary id, its text as file path, and no archive; in no order."""
    rows = random.Random(1).sample(list(rows), len(rows))
    content = {
        "id": pyarrow.array([uuid.UUID(ident).bytes for ident, _, _ in rows], pyarrow.binary(16)),
        "filepath": [ident for ident, _, _ in rows],
        "env_name": [env for _, env, _ in rows],
        "env_subtype": [sub for _, _, sub in rows],
        "num_frames": [5000] * len(rows),
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({k: v for k, v in (content | columns).items() if v is not None}), buffer)
    return buffer.getvalue()


def blocks(ids: Sequence[str], sizes: Sequence[int]) -> dict[str, bytes]:
    """Archives of so many recordings each, in the order of the ids."""
    files, begin = {}, 0
    for number, size in enumerate(sizes, 1):
        content = {ident: {"annotation.proto": b"a", "192x192.mp4": b"v"} for ident in ids[begin : begin + size]}
        files[f"dataset/batch_{number:05d}.tar.gz"] = archive(content)
        begin += size
    assert begin == len(ids)
    return files


def serve(make_hub: MakeHub, ids: Sequence[str], sizes: Sequence[int], quake: set[int], **columns: Any) -> HubStandIn:
    rows = [(ident, "msdos" if i in quake else "roblox", "quake" if i in quake else "x") for i, ident in enumerate(ids)]
    return make_hub({DATASET: blocks(ids, sizes) | {"data_metadata.parquet": table(rows, **columns)}})


def download(output: Path, *more: str) -> int:
    return main(["download", "data", "--game", "Quake", "--output", str(output), *more])


def looked_at(hub: HubStandIn) -> list[int]:
    return [int(each.path[14:19]) for each in hub.transfers if each.path.endswith(".tar.gz")]


def folders(output: Path) -> set[str]:
    return {Path(path).parts[1] for path in found_below(output) if path.startswith("batch_")}


def test_a_game_is_found_in_archives_that_the_table_does_not_name(make_hub: MakeHub, tmp_path: Path) -> None:
    ids = uuids(60)
    hub = serve(make_hub, ids, [10] * 6, quake={3, 4, 38, 39})
    assert download(tmp_path) == 0
    assert folders(tmp_path) == {ids[i] for i in (3, 4, 38, 39)}
    assert looked_at(hub) == [1, 4]
    hub.transfers.clear()
    assert download(tmp_path) == 0
    assert hub.transfers == []


def test_where_archives_are_uneven_the_neighbours_are_fetched(make_hub: MakeHub, tmp_path: Path) -> None:
    ids = uuids(100)
    hub = serve(make_hub, ids, [4, 16] * 5, quake={18, 71})  # as if the second and the eighth of even archives
    assert download(tmp_path) == 0
    assert folders(tmp_path) == {ids[i] for i in (18, 71)}
    assert looked_at(hub) == [2, 8]
    hub.transfers.clear()
    hub = serve(make_hub, ids, [13, 12, 5] + [10] * 7, quake={12, 29, 31})
    assert download(tmp_path / "b") == 0
    assert looked_at(hub) == [2, 1, 3, 4]
    hub.transfers.clear()
    assert download(tmp_path / "b") == 0
    assert hub.transfers == []


@pytest.mark.parametrize("seed", range(20))
def test_the_search_finds_whatever_is_in_an_ordered_row_of_archives(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    ids = uuids(2000, seed)
    bounds = sorted({0, 2000, *draw.sample(range(1, 2000), 19)})
    wanted = set(draw.sample(range(2000), 15))
    rows = [(ident, "quake" if i in wanted else "doom", "") for i, ident in enumerate(ids)]
    (tmp_path / "t.parquet").write_bytes(table(rows))
    numbers = list(range(1, len(bounds)))
    search = Search(recordings_of_game(tmp_path / "t.parquet", "quake"), numbers, frozenset(numbers))
    asked = []
    while (number := search.next()) is not None:
        asked.append(number)
        block = ids[bounds[number - 1] : bounds[number]]
        search.looked_at(
            number, [block[0], block[-1], *(block[i] for i in range(len(block)) if block[i] in search.names)]
        )
    assert search.missing == {}
    assert search.explain_missing() == ""
    assert len(asked) == len(set(asked))


def test_recordings_that_are_nowhere_are_counted_and_the_rest_arrives(
    make_hub: MakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = uuids(61)
    rows = [(ident, "msdos", "quake") if i in (5, 25) else (ident, "roblox", "") for i, ident in enumerate(ids)]
    there = [ident for i, ident in enumerate(ids) if i != 25]
    make_hub({DATASET: blocks(there, [10] * 6) | {"data_metadata.parquet": table(rows)}})
    caplog.set_level(logging.INFO)
    assert download(tmp_path) == 0
    assert folders(tmp_path) == {ids[5]}
    assert "1 of 2 recordings are not in the archives that should hold them" in caplog.text
    assert f"the first: {ids[25]}" in caplog.text


def test_archives_in_another_order_end_with_advice(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = uuids(60)
    rows = [(ident, "msdos", "quake") if i == 25 else (ident, "roblox", "") for i, ident in enumerate(ids)]
    shuffled = [*random.Random(3).sample([i for i in ids if i != ids[25]], 59), ids[25]]
    hub = make_hub({DATASET: blocks(shuffled, [10] * 6) | {"data_metadata.parquet": table(rows)}})
    assert download(tmp_path) == 2
    assert "choose them with --start and --end" in capsys.readouterr().err.splitlines()[-1]
    assert len(looked_at(hub)) <= 3


def test_a_game_within_a_range_of_archives(
    make_hub: MakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = uuids(60)
    hub = serve(make_hub, ids, [10] * 6, quake={3, 38, 58})
    assert download(tmp_path / "a", "--start", "3", "--end", "5") == 0
    assert folders(tmp_path / "a") == {ids[38]}
    assert 1 not in looked_at(hub)
    assert download(tmp_path / "b", "--start", "2", "--end", "2", "--game", "x") == 0
    assert download(tmp_path / "c", "--start", "3", "--end", "3", "--game", "nothing") == 2
    hub = serve(make_hub, ids, [10] * 6, quake={3})
    assert download(tmp_path / "d", "--start", "5") == 2
    assert "about 00001 to 00001" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("wish", "places"),
    [
        ("Quake", {0}),
        ("msdos", {0, 1}),
        ("MSDOS/quake", {0}),
        ("a dusty-trip", {2, 3, 4}),
        ("roblox/a_dusty.trip", {2, 3, 4}),
        ("Roblox", {2, 3, 4}),
        ("half/life=2", {5}),
        ("be-a-shark", {6}),
        ("SHARK", {6}),
    ],
)
def test_names_are_compared_without_case_dashes_and_misspellings(tmp_path: Path, wish: str, places: set[int]) -> None:
    games = [
        ("MsDos", "Quake"), ("msdos", "doom"), ("roblos", "A_Dusry Trip"), ("Roblox", "a-dusty-trip"),
        ("rpblox", "dusty.trip"), ("half-life 2", ""), ("sea", "shark"),
    ]  # fmt: skip
    rows = [(ident, *game) for ident, game in zip(uuids(7), games, strict=True)]
    (tmp_path / "t.parquet").write_bytes(table(rows))
    assert set(recordings_of_game(tmp_path / "t.parquet", wish).wanted) == places


def test_every_alias_leads_to_a_name_that_stays() -> None:
    aliases = load_aliases()
    assert len(aliases) > 40
    assert all(canonical(right, aliases) == right and wrong != right for wrong, right in aliases.items())
    assert canonical("Roblos/natural disaster_sruvival", aliases) == "roblox/natural-disaster-survival"


@pytest.mark.parametrize("content", ["[]", "{}", '{"aliases": {"a": 1}}', '{"aliases": [1]}', "{", '{"aliases": NaN}'])
def test_a_table_of_names_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=r"names\.json"):
        load_aliases(tmp_path / "names.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        load_aliases(tmp_path / "pipe")
    assert game_names.MAX_BYTES < 1 << 21


# ------------------------------------------------------------------ a stranger's table


def many_rows() -> bytes:
    """Ten million rows in a few kilobytes."""
    buffer = io.BytesIO()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(bytes(10_000_000), pyarrow.int8()), ["a"])
    names = ("id", "filepath", "env_name")
    pyarrow.parquet.write_table(pyarrow.table(dict.fromkeys(names, column)), buffer, row_group_size=1 << 30)
    return buffer.getvalue()


def long_texts() -> bytes:
    """One long text that half a million rows share."""
    size = 500_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * size, pyarrow.int32()), ["a" * 500_000])
    ids = pyarrow.array([i.to_bytes(16, "big") for i in range(size)])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "filepath": column, "env_name": column}), buffer)
    assert buffer.tell() < 50_000_000
    return buffer.getvalue()


ONE = [("01993060-06a0-7000-8000-000000000000", "quake", "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"not parquet", "expected the table"),
        (lambda: b"", "expected the table"),
        (lambda: table(ONE)[:-30], "expected the table"),
        (lambda: table(ONE)[:4] + bytes(40) + table(ONE)[44:], "expected the table"),
        (lambda: table(ONE, env_name=None), "0 columns 'env_name'; expected one"),
        (lambda: table(ONE, env_name=[5]), "its column 'env_name' holds int64; expected text"),
        (lambda: table(ONE, id=[1.5]), "its column 'id' holds double; expected text or a UUID"),
        (lambda: table(ONE, id=pyarrow.array([b"12"])), "row 1: the id has 2 bytes"),
        (lambda: table(ONE, id=["../up"]), "row 1: the id: '../up' is not the plain name"),
        (lambda: table(ONE, filepath=["a/../b"]), r"row 1: the filepath 'a/../b': '\.\.' is not the plain name"),
        (lambda: table(ONE, filepath=["\x1b[2J"]), r"row 1: the filepath '\\x1b\[2J'"),
        (lambda: table(ONE, filepath=pyarrow.array([None], pyarrow.string())), "row 1: the filepath is None"),
        (many_rows, "expected at most 5000000"),
        (long_texts, "an entry of 500000 bytes"),
    ],
)  # fmt: skip
def test_a_table_of_a_stranger_is_refused_with_its_name_and_row(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "data_metadata.parquet").write_bytes(content())
    with pytest.raises(ValueError, match=rf"data_metadata\.parquet: .*{message}"):
        recordings_of_game(tmp_path / "data_metadata.parquet", "quake")


def test_a_table_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data_metadata.parquet")
    with pytest.raises(ValueError, match="not a regular file"):
        recordings_of_game(tmp_path / "data_metadata.parquet", "quake")
