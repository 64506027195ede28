"""The models of growth with length, and their least-squares fit on log residuals.

All are sums of non-negative terms, coefficient times n^exponent.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

POWER, OFFSET_POWER = "a n^k", "c + a n^k"
# Model -> its terms, (coefficient, exponent); None is the exponent k that is fitted, always last.
MODELS: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "c + b n": (("c", 0), ("b", 1)),
    "c + b n^2": (("c", 0), ("b", 2)),
    "c + b n + d n^2": (("c", 0), ("b", 1), ("d", 2)),
    POWER: (("a", None),),
    OFFSET_POWER: (("c", 0), ("a", None)),
}
MAX_EXPONENT = 6.0
# Terms below this share of the smallest value are zero: no clock or allocator resolves them.
NEGLIGIBLE = 1e-7
# Relative misfit below which models are equally exact; keeps AICc finite on noiseless memory.
EXACT = 1e-6


def size(model: str) -> int:
    return len(MODELS[model]) + (MODELS[model][-1][1] is None)


def exponents(model: str, theta: np.ndarray) -> np.ndarray:
    """Exponents (B, terms)."""
    columns = [theta[:, -1] if power is None else power for _, power in MODELS[model]]
    return np.stack([np.broadcast_to(column, len(theta)) for column in columns], axis=1)


def values(model: str, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Curves (B, n) at log lengths `x` (n,).

    `theta` (B, parameters) holds the logs of the coefficients, so that none is negative, then k.
    """
    total = np.zeros((len(theta), len(x)))
    for log, (_, power) in zip(theta.T[:, :, None], MODELS[model], strict=False):
        if power is None:
            total += np.exp(log + theta[:, -1:] * x)
        else:  # The same lengths for all: no exponential for each draw.
            total += np.exp(log) * np.exp(power * x)
    return total


def log_curves(model: str, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logs (B, n) of `values`, and their Jacobian (B, parameters, n)."""
    terms = len(MODELS[model])
    shares = np.empty((*theta.shape, len(x)))
    for place, (_, power) in enumerate(MODELS[model]):
        power = theta[:, -1:] if power is None else power
        np.add(theta[:, place, None], power * x, out=shares[:, place])
    np.exp(shares[:, :terms], out=shares[:, :terms])
    total = shares[:, :terms].sum(axis=1)
    shares[:, :terms] /= total[:, None]
    if theta.shape[1] > terms:
        np.multiply(shares[:, terms - 1], x, out=shares[:, terms])
    return np.log(total), shares


def descend(model: str, x: np.ndarray, log_y: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Least squares on `log_y` (B, n) or (n,) from `start` (B, parameters), B fits at a time.

    Levenberg-Marquardt on the whole batch: scipy.optimize.least_squares, which the tests compare
    it with, takes seconds for 500 draws.
    """
    terms, theta = len(MODELS[model]), start.copy()
    low = np.full(theta.shape[1], log_y.min() + np.log(NEGLIGIBLE))
    high = np.full(theta.shape[1], np.inf)
    low[terms:], high[terms:] = 0.0, MAX_EXPONENT
    # Coefficients count at the largest length in here: well conditioned, and one floor fits all.
    last, x = x[-1], x - x[-1]
    theta[:, :terms] += exponents(model, theta) * last
    log_y = np.broadcast_to(log_y, (len(theta), x.size))
    found, places = np.empty_like(theta), np.arange(len(theta))
    damping = np.full(len(theta), 1e-2)
    curves, jacobian = log_curves(model, theta, x)
    cost = ((log_y - curves) ** 2).sum(axis=1)
    for _ in range(100):
        slope = np.einsum("bpn,bn->bp", jacobian, log_y - curves)
        # Held: at a bound and pushed outwards. Free, it would spoil the step of the others.
        held = ((theta <= low) & (slope < 0)) | ((theta >= high) & (slope > 0))
        rows = jacobian
        if np.count_nonzero(held):
            rows = rows.copy()
            rows[held] = slope[held] = 0.0
        normal = np.einsum("bpn,bqn->bpq", rows, rows)
        diagonal = np.einsum("bii->bi", normal)
        diagonal += diagonal * damping[:, None] + np.where(held, 1.0, 1e-18)
        step = np.linalg.solve(normal, slope[:, :, None])[:, :, 0]
        step = np.minimum(np.maximum(step, -2.0), 2.0)
        trial = np.minimum(np.maximum(theta + step, low), high)
        trial_curves, trial_jacobian = log_curves(model, trial, x)
        trial_cost = ((log_y - trial_curves) ** 2).sum(axis=1)
        better = trial_cost < cost
        # Over: a step changes no more than rounding does, or none is short enough to be better.
        rounding = 1e-12 * cost + 2e-14 * np.sqrt(cost)
        over = (abs(cost - trial_cost) <= rounding) | (~better & (damping >= 1e3))
        theta[better], cost[better] = trial[better], trial_cost[better]
        curves[better], jacobian[better] = trial_curves[better], trial_jacobian[better]
        damping = np.minimum(np.maximum(damping * np.where(better, 0.2, 5.0), 1e-9), 1e9)
        if np.count_nonzero(over):
            found[places[over]] = theta[over]
            rest = ~over
            places, theta, log_y, cost = places[rest], theta[rest], log_y[rest], cost[rest]
            damping, curves, jacobian = damping[rest], curves[rest], jacobian[rest]
            if not places.size:
                break
    found[places] = theta
    found[:, :terms] -= exponents(model, found) * last
    return found


def solve(model: str, x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """Best fit (parameters,) from several starts: what share each term has at its end of `x`."""
    terms = MODELS[model]
    starts = []
    for shares in product((0.9, 0.3, 0.03), repeat=len(terms)):
        for k in (0.5, 1.0, 2.0, 3.0) if terms[-1][1] is None else (None,):
            powers = [k if power is None else power for _, power in terms]
            coefficients = [
                np.log(share) + (log_y[-1] - power * x[-1] if power else log_y[0])
                for share, power in zip(shares, powers, strict=True)
            ]
            starts.append(coefficients + ([] if k is None else [k]))
    found = descend(model, x, log_y, np.array(starts))
    return found[((log_curves(model, found, x)[0] - log_y) ** 2).sum(axis=1).argmin()]


def named_parameters(
    model: str, theta: np.ndarray, x: np.ndarray, log_y: np.ndarray
) -> dict[str, float]:
    """Coefficients by name, then k; a term that is negligible at the largest length is 0."""
    last = theta[: len(MODELS[model])] + exponents(model, theta[None])[0] * x[-1]
    absent = last <= log_y.min() + np.log(NEGLIGIBLE) + 1.0
    values = np.where(absent, 0.0, np.exp(theta[: len(absent)])).tolist()
    named = {name: value for (name, _), value in zip(MODELS[model], values, strict=True)}
    return named | ({"k": float(theta[-1])} if size(model) > len(values) else {})
