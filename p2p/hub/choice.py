"""Which archives hold the recordings of a game, by the dataset's table, which names games but no archives.

The archives are blocks of the recordings in the order of their ids. So the place of a recording in the sorted table
tells its archive nearly; what an archive then turns out to hold corrects the guess.
"""

from __future__ import annotations

import bisect
import difflib
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.game_names import fold, load_aliases
from p2p.parquet import Bounds, open_parquet

if TYPE_CHECKING:
    import pyarrow

_BOUNDS = Bounds(file_bytes=256 << 20, unpacked_bytes=1 << 30, rows=5_000_000)  # the dataset's: 6 MB, 109,000 rows
_EXPECTED = "the table of the dataset's recordings"
_MAX_CHARACTERS = 1000
_ROWS_AT_ONCE = 1 << 16
_COLUMNS = {"id": True, "filepath": True, "env_name": True, "env_subtype": False}  # name: whether it must be there
_ARCHIVE_NUMBER = re.compile(r"batch_(\d{1,9})(?!\d)")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_NAMES = ("", "dataset", "annotation.proto", "192x192.mp4", "video.mp4")


def archive_number(path: str) -> int | None:
    """The number in `dataset/batch_00001.tar.gz` or in a recording's file path; None when there is none."""
    match = _ARCHIVE_NUMBER.search(path)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class Recording:
    """A recording of the table: what its folder may be called, and its archive where the table names one."""

    id: str
    names: frozenset[str]
    archive: int | None


@dataclass(frozen=True)
class Game:
    """The recordings of one game, by their place among all recordings of the table, sorted by id."""

    ids: Sequence[str]
    place_of: Mapping[str, int]
    wanted: Mapping[int, Recording]


def recordings_of_game(table: Path, game: str) -> Game:
    """The recordings whose env_name, env_subtype, or both joined by a slash, is the game.

    Names are compared as `p2p.game_names` spells them, its aliases applied.

    Raises:
        ValueError: the table is no such table, or has no recording of that game; then it names the nearest.
    """
    aliases = load_aliases()

    def known(name: str) -> str:
        folded = fold(name)
        return aliases.get(folded, folded)

    name, _, subtype = game.partition("/")
    wishes = {known(game), f"{known(name)}/{known(subtype)}"} - {"", "/"}
    rows: list[tuple[Recording, bool]] = []
    seen: Counter[str] = Counter()
    written: dict[str, str] = {}
    for recording, env, sub in _read(table):
        spelt = (known(env), known(sub))
        seen.update(part for part in spelt if part)
        for part, as_written in zip(spelt, (env, sub), strict=True):
            written.setdefault(part, as_written)
        rows.append((recording, not wishes.isdisjoint((*spelt, "/".join(spelt)))))
    if not any(is_wanted for _, is_wanted in rows):
        names = [name for name, _ in seen.most_common(1000)]
        close = difflib.get_close_matches(known(game), names, n=3, cutoff=0.5) or names[:5]
        nearest = ", ".join(gate.shown(written[name]) for name in close)
        raise gate.Refused(f"{table.name} has no recording of {gate.shown(game)}; nearest: {nearest}")
    rows.sort(key=lambda row: row[0].id)
    place_of = {name: place for place, (recording, _) in enumerate(rows) for name in recording.names}
    ids = [recording.id for recording, _ in rows]
    return Game(ids, place_of, {place: recording for place, (recording, is_wanted) in enumerate(rows) if is_wanted})


# ------------------------------------------------------------------ the table


def _read(table: Path) -> Iterator[tuple[Recording, str, str]]:
    """(recording, env_name, env_subtype) of every row of a stranger's table."""
    row = 0
    with open_parquet(table, _BOUNDS, _EXPECTED) as parquet:
        try:
            columns = _columns(parquet.schema)
            for batch in parquet.batches(columns, _ROWS_AT_ONCE, share=True):
                values = {name: _values(batch.column(name), name) for name in columns}
                for ident, path, env, sub in zip(
                    values["id"],
                    values["filepath"],
                    values["env_name"],
                    values.get("env_subtype", [""] * len(batch)),
                    strict=True,
                ):
                    row += 1
                    yield _recording(ident, path, f"row {row}"), str(env or ""), str(sub or "")
        except ValueError as error:
            raise gate.Refused(f"{table}: {gate.shown(str(error), quote=False)}; expected {_EXPECTED}") from error


def _columns(schema: pyarrow.Schema) -> list[str]:
    """The columns to read, after their types were looked at."""
    import pyarrow.types as kinds

    present = []
    for name, is_needed in _COLUMNS.items():
        if schema.names.count(name) != 1:
            if is_needed or name in schema.names:
                raise gate.Refused(f"it has {schema.names.count(name)} columns {name!r}; expected one")
            continue
        kind = schema.field(name).type
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind)
        is_uuid = name == "id" and (
            kinds.is_binary(kind) or (kinds.is_fixed_size_binary(kind) and kind.byte_width == 16)
        )
        if not (is_text or is_uuid):
            raise gate.Refused(f"its column {name!r} holds {kind}; expected text{' or a UUID' if name == 'id' else ''}")
        present.append(name)
    return present


def _values(column: Any, name: str) -> list[Any]:
    """The entries of a column, none of them long."""
    import pyarrow.compute

    texts = column.dictionary if hasattr(column, "dictionary") else column
    longest = pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py() or 0
    if longest > _MAX_CHARACTERS:
        raise gate.Refused(f"its column {name!r} has an entry of {longest} bytes; expected at most {_MAX_CHARACTERS}")
    values: list[Any] = column.to_pylist()
    return values


def _recording(ident: Any, path: Any, where: str) -> Recording:
    if isinstance(ident, bytes):
        if len(ident) != 16:
            raise gate.Refused(f"{where}: the id has {len(ident)} bytes; expected a UUID of 16")
        ident = str(uuid.UUID(bytes=ident))
    ident = gate.plain_name(ident, f"{where}: the id")
    parts = PurePosixPath(gate.text(path, f"{where}: the filepath", _MAX_CHARACTERS)).parts
    names = {part for part in parts if part not in _NO_NAMES and not _ARCHIVE_NUMBER.search(part)}
    names = {gate.plain_name(name, f"{where}: the filepath {gate.shown(path)}") for name in names}
    return Recording(ident, frozenset({ident, *names}), archive_number(path))


# ------------------------------------------------------------------ the archives


def span(names: Iterable[str]) -> list[str]:
    """The first and the last recording of an archive; names that are no ids do not count where there are ids."""
    listed = list(names)
    ids = [name for name in listed if _UUID.fullmatch(name)] or listed
    return [min(ids), max(ids)] if ids else []


@dataclass
class Search:
    """Names one archive after another until the recordings are found, or all that may hold them were looked at.

    `numbers` are the archives that there are, in order; of these only the ones that `wants` passes are named.
    """

    game: Game
    numbers: Sequence[int]
    chosen: frozenset[int]
    missing: dict[int, Recording] = field(init=False)
    _spans: dict[int, tuple[int, int] | None] = field(init=False, default_factory=dict)  # by index in numbers

    def __post_init__(self) -> None:
        self.missing = dict(self.game.wanted)

    @property
    def names(self) -> frozenset[str]:
        """What the folders of all wanted recordings may be called."""
        return frozenset(name for recording in self.game.wanted.values() for name in recording.names)

    def guesses(self) -> list[int]:
        """The archives that would be looked at if every first guess were right."""
        return sorted({self.numbers[index] for place in self.missing if (index := self._guess(place)) is not None})

    def next(self) -> int | None:
        """The number of the next archive to look at; None when nothing more can be found."""
        for place in self.missing:
            index = self._guess(place)
            if index is not None:
                return self.numbers[index]
        return None

    def looked_at(self, number: int, names: Iterable[str]) -> None:
        """Tell what recordings an archive holds, wanted or not; at least the first and the last."""
        ids, first, last = self.game.ids, len(self.game.ids), -1
        for name in names:
            place = self.game.place_of.get(name)
            if place is not None:
                self.missing.pop(place, None)
            elif not _UUID.fullmatch(name):
                continue
            first = min(first, bisect.bisect_left(ids, name) if place is None else place)
            last = max(last, bisect.bisect_left(ids, name) - 1 if place is None else place)
        self._spans[bisect.bisect_left(self.numbers, number)] = (first, last) if first < len(ids) or last >= 0 else None

    def _guess(self, place: int, skip_looked_at: bool = True) -> int | None:
        """The index of the archive to look for a recording in; None when it was looked for wherever it may be."""
        named = self.missing[place].archive
        if named is not None:
            index = bisect.bisect_left(self.numbers, named)
            is_there = index < len(self.numbers) and self.numbers[index] == named
            return index if is_there and self._is_open(index) else None
        below, above = (-1, -1), (len(self.numbers), len(self.game.ids))  # (index, place) of what lies before and after
        for index, span in self._spans.items():
            if span is None:
                continue
            if span[0] <= place <= span[1]:  # it should be here: what was sorted a little wrongly lies beside
                return next((i for i in (index - 1, index + 1) if self._is_open(i)), None)
            if span[1] < place:
                below = max(below, (index, span[1]))
            else:
                above = min(above, (index, span[0]))
        guess = _between(place, below, above)
        if guess is None or not skip_looked_at:
            return guess
        near = [i for i in (guess, guess - 1, guess + 1) if below[0] < i < above[0] and self._is_open(i)]
        return next(iter(near), None)

    def _is_open(self, index: int) -> bool:
        return 0 <= index < len(self.numbers) and self.numbers[index] in self.chosen and index not in self._spans

    def explain_missing(self) -> str:
        """How many recordings are not where they should be, and what to do; "" when there is none.

        One that should be in an archive that was not chosen is not counted.
        """
        absent = [recording.id for place, recording in self.missing.items() if self._should_be_found(place)]
        if not absent:
            return ""
        looked = ", ".join(f"{self.numbers[index]:05d}" for index in sorted(self._spans)[:20])
        return (
            f"{len(absent)} of {len(self.game.wanted)} recordings are not in the archives that should hold them "
            f"(looked at {looked}); the first: {', '.join(absent[:3])}. If the archives are in another order than the "
            "table, choose them with --start and --end"
        )

    def _should_be_found(self, place: int) -> bool:
        named = self.missing[place].archive
        if named is not None:
            return named in self.chosen or named not in self.numbers
        guess = self._guess(place, skip_looked_at=False)
        return guess is None or self.numbers[guess] in self.chosen


def _between(place: int, below: tuple[int, int], above: tuple[int, int]) -> int | None:
    """The archive as far on the way between two others as the place is between theirs; None when there is none."""
    num_between = above[0] - below[0] - 1
    if num_between < 1:
        return None
    share = (place - below[1] - 1) / max(1, above[1] - below[1] - 1)
    return below[0] + 1 + min(num_between - 1, max(0, int(share * num_between)))
