"""How time or memory grows with length: fits, choice of model and exponents.

Every launch costs a fixed amount, so a straight line through log-log points understates the
exponent: over 512..32768 it can call a truly linear kernel n^0.76. All models are therefore sums
of non-negative terms, most with an offset, fitted on log residuals (timing noise is relative).
The choice between them is by AICc; the exponent always comes from a power law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from numbers import Real

import numpy as np
from scipy import stats

from analysis.statistics import curves
from analysis.statistics.curves import EXACT, MODELS, OFFSET_POWER, POWER
from analysis.statistics.intervals import Interval, Samples, check_confidence
from analysis.statistics.rounds import At, clusters, in_shared_rounds, log_medians
from analysis.statistics.spread import Component, Spread


@dataclass(frozen=True)
class ScalingFit:
    """One fitted series of a quantity against length.

    model: the model taken; `selection` says how ("AICc", "given", or the want of points).
    parameters: of `model`, in the unit of the values per length^exponent.
    exponent: k of `exponent_model` with its interval, whichever `model` was taken.
    margin: the exponent to judge by. Of times of one round, which have no interval, the bounds that
        residuals alone give, of confidence 0; else `exponent` itself.
    aicc_weights: model -> Akaike weight among the models compared; sums to 1, or is empty.
    not_compared: model -> why it has no weight.
    drawn: what the draws deviate by, "residuals" or "rounds"; "nothing" for times of one round, of
        which there are no draws.
    n_range: smallest and largest measured length; beyond it `predict` extrapolates.
    censored: (length, reason) of the points that could not be measured; used in no number.
    """

    model: str
    parameters: dict[str, float]
    selection: str
    exponent: Interval
    margin: Interval
    exponent_model: str
    aicc_weights: dict[str, float]
    not_compared: dict[str, str]
    drawn: str
    n_range: tuple[float, float]
    censored: tuple[tuple[int, str], ...]
    theta: np.ndarray = field(repr=False, compare=False)  # (parameters,) as in `curves.log_curves`
    points: np.ndarray = field(repr=False, compare=False)  # (2, P): log lengths, log values
    redrawn: Callable[[], np.ndarray] = field(repr=False, compare=False)  # `draws`, solved once

    @property
    def draws(self) -> np.ndarray:
        """The fits (draws, parameters) of `model` to deviating values, solved when asked for."""
        return self.redrawn()

    @cached_property
    def holdout_relative_error(self) -> float:
        """`model` refitted without the largest length: its prediction there over the measured
        value, less 1. The choice of `model` has seen that point."""
        x, log_y = self.points
        shorter = curves.solve(self.model, x[:-1], log_y[:-1])
        found = curves.log_curves(self.model, shorter[None], x[-1:])[0][0, 0]
        return float(np.expm1(found - log_y[-1]))

    @property
    def is_narrow(self) -> bool:
        """Whether the exponent has an interval of at most 1: others are not drawn."""
        return bool(self.exponent.high - self.exponent.low <= 1)

    def predict(self, n: np.ndarray | float) -> np.ndarray:
        """Fitted values at lengths `n` > 0, of its shape; extrapolates outside `n_range`."""
        return self._values(self.theta[None], n)[0]

    def sample_curves(self, n: np.ndarray | float) -> np.ndarray:
        """Values (draws, *n.shape) at lengths `n` of every draw of the curve."""
        return self._values(self.draws, n)

    def band(self, n: np.ndarray) -> np.ndarray:
        """The 95 % band at lengths `n`, (2, *n.shape); NaN without draws."""
        if not len(self.draws):
            return np.full((2, *n.shape), np.nan)
        return np.quantile(self.sample_curves(n), (0.025, 0.975), axis=0)

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
    values: Sequence[float | Samples],
    spread: Spread | None = None,
    *,
    models: Sequence[str] = tuple(MODELS),
    censored: Iterable[tuple[int, str]] = (),
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 500,
) -> ScalingFit:
    """Fit `values` at P distinct `lengths`, in any order, and choose among `models` by AICc.

    A value is a positive number (memory), or the samples of that point by round (time), whose
    machine's `spread` is then needed: fitted is the mean of the log medians over clusters, of the
    rounds that all points have, or of each point's own where there is none. AICc counts the noise
    as a parameter and needs P >= parameters + 3: a model with less is listed in `not_compared`. Are
    all left out (P < 5), the model of the exponent is taken and `selection` says so. A single model
    in `models` is taken as given. The exponent is that of `c + a n^k`; with three points it is that
    of `a n^k`, which no interval saves from understating growth where there is a fixed cost: look
    at `exponent_model`.

    Each draw refits the curve plus deviations. These are residuals, corrected for leverage and
    widened by Student t / normal at the residual degrees of freedom (few points say little about
    their own noise), or what rounds make a point deviate, where that is more (`Noise`); and, as of
    all intervals, what they make one of a repetition deviate.

    `censored` holds (length, reason) of out-of-memory or timed-out points: a lower bound is no
    value, so they are carried along and change no number. Raises ValueError on fewer than three
    points, repeated lengths, non-positive numbers, times without a spread, unknown models or too
    few points for the given one. Fits are remembered: figures, tables, numbers and verdicts ask for
    the same ones.
    """
    points = tuple(one if isinstance(one, Real) else tuple(one) for one in values)
    lost = tuple(map(tuple, censored))
    return _fit(tuple(lengths), points, spread, tuple(models), lost, confidence, seed, draws)


@lru_cache(maxsize=1024)
def _fit(
    lengths: tuple,
    values: tuple,
    spread: Spread | None,
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
    x, log_y, noise = _points(lengths, values, spread)
    # Models that are compared, and the one that is taken, are solved once.
    solved = cache(lambda name: curves.solve(name, x, log_y))
    weights, not_compared = _akaike(models, solved, x, log_y)
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

    is_of_one_round = noise is not None and not noise.components
    deviating = {
        name: _deviating(name, solved(name), x, log_y, noise, confidence, draws, rng)
        for name in dict.fromkeys((model, exponent_model))
    }
    # Of the model that gives no exponent few ask for the draws.
    refitted = cache(lambda name: _refitted(name, solved(name), x, deviating[name][1]))
    theta, drawn = solved(model), deviating[model][0]
    k, k_draws = solved(exponent_model)[-1], refitted(exponent_model)[:, -1]
    margin = exponent = Interval.of_draws(float(k), k_draws, confidence)
    if is_of_one_round:
        margin, exponent = replace(margin, confidence=0.0), Interval.without_spread(float(k))
        drawn = "nothing"
    return ScalingFit(
        model=model,
        parameters=curves.named_parameters(model, theta, x, log_y),
        selection=selection,
        exponent=exponent,
        margin=margin,
        exponent_model=exponent_model,
        aicc_weights=weights,
        not_compared=not_compared,
        drawn=drawn,
        n_range=(float(min(lengths)), float(max(lengths))),
        censored=tuple((int(length), str(reason)) for length, reason in censored),
        theta=theta,
        points=np.array([x, log_y]),
        redrawn=lambda: np.empty((0, theta.size)) if is_of_one_round else refitted(model),
    )


@dataclass(frozen=True)
class Noise:
    """What rounds, occasions and hosts make the points of a series deviate by: none of one round.

    components: of the variance of a point.
    """

    components: tuple[Component, ...] = ()

    @property
    def of_value(self) -> float:
        """The standard deviation of a value."""
        return float(np.sqrt(sum(one.of_mean.variance for one in self.components)))

    def of_repetition(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Deviations (draws, P) of a repetition's values from these."""
        return self._draw(lambda one: 1 / one.count + 1 / one.again, shape, rng)

    def of_next(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Deviations (draws, P) of a repetition's values from the true ones."""
        return self._draw(lambda one: 1 / one.again, shape, rng)

    def _draw(self, factor: Callable, shape: tuple, rng: np.random.Generator) -> np.ndarray:
        # All points of a draw share how far off the estimate of their noise is.
        found = np.zeros(shape)
        for one in self.components:
            known = one.of_one
            scale = rng.chisquare(known.freedom, (shape[0], 1)) / known.freedom
            sigma = np.sqrt(factor(one) * known.variance / scale)
            found += sigma * rng.standard_normal(shape)
        return found


def _points(
    lengths: Sequence[float], values: Sequence[float | Samples], spread: Spread | None
) -> tuple[np.ndarray, np.ndarray, Noise | None]:
    """Ascending log lengths (P,), log values (P,), and the noise of the values.

    The noise is None of plain numbers.
    """
    n = np.asarray(lengths, dtype=float)
    if n.ndim != 1 or n.size < 3 or n.size != np.unique(n).size or not (n > 0).all():
        raise ValueError(f"lengths: expected at least 3 distinct lengths > 0, got {lengths!r}")
    if len(values) != n.size:
        raise ValueError(f"values: expected {n.size}, one per length, got {len(values)}")
    order = np.argsort(n)
    if all(isinstance(value, Real) for value in values):
        y, noise = np.asarray(values, dtype=float), None
        if not (np.isfinite(y) & (y > 0)).all():
            raise ValueError(f"values: expected finite numbers > 0, got {values} at {n.tolist()}")
        log_y = np.log(y)
    elif spread is None:
        raise ValueError("spread: expected that of the machine, as the values are times")
    else:
        log_y, noise = _times(values, spread)
    return np.log(n[order]), log_y[order], noise


def _times(values: Sequence[Samples], spread: Spread) -> tuple[np.ndarray, Noise]:
    """Means of log medians over clusters (P,), and their noise."""
    logs = [log_medians(samples) for samples in values]
    cards = {at.card for one in logs for at in one}
    within = in_shared_rounds(logs)
    shared = [*within[0]]
    if shared:
        logs = within
    found = [clusters(one) for one in logs]
    log_y = np.array([one.mean() for one in found])
    if len(shared) < 2:
        return log_y, Noise()
    noise = _noise(np.array(found), shared, spread)
    # Lengths that lie on several cards differ by what cards do.
    of_cards = spread.of_cards(shared) if len(cards) > 1 else ()
    return log_y, Noise((*noise.components, *of_cards))


def _noise(logs: np.ndarray, rounds: Sequence[At], spread: Spread) -> Noise:
    """That of log medians (P, R) of one series over the R clusters of these rounds.

    What is left beside the mean of the length and that of the cluster: a slower host moves no
    exponent. Moderated by what all of the machine's cases say, of one time half of a ratio's.
    """
    points, count = logs.shape
    left = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
    freedom = (points - 1) * (count - 1)
    variance = float((left**2).sum()) / freedom
    return Noise(spread.ratio.halved().components(variance, freedom, rounds))


def _akaike(
    models: Sequence[str],
    solved: Callable[[str], np.ndarray],
    x: np.ndarray,
    log_y: np.ndarray,
) -> tuple[dict[str, float], dict[str, str]]:
    """Akaike weights of the models with P >= parameters + 3, and why the others have none.

    solved: the best fit (parameters,) of a model.
    """
    scores, not_compared, points = {}, {}, x.size
    for model in models:
        free = curves.size(model) + 1  # and the noise
        if points < free + 2:
            not_compared[model] = f"{points} points, AICc needs {free + 2}"
            continue
        misfit = ((curves.log_curves(model, solved(model)[None], x)[0] - log_y) ** 2).mean()
        scores[model] = points * np.log(max(misfit, EXACT**2))
        scores[model] += 2 * free + 2 * free * (free + 1) / (points - free - 1)
    best = min(scores.values(), default=0.0)
    relative = {model: float(np.exp((best - score) / 2)) for model, score in scores.items()}
    total = sum(relative.values())
    return {model: value / total for model, value in relative.items()}, not_compared


def _refitted(model: str, theta: np.ndarray, x: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """The fits (draws, parameters) to log values (draws, P), each from `theta` (parameters,)."""
    if not len(noisy):
        return np.empty((0, len(theta)))
    # Of few points many draws are the same.
    different, place = np.unique(noisy, axis=0, return_inverse=True)
    starts = np.tile(theta, (len(different), 1))
    return curves.descend(model, x, different, starts)[place.ravel()]


def _deviating(
    model: str,
    theta: np.ndarray,
    x: np.ndarray,
    log_y: np.ndarray,
    noise: Noise | None,
    confidence: float,
    draws: int,
    rng: np.random.Generator,
) -> tuple[str, np.ndarray]:
    """What values deviate by, and log values (draws, P): the curve plus deviations."""
    curve, jacobian = curves.log_curves(model, theta[None], x)
    residuals, freedom = log_y - curve[0], x.size - curves.size(model)
    spread = np.sqrt((residuals**2).sum() / freedom)
    shape = (draws, x.size)
    if noise is not None and noise.components and noise.of_value > spread:
        return "rounds", curve + noise.of_repetition(shape, rng)
    # A coefficient at zero takes up no freedom: its column is cut by rcond.
    slopes = jacobian[0].T
    leverage = np.einsum("ij,ji->i", slopes, np.linalg.pinv(slopes, rcond=1e-5))
    corrected = residuals / np.sqrt(np.clip(1 - leverage, 0.1, 1))
    corrected *= spread / np.sqrt((corrected**2).mean() or 1.0)
    wider = stats.t.ppf((1 + confidence) / 2, freedom) / stats.norm.ppf((1 + confidence) / 2)
    found = curve + wider * rng.choice(corrected - corrected.mean(), size=shape)
    if noise is not None:
        found += noise.of_next(shape, rng)
    return "residuals", found
