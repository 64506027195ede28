"""Time and memory over length, with fits."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.records.units import MIB
from analysis.rendering.style import label_lines, length_axis, look
from analysis.selection import views
from analysis.standard import quantities
from analysis.standard.panels import (
    UNFITTED,
    draw_censored,
    draw_fit,
    draw_points,
    log_height,
    over_length,
    worth_drawing,
)

MEASURED = {"time": quantities.time, "memory": quantities.memory}


def time(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Median time of the forward pass (ms) against length, with fits; one panel per series."""
    return _grown(frame, experiment, machine, "time", "median time (ms)")


def memory(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Peak memory beyond the inputs (MiB) against length, with fits; one panel per series."""
    return _grown(frame, experiment, machine, "memory", "peak beyond the inputs (MiB)")


def _grown(frame, experiment, machine, quantity, ylabel) -> Figure:
    panels = [s for v in views.all_views(frame, experiment, machine) for s in v.series()]

    def draw(ax: Axes, series: views.Series) -> None:
        draw_series(ax, series, quantity)
        ax.set_ylabel(ylabel)

    return over_length(panels, draw, UNFITTED)


def draw_series(ax: Axes, series: views.Series, quantity: str) -> None:
    """Points, fits and labels of "time" (ms) or "memory" (MiB); what ran out at the top edge."""
    unit = MIB if quantity == "memory" else 1  # of the fits, which are of bytes
    length_axis(ax, series.lengths)
    ax.set_yscale("log")
    ends, values = [], []
    for system in series.systems:
        one, rows = look(system), series.timed(system)
        if quantity == "memory":
            rows = rows[rows["peak_memory_bytes"] > 0]
        if len(rows) < min(2, len(series.lengths)):
            continue  # one point beside whole lines says nothing of growth
        fit = worth_drawing(series.growth(system, quantity))
        points = [(row["seq_len"], MEASURED[quantity](row).amount) for _, row in rows.iterrows()]
        n, y = draw_points(ax, points, one, line="none" if fit else ":")
        text = one.label
        if fit:
            text += "  " + draw_fit(ax, fit, one, lambda n: unit)
        ends.append((n[-1], y[-1], text, one.ink))
        values += y
    if values:  # the band of an uncertain fit runs off the axis rather than ruling it
        ax.set_ylim(min(values) / 2, max(values) * 2)
    draw_censored(ax, series)
    log_height(ax)
    label_lines(ax, ends)
