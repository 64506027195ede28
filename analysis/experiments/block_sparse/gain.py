"""Speed-up over dense attention against length, with what the density alone would give."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import label_lines, length_axis, look
from analysis.selection import published, views
from analysis.standard.panels import draw_points, log_height, over_length
from analysis.statistics.intervals import Interval


def gain(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Speed-up over dense attention; dashed: dense pairs over kept pairs, the ideal.

    One panel per series, forward and then forward with backward; open markers are published, where
    they are of the batch of the panel.
    """
    panels = [
        series
        for view in views.all_views(frame, experiment, machine)
        for series in [*view.series()[:1], *view.series("forward_backward")[:1]]
        if any(_gains(series, system) for system in _sparse(series))
    ]

    def draw(ax: Axes, series: views.Series) -> None:
        _draw(ax, series, experiment)

    note = (
        "Dashed: one over the realised density. Open: published at the batch of the panel, "
        f"{published.CARD}."
    )
    return over_length(panels, draw, note)


def _gains(series: views.Series, system: str) -> list[tuple[int, Interval]]:
    """(length, speed-up over dense attention) where both were timed."""
    found = [
        (n, views.ratio(series.row(published.DENSE, n), series.row(system, n)))
        for n in series.lengths
    ]
    return [(n, ratio) for n, ratio in found if ratio is not None]


def _draw(ax: Axes, series: views.Series, experiment: str) -> None:
    length_axis(ax, series.lengths)
    ax.set_yscale("log")
    ax.axhline(1, color="black", linewidth=0.7, zorder=2)
    ends, values = [], [1.0]
    for system in _sparse(series):
        one, found = look(system), _gains(series, system)
        if not found:
            continue
        n, y = draw_points(ax, found, one)
        ends.append((n[-1], y[-1], one.label, one.ink))
        values += y
        if system.startswith("block-sparse@"):
            values += _draw_ideal(ax, series, system)
            if not series.training:
                values += _draw_published(ax, series, experiment, system)
    ax.set_ylabel("speed-up over dense attention")
    # An interval of few rounds can span decades: it runs off the axis rather than ruling it.
    ax.set_ylim(min(values) / 1.5, max(values) * 1.5)
    log_height(ax)
    label_lines(ax, ends)


def _sparse(series: views.Series) -> list[str]:
    return [system for system in series.systems if systems.parts(system)[1] is not None]


def _draw_ideal(ax: Axes, series: views.Series, system: str) -> list[float]:
    rows = series.timed(system)
    ideal = 1 / rows["realised_density"]
    dashes = {"linestyle": (0, (4, 2)), "linewidth": 0.6, "zorder": 3}
    one = look(system)
    ax.plot(rows["seq_len"], ideal, color=one.color, label=f"{one.label}: ideal", **dashes)
    return list(ideal)


def _draw_published(ax: Axes, series: views.Series, experiment: str, system: str) -> list[float]:
    one, drawn = look(system), []
    shapes = [n for batch, n in published.shapes(experiment) if batch == series.batch]
    for n in shapes:
        old = published.value(experiment, system, series.batch, n, "speedup")
        if old and series.lengths[0] <= n <= series.lengths[-1]:
            marks = {"marker": one.marker, "color": one.color, "markerfacecolor": "white"}
            ax.plot(n, old, linestyle="none", zorder=5, label=f"{one.label}: published", **marks)
            drawn.append(old)
    return drawn
