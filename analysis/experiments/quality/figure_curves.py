"""Validation loss of a training on its way: against its steps, and against its FLOPs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.views import Lesson
from analysis.rendering.style import label_lines
from analysis.selection import reporting_machine
from analysis.standard.panels import grid_of, log_height, log_width

NOTE = (
    "Lines: means over seeds; thin: each seed. Of each kind of attention the system with the most "
    "branches, or the least sparse one. The learning rate stays as it is after the warm-up: each "
    "point is what a training of so many steps gives. FLOPs: those that the attention needs, "
    "whatever computes it. Text: from a tenth of the steps on."
)
# Of text what is before this share of the steps is left out: there all lines fall alike.
FROM = 0.1
# Multiples of powers of ten with a tick, where an axis spans less than so many times.
_MULTIPLES = {4.0: (1, 1.5, 2, 3, 4, 6), 12.0: (1, 2, 5), 50.0: (1, 3)}


def curves(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Loss against steps and FLOPs, a row of two panels a task, on one machine.

    Of several machines that on which most systems were trained.
    """
    _, found = reporting_machine.fullest(
        frame, experiment, machine, quality_views.main_lessons, quality_views.count
    )
    panels = [
        (one.heading, lambda ax, x=one, flops=flops: _draw(ax, x, flops))
        for one in found
        for flops in (False, True)
    ]
    return grid_of(panels, NOTE)


def _draw(ax: Axes, lesson: Lesson, by_flops: bool) -> None:
    ends = []
    for one in lesson.of_each_kind():
        trainings = one.row["trainings"]
        each = one.row["useful_flops"] if by_flops else 1
        x = np.array([found.step for found in trainings[0].evaluations], float)
        losses = np.array([[found.loss for found in own.evaluations] for own in trainings])
        late = x >= FROM * x[-1]
        if lesson.is_text and late.sum() > 2:
            x, losses = x[late], losses[:, late]
        x *= each
        color = one.look.color
        for own in losses if len(losses) > 1 else ():
            seed = {"linewidth": 0.4, "alpha": 0.55, "label": f"{one.name}: a seed"}
            ax.plot(x, own, color=color, zorder=2, **seed)
        mean = losses.mean(axis=0)
        top = 5 if one is lesson.dense else 4
        ax.plot(x, mean, color=color, linewidth=1.1, zorder=top, label=one.name)
        ends.append((x[-1], mean[-1], one.name, one.look.ink))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("FLOPs of the training" if by_flops else "steps")
    ax.set_ylabel(f"validation loss (bits per {'byte' if lesson.is_text else 'answer'})")
    log_height(ax)
    if by_flops:
        _flops_ticks(ax)
    else:
        log_width(ax)
    label_lines(ax, ends, size=6.5)


def _flops_ticks(ax: Axes) -> None:
    """Powers of ten; over few of them multiples too, as many as there is room for."""
    low, high = ax.get_xlim()
    within = next(most for most in (*_MULTIPLES, math.inf) if high / low < most)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [times * 10.0**power for power in powers for times in _MULTIPLES.get(within, (1,))]
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(_power))
    ax.set_xlim(low, high)


def _power(x: float, _: object) -> str:
    power = math.floor(math.log10(x) + 1e-9)
    times = f"{x / 10**power:.2g}"
    mantissa = "" if times == "1" else rf"{times}\cdot "
    return f"${mantissa}10^{{{power}}}$"
