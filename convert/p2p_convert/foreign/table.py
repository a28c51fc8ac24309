"""A plain folder for everyone else: NAME.mp4 and NAME.csv or NAME.parquet, a row for each frame.

docs/importing.md has the columns. Row k says what was held and moved after frame k was shown, until the next one was.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.actions import Action
from p2p.parquet import Bounds, open_parquet
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording, Imported, pairs, require
from p2p_convert.foreign.keys import Vocabulary, annotate, motion
from p2p_convert.foreign.video import Clip

NEEDED = ("keys", "buttons", "dx", "dy")
OPTIONAL = ("frame", "time_s")
_MAX_BYTES = 1 << 30
_BOUNDS = Bounds(file_bytes=_MAX_BYTES, unpacked_bytes=1 << 31, rows=MAX_FRAMES)
_MAX_CELL = 1000  # characters
_DAY_S = 86_400.0


def find(root: Path) -> list[ForeignRecording]:
    """The pairs of a table and a video in a folder."""
    found = pairs(root, "table", (".csv", ".parquet"), (".mp4", ".mkv"), "")
    if any(each.where.endswith(".parquet") for each in found):
        require("pyarrow")
    return found


def read(recording: ForeignRecording, budget: Budget) -> Imported:
    """Raises: Refused, naming the line of the CSV or the row of the Parquet file."""
    table, video = recording.paths.values()
    vocabulary = Vocabulary("table")
    rows = _csv_rows(table) if table.suffix == ".csv" else _parquet_rows(table)
    actions: list[Action | None] = []
    times_ns: list[int] = []
    for where, row in rows:
        if len(actions) >= MAX_FRAMES:
            raise Rejected("too long", f"{table}: more than {MAX_FRAMES} rows, that is 24 hours")
        if row.get("frame") is not None:
            number = _number(row["frame"], f"{where}: frame")
            if number != len(actions):
                raise gate.Refused(
                    f"{where}: frame is {number:g}; expected {len(actions)}: a row for each frame, in order"
                )
        if row.get("time_s") is not None:
            times_ns.append(_time_ns(row["time_s"], times_ns, f"{where}: time_s"))
        actions.append(_action(row, vocabulary, where))
        if len(actions) % 1024 == 0:
            budget.check(len(actions))
    if times_ns and len(times_ns) != len(actions):
        raise gate.Refused(f"{table}: time_s is there in {len(times_ns)} of {len(actions)} rows; expected all or none")
    return Imported(Clip(video), annotate(actions, times_ns or None), vocabulary.counts)


def _action(row: Mapping[str, Any], vocabulary: Vocabulary, where: str) -> Action:
    keys, buttons = (gate.text(row[name] or "", f"{where}: {name}", _MAX_CELL).split() for name in ("keys", "buttons"))
    dx, dy = (motion(_number(row[name], f"{where}: {name}"), f"{where}: {name}") for name in ("dx", "dy"))
    return Action(vocabulary.keys(keys), vocabulary.buttons(buttons), dx, dy)


def _number(value: object, where: str) -> float:
    """A number of a Parquet file, or the text of one; an empty cell is 0."""
    if value is None or value == "":
        return 0.0
    if isinstance(value, str):
        try:
            value = float(gate.text(value, where, 50))
        except ValueError:
            raise gate.Refused(f"{where} is {gate.shown(value)}; expected a number") from None
    return gate.number(value, where, -1e12, 1e12)


def _time_ns(value: object, before: list[int], where: str) -> int:
    seconds = _number(value, where)
    nanoseconds = math.floor(seconds * 1e9)
    if not 0 <= seconds <= _DAY_S or (before and nanoseconds <= before[-1]):
        raise gate.Refused(f"{where} is {seconds:g}; expected seconds of one day that ascend from row to row")
    return nanoseconds


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, {column: text})."""
    content = gate.read_regular(path, _MAX_BYTES)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise gate.Refused(f"{path}, line {line}: not UTF-8") from None
    reader = csv.reader(lines, strict=True)
    try:
        columns = _columns(next(reader, []), path)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(columns):
                raise gate.Refused(f"{where}: {len(cells)} cells; the first line names {len(columns)} columns")
            yield where, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise gate.Refused(f"{path}, line {reader.line_num}: {gate.shown(str(error), quote=False)}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and row, {column: value})."""
    with open_parquet(path, _BOUNDS) as parquet:
        columns = _columns(parquet.names, path)
        for number, row in enumerate(parquet.rows([name for name in columns if name in (*NEEDED, *OPTIONAL)])):
            yield f"{path}, row {number}", row


def _columns(names: list[str], path: Path) -> list[str]:
    missing = [name for name in NEEDED if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing or twice:
        what = f"has no column {missing[0]}" if missing else f"has the column {gate.shown(twice[0])} twice"
        raise gate.Refused(f"{path}: {what}; expected {', '.join(NEEDED)}, and perhaps {', '.join(OPTIONAL)}")
    return names
