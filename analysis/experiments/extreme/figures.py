"""Streamed attention over length: time beside dense attention's, and memory that stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from analysis.experiments.extreme import views as extreme_views
from analysis.experiments.extreme.views import GLOBAL, SAME_SCHEDULE, STREAMED, WHOLE
from analysis.records.units import ITEM_BYTES
from analysis.rendering.style import GREY, label_lines, length_axis, look
from analysis.standard import quantities
from analysis.standard.panels import draw_points, grid_of, log_height

DENSE = "dense"
NOTE = (
    "Points are measured, every segment computed. Dashed: dense attention's fit past its last "
    "measured length, an extrapolation that no machine has computed."
)


def passes(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Time of a pass (s) and peak memory (MiB) against length; two panels a machine."""
    panels = []
    for one in extreme_views.all_machines(frame, machine):
        if len(one.streamed()):
            panels.append((f"{one.view.device}, time of a pass", lambda ax, o=one: _time(ax, o)))
            panels.append((f"{one.view.device}, peak memory", lambda ax, o=one: _memory(ax, o)))
    return grid_of(panels, NOTE)


def _lines(one: extreme_views.Extreme):
    """(rows, look, label, line style) of what is drawn of a machine."""
    streamed = look(STREAMED)
    yield one.streamed(SAME_SCHEDULE), streamed, "streamed", "-"
    yield one.streamed(GLOBAL), streamed, "streamed, to n", ":"
    for system, label in ((WHOLE, "one piece"), (DENSE, "dense")):
        yield one.of(system), look(system), label, "-"


def _time(ax: Axes, one: extreme_views.Extreme) -> None:
    _axis(ax, one)
    ends = []
    for rows, drawn, label, line in _lines(one):
        if rows.empty:
            continue
        points = [(row["seq_len"], quantities.time(row, "s").amount) for _, row in rows.iterrows()]
        named = replace(drawn, label=label)
        n, seconds = draw_points(ax, points, named, line=line, is_open=line == ":")
        if label != "dense":
            ends.append((n[-1], seconds[-1], label, drawn.ink))
    fit, longest = one.dense_fit(), one.streamed()["seq_len"].max()
    if fit is not None and longest > fit.n_range[1]:
        n = np.geomspace(fit.n_range[1], longest, 60)
        low, high = (bound / 1000 for bound in fit.band(n))
        drawn = look(DENSE)
        label = "dense, extrapolated"
        ax.fill_between(n, low, high, color=drawn.color, alpha=0.12, linewidth=0, label=label)
        seconds = fit.predict(n) / 1000
        ax.plot(n, seconds, color=drawn.color, linestyle="--", linewidth=0.9, label=label)
        ends.append((n[-1], seconds[-1], label, drawn.ink))
    ax.set_ylabel("seconds")
    log_height(ax)
    label_lines(ax, ends)


def _memory(ax: Axes, one: extreme_views.Extreme) -> None:
    _axis(ax, one)
    ends = []
    for rows, drawn, label, line in _lines(one):
        rows = rows[rows["peak_memory_bytes"] > 0]
        if rows.empty:
            continue
        peak = [quantities.memory(row).value for _, row in rows.iterrows()]
        face = "white" if line == ":" else drawn.color
        ax.plot(
            rows["seq_len"], peak, label=label, color=drawn.color, marker=drawn.marker,
            linestyle=line, markerfacecolor=face,
        )  # fmt: skip
        ends.append((rows["seq_len"].iloc[-1], peak[-1], label, drawn.ink))
    # What the four tensors of the whole sequence would take.
    row = one.rows.iloc[0]
    n = np.array(sorted(set(one.streamed()["seq_len"])))
    heads = 2 * (row["heads"] + row["kv_heads"])
    held = n * row["batch"] * heads * row["head_dim"] * ITEM_BYTES[row["dtype"]]
    whole = [quantities.size(amount).value for amount in held]
    ax.plot(n, whole, color=GREY, linestyle="--", linewidth=0.9, label="q, k, v, out")
    ends.append((n[-1], whole[-1], "q, k, v, out", GREY))
    ax.set_ylabel("peak (MiB)")
    log_height(ax)
    label_lines(ax, ends)


def _axis(ax: Axes, one: extreme_views.Extreme) -> None:
    lengths = sorted({int(n) for n in one.rows["seq_len"]})
    length_axis(ax, lengths)
    # Ticks far enough apart for their labels, the longest length among them.
    apart, ticks = (lengths[-1] / lengths[0]) ** 0.16, [lengths[-1]]
    for n in reversed(lengths):
        if ticks[-1] / n >= apart:
            ticks.append(n)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_yscale("log")
