"""How much the times of a machine differ between rounds: what all of its cases say together.

With two or three rounds the variance of one case by itself is hardly known; there are hundreds of
cases. The variance of each is therefore moderated (Smyth, "Linear Models and Empirical Bayes
Methods for Assessing Differential Expression in Microarray Experiments", 2004): it is averaged with
a prior variance, weighted by degrees of freedom. How much the prior counts follows from how much
the variances of the cases differ beyond what chance makes them differ.

A round in which everything is slow moves all times at once, and no number of cases says how much
such rounds differ: that part of a time's variance is known with the freedom of the rounds alone.
It cancels in a ratio of two times of one round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from analysis.statistics.rounds import At, Logs, clusters, log_ratio, over_hosts

# No two rounds agree better than to 0.01 %: medians that are identical do by chance.
FLOOR = 1e-4**2
# Fewer variances say little of how variances differ.
FEWEST = 10


@dataclass(frozen=True)
class Prior:
    """A variance of logs between clusters, and the degrees of freedom that it counts for."""

    variance: float = 0.0
    freedom: float = 0.0

    def moderated(self, variance: float, freedom: float) -> Prior:
        """A case's own variance, of `freedom` > 0, averaged with this one."""
        total = self.freedom + freedom
        own = max(variance, FLOOR)
        return Prior((self.freedom * self.variance + freedom * own) / total, total)

    def halved(self) -> Prior:
        """Of one time, where this is of a ratio of two."""
        return Prior(self.variance / 2, self.freedom)

    def over(self, count: int) -> Prior:
        """Of a mean of `count` independent ones."""
        return Prior(self.variance / count, self.freedom)

    def of_repetition(self, count: int, again: int) -> Prior:
        """Of the mean of `again` further ones, about a mean of `count`."""
        return Prior(self.variance * (1 / count + 1 / again), self.freedom)


@dataclass(frozen=True)
class Spread:
    """What a machine's cases say of its rounds.

    time: of a case's time, less the effects. ratio: of a ratio of two times in the same round.
    effects: (round, log) pairs, by how much all cases take longer in that round. common: the
    variance of these between clusters.
    """

    time: Prior = Prior()
    ratio: Prior = Prior()
    effects: tuple[tuple[str, float], ...] = ()
    common: Prior = Prior()

    def without_effects(self, logs: Logs) -> dict[At, float]:
        """The logs of a time less the effects of their rounds."""
        effects = dict(self.effects)
        return {at: value - effects.get(at.round, 0.0) for at, value in logs.items()}


# Where each case speaks for itself alone.
PLAIN = Spread()


def prior_of(variances: Sequence[float], freedoms: Sequence[float]) -> Prior:
    """The prior of these variances, by the moments of their logs; of fewer than FEWEST, none.

    Its freedom is what their logs allow a standard error down, so that the fewer they are the less
    the prior counts; and at most that of all of them together.
    """
    if len(variances) < FEWEST:
        return Prior()
    half = np.asarray(freedoms, dtype=float) / 2
    logs = np.log(np.maximum(variances, FLOOR)) - digamma(half) + np.log(half)
    spread, most = float(logs.var(ddof=1)), 2 * float(half.sum())
    by_chance = float(polygamma(1, half).mean())
    middle = _freedom(spread - by_chance, most)
    variance = exp(float(logs.mean()) + float(digamma(middle / 2)) - log(middle / 2))
    error = spread * sqrt(2 / (len(variances) - 1))
    return Prior(variance, _freedom(spread - by_chance + error, most))


def _freedom(beyond_chance: float, most: float) -> float:
    """Of a prior whose variances' logs have so much variance beyond chance."""
    if beyond_chance <= 0:
        return most
    return min(2 * _inverse_trigamma(beyond_chance), most)


def _inverse_trigamma(value: float) -> float:
    """Where trigamma is `value` > 0."""
    found = brentq(lambda x: float(polygamma(1, exp(x))) - value, log(1e-6), log(1e9))
    return exp(found)


def estimate(cases: Iterable[tuple[Logs, Logs | None]]) -> Spread:
    """What the cases of one machine say, each with its log medians and those of its base.

    base: the case that its ratio is over, None for one that is a base itself.
    """
    cases = list(cases)
    ratio = _prior_over_clusters([log_ratio(base, own) for own, base in cases if base is not None])
    several = [own for own, _ in cases if len(clusters(own)) > 1]
    if len(several) < FEWEST:
        return Spread(ratio=ratio)
    effects = _effects(several)
    hosts = {at: effects[at] for own in several for at in own}
    common = clusters(hosts)
    named = tuple(sorted((at.round, value) for at, value in effects.items()))
    less = [{at: value - effects[at] for at, value in own.items()} for own in several]
    # The effects were fitted to the same cases.
    share = 1 - 1 / len(several)
    return Spread(
        _prior_over_clusters(less, share),
        ratio,
        named,
        Prior(float(common.var(ddof=1)), len(common) - 1.0),
    )


def _prior_over_clusters(logs: Sequence[Logs], share: float = 1.0) -> Prior:
    """The prior of variances between clusters, each of `share` of its degrees of freedom.

    Where some of them are between hosts, of these alone: rounds of one host differ less.
    """
    several = [one for one in logs if one and len(clusters(one)) > 1]
    between_hosts = [one for one in several if over_hosts(one)]
    means = [clusters(one) for one in between_hosts or several]
    freedoms = [share * (len(one) - 1) for one in means]
    variances = [
        len(one) * float(one.var()) / freedom for one, freedom in zip(means, freedoms, strict=True)
    ]
    return prior_of(variances, freedoms)


def _effects(cases: Sequence[Logs]) -> Mapping[At, float]:
    """By how much each round lies above the others, over all the cases that it has.

    The additive fit of cases and rounds, by turns: a round need not have all cases.
    """
    effects = {at: 0.0 for own in cases for at in own}
    for _ in range(50):
        found: dict[At, list[float]] = {at: [] for at in effects}
        for own in cases:
            level = fmean(value - effects[at] for at, value in own.items())
            for at, value in own.items():
                found[at].append(value - level)
        middle = fmean(fmean(values) for values in found.values())
        after = {at: fmean(values) - middle for at, values in found.items()}
        moved = max(abs(after[at] - effects[at]) for at in effects)
        effects = after
        if moved < 1e-9:
            break
    return effects
