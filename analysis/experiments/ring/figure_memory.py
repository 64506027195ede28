"""Memory of a rank per token over length: one device as published, then by number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis.experiments.ring import views as ring_views
from analysis.experiments.ring.views import EXPERIMENT, SINGLE, Family
from analysis.records.units import KIB
from analysis.rendering.style import Look, label_lines, length_axis, look
from analysis.selection import published, views
from analysis.standard.panels import (
    MAX_PANELS,
    UNFITTED,
    draw_fit,
    grid_of,
    log_height,
    worth_drawing,
)
from analysis.statistics import scaling

# One of each pattern: no order of tokens, and nobody's module, holds more or less.
VARIANTS = (ring_views.OURS, "ring-dilated", "ring-block-sparse", "ring-block-sparse-dilated")
PUBLISHED_AT = 512  # the length of the published figures


@dataclass(frozen=True)
class _Line:
    """Points (tokens, KiB per token) of a system or of a number of ranks, and their fit."""

    one: Look
    rows: pd.DataFrame
    fit: scaling.ScalingFit | None
    published: float | None = None


def memory_ranks(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Peak of a rank beyond its inputs over all tokens (KiB) against length, log-log, with fits.

    A panel for one device, open markers published; then one for each system over several lengths
    and numbers of ranks, real or simulated. A flat line is O(n), lines apart by p are O(n / p).
    """
    panels = []
    for view in views.all_views(frame, experiment, machine):
        alone = _alone(frame, view)
        if alone:
            panels.append((f"{view.device}, one device, {_dtype(alone)}", alone))
        rows = view.rows[view.rows["pass"] == "forward"]
        for family in ring_views.families(rows[rows["variant"].isin(VARIANTS)]):
            if len(panels) >= MAX_PANELS:  # none of these is drawn
                break
            sizes = len(family.lengths), len(family.world_sizes)
            lines = _by_ranks(family)
            if lines and min(sizes) > 1 and max(sizes) > 2:
                kind = "simulated ranks" if family.simulated else "real ranks"
                one = look(family.first["system"].partition("/")[0])
                title = f"{view.device}, {one.label}\n{kind}, {family.first['dtype']}"
                panels.append((title, lines))
    note = "Lines: growth fitted to the peak, over the tokens. Open: published, at 512 tokens. "
    note += UNFITTED
    return grid_of([(title, lambda ax, x=lines: _draw(ax, x)) for title, lines in panels], note)


def _alone(frame: pd.DataFrame, view: views.View) -> list[_Line]:
    found = []
    lengths = sorted(set(view.rows["seq_len"]))
    for system in SINGLE:
        rows = [ring_views.single(frame, view.machine, system, n) for n in lengths]
        rows = pd.DataFrame([row for row in rows if ring_views.per_token(row).value])
        if len(rows) < 2:
            continue
        one = look(system)
        batch = published.shapes(EXPERIMENT)[0][0]
        old = published.value(EXPERIMENT, system, batch, PUBLISHED_AT, "memory_per_token")
        fit = ring_views.fit(rows["seq_len"], rows["peak_memory_bytes"])
        found.append(_Line(one, rows, worth_drawing(fit), old))
    return found


def _points(family: Family) -> dict[int, pd.DataFrame]:
    """Number of ranks -> the rows of which some memory was seen."""
    rows = family.rows[family.rows["peak_memory_bytes"] > 0]
    return {p: rows[rows["world_size"] == p] for p in family.world_sizes}


def _by_ranks(family: Family) -> list[_Line]:
    one, found = look(family.first["system"].partition("/")[0]), []
    points = _points(family)
    for place, (count, rows) in enumerate(points.items()):
        if rows.empty:
            continue
        # From pale to full as the ranks grow, a marker each.
        depth = 0.35 + 0.65 * place / max(len(points) - 1, 1)
        color = tuple(1 - depth * (1 - part) for part in to_rgb(one.color))
        rows = rows.sort_values("seq_len")
        fit = worth_drawing(family.memory_over_lengths(count))
        found.append(_Line(Look(f"p = {count}", color, "osD^vPX<>"[place % 9]), rows, fit))
    return found


def _draw(ax: Axes, lines: Sequence[_Line]) -> None:
    lengths = sorted({int(n) for line in lines for n in line.rows["seq_len"]})
    length_axis(ax, lengths)
    ax.set_yscale("log")
    ends, values = [], []
    for line in lines:
        one = line.one
        n = line.rows["seq_len"].to_numpy(float)
        batch = line.rows.iloc[0]["batch"]
        y = [ring_views.per_token(row).value for _, row in line.rows.iterrows()]
        drawn = {"color": one.color, "marker": one.marker, "markerfacecolor": one.color}
        ax.plot(n, y, linestyle="none" if line.fit else ":", zorder=4, label=one.label, **drawn)
        text = one.label
        if line.fit:
            text += "  " + draw_fit(ax, line.fit, one, lambda n, b=batch: b * n * KIB)
        if line.published:
            ax.plot(
                PUBLISHED_AT, line.published, marker=one.marker, color=one.color,
                markerfacecolor="white", linestyle="none", zorder=5,
                label=f"{one.label}: published",
            )  # fmt: skip
            values.append(line.published)
        ends.append((n[-1], y[-1], text, one.ink))
        values += y
    if values:  # the band of an uncertain fit runs off the axis rather than ruling it
        ax.set_ylim(min(values) / 2, max(values) * 2)
    ax.set_ylabel("peak per token (KiB)")
    log_height(ax)
    label_lines(ax, ends)


def _dtype(lines: Sequence[_Line]) -> str:
    return str(lines[0].rows.iloc[0]["dtype"])
