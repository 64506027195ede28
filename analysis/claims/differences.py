"""Predicates on whether systems differ at all, and whether the same one is fastest everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import more_measuring, ratio_of, time_ratio
from analysis.claims.schema import (
    ARITHMETIC,
    CONSTRUCTION,
    DIRECTION,
    FACTOR,
    FAILS,
    HOLDS,
    RECORDS,
    UNDECIDED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import (
    UNCERTAIN,
    comma_separated,
    interval_text,
    measured_as,
    shape_words,
)
from analysis.statistics.intervals import Interval


class Distinct(Predicate):
    """The systems `among` differ in time (or memory) at the shape, by more than DIRECTION.

    Holds when the interval of a pair is wholly beyond it; does not hold when those of all pairs are
    within it, or when, as published, all were one code. `device_kind`: as in `Ordering`.
    """

    among: list[SystemName] = Field(min_length=2)
    at: Shape
    quantity: Literal["time", "memory"] = "time"
    device_kind: Literal["cuda"] | None = None

    def words(self, claim):
        systems, shape = comma_separated(self.among), shape_words(self.at.given())
        return f"{self.quantity} of {systems} differs by a factor of over {DIRECTION:g} at {shape}"

    def judge(self, claim, evidence):
        if found := _all_one_code(evidence, self.among):
            return found
        needs = {system: (system, self.at.given()) for system in self.among}
        kind = {"quantity": self.quantity, "device_kind": self.device_kind}
        return evidence.on_records(claim, needs, self._decide, **kind)

    def _decide(self, rows, missing):
        ratios = [
            _larger_over_smaller(rows[first], rows[second], self.quantity)
            for first, second in itertools.combinations(self.among, 2)
        ]
        widest = max(ratios, key=lambda one: one.value)
        bounds = [
            (r.low, r.high) if self.quantity == "time" else (r.value, r.value) for r in ratios
        ]
        uncertain = max(high / low for low, high in bounds) > FACTOR**2
        text = f"they differ by a factor {interval_text(widest)} at most"
        if not uncertain and any(low > DIRECTION for low, _ in bounds):
            verdict = HOLDS
        elif all(high <= DIRECTION and low >= 1 / DIRECTION for low, high in bounds):
            verdict = FAILS
        else:
            # Of several pairs some differ by chance: with wide intervals that proves nothing.
            verdict = UNDECIDED
            occasions = next(iter(rows.values()))["occasions"]
            text += UNCERTAIN if uncertain else more_measuring(widest, DIRECTION, occasions)
        return Judgement(verdict, RECORDS, text, measured_as(widest, "x"))


def _larger_over_smaller(one, other, quantity: str) -> Interval:
    both = (ratio_of(one, other, quantity), ratio_of(other, one, quantity))
    return max(both, key=lambda found: found.value)


class FastestVaries(Predicate):
    """Which of `among` is fastest is not the same at all `shapes`.

    Holds when two systems are significantly the fastest, each somewhere; does not hold when one
    system is significantly the fastest everywhere, or, as published, when all were one code or the
    published `figures` (the first * is a system, the second a length) have one winner.
    """

    among: list[SystemName] = Field(min_length=2)
    shapes: list[Shape] = Field(min_length=2)
    figures: str | None = None

    def _keys(self):
        return [(system, at.seq_len) for system in self.among for at in self.shapes]

    def references(self):
        if self.figures is None:
            return {}
        first, second, last = self.figures.split("*")
        return {key: f"{first}{key[0]}{second}{key[1]}{last}" for key in self._keys()}

    def words(self, claim):
        lengths = comma_separated(at.seq_len for at in self.shapes)
        return f"the fastest of {comma_separated(self.among)} is not the same at {lengths} tokens"

    def judge(self, claim, evidence):
        needs = {(s, at.seq_len): (s, at.given()) for s in self.among for at in self.shapes}
        if found := _all_one_code(evidence, self.among):
            return found
        found = evidence.on_records(claim, needs, self._decide)
        refs = self.references()
        if refs and evidence.is_published:
            times = {key: evidence.claims_file.claims[refs[key]].published for key in self._keys()}
            winners = {min(self.among, key=lambda s: times[s, at.seq_len]) for at in self.shapes}
            if len(winners) == 1:
                text = f"by its own times {comma_separated(winners)} is fastest everywhere"
                return found.overruled(FAILS, ARITHMETIC, text)
        return found

    def _decide(self, rows, missing):
        winners, sure, least = [], [], None
        for at in self.shapes:
            first, second = sorted(self.among, key=lambda s: rows[s, at.seq_len]["median_ms"])[:2]
            lead = time_ratio(rows[second, at.seq_len], rows[first, at.seq_len])
            winners.append(first)
            sure += [first] if lead.low > 1 else []
            least = lead if least is None or lead.value < least.value else least
        text = f"fastest: {comma_separated(winners)}, by {interval_text(least)} or more"
        verdict = UNDECIDED
        if len(set(sure)) > 1:
            verdict = HOLDS
        elif len(sure) == len(self.shapes):
            verdict = FAILS
        return Judgement(verdict, RECORDS, text, measured_as(least, "x"))


def _all_one_code(evidence, systems: Sequence[str]) -> Judgement | None:
    """As published, where all of the systems were one code under several names."""
    if not all(evidence.is_one_code(*pair) for pair in itertools.combinations(systems, 2)):
        return None
    text = f"{comma_separated(systems)} were one computation, bit by bit"
    return Judgement(FAILS, CONSTRUCTION, text)
