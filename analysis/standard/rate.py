"""Useful FLOP/s against length, under the ceilings that were measured beside each case."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.rendering.style import GREY, Look, label_lines, length_axis, look
from analysis.selection import rates, views
from analysis.standard.panels import comparing, draw_points, over_length


def rate(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Useful FLOP/s of the forward pass; grey: the matmul ceiling; dashed: the copy bound.

    The copy bound of a system is what it would reach if reading its inputs and writing its
    output once at the measured copy rate were all there is; drawn where it is the lower one.
    """
    panels = comparing([s for v in views.all_views(frame, experiment, machine) for s in v.series()])
    timed = [series.rows[series.rows["status"] == "ok"] for series in panels]
    timed = pd.concat([frame.iloc[:0], *timed])
    note = ""
    if timed["matmul_flops_per_s"].notna().any():
        note = "Grey: a matrix product in the same type."
    if any(_copy_is_lower(row) for _, row in timed.iterrows()):
        note += " Dashed: inputs read and output written once at the copy rate."
    return over_length(panels, _draw, note)


def _draw(ax: Axes, series: views.Series) -> None:
    length_axis(ax, series.lengths)
    timed = series.rows[series.rows["status"] == "ok"]
    fastest = (1000 * timed["useful_flops"] / timed["low_ms"].fillna(timed["median_ms"])).max()
    highest = [h for h in (timed["matmul_flops_per_s"].max(), fastest) if not math.isnan(h)]
    scale, unit = rates.unit(max(highest, default=0.0))
    ends, bounds = [], set()
    for system in series.systems:
        one, rows = look(system), series.timed(system)
        found = [(row["seq_len"], rates.useful(row)) for _, row in rows.iterrows()]
        if not found:
            continue
        n, y = draw_points(ax, found, one, scale)
        ends.append((n[-1], y[-1], one.label, one.ink))
        # Systems that do the same work have the same bound: drawn once.
        if tuple(rows["useful_flops"]) not in bounds:
            _draw_copy_bound(ax, rows, one, scale)
        bounds.add(tuple(rows["useful_flops"]))
    ceiling = timed.groupby("seq_len")["matmul_flops_per_s"].median().dropna() / scale
    if len(ceiling):
        text = "matmul ceiling"
        grey = {"color": GREY, "linewidth": 1.4, "alpha": 0.6, "zorder": 2, "label": text}
        ax.plot(ceiling.index, ceiling, **grey)
        ends.append((ceiling.index[-1], ceiling.iloc[-1], text, GREY))
    ax.set_ylim(0, None)
    ax.set_ylabel(f"useful {unit}")
    label_lines(ax, ends)


def _draw_copy_bound(ax: Axes, rows: pd.DataFrame, one: Look, scale: float) -> None:
    points = [
        (row["seq_len"], rates.copy_bound(row) / scale)
        for _, row in rows.iterrows()
        if _copy_is_lower(row)
    ]
    if points:
        dashes = {"linestyle": (0, (4, 2)), "linewidth": 0.6, "label": f"{one.label}: copy bound"}
        ax.plot(*zip(*points, strict=True), color=one.color, **dashes)


def _copy_is_lower(row: pd.Series) -> bool:
    return rates.copy_bound(row) < row["matmul_flops_per_s"]
