"""The figures of one experiment: `FIGURES`, and here time and memory over length.

Each function takes the frame of `records.load` and returns a matplotlib figure, which
`drawing.save` writes. No pyplot: nothing is left open, and no display is needed.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import views
from analysis.drawing import COLUMN, PAGE, label_lines, length_axis, look, style, tokens
from analysis.error_figure import error
from analysis.speedup_figure import speedup

MIB = 2**20
CENSORED_WORDS = {"oom": "out of memory", "timeout": "out of time"}
MAX_PANELS = 6
PANEL = 2.42  # inches, of a panel over length with its title and axis


def time(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Median time of the forward pass (ms) against length, with fits; a panel a series."""
    return _over_length(frame, experiment, machine, "time", "median time (ms)")


def memory(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Peak memory beyond the inputs (MiB) against length, with fits; a panel a series."""
    return _over_length(frame, experiment, machine, "memory", "peak beyond the inputs (MiB)")


def _over_length(frame, experiment, machine, quantity, ylabel) -> Figure:
    panels = [s for v in views.all_views(frame, experiment, machine) for s in v.series()]
    panels = panels[:MAX_PANELS]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / 2)
    with style():
        width, height = (COLUMN if columns == 1 else PAGE), PANEL * rows
        figure = Figure(figsize=(width, height))
        for index, series in enumerate(panels):
            row, column = divmod(index, 2)
            # Inches: room for labels right of each panel, for ticks left of it.
            left, panel = column * PAGE / 2 + 0.52, 1.68
            bottom = (rows - 1 - row) * PANEL + 0.4
            ax = figure.add_axes((left / width, bottom / height, panel / width, 1.68 / height))
            _draw_series(ax, series, quantity)
            ax.set_ylabel(ylabel)
    return figure


def _draw_series(ax: Axes, series: views.Series, quantity: str) -> None:
    scale = MIB if quantity == "memory" else 1
    length_axis(ax, series.lengths)
    ax.set_yscale("log")
    ends = []
    for variant in series.variants:
        one = look(variant)
        rows = series.rows[(series.rows["variant"] == variant) & (series.rows["status"] == "ok")]
        y, bars = rows["median_ms"], None
        if quantity == "memory":
            rows = rows[rows["peak_memory_bytes"] > 0]
            y = rows["peak_memory_bytes"] / scale
        else:
            bars = [y - rows["low_ms"], rows["high_ms"] - y]
        if len(rows) < min(2, len(series.lengths)):
            continue  # one point beside whole lines says nothing of growth
        drawn = {"color": one.color, "marker": one.marker, "markerfacecolor": one.color}
        fit = series.growth(variant, quantity)
        ax.errorbar(
            rows["seq_len"],
            y,
            yerr=bars,
            linestyle="none" if fit else ":",
            elinewidth=0.7,
            capsize=1.5,
            zorder=4,
            **drawn,
        )
        text = one.label
        if fit:
            n = np.geomspace(*fit.n_range, 60)
            low, high = np.quantile(fit.sample_curves(n), (0.025, 0.975), axis=0)
            ax.fill_between(n, low / scale, high / scale, color=one.color, alpha=0.15, linewidth=0)
            ax.plot(n, fit.predict(n) / scale, color=one.color, zorder=3)
            text += f"  $n^{{{fit.exponent.value:.2f}}}$"
        ends.append((rows["seq_len"].iloc[-1], y.iloc[-1], text, one.ink))
    _draw_censored(ax, series)
    low, high = ax.get_ylim()
    if high / low < 30:  # hardly a power of ten in there to label
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(_title(series), fontsize=7, linespacing=1.15)
    label_lines(ax, ends)


def _draw_censored(ax: Axes, series: views.Series) -> None:
    """Points that could not be measured: open markers at the top edge, each with its reason."""
    lost = series.rows[series.rows["status"].isin(CENSORED_WORDS)]
    if lost.empty:
        return
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** (0.1 * (1 + lost.groupby("seq_len").size().max())))
    across = ax.get_xaxis_transform()
    depth: dict[int, int] = {}
    for _, row in lost.iterrows():
        one, n = look(row["variant"]), int(row["seq_len"])
        at = 0.97 - 0.085 * depth.get(n, 0)
        depth[n] = depth.get(n, 0) + 1
        ax.plot(
            n, at, transform=across, marker=one.marker, color=one.color, markerfacecolor="white"
        )
        right = n > np.sqrt(series.lengths[0] * series.lengths[-1])
        ax.annotate(
            CENSORED_WORDS[row["status"]],
            xy=(n, at),
            xycoords=across,
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=6,
            color=one.ink,
        )


def _title(series: views.Series) -> str:
    causal = "causal" if series.is_causal else "not causal"
    return (
        f"{series.device}, {series.dtype}, {causal}\n"
        f"batch {series.batch}, {series.heads} heads, {_short(series.pattern)}"
    )


def _short(pattern: str) -> str:
    """Segments for a panel's title: the rates and long lists are in the caption's table."""
    segments = pattern.partition(",")[0]
    parts = segments.removeprefix("segments ").split("/")
    if not segments.startswith("segments ") or len(parts) == 1:
        return segments
    return f"segments {tokens(int(parts[0]))} to {tokens(int(parts[-1]))}"


FIGURES = {"time": time, "memory": memory, "speedup": speedup, "error": error}
