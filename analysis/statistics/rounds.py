"""The samples of a case by round, and the clusters that its intervals count.

Rounds lie in occasions, and occasions on hosts. Two processes a second apart share the machine, its
memory layout, clocks and neighbours; two rounds that follow each other share much of that still;
two occasions, an hour or days apart, share little, and two hosts nothing. What differs at one level
contains what differs below it, so the clusters are those of the coarsest level of which there are
two or more: hosts, else occasions, else rounds. Each is one observation: a round the median of all
its samples, an occasion the mean over its rounds, a host that over its occasions. Times are
relative to each other, so all of this is in logarithms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from math import log
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

# A round that begins later after the end of the one before is of another occasion.
APART = timedelta(hours=1)
# What whoever measures again takes, by level: two rounds, as `make reproduce`, of one occasion.
AGAIN = {"round": 2, "occasion": 1, "host": 1}


class RoundSamples(NamedTuple):
    """The samples of a case in one round.

    host: which of the machine's hosts, "" if unknown. occasion: the first round of its occasion.
    replicates: the samples of each process, all in one unit. card: which of the host's cards, ""
    if unknown, and on a CPU.
    """

    host: str
    occasion: str
    round: str
    replicates: tuple[tuple[float, ...], ...]
    card: str = ""

    @property
    def at(self) -> At:
        """Of which round they are, and on which card."""
        return At(self.host, self.occasion, self.round, self.card)

    @property
    def all(self) -> list[float]:
        """Those of all processes."""
        return [one for replicate in self.replicates for one in replicate]

    @property
    def log_median(self) -> float:
        """Log of the median over all samples; ValueError unless all are numbers above 0."""
        samples = self.all
        if not samples or not 0 < min(samples) <= max(samples) < float("inf"):
            raise ValueError(f"samples: expected finite numbers > 0, got {self}")
        return log(median(samples))


def joined(cases: Iterable[Sequence[RoundSamples]]) -> tuple[RoundSamples, ...]:
    """The samples of several cases of one machine as if of one, round by round."""
    found: dict[At, tuple] = {}
    for one in (one for samples in cases for one in samples):
        found[one.at] = found.get(one.at, ()) + one.replicates
    return tuple(
        RoundSamples(at.host, at.occasion, at.round, replicates, at.card)
        for at, replicates in found.items()
    )


class At(NamedTuple):
    """One round of one occasion on one host; and on which of its cards, which is no level of these.

    Cases of one round may lie on several cards, and those of one card in many rounds.
    """

    host: str
    occasion: str
    round: str
    card: str = ""

    @property
    def anywhere(self) -> At:
        """The round, on whichever card."""
        return self._replace(card="")


# Coarsest first; the first so many fields of an `At` name a cluster of the level.
LEVELS = ("host", "occasion", "round")
# Of a case or of a ratio: a logarithm by round.
Logs = Mapping[At, float]


def occasions(times: Mapping[str, tuple[datetime, datetime]]) -> dict[str, str]:
    """The first round of the occasion of each round of one host, by when rounds began and ended."""
    found, first, until = {}, "", None
    for name, (began, ended) in sorted(times.items(), key=lambda one: (one[1], one[0])):
        if until is None or began - until > APART:
            first = name
        until = ended if until is None else max(until, ended)
        found[name] = first
    return found


def log_medians(samples: Sequence[RoundSamples]) -> dict[At, float]:
    """Log of the median by round; ValueError on no rounds, or the same round twice."""
    found = {one.at: one.log_median for one in samples}
    if not found or len(found) < len(samples):
        raise ValueError(f"samples: expected one or more distinct rounds, got {[*found]}")
    return found


def log_ratio(base: Logs, other: Logs) -> dict[At, float]:
    """Log of `base` over `other`, in the rounds that both have on one card."""
    return {at: base[at] - other[at] for at in base if at in other}


def in_shared_rounds(logs: Sequence[Logs]) -> list[dict[At, float]]:
    """Each of them in the rounds that all have, on whichever card.

    By the round and its card where all are on the same one, else by the round alone.
    """
    of_rounds: list[dict[At, dict[str, float]]] = []
    for one in logs:
        of_rounds.append({})
        for at, value in one.items():
            of_rounds[-1].setdefault(at.anywhere, {})[at.card] = value
    found: list[dict[At, float]] = [{} for _ in logs]
    for at in of_rounds[0]:
        if all(at in one for one in of_rounds):
            cards = {card for one in of_rounds for card in one[at]}
            key = at._replace(card=cards.pop()) if len(cards) == 1 else at
            for own, one in zip(found, of_rounds, strict=True):
                own[key] = fmean(one[at].values())
    return found


def mean_over(logs: Sequence[Logs]) -> dict[At, float]:
    """The mean over cases in each round that all of them have: see `in_shared_rounds`."""
    shared = in_shared_rounds(logs)
    return {at: sum(one[at] for one in shared) / len(shared) for at in shared[0]}


def level(rounds: Collection[At]) -> str:
    """That of their clusters: the coarsest of which there are two or more, or "round"."""
    for depth, name in enumerate(LEVELS, start=1):
        if len({at[:depth] for at in rounds}) > 1:
            return name
    return LEVELS[-1]


def clusters(logs: Logs) -> np.ndarray:
    """The mean of each cluster (clusters,), of `level`."""
    return np.array([*_means(logs, LEVELS.index(level(logs)) + 1).values()])


def _means(logs: Logs, depth: int) -> dict[tuple, float]:
    """By the first `depth` fields: the mean over what lies directly below each."""
    found: dict[tuple, list[float]] = {}
    below = logs if depth == len(LEVELS) else _means(logs, depth + 1)
    for at, value in below.items():
        found.setdefault(at[:depth], []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def sum_of_squares(logs: Logs, of: str) -> tuple[float, int]:
    """Sum of squares of the clusters of a level about the mean of those that lie together.

    And its degrees of freedom: 0 where no two lie together.
    """
    depth = LEVELS.index(of) + 1
    together: dict[tuple, list[float]] = {}
    for name, value in _means(logs, depth).items():
        together.setdefault(name[: depth - 1], []).append(value)
    squares = sum(len(one) * float(np.var(one)) for one in together.values() if len(one) > 1)
    return squares, sum(len(one) - 1 for one in together.values())
