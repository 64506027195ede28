"""Cells and verdicts of `quality`: scores, and differences with their signs."""

from __future__ import annotations

import math

from analysis.experiments.quality.views import Lesson
from analysis.rendering.table import Cell, Measured
from analysis.rendering.text import DASH
from analysis.statistics.intervals import Interval

BETTER, WORSE, OPEN = "better", "worse", "cannot tell"


def decimals(lesson: Lesson) -> int:
    """Of bits per byte, or of per cent."""
    return 3 if lesson.is_text else 1


def score_cell(lesson: Lesson, found: Interval | None) -> Cell:
    """A mean over seeds with its interval."""
    if found is None:
        return None
    return Measured(found.value, found.low, found.high, score_text(lesson, found))


def score_text(lesson: Lesson, found: Interval) -> str:
    """`2.413 [2.401, 2.425]`; without bounds of a single seed."""
    return f"{found:.{decimals(lesson)}f}"


def difference_cell(lesson: Lesson, found: Interval | None) -> Cell:
    """A difference with its sign."""
    if found is None:
        return None
    return Measured(found.value, found.low, found.high, difference_text(lesson, found))


def difference_text(lesson: Lesson, found: Interval) -> str:
    """`+0.031 [+0.012, +0.050]`; without bounds of a single seed."""
    bounds = found.value, found.low, found.high
    # Adding 0 takes the sign from a zero.
    value, low, high = (f"{round(x, decimals(lesson)) + 0:+.{decimals(lesson)}f}" for x in bounds)
    if math.isnan(found.low) or math.isnan(found.high):
        return value
    return f"{value} [{low}, {high}]"


def verdict(found: Interval | None) -> str:
    """Of a difference of which more is better: by the side of 0 on which its interval lies."""
    if found is None:
        return DASH
    if found.low > 0:
        return BETTER
    return WORSE if found.high < 0 else OPEN
