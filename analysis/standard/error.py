"""The figure of errors: every case against the float64 oracle, beside dense attention's own."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import COLUMN, GREY, PAGE, look, style
from analysis.selection import views

MAX_PANELS = 6
# The correctness gate: a multiple of dense attention's own error, or one unit in the last place.
LIMITS = {"": 2, "gradient_": 3}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def error(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Relative rms error against the float64 oracle, dense attention's own beside each.

    One panel per machine and dtype, in it one line per case: filled marker, dense attention as an
    open circle, and the limit that was applied as a tick: 2x that, 3x for gradients, or eps of the
    dtype where that is more.
    """
    panels = [
        (view, dtype, rows[rows["status"] == "ok"])
        for view in views.all_views(frame, experiment, machine)
        for dtype, rows in view.rows.groupby("dtype", sort=True)
    ]
    # Dense attention alone says nothing of a system.
    several = [one for one in panels if one[2]["system"].nunique() > 1]
    panels = (several or panels)[:MAX_PANELS]
    columns = min(len(panels), 2)
    heights = [0.62 + 0.25 * max(len(_error_rows(rows)), 1) for _, _, rows in panels]
    tall = [max(heights[i : i + 2]) for i in range(0, len(panels), 2)]
    with style():
        width = COLUMN if columns == 1 else PAGE
        figure = Figure(figsize=(width, sum(tall)))
        top = sum(tall)
        for index, (view, dtype, rows) in enumerate(panels):
            row, column = divmod(index, 2)
            upper, height = top - sum(tall[:row]) - 0.2, heights[index] - 0.56
            ax = figure.add_axes(
                (
                    (column * PAGE / 2 + 1.28) / width,
                    (upper - height) / top,
                    2.02 / width,
                    height / top,
                )
            )
            _draw_errors(ax, rows)
            ax.set_title(f"{view.device}, {dtype}", x=-0.6)
    return figure


def _error_rows(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(system, column prefix, rows) of each line of an error panel that has a point."""
    lines = []
    for prefix in ("", "gradient_"):
        checked = rows[rows[f"{prefix}relative_rms"].notna()]
        # A ring is one line, over however many ranks.
        own = checked["system"].map(systems.on_one_rank)
        lines += [(system, prefix, checked[own == system]) for system in systems.ordered(own)]
    return lines


def _draw_errors(ax: Axes, rows: pd.DataFrame) -> None:
    lines = _error_rows(rows)
    bases = [own[f"{prefix}baseline_relative_rms"].max() for _, prefix, own in lines]
    power = math.floor(math.log10(max([*bases, 1e-300])))
    words = {"": "", "gradient_": ", gradient"}
    for line, (system, prefix, own) in enumerate(lines):
        own = own.sort_values(["seq_len", "path"])
        y = line + (np.linspace(-0.27, 0.27, len(own)) if len(own) > 1 else np.zeros(1))
        errors = own[f"{prefix}relative_rms"] / 10**power
        base = own[f"{prefix}baseline_relative_rms"] / 10**power
        one, text = look(system), look(system).label + words[prefix]
        ax.hlines(y, np.minimum(errors, base), np.maximum(errors, base), color=GREY, linewidth=0.4)
        open_ = {"color": GREY, "markerfacecolor": "white", "markersize": 2.4}
        ax.plot(base, y, "o", label=f"{text}: dense", **open_)
        marks = {"marker": one.marker, "markersize": 2.8, "markeredgewidth": 0}
        ax.plot(errors, y, linestyle="none", color=one.color, label=text, **marks)
        tick = {"color": "black", "markersize": 2.6, "markeredgewidth": 0.5}
        limits = np.maximum(LIMITS[prefix] * base, own["dtype"].map(EPS) / 10**power)
        ax.plot(limits, y, "|", label=f"{text}: limit", **tick)
    ax.set_xlim(left=0)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(len(lines)), [look(v).label + words[p] for v, p, _ in lines])
    ax.set_ylim(max(len(lines), 1) - 0.5, -0.5)
    ax.set_xlabel(f"relative rms error ($10^{{{power}}}$); ○ dense, | limit", parse_math=True)
