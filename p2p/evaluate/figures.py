"""Small PNG figures for reports, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2p.files import new_file


def new_figure(width_in: float, height_in: float) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, not tied to any window."""
    figure, axes = new_figure_row(width_in, height_in, 1)
    return figure, axes[0]


def new_figure_row(width_in: float, height_in: float, num_axes: int) -> tuple[Any, list[Any]]:
    """A figure with axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, num_axes, i + 1) for i in range(num_axes)]


def plain_log_scale(axes: Any) -> None:
    """A logarithmic y axis whose ticks are written as 1.12, also where it spans less than a decade."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def save_figure(figure: Any, path: Path, dots_per_inch: int = 110) -> None:
    """Write the PNG; it appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=dots_per_inch)
