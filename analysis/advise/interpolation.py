"""Measured time and memory of each system over length, and the value at one length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from analysis.claims.criteria import judged_ratio
from analysis.selection import published, views
from analysis.standard import in_words
from analysis.statistics import intervals, scaling
from analysis.statistics.intervals import Interval
from analysis.statistics.rounds import RoundSamples, joined
from analysis.statistics.spread import Spread
from models.registry import VARIANTS

POINTS = 3  # that a fit over length needs
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """All cases of one system, pattern and length, whichever experiments they are of."""

    seq_len: int
    rows: pd.DataFrame

    @property
    def timed(self) -> pd.DataFrame:
        return self.rows[self.rows["status"] == "ok"]

    @property
    def samples(self) -> tuple[RoundSamples, ...]:
        """Samples (ms) of every round."""
        return joined(self.timed["samples"])

    @property
    def spread(self) -> Spread:
        """That of the machine."""
        return self.rows["spread"].iloc[0]

    @property
    def peak_bytes(self) -> float:
        """The largest peak beyond the inputs; NaN where none was measured."""
        return float(self.timed["peak_memory_bytes"].max())

    @property
    def untimed(self) -> str | None:
        """Why there is no time; None where there is one."""
        if not self.timed.empty:
            return None
        row = self.rows.iloc[0]
        return f"{in_words.outcome(row)} at {self.seq_len:,} tokens"


@dataclass(frozen=True)
class Estimate:
    """Time (ms) and peak beyond the inputs (bytes) at one length; memory is None if unknown."""

    time: Interval
    peak: Interval | None
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Series:
    """One system with one pattern over length; `computes`: which function, in words."""

    system: str
    variant: str
    computes: str
    points: tuple[Point, ...]

    def at(self, seq_len: int) -> Estimate | str:
        """The measured value at `seq_len`, or the fitted one between measured lengths.

        Where there is neither, the reason as a string.
        """
        here = [point for point in self.points if point.seq_len == seq_len]
        if here:
            return here[0].untimed or _measured(here[0])
        timed = [point for point in self.points if point.untimed is None]
        if not timed:
            return self.points[0].untimed
        low, high = (end(point.seq_len for point in timed) for end in (min, max))
        if not low < seq_len < high:
            lost = [point.untimed for point in self.points if point.untimed]
            return "; ".join([f"timed {_span(low, high)}", *lost[:1]])
        if len(timed) < POINTS:
            return f"timed at {len(timed)} lengths ({_span(low, high)}), a fit needs {POINTS}"
        return _fitted(timed, seq_len)


def series(rows: pd.DataFrame, seq_len: int) -> Iterator[Series]:
    """Every system of `rows` (one setting), once per pattern that it can have at `seq_len`.

    Segments that vary with the length follow a rule: the same segments, those of the write-up, or
    the same shares of the length. Each rule that gives segments at `seq_len` makes a series.
    """
    for (system, variant), own in rows.groupby(["system", "variant"], sort=False):
        if variant not in VARIANTS:
            continue
        patterns: dict[str, list] = {}
        for index, row in own.iterrows():
            for computes in _rules(row, seq_len):
                patterns.setdefault(computes, []).append(index)
        for computes, found in patterns.items():
            # A case of several experiments is a row of each.
            lengths = own.loc[found].drop_duplicates("path").groupby("seq_len", sort=True)
            points = tuple(Point(int(n), group) for n, group in lengths)
            yield Series(system, variant, computes, points)


def _measured(point: Point) -> Estimate:
    time, peak = judged_ratio(intervals.time(point.samples, point.spread)), point.peak_bytes
    memory = None if math.isnan(peak) else Interval.exact(peak)
    return Estimate(time, memory, (point,))


def _fitted(timed: list[Point], seq_len: int) -> Estimate:
    ends = [_measured(point) for point in _neighbours(timed, seq_len)]
    lengths, samples = [p.seq_len for p in timed], [p.samples for p in timed]
    fit = scaling.fit(lengths, samples, timed[0].spread)
    time = judged_ratio(_between(fit, seq_len, *(end.time for end in ends)))
    with_peak = [point for point in timed if point.peak_bytes > 0]
    peak = None
    if len(with_peak) >= POINTS and with_peak[0].seq_len < seq_len < with_peak[-1].seq_len:
        fit = scaling.fit([p.seq_len for p in with_peak], [p.peak_bytes for p in with_peak])
        ends = [_measured(point) for point in _neighbours(with_peak, seq_len)]
        peak = _between(fit, seq_len, *(end.peak for end in ends))
    return Estimate(time, peak, tuple(timed))


def _neighbours(points: list[Point], seq_len: int) -> tuple[Point, Point]:
    """The longest measured length below and the shortest above."""
    below = [point for point in points if point.seq_len < seq_len]
    return below[-1], points[len(below)]


def _between(fit: scaling.ScalingFit, seq_len: int, below: Interval, above: Interval) -> Interval:
    """The fitted value and its draws' interval, cut at the measured neighbours' intervals.

    More tokens do not take less time or memory, but draws of a fit to few points can lie beyond
    what was measured on either side.
    """
    value = float(fit.predict(seq_len))
    low = -math.inf if math.isnan(below.low) else below.low
    high = math.inf if math.isnan(above.high) else above.high
    draws = np.clip(fit.sample_curves(seq_len), low, high)
    return Interval.of_draws(value, draws, CONFIDENCE)


def _rules(row: pd.Series, seq_len: int) -> list[str]:
    """What the row's system computes, by each rule that its pattern obeys, at `seq_len`."""
    projected = " + projections" if VARIANTS[row["variant"]].multihead else ""
    if not math.isnan(row["sparsity"]):
        words = f"{100 * row['sparsity']:g} % sparse, {views.blocks_in_words(row)}"
        return [words + projected]
    if row["segment_lengths"] is None:
        return ["dense" + projected]
    partitioned = VARIANTS[row["variant"]].pattern_class == "HeadPartition"
    kind = "one branch per head" if partitioned else "dilated"
    own = row["segment_lengths"], row["dilation_rates"]
    shares = [Fraction(w, row["seq_len"]) * seq_len for w in own[0]]
    found = [own]
    if row["experiment"] in published.EXPERIMENTS and published.shapes(row["experiment"]):
        rule = published.setting(row["experiment"])
        if rule.pattern(row["seq_len"]) == own and rule.pattern(seq_len):
            found.append(rule.pattern(seq_len))
    if all(share.denominator == 1 and share >= 1 for share in shares):
        found.append((tuple(map(int, shares)), own[1]))
    # A segment beyond the end is one of the whole sequence.
    named = [(tuple(min(w, seq_len) for w in lengths), rates) for lengths, rates in found]
    return list(
        dict.fromkeys(f"{kind} {branches_in_words(*pattern)}{projected}" for pattern in named)
    )


def branches_in_words(lengths: tuple[int, ...], rates: tuple[int, ...]) -> str:
    """2048/4096/8192 at rates 1/2/4."""
    return f"{'/'.join(map(str, lengths))} at rates {'/'.join(map(str, rates))}"


def _span(low: int, high: int) -> str:
    return f"at {low:,} tokens" if low == high else f"from {low:,} to {high:,} tokens"
