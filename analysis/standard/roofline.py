"""Roofline: useful FLOP/s against arithmetic intensity, under the ceilings of each machine."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.rendering.style import GREY, label_lines, look
from analysis.rendering.text import span
from analysis.selection import rates, views
from analysis.standard.panels import draw_points, log_height, log_width, over_length

NOTE = (
    "Intensity: useful FLOPs over inputs and outputs moved once, so lengths go from left to right. "
    "Grey: the lower of the copy rate times the intensity and a matrix product in the same type."
)


def roofline(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """One panel per machine: the forward pass of its first series, by system and length."""
    panels = []
    for view in views.all_views(frame, experiment, machine):
        for series in view.series()[:1]:
            rows = series.rows[series.rows["status"] == "ok"]
            if rows[["matmul_flops_per_s", "copy_bytes_per_s"]].notna().all(axis=1).any():
                panels.append(series)
    return over_length(panels, _draw, NOTE)


def _draw(ax: Axes, series: views.Series) -> None:
    timed = series.rows[series.rows["status"] == "ok"]
    matmul, copy = (timed[c].median() for c in ("matmul_flops_per_s", "copy_bytes_per_s"))
    scale, unit = rates.unit(matmul)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends, across, values = [], [], [matmul / scale]
    for system in series.systems:
        one, rows = look(system), series.timed(system)
        found = [(rates.intensity(row), rates.useful(row)) for _, row in rows.iterrows()]
        found = [(x, rate) for x, rate in found if rate is not None]
        if not found:
            continue
        x, y = draw_points(ax, found, one, scale)
        ends.append((x[-1], y[-1], f"{one.label}, {span(rows['seq_len'])}", one.ink))
        across += x
        values += y
    ridge = matmul / copy
    x = np.geomspace(min(*across, ridge) / 2, max(*across, ridge) * 2, 100)
    x = np.sort(np.append(x, ridge))  # a corner
    roof = np.minimum(matmul, copy * x) / scale
    grey = {"color": GREY, "linewidth": 1.4, "alpha": 0.6, "zorder": 2, "label": "roof"}
    ax.plot(x, roof, **grey)
    ends.append((x[-1], roof[-1], "roof", GREY))
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(min(values) / 1.6, max(values) * 1.6)
    ax.set_xlabel("useful FLOPs per byte moved")
    ax.set_ylabel(f"useful {unit}")
    log_height(ax)
    log_width(ax)
    label_lines(ax, ends)
