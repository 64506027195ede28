"""Ratios of measured times, and when a measured value reproduces a published one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from analysis.claims.schema import DIRECTION, FACTOR
from analysis.statistics.intervals import Interval, speedup


def time_ratio(base: Mapping, other: Mapping) -> Interval:
    """How many times as fast as `base` the record `other` is."""
    ratio = speedup(base["samples"], other["samples"])
    return interval_over_processes(ratio, base, other)


def interval_over_processes(ratio: Interval, *rows: Mapping) -> Interval:
    """`ratio` itself if every row has several processes, else `single_process_interval` of it."""
    return ratio if all(len(row["samples"]) > 1 for row in rows) else single_process_interval(ratio)


def single_process_interval(value: Interval) -> Interval:
    """`value`, measured in one process, with bounds at least DIRECTION away.

    Samples of one process do not show how processes differ, so these bounds are not a confidence
    interval: they serve to judge by, have confidence 0 and are not printed.
    """
    bounds = (value.value / DIRECTION, value.value * DIRECTION, value.low, value.high)
    known = [bound for bound in bounds if not math.isnan(bound)]
    return Interval(value.value, min(known), max(known), 0.0)


def is_close(figure: float, value: Interval) -> bool:
    """Whether a published figure is reproduced: in our interval, or within FACTOR of our value."""
    return bool(figure) and (figure in value or 1 / FACTOR <= value.value / figure <= FACTOR)


def is_uncertain(value: Interval) -> bool:
    """Whether the interval is too wide to judge by: wider than FACTOR both ways."""
    return value.high / value.low > FACTOR**2
