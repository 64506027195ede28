"""How time or memory grows with length: fits, choice of model, exponents and crossovers.

Every launch costs a fixed amount, so a straight line through log-log points understates the
exponent: over 512..32768 it can call a truly linear kernel n^0.76. All models are therefore sums
of non-negative terms, most with an offset, fitted on log residuals (timing noise is relative).
The choice between them is by AICc; the exponent always comes from a power law.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real

import numpy as np
from scipy import stats

from analysis.statistics import curves
from analysis.statistics.curves import EXACT, MODELS, OFFSET_POWER, POWER
from analysis.statistics.intervals import (
    Interval,
    Replicates,
    bootstrap_medians,
    check_confidence,
    frozen,
)


@dataclass(frozen=True)
class ScalingFit:
    """One fitted series of a quantity against length.

    model: the model taken; `selection` says how ("AICc", "given", or the want of points).
    parameters: of `model`, in the unit of the values per length^exponent.
    exponent: k of `exponent_model` with its interval, whichever `model` was taken.
    aicc_weights: model -> Akaike weight among the models compared; sums to 1, or is empty.
    not_compared: model -> why it has no weight.
    holdout_relative_error: `model` refitted without the largest length: its prediction there over
        the measured value, less 1. The choice of `model` has seen that point.
    resampled: what the draws resample, "residuals" or "replicates".
    n_range: smallest and largest measured length; beyond it `predict` extrapolates.
    censored: (length, reason) of the points that could not be measured; used in no number.
    """

    model: str
    parameters: dict[str, float]
    selection: str
    exponent: Interval
    exponent_model: str
    aicc_weights: dict[str, float]
    not_compared: dict[str, str]
    holdout_relative_error: float
    resampled: str
    n_range: tuple[float, float]
    censored: tuple[tuple[int, str], ...]
    theta: np.ndarray = field(repr=False, compare=False)  # (parameters,) as in `curves.log_curves`
    draws: np.ndarray = field(repr=False, compare=False)  # (draws, parameters)

    def predict(self, n: np.ndarray | float) -> np.ndarray:
        """Fitted values at lengths `n` > 0, of its shape; extrapolates outside `n_range`."""
        return self._values(self.theta[None], n)[0]

    def sample_curves(self, n: np.ndarray | float) -> np.ndarray:
        """Values (draws, *n.shape) at lengths `n` of every bootstrap draw of the curve."""
        return self._values(self.draws, n)

    def describe(self) -> str:
        """One line: the power law with its interval, the model taken, what is censored."""
        text = self.exponent_model.replace("^k", f"^{self.exponent:.2f}")
        if self.selection != "AICc":
            text += f"; {self.model} ({self.selection})"
        elif self.model != self.exponent_model:
            text += f"; AICc takes {self.model} (weight {self.aicc_weights[self.model]:.2f})"
        if self.censored:
            text += "; censored: " + ", ".join(f"{n} ({reason})" for n, reason in self.censored)
        return text

    def _values(self, theta: np.ndarray, n: np.ndarray | float) -> np.ndarray:
        lengths = np.asarray(n, dtype=float)
        if not (lengths > 0).all():
            raise ValueError(f"n: expected lengths > 0, got {n!r}")
        found = curves.values(self.model, theta, np.log(lengths).ravel())
        return found.reshape(len(theta), *lengths.shape)


def fit(
    lengths: Sequence[float],
    values: Sequence[float | Replicates],
    *,
    models: Sequence[str] = tuple(MODELS),
    censored: Iterable[tuple[int, str]] = (),
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 500,
) -> ScalingFit:
    """Fit `values` at P distinct `lengths`, in any order, and choose among `models` by AICc.

    A value is a positive number (memory), or the replicates of that point, each a list of
    samples (time), of which the median is fitted. AICc counts the noise as a parameter and needs
    P >= parameters + 3: a model with less is listed in `not_compared`. Are all left out (P < 5),
    the model of the exponent is taken and `selection` says so. A single model in `models` is
    taken as given. The exponent is that of `c + a n^k`; with three points it is that of `a n^k`,
    which no interval saves from understating growth where there is a fixed cost: look at
    `exponent_model`.

    Each draw refits the curve plus resampled deviations: residuals corrected for leverage and
    widened by Student t / normal at the residual degrees of freedom (few points say little about
    their own noise), or replicates where processes differ more than points do from the curve.

    `censored` holds (length, reason) of out-of-memory or timed-out points: a lower bound is no
    value, so they are carried along and change no number. Raises ValueError on fewer than three
    points, repeated lengths, non-positive numbers, unknown models or too few points for the given
    one. Fits are remembered: figures, tables, numbers and verdicts ask for the same ones.
    """
    data = frozen(tuple(lengths)), frozen(tuple(values))
    return _fit(*data, tuple(models), frozen(tuple(censored)), confidence, seed, draws)


@lru_cache(maxsize=1024)
def _fit(
    lengths: tuple,
    values: tuple,
    models: tuple[str, ...],
    censored: tuple,
    confidence: float,
    seed: int,
    draws: int,
) -> ScalingFit:
    check_confidence(confidence)
    if not models or any(name not in MODELS for name in models):
        raise ValueError(f"models: expected some of {tuple(MODELS)}, got {models!r}")
    rng = np.random.default_rng(seed)
    x, log_y, noise = _points(lengths, values, draws, rng)
    weights, not_compared = _akaike(models, x, log_y)
    exponent_model = OFFSET_POWER if x.size >= 4 else POWER
    if len(models) == 1:
        model, selection = models[0], "given"
    elif weights:
        model, selection = max(weights, key=weights.__getitem__), "AICc"
    elif exponent_model in models:
        model, selection = exponent_model, f"not chosen: {x.size} points, AICc needs 5"
    else:
        raise ValueError(f"lengths: expected >= 5 to choose among {models!r}, got {x.size}")
    if x.size <= curves.size(model):
        raise ValueError(f"lengths: expected > {curves.size(model)} for {model!r}, got {x.size}")

    fitted = {}
    for name in dict.fromkeys((model, exponent_model)):
        theta = curves.solve(name, x, log_y)
        resampled, noisy = _resample(name, theta, x, log_y, noise, confidence, rng)
        fitted[name] = theta, curves.descend(name, x, noisy, np.tile(theta, (draws, 1))), resampled
    theta, theta_draws, resampled = fitted[model]
    k, k_draws = (array[..., -1] for array in fitted[exponent_model][:2])
    shorter = curves.solve(model, x[:-1], log_y[:-1])
    holdout = float(np.expm1(curves.log_curves(model, shorter[None], x[-1:])[0][0, 0] - log_y[-1]))
    return ScalingFit(
        model=model,
        parameters=curves.named_parameters(model, theta, x, log_y),
        selection=selection,
        exponent=Interval.of_draws(float(k), k_draws, confidence),
        exponent_model=exponent_model,
        aicc_weights=weights,
        not_compared=not_compared,
        holdout_relative_error=holdout,
        resampled=resampled,
        n_range=(float(min(lengths)), float(max(lengths))),
        censored=tuple((int(length), str(reason)) for length, reason in censored),
        theta=theta,
        draws=theta_draws,
    )


@dataclass(frozen=True)
class Crossover:
    """Where two fitted curves a and b meet.

    status: "found" or "not in range".
    n: the length with its interval, None when not in range. It is the last crossing, should there
        be more: from there to the end of `n_range` the order stays. A bound at an end of
        `n_range` reads "there or beyond": draws that do not cross inside are counted there.
    roots: every crossing inside `n_range`, ascending.
    share_in_range: fraction of the draws that cross inside `n_range`.
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
    fits, paired at random. Raises ValueError where the ranges have no stretch in common.
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
    share = float(np.isfinite(last).mean())
    interval = None
    if roots:
        beyond = above[:, -1] != (gap[-1] > 0)
        last = np.where(np.isnan(last), np.where(beyond, high, low), last)
        interval = Interval.of_draws(roots[-1], last, confidence)
    return Crossover(
        status="found" if roots else "not in range",
        n=interval,
        roots=roots,
        share_in_range=share,
        smaller_at_end={-1.0: "a", 1.0: "b"}.get(float(np.sign(gap[-1])), "neither"),
        n_range=(low, high),
    )


def _between(grid: np.ndarray, at: np.ndarray, gap: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where a gap that is `gap` at places `at` of the geometric `grid`, and `after` one on, is 0.

    Interpolated in log length.
    """
    return grid[at] * (grid[at + 1] / grid[at]) ** (gap / (gap - after))


def _points(
    lengths: Sequence[float],
    values: Sequence[float | Replicates],
    draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending log lengths (P,), log medians (P,), log deviations of resampled medians (draws, P).

    Deviations are zero for plain numbers.
    """
    n = np.asarray(lengths, dtype=float)
    if n.ndim != 1 or n.size < 3 or n.size != np.unique(n).size or not (n > 0).all():
        raise ValueError(f"lengths: expected at least 3 distinct lengths > 0, got {lengths!r}")
    if len(values) != n.size:
        raise ValueError(f"values: expected {n.size}, one per length, got {len(values)}")
    y, noise = np.empty(n.size), np.zeros((draws, n.size))
    for i, value in enumerate(values):
        if isinstance(value, Real):
            y[i] = value
        else:
            medians = bootstrap_medians(value, draws, rng)
            y[i] = np.median(np.concatenate([np.asarray(samples) for samples in value]))
            noise[:, i] = np.log(medians / y[i]) if y[i] > 0 else 0.0
    if not (np.isfinite(y) & (y > 0)).all():
        raise ValueError(f"values: expected finite numbers > 0, got {y.tolist()} at {n.tolist()}")
    order = np.argsort(n)
    return np.log(n[order]), np.log(y[order]), noise[:, order]


def _akaike(
    models: Sequence[str], x: np.ndarray, log_y: np.ndarray
) -> tuple[dict[str, float], dict[str, str]]:
    """Akaike weights of the models with P >= parameters + 3, and why the others have none."""
    scores, not_compared, points = {}, {}, x.size
    for model in models:
        free = curves.size(model) + 1  # and the noise
        if points < free + 2:
            not_compared[model] = f"{points} points, AICc needs {free + 2}"
            continue
        misfit = (
            (curves.log_curves(model, curves.solve(model, x, log_y)[None], x)[0] - log_y) ** 2
        ).mean()
        scores[model] = points * np.log(max(misfit, EXACT**2))
        scores[model] += 2 * free + 2 * free * (free + 1) / (points - free - 1)
    best = min(scores.values(), default=0.0)
    relative = {model: float(np.exp((best - score) / 2)) for model, score in scores.items()}
    total = sum(relative.values())
    return {model: value / total for model, value in relative.items()}, not_compared


def _resample(
    model: str,
    theta: np.ndarray,
    x: np.ndarray,
    log_y: np.ndarray,
    noise: np.ndarray,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[str, np.ndarray]:
    """What is resampled, and log values (draws, P): the curve plus resampled deviations."""
    curve, jacobian = curves.log_curves(model, theta[None], x)
    residuals, freedom = log_y - curve[0], x.size - curves.size(model)
    spread = np.sqrt((residuals**2).sum() / freedom)
    if np.sqrt(noise.var(axis=0).mean()) > spread:
        return "replicates", curve + noise
    # A coefficient at zero takes up no freedom: its column is cut by rcond.
    slopes = jacobian[0].T
    leverage = np.einsum("ij,ji->i", slopes, np.linalg.pinv(slopes, rcond=1e-5))
    corrected = residuals / np.sqrt(np.clip(1 - leverage, 0.1, 1))
    corrected *= spread / np.sqrt((corrected**2).mean() or 1.0)
    wider = stats.t.ppf((1 + confidence) / 2, freedom) / stats.norm.ppf((1 + confidence) / 2)
    return "residuals", curve + wider * rng.choice(corrected - corrected.mean(), size=noise.shape)
