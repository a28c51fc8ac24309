"""What a validation shows: a table of checkpoints, and perplexity against updates as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2p.evaluate.figures import new_figure, plain_log_scale, save_figure

BASELINE = "repeat previous"
TABLE_METRICS = (
    ("loss", "loss"),
    ("perplexity", "perplexity"),
    ("perplexity/keys", "keys"),
    ("perplexity/buttons", "buttons"),
    ("perplexity/mouse_x", "mouse x"),
    ("perplexity/mouse_y", "mouse y"),
    ("key_onset_f1", "key onset F1"),
    ("key_f1", "key F1"),
    ("button_onset_f1", "button onset F1"),
    ("mouse_x/correlation", "mouse x corr."),
)


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Checkpoints by step, each data set's 'repeat previous' as its first row.

    Where chunks did not decode and were replaced, a last column counts them.
    """
    from p2p.evaluate.report import number

    counted = any(row.get("replaced_chunks") for row in rows)

    def cells(row: dict[str, Any], who: str) -> list[str]:
        replaced = [str(row.get("replaced_chunks", ""))] if counted else []
        return [*(number(_value(row["metrics"][who], name), 4) for name, _ in TABLE_METRICS), *replaced]

    lines = [["checkpoint", "step", "data", *(name for _, name in TABLE_METRICS), *(["replaced"] if counted else [])]]
    for data in dict.fromkeys(row["data"] for row in rows):
        chosen = sorted((r for r in rows if r["data"] == data), key=lambda r: (r["step"] is None, r["step"] or 0))
        lines.append([BASELINE, "", data, *cells(chosen[-1], BASELINE)])
        for row in chosen:
            step = "" if row["step"] is None else str(row["step"])
            lines.append([row["checkpoint"], step, data, *cells(row, "policy")])
    return lines


def _value(values: dict[str, Any], name: str) -> float:
    value = values.get(name, {}).get("value")
    return float("nan") if value is None else float(value)


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Perplexity against updates, a curve per data set and folder of checkpoints (one run each).

    A checkpoint without a step is a dotted line, repeating the previous action a dashed one.
    """
    figure, axes = new_figure(8.0, 3.6)
    for number, data in enumerate(dict.fromkeys(row["data"] for row in rows)):
        chosen = [row for row in rows if row["data"] == data]
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in chosen:
            value, folder = _value(row["metrics"]["policy"], "perplexity"), str(Path(row["checkpoint"]).parent)
            if row["step"] is None:
                axes.axhline(value, color=f"C{number}", linestyle=":", label=f"{row['checkpoint']}, {data}")
            else:
                curves.setdefault(folder, []).append((row["step"], value))
        for style, (folder, points) in enumerate(curves.items()):
            steps, values = zip(*sorted(points), strict=True)
            marker = "osD^v"[style % 5]
            axes.plot(steps, values, color=f"C{number}", marker=marker, markersize=4, label=f"{folder}, {data}")
        baseline = _value(chosen[-1]["metrics"][BASELINE], "perplexity")
        axes.axhline(baseline, color=f"C{number}", linestyle="--", linewidth=0.9, label=f"{BASELINE}, {data}")
    axes.set_xlabel("updates")
    axes.set_ylabel("perplexity")
    plain_log_scale(axes)
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)
