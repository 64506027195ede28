"""Predicates that compare records at a shape: speed-up, ordering, which is fastest where."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import is_close, is_uncertain, time_ratio
from analysis.claims.schema import (
    ARITHMETIC,
    CONSTRUCTION,
    DIRECTION,
    FACTOR,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    RECORDS,
    REFUTED,
    REPRODUCED,
    CardName,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import (
    UNCERTAIN,
    comma_separated,
    ids_from_pattern,
    interval_text,
    measured_as,
    shape_words,
)
from analysis.statistics.intervals import Interval


class Speedup(Predicate):
    """Time of `against` / time of `system` is the published ratio, or above 1 without one.

    Refuted when the published times (`figures`, * is a system) give another ratio, when the system
    contains the slower one, or when the opposite direction is significant. Reproduced when ours is
    within FACTOR or the figure within our interval; without a figure, when ours is significantly
    above 1. `card`: only records from there are used.
    """

    system: SystemName
    against: SystemName
    at: Shape
    against_at: Shape = Shape()
    card: CardName | None = None
    figures: str | None = None

    def references(self):
        return ids_from_pattern(self.figures, (self.system, self.against))

    def words(self, claim):
        than = claim.published if claim.published is not None else "more than 1"
        other = shape_words(self.against_at.given())
        other = f" at {other}" if other else ""
        return (
            f"time of {self.against}{other} / time of {self.system} is {than} "
            f"at {shape_words(self.at.given())}"
        )

    def judge(self, claim, evidence):
        claims_file, figure = evidence.claims_file, claim.published
        needs = {
            "system": (self.system, self.at.given()),
            "against": (self.against, self.at.given() | self.against_at.given()),
        }
        found = evidence.on_records(claim, needs, self._decide(figure), card=self.card)
        refs = self.references()
        if refs and figure is not None:
            system, against = (
                claims_file.printed_range(refs[s]) for s in (self.system, self.against)
            )
            low, high = against[0] / system[1], against[1] / system[0]
            if figure + self.resolution / 2 < low or figure - self.resolution / 2 > high:
                text = f"the published times give {low:.4g} to {high:.4g}, not {figure}"
                return found.overruled(REFUTED, ARITHMETIC, text)
        faster = figure is None or figure > DIRECTION
        wraps = claims_file.contains(self.system, self.against) and not self.against_at.given()
        if faster and wraps and found.verdict != REPRODUCED:
            return _refuted_by_containment(found, self.system, self.against)
        return found

    @staticmethod
    def _decide(figure):
        def decide(rows, missing):
            ratio = time_ratio(rows["against"], rows["system"])
            text = f"{interval_text(ratio)} times as fast"
            up, down = ratio.low > 1, ratio.high < 1
            if figure is None:
                verdict = REPRODUCED if up else REFUTED if down else NOT_REPRODUCED
            elif (figure > DIRECTION and down) or (figure < 1 / DIRECTION and up):
                verdict, text = REFUTED, f"{text}, the opposite direction"
            elif is_uncertain(ratio):
                verdict, text = NOT_TESTABLE, f"{text}{UNCERTAIN}"
            elif is_close(figure, ratio):
                verdict = REPRODUCED
            else:
                verdict = NOT_REPRODUCED
            return Judgement(verdict, RECORDS, text, measured_as(ratio, "x"))

        return decide


class Ordering(Predicate):
    """Systems from least to most time (or memory): all of `order`, or `order[0]` before `among`.

    Refuted when the published `figures` (* is a system) are ordered otherwise, when a system is
    before one that it contains, or when one measured pair is significantly the other way round.
    Reproduced when every pair is significant; not testable while a system has no record.
    `device_kind` cuda: only records from such a device are used, for memory of a few MiB, which the
    growth of a process on a CPU does not resolve.
    """

    order: list[SystemName] = Field(min_length=1)
    at: Shape
    among: list[SystemName] = []
    quantity: Literal["time", "memory"] = "time"
    device_kind: Literal["cuda"] | None = None
    figures: str | None = None

    def _pairs(self):
        if self.among:
            return [(self.order[0], other) for other in self.among]
        return list(itertools.combinations(self.order, 2))

    def references(self):
        return ids_from_pattern(self.figures, dict.fromkeys(itertools.chain(*self._pairs())))

    def derived(self, claims_file):
        return list(self.order)

    def words(self, claim):
        shape = shape_words(self.at.given())
        if self.among:
            others = comma_separated(self.among)
            return f"{self.order[0]} has less {self.quantity} than {others} at {shape}"
        return f"{self.quantity} rises in the order {comma_separated(self.order)} at {shape}"

    def judge(self, claim, evidence):
        pairs, claims_file = self._pairs(), evidence.claims_file
        systems = dict.fromkeys(itertools.chain(*pairs))
        needs = {system: (system, self.at.given()) for system in systems}
        found = evidence.on_records(
            claim,
            needs,
            self._decide,
            at_least=2,
            quantity=self.quantity,
            device_kind=self.device_kind,
        )
        refs = self.references()
        for first, second in pairs if refs else ():
            if (
                claims_file.printed_range(refs[first])[0]
                > claims_file.printed_range(refs[second])[1]
            ):
                figures = [claims_file.claims[refs[s]].published for s in (first, second)]
                text = f"its own figures: {first} {figures[0]}, {second} {figures[1]}"
                return found.overruled(REFUTED, ARITHMETIC, text)
        for first, second in pairs:
            wraps = self.quantity == "time" and claims_file.contains(first, second)
            if wraps and found.verdict != REPRODUCED:
                return _refuted_by_containment(found, first, second)
        return found

    def _decide(self, rows, missing):
        verdict, worst, where = REPRODUCED, None, None
        for first, second in self._pairs():
            if first not in rows or second not in rows:
                continue
            if self.quantity == "time":
                ratio = time_ratio(rows[second], rows[first])
                for_it, against_it = ratio.low > 1, ratio.high < 1
            else:
                ratio = _memory_ratio(rows[second], rows[first])
                for_it, against_it = ratio.value >= DIRECTION, ratio.value <= 1 / DIRECTION
            if not for_it:
                verdict = REFUTED if against_it or verdict == REFUTED else NOT_REPRODUCED
            if worst is None or ratio.value < worst.value:
                worst, where = ratio, (first, second)
        if worst is None:
            return Judgement.without_records(missing)
        more, less = (f"{self.quantity} of {where[i]}" for i in (1, 0))
        text = f"{more} / {less} is {interval_text(worst)}"
        if verdict != REFUTED and missing:
            found = Judgement.without_records(missing, f"of those recorded, {text}")
            return replace(found, measured=measured_as(worst, "x"))
        return Judgement(verdict, RECORDS, text, measured_as(worst, "x"))


class Distinct(Predicate):
    """The systems `among` differ in time (or memory) at the shape, by more than DIRECTION.

    Refuted when the intervals of all pairs are within DIRECTION of 1, reproduced when one is wholly
    beyond it. A ranking of several names assumes as much. `device_kind`: as in `Ordering`.
    """

    among: list[SystemName] = Field(min_length=2)
    at: Shape
    quantity: Literal["time", "memory"] = "time"
    device_kind: Literal["cuda"] | None = None

    def words(self, claim):
        systems, shape = comma_separated(self.among), shape_words(self.at.given())
        return f"{self.quantity} of {systems} differs at {shape}"

    def judge(self, claim, evidence):
        needs = {system: (system, self.at.given()) for system in self.among}
        kind = {"quantity": self.quantity, "device_kind": self.device_kind}
        return evidence.on_records(claim, needs, self._decide, **kind)

    def _decide(self, rows, missing):
        ratios = [
            _larger_over_smaller(rows[first], rows[second], self.quantity)
            for first, second in itertools.combinations(self.among, 2)
        ]
        widest = max(ratios, key=lambda ratio: ratio.value)
        bounds = [
            (r.low, r.high) if self.quantity == "time" else (r.value, r.value) for r in ratios
        ]
        if max(high / low for low, high in bounds) > FACTOR**2:
            # Of several pairs some differ by chance: with intervals this wide that proves nothing.
            verdict = NOT_TESTABLE
        elif any(low > DIRECTION for low, _ in bounds):
            verdict = REPRODUCED
        elif all(high <= DIRECTION and low >= 1 / DIRECTION for low, high in bounds):
            verdict = REFUTED
        else:
            verdict = NOT_REPRODUCED
        uncertain = UNCERTAIN if verdict == NOT_TESTABLE else ""
        text = f"they differ by a factor {interval_text(widest)} at most{uncertain}"
        return Judgement(verdict, RECORDS, text, measured_as(widest, "x"))


def _larger_over_smaller(one, other, quantity: str) -> Interval:
    ratio = {"time": time_ratio, "memory": _memory_ratio}[quantity]
    return max((ratio(one, other), ratio(other, one)), key=lambda ratio: ratio.value)


def _memory_ratio(base, other) -> Interval:
    return Interval.without_spread(base["peak_memory_bytes"] / other["peak_memory_bytes"])


def _refuted_by_containment(found: Judgement, outer: str, inner: str) -> Judgement:
    text = f"{outer} runs all of {inner} and more, so it cannot be faster"
    return found.overruled(REFUTED, CONSTRUCTION, text)


class FastestVaries(Predicate):
    """Which of `among` is fastest is not the same at all `shapes`.

    Refuted when the published `figures` (the first * is a system, the second a length) have one
    winner, or when one system is significantly the fastest everywhere; reproduced when two systems
    are significantly the fastest, each somewhere.
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
        found = evidence.on_records(claim, needs, self._decide)
        refs = self.references()
        if refs:
            times = {key: evidence.claims_file.claims[refs[key]].published for key in self._keys()}
            winners = {min(self.among, key=lambda s: times[s, at.seq_len]) for at in self.shapes}
            if len(winners) == 1:
                text = f"by its own times {comma_separated(winners)} is fastest everywhere"
                return found.overruled(REFUTED, ARITHMETIC, text)
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
        verdict = NOT_REPRODUCED
        if len(set(sure)) > 1:
            verdict = REPRODUCED
        elif len(sure) == len(self.shapes):
            verdict = REFUTED
        return Judgement(verdict, RECORDS, text, measured_as(least, "x"))
