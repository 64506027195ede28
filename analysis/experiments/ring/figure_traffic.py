"""Bytes that a rank sends, by pattern, as a share of what a dense ring sends."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.ring import views as ring_views
from analysis.rendering.style import look
from analysis.rendering.text import number
from analysis.selection import views
from analysis.selection.shortlist import shortlist
from analysis.standard import in_words, quantities
from analysis.standard.panels import MOST_BARS, bars_of, draw_bar, draw_bar_text


def traffic(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Counted bytes of the busiest rank over the dense formula; one bar per system and pass.

    Real ranks, each system at its longest length and most ranks, of the `shortlist`; the label
    says how much it is.
    """
    panels, left_out = [], ""
    for view in views.all_views(frame, experiment, machine):
        rows = view.rows[(view.rows["world_size"] > 1) & view.rows["bytes_sent"].notna()]
        rows = rows[rows["simulated"].eq(False)]
        bars = []
        for family in ring_views.families(rows):
            row = family.rows.sort_values(["seq_len", "world_size"], kind="stable").iloc[-1]
            label = look(row["system"].partition("/")[0]).label
            case = in_words.case(row, "length", "not causal", "training")
            bars.append((f"{label}, {case}", row))
        bars, said = shortlist(bars, lambda bar: bar[1], MOST_BARS, "bars")
        left_out = left_out or said
        if bars:
            count = max(int(row["world_size"]) for _, row in bars)
            labels = [label for label, _ in bars]
            title = f"{view.device}, {count} ranks, counted"
            panels.append((title, labels, lambda ax, x=bars: _draw(ax, x)))
    note = "Line at 100 %: a dense ring that is not causal sends every key to every rank."
    return bars_of(panels, note + left_out)


def _draw(ax: Axes, bars: list[tuple[str, pd.Series]]) -> None:
    shares = [100 * ring_views.sent_share(row) for _, row in bars]
    for y, ((_, row), share) in enumerate(zip(bars, shares, strict=True)):
        one = look(row["system"].partition("/")[0])
        draw_bar(ax, y, share, one, one.label)
        text = f"{share:.0f} %, {number(quantities.size(row['bytes_sent']).value)} MiB"
        draw_bar_text(ax, share, y, text)
    ax.axvline(100, color="black", linewidth=0.7, zorder=3)
    ax.set_xlim(0, max([100.0, *shares]) * 1.4)
    ax.set_xlabel("sent, % of the dense formula")
