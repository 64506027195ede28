"""The samples of a case by round, and the clusters that its intervals count.

Two processes a second apart share the machine, its memory layout, clocks and neighbours; two
rounds hours or days apart share little, and two hosts nothing. What differs between rounds contains
what differs between processes and between samples, so one round is one observation: the median of
all its samples. Where a case was measured on two hosts or more, what differs between hosts
contains all of that, and one host is one observation: the mean over its rounds. Times are relative
to each other, so all of this is in logarithms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import log
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

# Rounds of whoever measures again: what a bare `snakemake` and `make reproduce` take.
ROUNDS_AGAIN = 2


class RoundSamples(NamedTuple):
    """The samples of a case in one round; host: which of the machine's hosts, "" if unknown.

    replicates: the samples of each process, all in one unit.
    """

    host: str
    round: str
    replicates: tuple[tuple[float, ...], ...]

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
        at = At(one.host, one.round)
        found[at] = found.get(at, ()) + one.replicates
    return tuple(RoundSamples(*at, replicates) for at, replicates in found.items())


class At(NamedTuple):
    """One round of one host."""

    host: str
    round: str


# Of a case or of a ratio: a logarithm by round.
Logs = Mapping[At, float]


def log_medians(samples: Sequence[RoundSamples]) -> dict[At, float]:
    """Log of the median by round; ValueError on no rounds, or the same round twice."""
    found = {At(one.host, one.round): one.log_median for one in samples}
    if not found or len(found) < len(samples):
        raise ValueError(f"samples: expected one or more distinct rounds, got {[*found]}")
    return found


def log_ratio(base: Logs, other: Logs) -> dict[At, float]:
    """Log of `base` over `other`, in the rounds that both have."""
    return {at: base[at] - other[at] for at in base if at in other}


def over_hosts(rounds: Collection[At]) -> bool:
    """Whether the clusters of these rounds are hosts: there are two or more."""
    return len({at.host for at in rounds}) > 1


def repeated(rounds: Collection[At]) -> int:
    """Clusters of a repetition of what these rounds measured: one host, or ROUNDS_AGAIN rounds."""
    return 1 if over_hosts(rounds) else ROUNDS_AGAIN


def clusters(logs: Logs) -> np.ndarray:
    """The mean of each cluster (clusters,): a host where there are two or more, else a round."""
    if not over_hosts(logs):
        return np.array([*logs.values()])
    hosts: dict[str, list[float]] = {}
    for at, value in logs.items():
        hosts.setdefault(at.host, []).append(value)
    return np.array([fmean(values) for values in hosts.values()])
