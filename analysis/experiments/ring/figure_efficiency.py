"""What is left of the ranks: parallel efficiency of rings over real ranks, and their waiting."""

from __future__ import annotations

import math
from collections.abc import Collection

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.ring import views as ring_views
from analysis.rendering.style import look
from analysis.selection import views
from analysis.selection.shortlist import shortlist
from analysis.standard import in_words, quantities
from analysis.standard.panels import (
    MOST_BARS,
    bars_of,
    draw_bar,
    draw_bar_interval,
    draw_bar_text,
)
from analysis.statistics.intervals import Interval

NOTE = (
    "Speed-up over one rank, over the ranks; lines: 95 % intervals. Waiting: the share of its time "
    "in which the slowest rank had no keys, where it is 1 % or more."
)
ONE_CORE = " On a CPU a rank is one core, alone too."
NO_HOPS = " On a GPU it is not seen."
SEEN = 0.01  # a share of waiting below it is not worth a word


def efficiency(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Parallel efficiency (%) of every system over real ranks, and the share that it waited.

    One panel per machine, one bar per pass, length, system and number of ranks, of the
    `shortlist`; ideal is 100 %. Simulated ranks are not in it.
    """
    panels, left_out = [], ""
    measured = views.all_views(frame, experiment, machine)
    for view in measured:
        found = [
            (row, amount)
            for row, alone in ring_views.strong(view.rows)
            if (amount := quantities.strong_efficiency(alone, row).amount) is not None
        ]
        found, said = shortlist(found, lambda one: one[0], MOST_BARS, "bars")
        left_out = left_out or said
        if found:
            # One bar beside another is a system at the same length.
            found.sort(key=lambda one: (one[0]["pass"], one[0]["dtype"], one[0]["seq_len"]))
            # What all have in common is in the title, what differs in the labels.
            count, dtype = (
                sorted({row[column] for row, _ in found}) for column in ("world_size", "dtype")
            )
            differ = {"ranks"} if len(count) > 1 else set()
            differ |= {"type"} if len(dtype) > 1 else set()
            labels = [_label(row, differ) for row, _ in found]
            ranks = "p ranks" if "ranks" in differ else f"{count[0]:.0f} ranks"
            title = f"{view.device}, {', '.join(dtype)}, {ranks}"
            panels.append((title, labels, lambda ax, x=found: _draw(ax, x)))
    is_cpu = [view.is_cpu for view in measured]
    note = NOTE + ONE_CORE * any(is_cpu) + NO_HOPS * (not all(is_cpu)) + left_out
    return bars_of(panels, note)


def _label(row: pd.Series, differ: Collection[str]) -> str:
    parts = [*(["type"] if "type" in differ else []), "length", "not causal", "training"]
    words = f"{look(row['system'].partition('/')[0]).label}, {in_words.case(row, *parts)}"
    return words + (f", p = {row['world_size']:.0f}" if "ranks" in differ else "")


def _draw(ax: Axes, found: list[tuple[pd.Series, Interval]]) -> None:
    longest, words = 100.0, []
    for y, (row, share) in enumerate(found):
        one, waited = look(row["system"].partition("/")[0]), row["wait_share"]
        name, end = _label(row, {"ranks"}), 100 * share.value
        draw_bar(ax, y, end, one, name)
        words.append(f"{end:.0f} %")
        if waited >= SEEN:
            words[-1] += f", {100 * waited:.0f} % waiting"
        if math.isfinite(share.low) and math.isfinite(share.high):
            draw_bar_interval(ax, y, 100 * share.low, 100 * share.high, f"{name}: interval")
            # An interval of few rounds runs off the axis rather than ruling it.
            end = max(end, min(100 * share.high, 140))
        draw_bar_text(ax, end, y, words[-1])
        longest = max(longest, end)
    ax.axvline(100, color="black", linewidth=0.7, zorder=3)
    ax.set_xlim(0, longest * (1.15 + 0.035 * max(map(len, words))))
    ax.set_xlabel("parallel efficiency (%)")
