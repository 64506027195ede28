"""Measured ratios and exponents, and when a measured value reproduces a published one.

Of one round there is no interval. Such a value is judged with a margin in place of one: that is no
confidence interval, has confidence 0 and is not printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analysis.claims.schema import DIRECTION, FACTOR
from analysis.statistics import scaling
from analysis.statistics.intervals import Interval, speedup


def time_ratio(base: Mapping, other: Mapping) -> Interval:
    """How many times as fast as `base` the record `other` is, to judge by."""
    return judged_ratio(speedup(base["samples"], other["samples"], base["spread"]))


def judged_ratio(value: Interval) -> Interval:
    """`value`; of one round with a margin of DIRECTION both ways."""
    if not math.isnan(value.low):
        return value
    return Interval(value.value, value.value / DIRECTION, value.value * DIRECTION, 0.0)


def growth_of_time(rows: Sequence[Mapping]) -> scaling.ScalingFit:
    """The fit of the times of `rows`, one per length, of one machine."""
    lengths, samples = ([row[key] for row in rows] for key in ("seq_len", "samples"))
    return scaling.fit(lengths, samples, rows[0]["spread"])


def exponent(rows: Sequence[Mapping], quantity: str) -> Interval:
    """That of "time" or "memory" over length, of one row per length, to judge by."""
    if quantity == "memory":
        peaks = [row["peak_memory_bytes"] for row in rows]
        return scaling.fit([row["seq_len"] for row in rows], peaks).exponent
    return growth_of_time(rows).margin


def is_close(figure: float, value: Interval) -> bool:
    """Whether a published figure is reproduced: in our interval, or within FACTOR of our value."""
    return bool(figure) and (figure in value or 1 / FACTOR <= value.value / figure <= FACTOR)


def is_uncertain(value: Interval) -> bool:
    """Whether the interval is too wide to judge by: wider than FACTOR both ways."""
    return value.high / value.low > FACTOR**2
