"""Strong scaling over real ranks, and where the time of each hop goes. Measured only."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiments.ring import views as ring_views
from analysis.rendering.style import GREY, label_lines, look
from analysis.selection import views
from analysis.standard import in_words
from analysis.standard.panels import bars_of, draw_points, grid_of, log_height
from analysis.statistics.intervals import Interval

NOTE = "Dashed: as many times as fast as there are ranks."
ONE_CORE = " On a CPU a rank is one core, alone too."


def strong(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Speed-up over one rank against the number of real ranks; dashed: as many times as ranks.

    One panel per pass, masking, type and length. Simulated ranks are not in it.
    """
    panels = []
    measured = views.all_views(frame, experiment, machine)
    for view in measured:
        found: dict[tuple, dict[str, list[tuple[int, Interval]]]] = {}
        for row, alone in ring_views.strong(view.rows):
            gain = views.ratio(alone, row)
            if gain is not None:
                case = in_words.case(row, "type", "masking")
                shape = in_words.case(row, "pass", "length")
                title = f"{view.device}, {case}\n{shape} tokens"
                lines = found.setdefault((title, row["heads"]), {})
                system = row["system"].partition("/")[0]
                lines.setdefault(system, []).append((int(row["world_size"]), gain))
        for (title, _), lines in found.items():
            panels.append((title, lambda ax, x=lines: _draw_strong(ax, x)))
    return grid_of(panels, NOTE + ONE_CORE * any(view.is_cpu for view in measured))


def overlap(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Compute and waiting of each hop of the slowest rank, in the order that they come.

    One bar per system over real ranks, forward, at its longest length and most ranks.
    """
    panels = []
    for view in views.all_views(frame, experiment, machine):
        rows = view.rows[(view.rows["pass"] == "forward") & view.rows["wait_share"].notna()]
        rows = rows[rows["world_size"] > 1]
        bars = []
        for family in ring_views.families(rows):
            row = family.rows.sort_values(["seq_len", "world_size"], kind="stable").iloc[-1]
            label = look(row["system"].partition("/")[0]).label
            case = in_words.case(row, "length", "not causal", "training")
            bars.append((f"{label}, {case}", row))
        if bars:
            count = f"{max(int(row['world_size']) for _, row in bars)} ranks"
            title = f"{view.device}, {count}: the rank's own keys, then hop by hop"
            labels = [label for label, _ in bars]
            panels.append((title, labels, lambda ax, x=bars: _draw_overlap(ax, x)))
    return bars_of(
        panels,
        "Filled: compute; hatched: waiting for keys. Of the slowest rank, in the median repeat.",
    )


def _draw_strong(ax: Axes, lines: dict[str, list[tuple[int, Interval]]]) -> None:
    most = max(count for line in lines.values() for count, _ in line)
    counts = sorted({1, *(count for line in lines.values() for count, _ in line)})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    dashes = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 0.8, "label": "ideal"}
    ax.plot([1, most], [1, most], zorder=2, **dashes)
    ends, values = [(most, most, "ideal", GREY)], [1.0, float(most)]
    for system, line in lines.items():
        one = look(system)
        x, y = draw_points(ax, [(1, Interval.exact(1.0)), *line], one)
        ends.append((x[-1], y[-1], one.label, one.ink))
        values += y
    ax.set_xlim(0.9, most * 1.1)
    # An interval of few rounds runs off the axis rather than ruling it.
    ax.set_ylim(min(values) / 1.15, max(values) * 1.15)
    ax.xaxis.set_major_locator(FixedLocator(counts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{p:g}"))
    ax.set_xlabel("ranks p")
    ax.set_ylabel("speed-up over one rank")
    log_height(ax)
    label_lines(ax, ends)


def _draw_overlap(ax: Axes, bars: list[tuple[str, pd.Series]]) -> None:
    for y, (_, row) in enumerate(bars):
        one, at = look(row["system"].partition("/")[0]), 0.0
        for wait, compute in ring_views.hops(row):
            ax.barh(
                y,
                wait,
                left=at,
                height=0.62,
                facecolor="white",
                edgecolor=GREY,
                hatch="//////",
                label=f"{one.label}: wait",
            )
            filled = {
                "facecolor": one.color,
                "edgecolor": "white",
                "label": f"{one.label}: compute",
            }
            ax.barh(y, compute, left=at + wait, height=0.62, **filled)
            at += wait + compute
        share = f"{100 * row['wait_share']:.0f} % waiting"
        ax.annotate(
            share, (at, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    ax.set_xlim(0, ax.get_xlim()[1] * 1.22)
    ax.set_xlabel("ms")
