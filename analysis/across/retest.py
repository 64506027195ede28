"""Whether intervals hold what is measured again, drawn: see `analysis.findings.retests`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.findings.retests import Retest, Retests, elsewhere, most
from analysis.rendering.style import GREY, PAGE, style
from analysis.rendering.text import number
from analysis.selection import views

# Per cent: what differs less is drawn there.
LEAST = 0.1
NONE = "no intervals to compare: fewer than two occasions, or one round each"


def retest(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """How far off other occasions are against half the interval: below the diagonal it holds.

    Where a machine was measured on several hosts, in a second panel those of one beside others.
    """
    machine, found = most(frame, machine)
    device = views.device(frame[frame["machine"] == machine].iloc[0])
    other = elsewhere(frame, machine)
    panels = [
        (found, f"{{}}, and {{}} {number(found.hours)} h later"),
        (other, "{} of one host, and {} of another"),
    ]
    panels = [(one, title.format(*map(_rounds, one.rounds))) for one, title in panels if one.found]
    with style():
        figure = Figure(figsize=(PAGE, 2.5))
        if not panels:
            figure.text(0.5, 0.5, NONE, ha="center", color=GREY)
            return figure
        figure.subplots_adjust(0.075, 0.18, 0.995, 0.91, wspace=0.12)
        limits = _limits([retest for one, _ in panels for retest in one.found])
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (one, title) in zip(axes, panels, strict=True):
            _draw(ax, one, limits)
            ax.set_title(f"{device}: {title}" if ax is axes[0] else title, x=0)
        axes[0].set_ylabel("measured again, off by (%)")
        axes[-1].legend(loc="lower right", ncols=2, fontsize=6.5)
    return figure


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _limits(found: Sequence[Retest]) -> tuple[float, float, float, float]:
    """Of both axes, the same in all panels."""
    halves = [_per_cent(one.half) for one in found]
    offs = [_off(one) for one in found]
    ends = 0.8 * min(*halves, *offs), 1.25 * max(*halves, *offs)
    return 0.8 * min(halves), 1.25 * max(halves), *ends


def _off(one: Retest) -> float:
    return max(_per_cent(abs(one.off)), LEAST)


def _draw(ax: Axes, found: Retests, limits: tuple[float, float, float, float]) -> None:
    ends = np.array(limits[2:])
    ax.fill_between(ends, [ends[0], ends[0]], ends, color=GREY, alpha=0.12, linewidth=0)
    for is_held, color, label in ((True, "#3B4CC0", "held"), (False, "#B40426", "not held")):
        own = [one for one in found.found if one.is_held == is_held]
        ax.plot(
            [_per_cent(one.half) for one in own], [_off(one) for one in own], linestyle="none",
            marker="o", markersize=2.6, markeredgewidth=0, alpha=0.8, color=color, label=label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*limits[:2])
    ax.set_ylim(*limits[2:])
    ax.set_xlabel("half the interval (%)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    share = number(found.share)
    ax.text(
        0.01, 0.97, f"{share} % of {len(found.found)} intervals hold what was measured again",
        transform=ax.transAxes, va="top", fontsize=7,
    )  # fmt: skip


def _per_cent(log: float) -> float:
    return 100 * math.expm1(log)
