"""Means over seeds and their differences, with intervals of a repetition.

A training's result depends on its seed, and seeds are drawn anew in each round, so that each is an
independent value whichever round and host it is of: code, recipe and text are those of the
machine's other rounds, and another processor rounds sums otherwise, which is as another seed. So no
variance between rounds is assumed, where times have one; a test compares the rounds that are
published, where there are several. As with times (`analysis.statistics.intervals`) an interval
holds, in 95 % of cases, what a repetition finds: here the mean of as many seeds more as a round
has. The interval of our own mean would be narrower, and hold less often than it says.

Student's t is that of normal values, on the scale of the values themselves. A share of right
answers ends at 0 and 1, where t may not, so that an interval is cut to the range of what is
measured (`Interval.within`, by `analysis.records.learnt`): no repetition lies beyond, and coverage
stays. Logits of shares would do without the cut; of a share of 1, as models that learnt a task
reach, there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, variance

from scipy import stats

from analysis.statistics.intervals import CONFIDENCE, Interval


def mean(values: Sequence[float], again: int) -> Interval:
    """The mean of the values of some seeds, by Student's t; without bounds of a single one.

    again: seeds of the repetition. ValueError where there is no value.
    """
    if not values:
        raise ValueError("values=[]: expected one at least")
    if len(values) == 1:
        return Interval.without_spread(values[0])
    degrees = len(values) - 1
    spread = variance(values) * (1 / len(values) + 1 / again)
    return _interval(fmean(values), sqrt(spread), degrees)


def difference(values: Sequence[float], base: Sequence[float], again: int) -> Interval:
    """Mean of values less that of base, of other seeds: by Welch's t, which takes two variances.

    again: seeds of the repetition, of each side. Without bounds where a side has a single one.
    """
    value = fmean(values) - fmean(base)
    if min(len(values), len(base)) < 2:
        return Interval.without_spread(value)
    parts = [
        (variance(side) * (1 / len(side) + 1 / again), len(side) - 1) for side in (values, base)
    ]
    spread = sum(part for part, _ in parts)
    if spread == 0:
        return Interval(value, value, value, CONFIDENCE)
    degrees = spread**2 / sum(part**2 / degrees for part, degrees in parts)
    return _interval(value, sqrt(spread), degrees)


def _interval(value: float, deviation: float, degrees: float) -> Interval:
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * deviation
    return Interval(value, value - reach, value + reach, CONFIDENCE)
