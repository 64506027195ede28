"""Measured again: whether the intervals of some occasions hold what another one found.

The occasions of one host are split in two where they lie furthest apart in time. Speed-ups over
dense attention, with intervals from the earlier ones alone, are set beside those of the first of
the later ones, and the other way round beside those of the last of the earlier ones; a part of one
round has no intervals. What one host alone says is set beside what others found, too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from analysis.records import frame as records
from analysis.rendering import numbers
from analysis.selection import published, views
from analysis.statistics.intervals import Interval, Samples, speedup
from analysis.statistics.rounds import At, log_medians
from analysis.statistics.spread import WHOLE, estimate


@dataclass(frozen=True)
class Retest:
    """A speed-up over dense attention by some occasions, with its interval, and by others."""

    first: Interval
    again: float

    @property
    def half(self) -> float:
        """Half the interval, as a log."""
        return math.log(self.first.high / self.first.value)

    @property
    def off(self) -> float:
        """By how much the others differ, as a log."""
        return math.log(self.again / self.first.value)

    @property
    def is_held(self) -> bool:
        return self.again in self.first


@dataclass(frozen=True)
class Retests:
    """All of a machine's; `found` is empty of one occasion.

    hours: from the last round of the earlier part to the first of the later. rounds: of each part.
    """

    found: tuple[Retest, ...] = ()
    hours: float = math.nan
    rounds: tuple[int, int] = (0, 0)

    @property
    def held(self) -> int:
        """How many intervals hold the other value."""
        return sum(one.is_held for one in self.found)

    @property
    def share(self) -> float | None:
        """Of all intervals, in per cent; None of none."""
        return 100 * self.held / len(self.found) if self.found else None


def retests(frame: pd.DataFrame, machine: str) -> Retests:
    """Those of the host of a machine that was measured on most occasions."""
    rows = frame[frame["machine"] == machine].drop_duplicates("path")
    began = _began(rows)
    hosts: dict[str, dict[str, list[At]]] = {}
    for at in sorted(began, key=began.get):
        hosts.setdefault(at.host, {}).setdefault(at.occasion, []).append(at)
    occasions = [*max(hosts.values(), key=len, default={}).values()]
    if len(occasions) < 2:
        return Retests()
    cuts = range(1, len(occasions))
    # The first part has two rounds, without which it has no intervals, where that leaves a second.
    several = [n for n in cuts if sum(map(len, occasions[:n])) > 1] or [1]

    def apart(cut: int) -> tuple[int, int]:
        """Hours between the parts; of the same, how many occasions the smaller one has."""
        gap = began[occasions[cut][0]] - began[occasions[cut - 1][-1]]
        return round(gap.total_seconds() / 3600), min(cut, len(occasions) - cut)

    cut = max(several, key=apart)
    earlier, later = (
        [at for occasion in part for at in occasion] for part in (occasions[:cut], occasions[cut:])
    )
    found = []
    for first, again in ((earlier, occasions[cut]), (later, occasions[cut - 1])):
        found += _by_rounds(rows, first, again) if len(first) > 1 else []
    hours = (began[later[0]] - began[earlier[-1]]).total_seconds() / 3600
    return Retests(tuple(found), hours, (len(earlier), len(later)))


def elsewhere(frame: pd.DataFrame, machine: str) -> Retests:
    """Those of the host with the most rounds, beside what other hosts of the machine found."""
    rows = frame[frame["machine"] == machine].drop_duplicates("path")
    began = _began(rows)
    hosts: dict[str, list[At]] = {}
    for at in sorted(began, key=began.get):
        hosts.setdefault(at.host, []).append(at)
    first = max(hosts.values(), key=len, default=[])
    again = [at for own in hosts.values() if own is not first for at in own]
    if len(first) < 2 or not again:
        return Retests()
    hours = abs((began[again[0]] - began[first[-1]]).total_seconds()) / 3600
    found = _by_rounds(rows, first, again)
    return Retests(tuple(found), hours, (len(first), len(again)))


def most(frame: pd.DataFrame, machine: str = "auto") -> tuple[str, Retests]:
    """A machine and its own; "auto": that with the most, of several the one to report."""
    ids = [machine]
    if machine == "auto":
        ids = records.machines(frame, records.reporting_machine(frame))
    found = {one: retests(frame, one) for one in ids}
    return max(found.items(), key=lambda one: len(one[1].found))


def entries(frame: pd.DataFrame) -> dict[str, dict]:
    """Number entries: the share (%) of so many intervals that held, and the hours between.

    And of so many intervals of one host the share that held on others, and the rounds of both.
    """
    machine, found = most(frame)
    other = elsewhere(frame, machine)
    return {
        "retest.share": numbers.entry(found.share, unit="%"),
        "retest.intervals": numbers.entry(len(found.found) or None, unit="intervals"),
        "retest.hours": numbers.entry(found.hours if found.found else None, unit="h"),
        "retest.elsewhere": numbers.entry(other.share, unit="%"),
        "retest.elsewhere_rounds": numbers.entry(other.rounds[0] or None, unit="rounds"),
        "retest.elsewhere_again": numbers.entry(other.rounds[1] or None, unit="rounds"),
        "retest.elsewhere_intervals": numbers.entry(len(other.found) or None, unit="intervals"),
    }


def _began(rows: pd.DataFrame) -> dict[At, datetime]:
    """When each round began that most of the cases have."""
    times: dict[At, list[datetime]] = {}
    for began, samples in zip(rows["began"], rows["samples"], strict=True):
        started: Mapping[str, datetime] = dict(began)
        for one in samples:
            times.setdefault(one.at.anywhere, []).append(started[one.round])
    most = max(map(len, times.values()), default=0)
    return {at: min(own) for at, own in times.items() if len(own) >= WHOLE * most}


def _by_rounds(rows: pd.DataFrame, first: Collection[At], again: Collection[At]) -> list[Retest]:
    pairs = []
    for _, row in rows.iterrows():
        dense = views.dense_counterpart(rows, row)
        if row["system"] != published.DENSE and dense is not None:
            sides = [
                tuple(_of(one["samples"], part) for one in (dense, row)) for part in (first, again)
            ]
            if all(len(side) == len(first) for side in sides[0]) and all(sides[1]):
                pairs.append(sides)
    cases = {own: base for (base, own), _ in pairs} | {base: None for (base, _), _ in pairs}
    spread = estimate(
        (log_medians(own), None if base is None else log_medians(base))
        for own, base in cases.items()
    )
    return [Retest(speedup(*one, spread), speedup(*other, spread).value) for one, other in pairs]


def _of(samples: Samples, rounds: Collection[At]) -> Samples:
    return tuple(one for one in samples if one.at.anywhere in rounds)
