"""Times of several rounds, their ratios, and intervals.

What differs between rounds contains what differs between processes and between samples, so the
unit of all intervals is the round; where there are two occasions or more, the occasion; and where
there are two hosts or more, the host: see `analysis.statistics.rounds`. A time is the geometric
mean over these of the round's median. A ratio of two times is formed within each round first, as
both sides share what that round was like; of the same rounds it is the ratio of the two times.
Where a round was measured on several cards, both sides must be of one of them: what is not is
unpaired, and what differs between cards counts on both sides.

Intervals are those of a repetition: measured again on another occasion, in two rounds, or on
another host, the value lies in them in 95 % of cases. The interval of our own mean would hold that
of the next measurement in some 83 %, as the next one varies too (Cumming and Maillardet,
"Confidence intervals and replication: where will the next mean fall?", 2006). They are Student's t
on the log, with variances that all cases of the machine moderate, and with an assumption on the
variance between occasions where there are few: see `analysis.statistics.spread`. One round has
none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, isnan, nan, sqrt

import numpy as np
from scipy import stats

from analysis.statistics.rounds import (
    Logs,
    RoundSamples,
    clusters,
    log_medians,
    log_ratio,
    mean_over,
)
from analysis.statistics.spread import Component, Prior, Spread

CONFIDENCE = 0.95
Samples = Sequence[RoundSamples]


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval, which holds that of a repetition.

    Bounds are NaN, and `confidence` 0, where the data say nothing about spread.
    """

    value: float
    low: float
    high: float
    confidence: float

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high

    @property
    def shown(self) -> tuple[float, float]:
        """The bounds to print: NaN where they are a margin to judge by, of confidence 0."""
        return (self.low, self.high) if self.confidence else (nan, nan)

    def inverted(self, of: float = 1.0) -> Interval:
        """Of `of` > 0 over the value: the bounds change places."""
        return Interval(of / self.value, of / self.high, of / self.low, self.confidence)

    def times(self, factor: float) -> Interval:
        """Of the value times a known factor > 0."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.confidence)

    def over(self, divisor: float) -> Interval:
        """Of the value over a known divisor > 0."""
        of_each = (x / divisor for x in (self.value, self.low, self.high))
        return Interval(*of_each, self.confidence)

    def plus(self, amount: float) -> Interval:
        """Of the value and a known amount."""
        return Interval(self.value + amount, self.low + amount, self.high + amount, self.confidence)

    def within(self, least: float, most: float) -> Interval:
        """Its part in [least, most], where alone the value can lie; bounds not known stay so.

        What it loses holds no repetition, so that the part holds one as often as the whole.
        """
        # In this order what is not known (NaN) stays so.
        low, high = (min(max(bound, least), most) for bound in (self.low, self.high))
        return Interval(self.value, low, high, self.confidence)

    def squared(self) -> Interval:
        """Of the square of a value whose bounds are >= 0."""
        return Interval(self.value**2, self.low**2, self.high**2, self.confidence)

    @classmethod
    def exact(cls, value: float) -> Interval:
        """A value that was counted, not sampled: the bounds are the value, confidence 1."""
        return cls(value, value, value, 1.0)

    @classmethod
    def of_draws(cls, value: float, draws: np.ndarray, confidence: float) -> Interval:
        """An estimate and the quantiles of its draws, widened to hold the estimate.

        Without draws, (0,), nothing is known of its spread.
        """
        if not len(draws):
            return cls.without_spread(value)
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        return cls(value, min(float(low), value), max(float(high), value), confidence)

    @classmethod
    def of_log(cls, value: float, *variances: Prior, confidence: float = CONFIDENCE) -> Interval:
        """Of exp(value), where `value` is a sum of terms with these variances.

        Symmetric in the log: Student's t of each term's own freedom, added in quadrature. Welch's
        approximation fails where a variance is known with one degree of freedom.
        """
        half = sqrt(
            sum(
                float(stats.t.ppf((1 + confidence) / 2, one.freedom)) ** 2 * one.variance
                for one in variances
            )
        )
        return cls(exp(value), exp(value - half), exp(value + half), confidence)

    @classmethod
    def without_spread(cls, value: float) -> Interval:
        """One value of which no spread is known: NaN bounds, confidence 0."""
        return cls(value, nan, nan, 0.0)

    def __format__(self, spec: str) -> str:
        """`f"{interval:.2f}"` reads `1.98 [1.91, 2.04]`; the spec applies to all three numbers.

        Bounds that are not known (NaN) are left out.
        """
        if isnan(self.low) or isnan(self.high):
            return f"{self.value:{spec}}"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless 0 < confidence < 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence!r}")


@lru_cache(maxsize=8192)
def time(samples: tuple[RoundSamples, ...], spread: Spread) -> Interval:
    """Time of a case: the geometric mean over clusters of the round's median, in its unit.

    spread: of the machine. One round: NaN bounds. Raises ValueError on no rounds, a round twice
    or samples that are not numbers above 0.
    """
    logs = log_medians(samples)
    return _of_repetition(_mean(logs), spread.of_time(logs))


def speedup(base: Samples, other: Samples, spread: Spread) -> Interval:
    """Time of `base` over that of `other`: how many times faster `other` is.

    Over the rounds that both have on one card; where it has no interval by these, over those that
    both have on whichever, unpaired. Where there is none, the ratio of the two times, without an
    interval. Both are of one machine, whose `spread` it is. Errors as in `time`.
    """
    return _geometric_mean_speedup(((tuple(base), tuple(other)),), spread)


def geometric_mean_speedup(pairs: Iterable[tuple[Samples, Samples]], spread: Spread) -> Interval:
    """Geometric mean of `speedup(base, other)` over `pairs`, one pair a point of a grid.

    Over the rounds that all pairs have: in each round the mean over pairs is taken first. Where
    there is none, the mean of the pairs' own speed-ups, without an interval. The interval is that
    of measurement at exactly these points, not of other points that might have been chosen. No
    pairs raise ValueError.
    """
    return _geometric_mean_speedup(
        tuple((tuple(base), tuple(other)) for base, other in pairs), spread
    )


@lru_cache(maxsize=8192)
def _geometric_mean_speedup(
    pairs: tuple[tuple[tuple[RoundSamples, ...], ...], ...], spread: Spread
) -> Interval:
    if not pairs:
        raise ValueError("pairs: expected at least one (base, other), got none")
    sides = [(log_medians(base), log_medians(other)) for base, other in pairs]
    ratios = [log_ratio(*both) for both in sides]
    shared = mean_over(ratios)
    apart = _over_cards(sides, spread) if len(shared) < 2 else None
    if apart is not None:
        return apart
    if not shared:
        own = [
            _mean(ratio) if ratio else _mean(base) - _mean(other)
            for ratio, (base, other) in zip(ratios, sides, strict=True)
        ]
        return Interval.without_spread(exp(sum(own) / len(own)))
    return _of_repetition(_mean(shared), spread.of_ratio(shared))


def _over_cards(sides: Sequence[tuple[Logs, Logs]], spread: Spread) -> Interval | None:
    """Of pairs whose sides lie on different cards in their rounds; None of fewer than two rounds.

    What these rounds have in common cancels still, and what differs between cards does not.
    """
    base, other = (mean_over(one) for one in zip(*sides, strict=True))
    both = {at.anywhere for at in base} & {at.anywhere for at in other}
    if len(both) < 2:
        return None
    base, other = (
        {at: value for at, value in one.items() if at.anywhere in both} for one in (base, other)
    )
    components = (*spread.of_its_own(base), *spread.of_its_own(other))
    return _of_repetition(_mean(base) - _mean(other), components)


@dataclass(frozen=True)
class Side:
    """One of two sets of records that share no round: the same cases, and its machine's spread."""

    cases: tuple[tuple[RoundSamples, ...], ...]
    spread: Spread

    @property
    def cards(self) -> set[tuple[str, str]]:
        """Those that it was measured on, each with its host."""
        return {(one.host, one.card) for samples in self.cases for one in samples}

    def mean(
        self, *, is_of_one_occasion: bool, is_of_one_card: bool
    ) -> tuple[float, tuple[Prior, ...]]:
        """Log of the geometric mean time, and its variances; none of one round.

        is_of_one_occasion: with what it is compared with, so that what differs between occasions,
        of which it has one, does not count. is_of_one_card: likewise.
        Over the rounds that all cases have, or by each case's own where there is none.
        """
        logs = [log_medians(samples) for samples in self.cases]
        shared = mean_over(logs)
        if not shared:
            return sum(map(_mean, logs)) / len(logs), ()
        parts = self.spread.of_time(shared)
        of_cards = self.spread.of_cards(shared)
        parts = [one for one in parts if one not in of_cards]
        if is_of_one_occasion:
            parts = [one for one in parts if one.count > 1]
        parts += () if is_of_one_card else of_cards
        return _mean(shared), tuple(one.of_mean for one in parts)


def unpaired_speedup(base: Side, other: Side, *, is_of_one_occasion: bool = False) -> Interval:
    """Geometric mean time of `base` over that of `other`, which share no round.

    is_of_one_occasion: all rounds of both lie within an hour of each other, on one host.

    Nothing cancels, so the variances of both means count: these are two measurements already, so
    that the interval is a confidence interval of their ratio. NaN bounds where either has one
    round.
    """
    known = {
        "is_of_one_occasion": is_of_one_occasion,
        "is_of_one_card": len(base.cards | other.cards) == 1,
    }
    (value, variances), (less, more) = (side.mean(**known) for side in (base, other))
    if not variances or not more:
        return Interval.without_spread(exp(value - less))
    return Interval.of_log(value - less, *variances, *more)


def _mean(logs: Logs) -> float:
    return float(clusters(logs).mean())


def _of_repetition(value: float, components: Sequence[Component]) -> Interval:
    if not components:
        return Interval.without_spread(exp(value))
    return Interval.of_log(value, *(one.of_repetition for one in components))
