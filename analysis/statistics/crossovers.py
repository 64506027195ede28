"""Where two fitted curves meet, within the lengths that both were measured at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.intervals import Interval, check_confidence
from analysis.statistics.scaling import ScalingFit


@dataclass(frozen=True)
class Crossover:
    """Where two fitted curves a and b meet.

    status: "found" or "not in range".
    n: the length with its interval, None when not in range. It is the last crossing, should there
        be more: from there to the end of `n_range` the order stays. A bound at an end of
        `n_range` reads "there or beyond": draws that do not cross inside are counted there.
    roots: every crossing inside `n_range`, ascending.
    share_in_range: fraction of the draws that cross inside `n_range`; NaN without draws.
    smaller_at_end: "a", "b" or "neither": the lower curve at the upper end of `n_range`.
    """

    status: str
    n: Interval | None
    roots: tuple[float, ...]
    share_in_range: float
    smaller_at_end: str
    n_range: tuple[float, float]


def crossover(
    fit_a: ScalingFit,
    fit_b: ScalingFit,
    n_range: tuple[float, float] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Crossover:
    """Length at which the curves cross, inside the range that both fits measured; never beyond.

    `n_range` can narrow that range, not widen it. The interval holds the roots of draws of both
    fits, paired at random; of a fit without draws there is none. Raises ValueError where the ranges
    have no stretch in common.
    """
    check_confidence(confidence)
    ranges = [fit_a.n_range, fit_b.n_range, *([n_range] if n_range else [])]
    low, high = max(ends[0] for ends in ranges), min(ends[1] for ends in ranges)
    if not low < high:
        raise ValueError(f"n_range: expected ranges that overlap, got {ranges!r}")
    grid = np.geomspace(low, high, 1025)
    gap = np.log(fit_a.predict(grid) / fit_b.predict(grid))
    at = np.flatnonzero(np.diff(gap > 0))
    roots = tuple(_between(grid, at, gap[at], gap[at + 1]).tolist())
    last, beyond = _last_crossings(fit_a, fit_b, grid, gap[-1] > 0, seed)
    interval = None
    if roots:
        filled = np.where(np.isnan(last), np.where(beyond, high, low), last)
        interval = Interval.of_draws(roots[-1], filled, confidence)
    return Crossover(
        status="found" if roots else "not in range",
        n=interval,
        roots=roots,
        share_in_range=float(np.isfinite(last).mean()) if last.size else float("nan"),
        smaller_at_end={-1.0: "a", 1.0: "b"}.get(float(np.sign(gap[-1])), "neither"),
        n_range=(low, high),
    )


def _last_crossings(
    fit_a: ScalingFit, fit_b: ScalingFit, grid: np.ndarray, is_above: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The last crossing of each pair of draws on `grid` (draws,), NaN where there is none.

    And whether a draw ends on the other side than the fits, of which a is above b or not.
    """
    # Fits with equal seeds drew alike; shuffled, the draws of a and b are independent again.
    size = min(len(fit_a.draws), len(fit_b.draws))
    other = np.random.default_rng(seed).permutation(size)
    draws_a, draws_b = fit_a.sample_curves(grid)[:size], fit_b.sample_curves(grid)[other]
    above = draws_a > draws_b
    turns = above[:, 1:] != above[:, :-1]
    crossing, last = turns.any(axis=1), np.full(size, np.nan)
    at = turns.shape[1] - 1 - turns[crossing, ::-1].argmax(axis=1)
    ends = [np.log(draws_a[crossing, end] / draws_b[crossing, end]) for end in (at, at + 1)]
    last[crossing] = _between(grid, at, *ends)
    return last, above[:, -1] != is_above


def _between(grid: np.ndarray, at: np.ndarray, gap: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where a gap that is `gap` at places `at` of the geometric `grid`, and `after` one on, is 0.

    Interpolated in log length.
    """
    return grid[at] * (grid[at + 1] / grid[at]) ** (gap / (gap - after))
