"""What a step costs, and what is learnt in as many steps: every system a numbered point."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.quality import naming
from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.views import Learner, Lesson
from analysis.records.frame import time_interval
from analysis.rendering.placing import Beside, label_points
from analysis.rendering.style import GREY, PAGE, style
from analysis.selection import reporting_machine
from analysis.standard.panels import arms, finish, foot_of, log_width

PANEL, LEFT, KEY, HEAD, TAIL = 2.1, 0.52, 1.95, 0.36, 0.42  # inches
LINE = 0.125  # of the key
NOTE = (
    "A step: forward, backward and the update of all weights. Large marks: means over seeds; "
    "small: each seed; bars: 95 % intervals, over seeds upright and over rounds across. Grey: the "
    "frontier, of systems that no other one's means beat in both; bold: on a frontier. Where bars "
    "overlap, others may be on it. A step is timed for about a second per round, and not again "
    "where the machine drifts."
)


def frontier(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Score against step time (ms), a panel a task, with the Pareto frontier, on one machine.

    Of several machines that on which most systems were trained.
    """
    _, lessons = reporting_machine.fullest(
        frame, experiment, machine, quality_views.main_lessons, quality_views.count
    )
    systems = _systems(lessons)
    note = NOTE + naming.how_computed(one.row for one in systems)
    with style():
        lines, foot = foot_of(note, PAGE)
        height = max(PANEL * max(len(lessons), 1), LINE * len(systems) + HEAD) + foot
        figure = Figure(figsize=(PAGE, height))
        numbers = {one.slug: place for place, one in enumerate(systems, start=1)}
        wide, high = PAGE - LEFT - KEY, PANEL - HEAD - TAIL
        for place, lesson in enumerate(lessons):
            low = height - PANEL * place - HEAD - high
            ax = figure.add_axes((LEFT / PAGE, low / height, wide / PAGE, high / height))
            _draw(ax, lesson, numbers)
            ax.set_title(lesson.heading.replace("\n", ", "), fontsize=7)
        if lessons:
            down = LINE * len(systems)
            box = ((PAGE - KEY) / PAGE, (height - HEAD - down) / height, KEY / PAGE, down / height)
            on_front = {one.slug for lesson in lessons for one in pareto(lesson)}
            _key(figure.add_axes(box), systems, on_front)
        finish(figure, lines, empty=not lessons)
    return figure


def pareto(lesson: Lesson) -> list[Learner]:
    """The systems that no other one beats in step time and in score, the fastest first."""
    sign = -1 if lesson.is_text else 1
    found: list[Learner] = []
    best = -math.inf
    fastest = sorted(
        lesson.learners,
        key=lambda one: (time_interval(one.row).value, -sign * lesson.score(one).value),
    )
    for one in fastest:
        score = sign * lesson.score(one).value
        if score > best:
            found.append(one)
            best = score
    return found


def _systems(lessons: Sequence[Lesson]) -> list[Learner]:
    """Those of all lessons, each once, in order."""
    each = {one.slug: one for lesson in reversed(lessons) for one in lesson.learners}
    return sorted(each.values(), key=lambda one: naming.order(one.row))


def _key(ax: Axes, systems: Sequence[Learner], on_front: Collection[str]) -> None:
    """Number, mark and name of each system, as in the panels."""
    ax.set_axis_off()
    ax.set_xlim(0, KEY)
    ax.set_ylim(len(systems), 0)
    for y, one in enumerate(systems):
        bold = {"fontweight": "bold"} if one.slug in on_front else {}
        words = {"va": "center", "fontsize": 6.2, "color": one.look.ink, **bold}
        ax.text(0.24, y + 0.5, f"{y + 1}", ha="right", **words)
        mark = {"marker": one.look.marker, "color": one.look.color, "markersize": 4}
        ax.plot([0.33], [y + 0.5], clip_on=False, **mark)
        ax.text(0.42, y + 0.52, one.look.label, **words)


def _draw(ax: Axes, lesson: Lesson, numbers: Mapping[str, int]) -> None:
    labels = []
    for one in lesson.learners:
        time, score, seeds = time_interval(one.row), lesson.score(one), lesson.scores(one)
        at, color = {"x": time.value, "y": score.value}, one.look.color
        dots = {"marker": "o", "markersize": 1.5, "markeredgewidth": 0, "linestyle": "none"}
        named = {"label": f"{one.name}: a seed", "zorder": 3, "alpha": 0.7}
        ax.plot([time.value] * len(seeds), seeds, color=color, **dots, **named)
        bars = {"linestyle": "none", "color": color, "elinewidth": 0.5}
        across = ax.errorbar(**at, xerr=np.nan_to_num(arms([time])), zorder=2, **bars)
        for line in across.lines[2]:
            line.set_alpha(0.3)
        marks = {"marker": one.look.marker, "markersize": 4, "zorder": 5}
        upright = np.nan_to_num(arms([score]))
        ax.errorbar(**at, yerr=upright, capsize=1.2, label=one.name, **bars, **marks)
        ends = [end for end in (score.low, score.high) if math.isfinite(end)]
        taken = (time.value, min([*seeds, *ends]), time.value, max([*seeds, *ends]))
        labels.append(Beside(*at.values(), str(numbers[one.slug]), one.look.ink, [taken]))
    front = [(time_interval(one.row).value, lesson.score(one).value) for one in pareto(lesson)]
    line = {"color": GREY, "linewidth": 1.8, "alpha": 0.3, "zorder": 1, "label": "frontier"}
    ax.plot(*zip(*front, strict=True), drawstyle="steps-post", **line)
    ax.set_xscale("log")
    _limit(ax, lesson)
    log_width(ax)
    if lesson.chance is not None:
        ends = ax.get_xlim()
        ax.plot(ends, [lesson.chance] * 2, ":", color=GREY, linewidth=0.8, label="chance")
        ax.set_xlim(ends)
    ax.set_xlabel("time of a training step (ms)")
    ax.set_ylabel(lesson.unit)
    label_points(ax, labels, size=5.6)


def _limit(ax: Axes, lesson: Lesson) -> None:
    """By the marks: a wide interval runs off the axes rather than ruling them."""
    times = [time_interval(one.row).value for one in lesson.learners]
    room = max(max(times) / min(times), 1.5) ** 0.07
    ax.set_xlim(min(times) / room, max(times) * room)
    values = [value for one in lesson.learners for value in lesson.scores(one)]
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    least = 0.0 if lesson.is_text else -4.0
    ax.set_ylim(max(low - room, least), high + room)
