"""Bits per byte of text: by the position in the context, and by the length trained at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.views import Learner, Lesson
from analysis.records import learnt
from analysis.rendering.style import GREY, label_lines, length_axis
from analysis.standard.panels import draw_points, grid_of

TASK = "text"
# Where there are fewer positions before a token, all systems have next to nothing to see.
FIRST = 8
MOST_LINES, MOST_TICKS = 12, 8
NOTE = (
    "By position: means over seeds, of each kind of attention the system with the most branches, "
    "or the least sparse one; a mark stands in the middle of a range from one power of two to the "
    "next; bars: 95 % intervals over seeds."
)
OVER_LENGTHS = (
    " By length: means over whole rows, of all systems that were trained at several lengths."
)
N_GRAMS = " Dashed: n-gram models (Kneser-Ney) of the same text, whatever the position."


def length(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Bits per byte against position and against length; a row of two panels a machine."""
    panels, left_out, has_lengths = [], 0, False
    for view in quality_views.all_machines(frame, machine):
        lessons = [one for one in quality_views.main_lessons(view) if one.task == TASK]
        for one in lessons:
            panels.append((one.heading, lambda ax, x=one: _by_position(ax, x)))
        over = [*quality_views.over_length(view, TASK).values()]
        left_out = max(left_out, len(over) - MOST_LINES)
        over = over[:MOST_LINES]
        has_lengths = has_lengths or bool(over)
        if over:
            title = f"{view.device}, {TASK}\nby the length trained at"
            panels.append((title, lambda ax, x=over: _by_length(ax, x)))
    note = NOTE + OVER_LENGTHS * has_lengths
    if left_out > 0:
        note += f" Left out there: {left_out} systems."
    return grid_of(panels, note + N_GRAMS)


def _by_position(ax: Axes, lesson: Lesson) -> None:
    n, ends = lesson.seq_len, []
    for one in lesson.of_each_kind():
        by = learnt.by_range(one.row, "by_position", learnt.LOSS)
        # The last place of a row of 2^k is a range of its own, of one token a row.
        by = {start: losses for start, losses in by.items() if start < n} or by
        late = {start: losses for start, losses in by.items() if start >= FIRST}
        by = late if len(late) > 2 else by
        points = [
            (
                math.sqrt(start * min(2 * start - 1, n)),
                learnt.of_seeds(one.row, losses, learnt.LOSS),
            )
            for start, losses in by.items()
        ]
        x, y = draw_points(ax, points, replace(one.look, label=one.name))
        ends.append((x[-1], y[-1], one.name, one.look.ink))
    places = [*by, n]
    length_axis(ax, places[:: -1 if len(places) <= MOST_TICKS else -2][::-1])
    ax.set_xlim(places[0] / 1.1, 1.1 * n)
    ax.set_xlabel("position in the context (bytes)")
    _finish(ax, lesson, ends)


def _by_length(ax: Axes, over: Sequence[list[tuple[int, Lesson, Learner]]]) -> None:
    ends = []
    for points in over:
        one = points[-1][2]
        found = [(n, lesson.score(learner)) for n, lesson, learner in points]
        x, y = draw_points(ax, found, one.look)
        ends.append((x[-1], y[-1], one.look.label, one.look.ink))
    length_axis(ax, sorted({n for points in over for n, *_ in points}))
    ax.set_xlabel("length trained at (bytes)")
    _finish(ax, over[0][-1][1], ends)


def _finish(ax: Axes, lesson: Lesson, ends: list[tuple]) -> None:
    """The n-gram models' losses, and labels."""
    ax.set_ylabel(lesson.unit)
    left, right = ax.get_xlim()
    for order, loss in (lesson.first["learning"].n_gram_losses or {}).items():
        name = f"{order}-gram"
        ax.plot([left, right], [loss, loss], "--", color=GREY, linewidth=0.7, label=name)
        ends.append((right, loss, name, GREY))
    ax.set_xlim(left, right)
    label_lines(ax, ends, size=6.5)
