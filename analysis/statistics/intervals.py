"""Medians, speed-ups and their intervals.

Timings are skewed, so the centre is always a median and no normal theory is applied to samples.
Samples of one process share its memory layout, clocks and neighbours; what differs between two
measurements of the same code is mostly the process. Speed-ups therefore resample whole replicates
(one replicate = one fresh process) before they resample the samples inside
(Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, isnan, nan, prod, sqrt

import numpy as np
from scipy import stats

Replicates = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided confidence interval.

    `confidence` is what the interval achieves, which is not always what was asked for: see
    `median_interval`. Bounds are NaN, and `confidence` 0, where the data say nothing about spread.
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

    def squared(self) -> Interval:
        """Of the square of a value whose bounds are >= 0."""
        return Interval(self.value**2, self.low**2, self.high**2, self.confidence)

    @classmethod
    def exact(cls, value: float) -> Interval:
        """A value that was counted, not sampled: the bounds are the value, confidence 1."""
        return cls(value, value, value, 1.0)

    @classmethod
    def of_draws(cls, value: float, draws: np.ndarray, confidence: float) -> Interval:
        """An estimate and the quantiles of its bootstrap draws, widened to hold the estimate."""
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        return cls(value, min(float(low), value), max(float(high), value), confidence)

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


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """Median of `samples` (n,) with the exact distribution-free interval of order statistics.

    The bounds are the narrowest symmetric pair of order statistics whose coverage
    `1 - 2 P(Binomial(n, 1/2) <= rank - 1)` is at least `confidence`; that coverage is returned
    as the interval's `confidence` (Hoefler & Belli, SC 2015, rule 6; the same bounds as
    `scipy.stats.quantile_test`). Too few samples for it (n < 6 at 0.95): the bounds are the
    extremes and `confidence` is the lower one they achieve, `1 - 2^(1 - n)`. One sample: NaN
    bounds. Samples are taken as independent: pooled over replicates, the interval is too narrow
    where processes differ. Any unit. Raises ValueError on no, non-finite or nested samples.
    """
    check_confidence(confidence)
    ordered = np.sort(_vector(samples, "samples"))
    count = ordered.size
    median = float(np.median(ordered))
    if count == 1:
        return Interval.without_spread(median)
    tails = 2 * stats.binom.cdf(np.arange((count + 1) // 2), count, 0.5)  # of ranks 1, 2, ...
    rank = max(int(np.searchsorted(tails, 1 - confidence, side="right")), 1)
    return Interval(
        median, float(ordered[rank - 1]), float(ordered[count - rank]), float(1 - tails[rank - 1])
    )


def bootstrap_medians(
    replicates: Replicates, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Medians (resamples,) of two-level resamples: replicates first, then samples inside each.

    `replicates` may be ragged; each drawn replicate keeps its own number of samples. The median
    is over all drawn samples, as `median_interval` has it for all measured ones.
    """
    rows = _rows(replicates, "replicates")
    counts = np.array([row.size for row in rows])
    padded = np.full((len(rows), counts.max()), np.inf)
    for row, samples in zip(padded, rows, strict=True):
        row[: samples.size] = samples
    drawn = rng.integers(len(rows), size=(resamples, len(rows)))
    drawn_counts = counts[drawn][:, :, None]
    inside = (rng.random((*drawn.shape, padded.shape[1])) * drawn_counts).astype(np.intp)
    values = padded[drawn[:, :, None], inside]
    if counts.min() < counts.max():  # infinite entries sort behind every sample
        values[np.arange(padded.shape[1]) >= drawn_counts] = np.inf
    values = np.sort(values.reshape(resamples, -1), axis=1)
    total = drawn_counts.sum(axis=(1, 2))
    which = np.arange(resamples)
    return (values[which, (total - 1) // 2] + values[which, total // 2]) / 2


@dataclass(frozen=True)
class LogMedian:
    """A median, the variance of its log, and the degrees of freedom of that variance.

    `freedom` is 0, and `variance` NaN, for a single sample.
    """

    value: float
    variance: float
    freedom: int


def log_median(replicates: Replicates, resamples: int, rng: np.random.Generator) -> LogMedian:
    """`LogMedian` of positive samples by `bootstrap_medians`.

    With R >= 2 replicates there are R - 1 degrees of freedom; with one there is no view of what
    differs between processes: only its samples are resampled and the variance is understated.
    """
    rows = _rows(replicates, "replicates")
    if min(row.min() for row in rows) <= 0:
        raise ValueError("replicates: expected positive samples, got one <= 0")
    value = float(np.median(np.concatenate(rows)))
    freedom = (len(rows) if len(rows) > 1 else rows[0].size) - 1
    if freedom == 0:
        return LogMedian(value, nan, 0)
    draws = np.log(bootstrap_medians(rows, resamples, rng) / value)
    return LogMedian(value, float(np.var(draws)), freedom)


def resampled_median(
    replicates: Replicates, *, confidence: float = 0.95, seed: int = 0, resamples: int = 1000
) -> Interval:
    """Median over all samples with the interval that resampling processes gives it.

    Symmetric in the log: Student's t times the bootstrap standard error, as in `speedup`, so it
    says what another set of processes might have given, where `median_interval` does not. One
    replicate is resampled within it only; a single sample has NaN bounds. Errors as in `speedup`.
    """
    check_confidence(confidence)
    one = log_median(replicates, resamples, np.random.default_rng(seed))
    if one.freedom == 0:
        return Interval.without_spread(one.value)
    half = float(stats.t.ppf((1 + confidence) / 2, one.freedom)) * sqrt(one.variance)
    return Interval(one.value, one.value * exp(-half), one.value * exp(half), confidence)


def speedup(
    base: Replicates,
    other: Replicates,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Median of `base` over median of `other`: how many times faster `other` is.

    Both are lists of replicates, each a list of samples in the same unit, ragged or not. The
    interval is symmetric in the log: Student's t times the bootstrap standard error of the log
    ratio, with Welch's degrees of freedom, because percentiles of three to five resampled
    processes are far too narrow. A side with ONE replicate is resampled within it only: the
    interval then leaves out all variation between processes and is too narrow by an unknown
    amount. A side with a single sample: NaN bounds. Raises ValueError on empty, non-finite or
    non-positive samples.
    """
    return geometric_mean_speedup(
        [(base, other)], confidence=confidence, seed=seed, resamples=resamples
    )


def geometric_mean_speedup(
    pairs: Iterable[tuple[Replicates, Replicates]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Geometric mean of `speedup(base, other)` over `pairs`, one pair a point of a grid.

    Paired by point: each ratio is formed at its own point before the mean is taken. The interval
    is that of measurement at exactly these points, not of other points that might have been
    chosen. Limits and errors as in `speedup`; no pairs raise ValueError. Remembered, as fits are.
    """
    return _geometric_mean_speedup(frozen(list(pairs)), confidence, seed, resamples)


def frozen(value):
    """The same with tuples for its sequences, so that it can be hashed."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(map(frozen, value))
    return value


@lru_cache(maxsize=4096)
def _geometric_mean_speedup(
    pairs: tuple[tuple[Replicates, Replicates], ...], confidence: float, seed: int, resamples: int
) -> Interval:
    check_confidence(confidence)
    rng = np.random.default_rng(seed)
    sides = [
        (log_median(base, resamples, rng), log_median(other, resamples, rng))
        for base, other in pairs
    ]
    if not sides:
        raise ValueError("pairs: expected at least one (base, other), got none")
    value = prod(base.value / other.value for base, other in sides) ** (1 / len(sides))
    flat = [side for pair in sides for side in pair]
    if any(side.freedom == 0 for side in flat):
        return Interval.without_spread(value)
    variance = sum(side.variance for side in flat)
    if variance == 0:
        return Interval(value, value, value, confidence)
    freedom = variance**2 / sum(side.variance**2 / side.freedom for side in flat)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * sqrt(variance) / len(sides)
    return Interval(value, value * exp(-half), value * exp(half), confidence)


def _vector(samples: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(samples, dtype=float)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers in one non-empty list, got {samples!r}")
    return array


def _rows(replicates: Replicates, name: str) -> list[np.ndarray]:
    if len(replicates) == 0:
        raise ValueError(f"{name}: expected at least one replicate, got none")
    return [_vector(samples, f"{name}[{i}]") for i, samples in enumerate(replicates)]
