"""How much the times of a machine differ between rounds: what all of its cases say together.

With two or three rounds the variance of one case by itself is hardly known; there are hundreds of
cases. The variance of each is therefore moderated (Smyth, "Linear Models and Empirical Bayes
Methods for Assessing Differential Expression in Microarray Experiments", 2004): it is averaged with
a prior variance, weighted by degrees of freedom. How much the prior counts follows from how much
the variances of the cases differ beyond what chance makes them differ.

Rounds of one occasion do not show what differs between occasions, however many they are, and two
occasions that happen to be alike say little of a third, however many cases they have. That variance
is therefore assumed to begin with, BETWEEN_OCCASIONS and ALL_BETWEEN_OCCASIONS, and what a machine
shows counts the more beside it the more occasions there are.

A round in which everything is slow moves all times at once, and no number of cases says how much
such rounds differ: that part of a time's variance is known with the freedom of the rounds alone.
It cancels in a ratio of two times of one round.

Cards of one kind differ too, all cases alike in the first place: what is measured again may be on
another card. That cancels in a ratio of two times of one card, and is known with the freedom of the
cards alone, beside what is assumed of them, BETWEEN_CARDS: see `analysis.statistics.cards`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log, sqrt
from statistics import fmean

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from analysis.statistics.additive import additive_effects
from analysis.statistics.cards import (
    Card,
    effects_with_cards,
    several_of_a_host,
    variance_between,
)
from analysis.statistics.rounds import (
    AGAIN,
    LEVELS,
    At,
    Logs,
    level,
    log_ratio,
    sum_of_squares,
)

# No two rounds agree better than to 0.01 %: medians that are identical do by chance.
FLOOR = 1e-4**2
# Fewer variances say little of how variances differ.
FEWEST = 10
# Of the cases of the largest: a round that has fewer is a pass over some experiment.
WHOLE = 0.5


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
        return replace(self, variance=self.variance / 2)


# Assumed between occasions of one host, of a ratio of two times and of all times at once, beyond
# what rounds differ by; with the weight of so many degrees of freedom. On 28 November 2026 ratios
# of the published machine differed by 0 to 4 % more from hour to hour than from round to round.
BETWEEN_OCCASIONS = Prior(0.04**2, 4.0)
ALL_BETWEEN_OCCASIONS = Prior(0.1**2, 4.0)
# Assumed between cards of one kind, of all times at once. In five computing centres the fastest and
# the slowest differed by 8 % on average, outliers aside (Sinha et al., "Not All GPUs Are Created
# Equal", 2022).
BETWEEN_CARDS = Prior(0.03**2, 4.0)


@dataclass(frozen=True)
class Component:
    """A part of the variance of a mean.

    of_one: that of one cluster. count: of how many clusters it is the mean, infinite where what
    the mean has of it is in another part. again: those of a repetition.
    """

    of_one: Prior
    count: float
    again: float

    @property
    def of_mean(self) -> Prior:
        """Of the mean."""
        return replace(self.of_one, variance=self.of_one.variance / self.count)

    @property
    def of_repetition(self) -> Prior:
        """Of the mean of a repetition, about this mean."""
        factor = 1 / self.count + 1 / self.again
        return replace(self.of_one, variance=self.of_one.variance * factor)


@dataclass(frozen=True)
class Levels:
    """A variance between rounds of one occasion, between occasions of one host, between hosts.

    Without freedom where no case says anything of it.
    """

    host: Prior = Prior()
    occasion: Prior = Prior()
    round: Prior = Prior()

    def halved(self) -> Levels:
        """Of one time, where this is of a ratio of two."""
        return Levels(*(getattr(self, name).halved() for name in LEVELS))

    def components(
        self, variance: float, freedom: float, at: Collection[At]
    ) -> tuple[Component, ...]:
        """The parts of the variance of a mean over these rounds, of two clusters or more.

        variance, freedom: between its own clusters; freedom 0 if it has none of its own. Beside
        these there is what differs between the hosts or occasions of which it has one alone, and
        what its clusters, of more rounds than a repetition, have less of than that.
        """
        name, found = level(at), []
        place = LEVELS.index(name)
        own = getattr(self, name)
        own = own.moderated(variance, freedom) if freedom else own
        if own.freedom:
            found.append(Component(own, len({one[: place + 1] for one in at}), AGAIN[name]))
        above = (getattr(self, one) for one in LEVELS[:place])
        found += [Component(one, 1, 1) for one in above if one.freedom]
        for depth, below in enumerate(LEVELS[place + 1 :], start=place + 2):
            known = getattr(self, below)
            counts = Counter(one[: place + 1] for one in {one[:depth] for one in at})
            lacks = 1 / AGAIN[below] - fmean(1 / count for count in counts.values())
            if known.freedom and lacks > 0:
                found.append(Component(known, inf, 1 / lacks))
        return tuple(found)


@dataclass(frozen=True)
class Spread:
    """What a machine's cases say of its rounds.

    time: of a case's time, less the effects. ratio: of a ratio of two times in the same round.
    effects: (round, log) pairs, by how much all cases take longer in that round and on that card.
    common: the variance of these, of rounds that most cases have. cards: that between cards of one
    host, without freedom where no host has two; card_effects: (card, log) pairs, by how much all
    cases take longer there, of those that can be told.
    """

    time: Levels = Levels()
    ratio: Levels = Levels()
    effects: tuple[tuple[At, float], ...] = ()
    common: Levels = Levels()
    cards: Prior = Prior()
    card_effects: tuple[tuple[Card, float], ...] = ()

    def of_ratio(self, logs: Logs) -> tuple[Component, ...]:
        """The variance of a mean ratio over these rounds; none of one cluster."""
        if len(logs) < 2:
            return ()
        return self.ratio.components(*_own(logs), logs)

    def of_time(self, logs: Logs) -> tuple[Component, ...]:
        """The variance of a mean time over these rounds; none of one cluster."""
        if len(logs) < 2:
            return ()
        return (*self.of_its_own(logs), *self.common.components(0.0, 0.0, logs))

    def of_its_own(self, logs: Logs) -> tuple[Component, ...]:
        """The same less what its rounds have in common, as of a time beside another of them."""
        if len(logs) < 2:
            return ()
        effects: dict[At, list[float]] = {}
        for at, value in self.effects:
            for key in {at, at.anywhere}:
                effects.setdefault(key, []).append(value)
        less = {at: value - fmean(effects.get(at, (0.0,))) for at, value in logs.items()}
        return (*self.time.components(*_own(less), logs), *self.of_cards(logs))

    def of_cards(self, at: Collection[At]) -> tuple[Component, ...]:
        """What differs between cards, of a mean over these rounds; of two hosts it is in theirs."""
        if not self.cards.freedom or level(at) == "host":
            return ()
        cards = {one.card for one in at}
        return (Component(self.cards, 1 if "" in cards else len(cards), 1),)


# Where each case speaks for itself alone.
PLAIN = Spread()


def _own(logs: Logs) -> tuple[float, int]:
    """The variance between the clusters of two rounds or more, and its freedom."""
    squares, freedom = sum_of_squares(logs, level(logs))
    return squares / freedom, freedom


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
    ratios = [log_ratio(base, own) for own, base in cases if base is not None]
    ratio = _levels(ratios, BETWEEN_OCCASIONS)
    several = [own for own, _ in cases if len(own) > 1]
    halved = BETWEEN_OCCASIONS.halved()
    cards = BETWEEN_CARDS if several_of_a_host(own for own, _ in cases) else Prior()
    if len(several) < FEWEST:
        both = replace(halved, variance=halved.variance + ALL_BETWEEN_OCCASIONS.variance)
        return Spread(Levels(occasion=both), ratio, cards=cards)
    effects, of_cards = additive_effects(several), []
    if several_of_a_host(several):
        effects, of_cards = effects_with_cards(several)
    less = [{at: value - effects[at] for at, value in own.items()} for own in several]
    # The effects were fitted to the same cases.
    time = _levels(less, halved, 1 - 1 / len(several))
    cases_of = Counter(at.anywhere for own in several for at in own)
    most = max(cases_of.values())
    whole = {at: value for at, value in effects.items() if cases_of[at.anywhere] >= WHOLE * most}
    variance, freedom = variance_between(of_cards)
    cards = cards.moderated(variance, freedom) if freedom else cards
    shown = tuple(sorted((card, value) for one in of_cards for card, value in one.items()))
    return Spread(time, ratio, tuple(sorted(effects.items())), _common(whole), cards, shown)


def _levels(logs: Sequence[Logs], between: Prior, share: float = 1.0) -> Levels:
    """The priors of variances at each level, each of `share` of its degrees of freedom.

    between: what is assumed of occasions, which counts beside those that there are: two that are
    alike say little of a third, however many cases they have.
    """
    found = {}
    for name in LEVELS:
        several = [sum_of_squares(one, name) for one in logs if one]
        several = [(squares, share * freedom) for squares, freedom in several if freedom]
        freedoms = [freedom for _, freedom in several]
        found[name] = prior_of([squares / freedom for squares, freedom in several], freedoms)
    own, differ = found["occasion"], max((_occasions(one) - 1 for one in logs), default=0)
    if own.freedom and differ > 0:
        # Of the mean over its rounds, as `own` is.
        assumed = between.variance + found["round"].variance / AGAIN["round"]
        blended = replace(between, variance=assumed).moderated(own.variance, differ)
        found["occasion"] = replace(own, variance=blended.variance)
    else:
        found["occasion"] = between
    return Levels(**found)


def _occasions(logs: Logs) -> int:
    return len({at[:2] for at in logs})


def _common(effects: Logs) -> Levels:
    """The variance of effects at each level; of occasions and hosts with what is assumed."""
    found = {}
    for name in LEVELS:
        squares, freedom = sum_of_squares(effects, name)
        assumed = Prior() if name == "round" else ALL_BETWEEN_OCCASIONS
        found[name] = assumed.moderated(squares / freedom, freedom) if freedom else Prior()
    if not found["occasion"].freedom:
        found["occasion"] = ALL_BETWEEN_OCCASIONS
    return Levels(**found)
