"""The figure of speed-ups: bars with intervals, the published ratio beside each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import GREY, PAGE, look, ratio_axis, style
from analysis.selection import published, reporting_machine, views
from analysis.standard import in_words
from analysis.standard.panels import draw_bar, draw_bar_interval, short_pattern
from analysis.statistics.intervals import Interval

OURS, THEIRS = 1.2, 1.54  # right edges of the columns of numbers beside bars, axes fraction


def speedup(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Speed-ups of one machine: over DilatedAttention at published shapes, over dense in a series.

    A shape that the machine did not measure is left out; without any, the series stands in. Of
    several machines the one with most bars.
    """
    base = published.speedup_base(experiment)

    def sides(view: views.View) -> tuple[Side, Side]:
        series = view.series()[:1]
        shapes = _over_base(view)
        left = Side(shapes, _case(view)) if shapes else _over(series, base)
        return left, _over(series, published.DENSE)

    def bars(found: tuple[Side, Side]) -> int:
        return sum(len(own) for side in found for _, own in side.groups)

    view, found = reporting_machine.fullest(frame, experiment, machine, sides, bars)
    units = max(_units(side.groups) for side in found)
    with style():
        tall = 0.125 * max(units, 5) + 0.96
        figure = Figure(figsize=(PAGE, tall))
        for x, side, below in zip((0.94, 4.72), found, (base, published.DENSE), strict=True):
            ax = figure.add_axes((x / PAGE, 0.52 / tall, 1.75 / PAGE, (tall - 0.96) / tall))
            _draw_bars(ax, side.groups, units)
            ax.set_xlabel(f"speed-up over {in_words.base(below)}")
            title = f"{view.device}, {side.case}".removesuffix(", ")
            ax.set_title(title, x=-0.53, pad=9, linespacing=1.15)
        note = "Bars to the right of 1× are faster; lines: 95 % intervals."
        note += f" Diamonds: published, {published.CARD}." if base != published.DENSE else ""
        figure.text(0.08 / PAGE, 0.045 / tall, note, fontsize=6.5, color=GREY)
    return figure


@dataclass(frozen=True)
class Side:
    """Groups of (heading, [(system, Interval, published ratio)]), and what they have in common."""

    groups: list[tuple[str, list]]
    case: str = ""


def _case(view: views.View) -> str:
    row = view.nearest.iloc[0]
    case = in_words.case(row, "type", "masking")
    return f"{case}\n{in_words.case(row, 'heads of')}, the published patterns"


def _over_base(view: views.View) -> list[tuple[str, list]]:
    """Groups of (title, [(system, Interval, published ratio)]) at the published shapes."""
    below, groups = published.speedup_base(view.experiment), []
    for wanted, n in published.one_shape_per_length(view.experiment):
        batch = view.batch_for(wanted, n)
        base = view.cell(below, batch, n)
        bars = []
        for system in systems.of_experiment(view.experiment):
            gain = views.ratio(base, view.cell(system, batch, n))
            if gain is not None and system != below:
                old = published.value(view.experiment, system, wanted, n, "speedup")
                bars.append((system, gain, old))
        if bars:
            groups.append((f"{n} tokens, batch {batch}", bars))
    return groups


def _over(series: list[views.Series], base: str) -> Side:
    """Of the first series, if there is one."""
    groups = []
    for one in series:
        for n in one.lengths:
            pairs = [
                (system, views.ratio(one.row(base, n), one.row(system, n)), None)
                for system in one.systems
                if system != base
            ]
            bars = [pair for pair in pairs if pair[1] is not None]
            if bars:
                groups.append((f"{n} tokens, batch {one.batch}", bars))
    if not groups:
        return Side([])
    case, shape = in_words.case(vars(one), "type", "masking"), in_words.case(vars(one), "heads of")
    return Side(groups, f"{case}\n{shape}, {short_pattern(one.pattern)}".removesuffix(", "))


def _units(groups) -> float:
    """Height in bars: a group's heading is 1.36 of them."""
    return sum(1.36 + len(bars) for _, bars in groups)


def _draw_bars(ax: Axes, groups, units: float) -> None:
    y, ticks, labels, values, bounds = 0.0, [], [], [], []
    across = ax.get_yaxis_transform()
    known = any(old for _, bars in groups for _, _, old in bars)
    for title, bars in groups:
        ax.text(-0.53, y + 0.3, title, transform=across, va="center", fontweight="bold")
        y += 1.36
        for system, gain, old in bars:
            _draw_bar(ax, y, (system, title), gain, old)
            ax.text(OURS, y, f"{gain.value:.2f}", transform=across, ha="right", va="center")
            if known:
                text = f"{old:.2f}" if old else "–"
                ax.text(THEIRS, y, text, transform=across, ha="right", va="center", color=GREY)
            ticks.append(y)
            labels.append(look(system).label)
            values += [gain.value, old or gain.value]
            bounds += [gain.low, gain.high]
            y += 1
    # An interval of two rounds can span decades: it runs off the axis rather than ruling it.
    if values:
        low, high = min(values) / 3, max(values) * 3
        values += [min(max(bound, low), high) for bound in bounds if math.isfinite(bound)]
    ratio_axis(ax, values)
    ax.set_yticks(ticks, labels)
    ax.set_ylim(max(units, 5) - 0.4, -0.5)
    if not groups:
        ax.text(1, 0.2, "not measured here", ha="center", color=GREY)
        return
    heading = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "fontsize": 6.5}
    ax.text(OURS, 1.005, "measured", **heading)
    if known:
        ax.text(THEIRS, 1.005, "published ◇", color=GREY, **heading)


def _draw_bar(ax: Axes, y: float, of: tuple[str, str], gain: Interval, old: float | None) -> None:
    """`of`: the system, and the heading that it stands under."""
    one, label = look(of[0]), f"{look(of[0]).label}, {of[1]}"
    draw_bar(ax, y, gain.value - 1, one, label, left=1, height=0.74)
    if math.isfinite(gain.low) and math.isfinite(gain.high):
        draw_bar_interval(ax, y, gain.low, gain.high, f"{label}: interval")
    if old:
        marks = {"marker": "D", "color": "black", "markerfacecolor": "white"}
        ax.plot(old, y, zorder=6, label=f"{label}: published", **marks)
