"""Whether intervals hold what is measured again, drawn: see `analysis.findings.retests`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.findings.retests import Retest, most
from analysis.rendering.style import GREY, PAGE, style
from analysis.rendering.text import number
from analysis.selection import views

# Per cent: what differs less is drawn there.
LEAST = 0.1
NONE = "no intervals to compare: fewer than two occasions, or one round each"


def retest(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """How far off other occasions are against half the interval: below the diagonal it holds."""
    machine, found = most(frame, machine)
    device = views.device(frame[frame["machine"] == machine].iloc[0])
    with style():
        figure = Figure(figsize=(PAGE, 2.5))
        if not found.found:
            figure.text(0.5, 0.5, NONE, ha="center", color=GREY)
            return figure
        ax = figure.subplots()
        figure.subplots_adjust(0.075, 0.18, 0.995, 0.91)
        _draw(ax, found.found)
        before, after = found.rounds
        ax.set_title(
            f"{device}: {_rounds(before)}, and {_rounds(after)} {number(found.hours)} h later", x=0
        )
        share = number(100 * found.held / len(found.found))
        ax.text(
            0.01, 0.97, f"{share} % of {len(found.found)} intervals hold what was measured again",
            transform=ax.transAxes, va="top", fontsize=7,
        )  # fmt: skip
    return figure


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _draw(ax: Axes, found: Sequence[Retest]) -> None:
    halves = [_per_cent(one.half) for one in found]
    offs = [max(_per_cent(abs(one.off)), LEAST) for one in found]
    ends = np.array([0.8 * min(*halves, *offs), 1.25 * max(*halves, *offs)])
    ax.fill_between(ends, [ends[0], ends[0]], ends, color=GREY, alpha=0.12, linewidth=0)
    for is_held, color, label in ((True, "#3B4CC0", "held"), (False, "#B40426", "not held")):
        own = [at for at, one in enumerate(found) if one.is_held == is_held]
        ax.plot(
            [halves[at] for at in own], [offs[at] for at in own], linestyle="none", marker="o",
            markersize=2.6, markeredgewidth=0, alpha=0.8, color=color, label=label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(0.8 * min(halves), 1.25 * max(halves))
    ax.set_ylim(*ends)
    ax.set_xlabel("half the interval (%)")
    ax.set_ylabel("measured again, off by (%)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.legend(loc="lower right", ncols=2, fontsize=6.5)


def _per_cent(log: float) -> float:
    return 100 * math.expm1(log)
