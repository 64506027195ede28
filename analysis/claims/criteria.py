"""Measured ratios and exponents, and when a published value holds by them.

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


def ratio_of(base: Mapping, other: Mapping, quantity: str) -> Interval:
    """That of "time" or "memory" of the record `base` over `other`; memory has no interval."""
    if quantity == "time":
        return time_ratio(base, other)
    return Interval.without_spread(base["peak_memory_bytes"] / other["peak_memory_bytes"])


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
    """Whether a published figure holds: in our interval, or within FACTOR of our value."""
    return bool(figure) and (figure in value or 1 / FACTOR <= value.value / figure <= FACTOR)


def is_uncertain(value: Interval) -> bool:
    """Whether the interval is too wide to judge by: wider than FACTOR both ways."""
    return value.high / value.low > FACTOR**2


def more_measuring(value: Interval, bound: float, occasions: int) -> str:
    """How much more of it would tell a ratio from `bound`, for the end of a reason.

    The interval is that of a repetition, with a variance in proportion to 1/n + 1 of n occasions:
    more of them narrow it by no more than the variance of one. Nothing is said of one round, or
    without bounds.
    """
    if not value.confidence or not 0 < value.low < value.high:
        return ""
    half, distance = math.log(value.high / value.low) / 2, abs(math.log(value.value / bound))
    now = 1 / max(occasions, 1) + 1
    room = (distance / half) ** 2 * now - 1
    if room <= 0:
        return f", too near {bound:g}: a repetition varies by more than that"
    return f"; some {math.ceil(1 / room)} occasions would tell it from {bound:g}"
