"""One evaluation as data, and as a table, a picture and a page.

A report has one column per predictor (the policy, then the baselines) and one row per metric, so that no number
of the policy stands without what a blind guesser gets.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from p2p.actions import HEADS
from p2p.evaluate.metrics import Estimate
from p2p.files import write_file

# metric, its name in tables, what is better; "/HEAD" or the first word is the head that it is about
ROWS = (
    ("perplexity", "perplexity", "lower"),
    ("perplexity/keys", "perplexity, keys", "lower"),
    ("perplexity/buttons", "perplexity, buttons", "lower"),
    ("perplexity/mouse_x", "perplexity, mouse x", "lower"),
    ("perplexity/mouse_y", "perplexity, mouse y", "lower"),
    ("key_onset_f1", "key onset F1", "higher"),
    ("button_onset_f1", "button onset F1", "higher"),
    ("key_f1", "key F1", "higher"),
    ("button_f1", "button F1", "higher"),
    ("mouse_x/correlation", "mouse x correlation", "higher"),
    ("mouse_y/correlation", "mouse y correlation", "higher"),
    ("mouse_x/sign", "mouse x sign agreement", "higher"),
    ("mouse_y/sign", "mouse y sign agreement", "higher"),
    ("ece/keys", "calibration error, keys", "lower"),
    ("ece/buttons", "calibration error, buttons", "lower"),
    ("ece/mouse_x", "calibration error, mouse x", "lower"),
    ("ece/mouse_y", "calibration error, mouse y", "lower"),
)


@dataclass(frozen=True)
class KeyRow:
    """One key or button: how often it was held and pressed, F1 and onset F1 of the policy and of repeating."""

    name: str
    num_held: int
    num_onsets: int
    f1: float
    onset_f1: float
    repeat_f1: float
    repeat_onset_f1: float


@dataclass(frozen=True)
class Reliability:
    """Of one head: per confidence bin that holds elements its mean confidence, accuracy and share of elements."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """columns: predictor -> metric -> estimate; the policy's come first. notes: sentences for the reader.

    used: the heads that the recordings use at all; rows and curves of the others are left out.
    """

    policy: str
    data: str
    num_recordings: int
    num_steps: int
    columns: Mapping[str, Mapping[str, Estimate]]
    keys: Sequence[KeyRow]
    reliability: Mapping[str, Reliability]
    causality: Mapping[str, float] | None = None
    used: Sequence[str] = HEADS
    notes: Sequence[str] = field(default_factory=tuple)
    replaced_chunks: int = 0


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash when it is undefined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def cell(estimate: Estimate | None) -> str:
    """The value with its interval."""
    if estimate is None or not math.isfinite(estimate.value):
        return "-"
    if not math.isfinite(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)}-{number(estimate.high)})"


_HEAD_OF = {"key": "keys", "button": "buttons", "mouse_x": "mouse_x", "mouse_y": "mouse_y"}
BASELINE = "repeat previous"


def _is_shown(metric: str, report: Report) -> bool:
    """Whether any predictor has the metric, and the recordings use the head that it is about."""
    first, _, last = metric.partition("/")
    head = last if last in HEADS else _HEAD_OF.get(first if first in _HEAD_OF else first.partition("_")[0])
    has_values = any(cell(column.get(metric)) != "-" for column in report.columns.values())
    return has_values and (head is None or head in report.used)


def table_rows(report: Report) -> list[list[str]]:
    """The header and one row per metric that any predictor has, of the heads that are used."""
    rows = [["metric", *report.columns]]
    for metric, name, _better in ROWS:
        if _is_shown(metric, report):
            rows.append([name, *(cell(column.get(metric)) for column in report.columns.values())])
    return rows


def best_cells(report: Report) -> set[tuple[int, int]]:
    """(row, column) in `table_rows` of the best value of each row, as it is written; of all where they are equal."""
    best = set()
    for row, (metric, _, better) in enumerate([each for each in ROWS if _is_shown(each[0], report)], 1):
        estimates = [column.get(metric) for column in report.columns.values()]
        values = [round(e.value, 3) if e is not None and math.isfinite(e.value) else None for e in estimates]
        defined = [value for value in values if value is not None]
        wanted = min(defined) if better == "lower" else max(defined)
        best |= {(row, column) for column, value in enumerate(values, 1) if value == wanted}
    return best


def verdict(report: Report) -> str:
    """One sentence on the policy beside repeating the previous action; "" without that baseline."""
    policy, repeated = next(iter(report.columns.values())), report.columns.get(BASELINE)
    onset = next((f"{kind}_onset_f1" for kind in ("key", "button") if _HEAD_OF[kind] in report.used), None)
    if repeated is None:
        return ""
    said = []
    for metric, better, what in (("perplexity", "lower", "predicts"), (onset, "higher", "finds new presses")):
        a, b = (column.get(metric or "") for column in (policy, repeated))
        if a is not None and b is not None and math.isfinite(a.value):
            said.append(f"{what} {_compared(a, b, better)} ({_metric_name(metric)} {cell(a)} beside {cell(b)})")
    intervals = "" if math.isfinite(policy["perplexity"].low) else ", by one recording, that is, without intervals"
    return f"Beside repeating the previous action, the policy {' and '.join(said)}{intervals}." if said else ""


def _metric_name(metric: str | None) -> str:
    return next(name for each, name, _ in ROWS if each == metric)


def _compared(a: Estimate, b: Estimate, better: str) -> str:
    """Better or worse when the intervals do not meet (or there are none), else about as well."""
    higher, lower = (b, a) if better == "lower" else (a, b)
    if _low(higher) > _high(lower):
        return "better"
    return "worse" if _high(higher) < _low(lower) else "about as well"


def _low(estimate: Estimate) -> float:
    return estimate.low if math.isfinite(estimate.low) else estimate.value


def _high(estimate: Estimate) -> float:
    return estimate.high if math.isfinite(estimate.high) else estimate.value


def write_text(path: Path, content: str) -> None:
    """Write a file that appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content.encode())


def jsonable(value: Any) -> Any:
    """Nested plain values with null in place of undefined numbers (JSON has no NaN)."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_report(report: Report, folder: Path) -> Path:
    """report.json, report.png and report.html in `folder`; returns the page."""
    write_text(folder / "report.json", json.dumps(jsonable(asdict(report)), indent=1) + "\n")
    picture = folder / "report.png"
    draw(report, picture)
    write_text(folder / "report.html", page(report, picture.read_bytes()))
    return folder / "report.html"


# ------------------------------------------------------------------ picture


def draw(report: Report, path: Path) -> None:
    """Onset F1 per key beside repeating the previous action; reliability of each head."""
    from p2p.evaluate.figures import new_figure_row, save_figure

    figure, (left, right) = new_figure_row(9.0, 3.4, 2)
    rows = [row for row in report.keys if row.num_held or row.num_onsets]
    places = list(range(len(rows)))
    for offset, values, label in (
        (-0.3, [row.onset_f1 for row in rows], "onset F1, policy"),
        (-0.1, [row.repeat_onset_f1 for row in rows], "onset F1, repeat previous"),
        (0.1, [row.f1 for row in rows], "F1, policy"),
        (0.3, [row.repeat_f1 for row in rows], "F1, repeat previous"),
    ):
        heights = [value if math.isfinite(value) else 0.0 for value in values]
        left.bar([place + offset for place in places], heights, 0.2, label=label)
    left.set_xticks(places, [row.name for row in rows], rotation=45, ha="right")
    left.set_ylim(0, 1)
    left.legend(fontsize="x-small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for head in report.used:
        curve = report.reliability[head]
        right.plot(curve.confidence, curve.accuracy, marker="o", markersize=3, label=head)
    right.set_xlabel("confidence")
    right.set_ylabel("share right")
    right.legend(fontsize="x-small")
    right.set_title("reliability, teacher-forced", fontsize="medium")
    save_figure(figure, path)


# ------------------------------------------------------------------ page

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}th{background:#f4f4f4}tbody td.best{font-weight:700}
img{max-width:100%}.note{color:#666}"""


def html_table(rows: Sequence[Sequence[str]], best: Collection[tuple[int, int]] = ()) -> str:
    """The first row as header; the cells (row, column) of `best` stand out."""
    head = "".join(f"<th>{html.escape(value)}</th>" for value in rows[0])
    body = ""
    for i, row in enumerate(rows[1:], 1):
        marks = [' class="best"' if (i, j) in best else "" for j in range(len(row))]
        cells = [f"<td{mark}>{html.escape(value)}</td>" for mark, value in zip(marks, row, strict=True)]
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def key_table(report: Report) -> list[list[str]]:
    header = ["key or button", "steps held", "onsets", "onset F1", "repeat: onset F1", "F1", "repeat: F1"]
    return [header] + [
        [row.name, str(row.num_held), str(row.num_onsets)]
        + [number(v) for v in (row.onset_f1, row.repeat_onset_f1, row.f1, row.repeat_f1)]
        for row in report.keys
    ]


def _left_out(report: Report) -> str:
    unused = [head.replace("_", " ") for head in HEADS if head not in report.used]
    return f" The recordings never use {', '.join(unused)}: left out." if unused else ""


def page(report: Report, picture: bytes) -> str:
    """A self-contained HTML page."""
    parts = [
        f"<h1>Evaluation of {html.escape(report.policy)}</h1>",
        f"<p><strong>{html.escape(verdict(report))}</strong></p>",
        f"<p>{html.escape(report.data)}: {report.num_recordings} recordings, {report.num_steps:,} steps of a person. "
        "In brackets: 95 % intervals by bootstrap over recordings. Dash: undefined. "
        f"Bold: the best of a row.{html.escape(_left_out(report))}</p>",
        html_table(table_rows(report), best_cells(report)),
    ]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in report.notes]
    image = base64.b64encode(picture).decode()
    parts.append(f'<img alt="F1 per key and reliability" src="data:image/png;base64,{image}">')
    parts += ["<h2>Keys and buttons, teacher-forced</h2>", html_table(key_table(report))]
    title = html.escape(f"Evaluation of {report.policy}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
