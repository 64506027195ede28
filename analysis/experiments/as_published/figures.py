"""Figures of `as_published`: speed-ups in three marks a line, and the shape of the 2023 plots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiments.as_published import views as replica_views
from analysis.experiments.as_published.views import SHARES, Curve, Three
from analysis.records import systems
from analysis.rendering.style import GREY, label_lines, look, ratio_axis
from analysis.rendering.text import title, tokens
from analysis.selection import published, reporting_machine, views
from analysis.standard.panels import arms, bars_of, grid_of
from analysis.statistics.intervals import Interval

# Where the marks of a line stand about its height, so that those that agree are all seen.
_RAISED = {"published": -0.22, "replica": 0.0, "exact": 0.22}
_MARKS = {
    "published": {"marker": "D", "color": "black", "markerfacecolor": "white", "markersize": 3.6},
    "replica": {"marker": "s", "color": "#D55E00", "markersize": 3.6},
    "exact": {"marker": "o", "color": "#0072B2", "markersize": 3.6},
}


def speedups(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Published, replica and exact speed-ups on one machine, a line each: of several the one that
    has most lines."""

    def lines(view: views.View) -> list[Three]:
        return [three for three in replica_views.speedups(view) if _has_any(three)]

    view, found = reporting_machine.fullest(frame, experiment, machine, lines)
    panels = []
    for writeup in dict.fromkeys(three.writeup for three in found):
        own = [three for three in found if three.writeup == writeup]
        base = {"comprehensive": "DilatedAttention", "block_sparse": "the written-out baseline"}
        heading = f"{title(writeup)}, {view.device}"
        over = f"speed-up over {base[writeup]}"
        labels = [_label(three) for three in own]
        panels.append((heading, labels, lambda ax, own=own, over=over: _marks(ax, own, over)))
    note = (
        f"White: published ({published.CARD}); squares: replicas of what the old "
        "code computed, which is not the attention in their names; circles: the exact systems, "
        "over the same base, checked against the oracle. Bars: 95 % intervals."
    )
    return bars_of(panels, note)


def _has_any(three: Three) -> bool:
    return any(views.ratio(*pair) is not None for pair in (three.replica, three.exact))


def _label(three: Three) -> str:
    variant, sparsity = systems.parts(three.system)
    short = look(variant if sparsity is None else three.system).label
    return f"{short}, {tokens(three.seq_len)}"


def _marks(ax: Axes, lines: Sequence[Three], over: str) -> None:
    shown: list[float] = []
    for name, mark in _MARKS.items():
        if name == "published":
            old = {y: three.published for y, three in enumerate(lines) if three.published}
            found = {y: Interval.without_spread(x) for y, x in old.items()}
        else:
            gains = {y: views.ratio(*getattr(three, name)) for y, three in enumerate(lines)}
            found = {y: gain for y, gain in gains.items() if gain is not None}
        x, at = [gain.value for gain in found.values()], [y + _RAISED[name] for y in found]
        bars = {"linestyle": "none", "elinewidth": 0.8, "label": name, **mark}
        if found:
            ax.errorbar(x, at, xerr=np.nan_to_num(arms(found.values())), **bars)
        shown += x
    ratio_axis(ax, shown)
    ax.set_xlabel(over)


def plots(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Time at a constant number of tokens over that of the shortest length, against length."""

    def points(found: Sequence[Curve]) -> int:
        return sum(len(curve.rows) for curve in found)

    view, curves = reporting_machine.fullest(
        frame, experiment, machine, replica_views.curves, points
    )
    note = (
        "Points: measured, with 95 % intervals; lines: counted pairs. Rates as the script made "
        "them, 1, 2, 8, 128, or as they were meant, 1, 2, 4, 8."
    )
    if _read_off():
        note += " White: read off the published plots of 128M and 256M tokens."
    heading = f"{view.device}, a constant number of tokens\nin ever fewer sequences"
    return grid_of([(heading, lambda ax: _curves(ax, curves))] if curves else [], note)


def _read_off() -> list[float]:
    """The published shares of the plots that have the four branches of these cases."""
    shares = (replica_views.plot_share(plot) for plot in SHARES[1:])
    return [share for share in shares if share is not None]


def _curves(ax: Axes, curves: Sequence[Curve]) -> None:
    ends, places = [], set()
    colors = {"as made": "#D55E00", "as meant": "#009E73"}
    for curve in curves:
        exact = curve.variant == "dilated-sdpa"
        one = look(curve.variant)
        color = one.color if exact else colors[curve.rates]
        name = f"exact, {curve.rates}" if exact else f"replica, {curve.rates}"
        x = [row["seq_len"] / row["segment_lengths"][0] for row in curve.rows]
        places |= set(x)
        model = [curve.model(row) for row in curve.rows]
        ax.plot(x, model, color=color, linewidth=0.8, label=f"{name}: counted")
        shares = [curve.share(row).amount for row in curve.rows[1:]]
        y = [share.value for share in shares]
        bars = {"linestyle": "none", "elinewidth": 0.8, "marker": one.marker, "markersize": 3.6}
        if shares:
            ax.errorbar(x[1:], y, yerr=np.nan_to_num(arms(shares)), color=color, label=name, **bars)
        ends.append((x[-1], y[-1] if y else 1.0, name, color))
    read = _read_off()
    if read and places:
        marks = {"linestyle": "none", "label": "published", **_MARKS["published"]}
        ax.plot([max(places) for _ in read], read, zorder=6, **marks)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(places)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("length over the shortest segment")
    ax.set_ylabel("time, shortest length = 1")
    ax.set_ylim(0, None)
    ax.axhline(1, color=GREY, linewidth=0.5)
    label_lines(ax, ends)
