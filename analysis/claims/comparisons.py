"""Predicates that compare records at a shape: speed-up, ordering, which is fastest where."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import is_close, is_uncertain, more_measuring, ratio_of, time_ratio
from analysis.claims.schema import (
    ARITHMETIC,
    CONSTRUCTION,
    DIRECTION,
    FAILS,
    HOLDS,
    OPEN,
    RECORDS,
    UNDECIDED,
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

    Holds when ours is within FACTOR or the figure within our interval, and when a gain is larger
    than was claimed; without a figure, when ours is significantly above 1. Does not hold when less,
    or the opposite direction, is significant; as published, when the published times (`figures`, *
    is a system) give another ratio; on both sides, when the system contains the slower one and no
    record shows it faster. Another device than the published card decides neither what published
    code gave there, unless its replica gives the same in the published setting, nor that a gain was
    missing there, which the fixed costs of a device may cause: these need the card. Two names of
    one published code have the ratio 1. `card`: only records from there are used.
    """

    figure_unit: ClassVar[str] = "x"
    system: SystemName
    against: SystemName
    at: Shape
    against_at: Shape = Shape()
    card: CardName | None = None
    figures: str | None = None

    def references(self):
        return ids_from_pattern(self.figures, (self.system, self.against))

    def words(self, claim):
        figure = claim.published
        than = "more than 1" if figure is None else figure
        than = f"{figure} or more" if figure is not None and figure > DIRECTION else than
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
        found = None if self.against_at.given() else self._of_one_code(claim, evidence, needs)
        found = found or evidence.on_records(
            claim, needs, self._decide(claim, evidence), card=self.card
        )
        refs = self.references()
        if refs and figure is not None and evidence.is_published:
            system, against = (
                claims_file.printed_range(refs[s]) for s in (self.system, self.against)
            )
            low, high = against[0] / system[1], against[1] / system[0]
            if figure + self.resolution / 2 < low or figure - self.resolution / 2 > high:
                text = f"the published times give {low:.4g} to {high:.4g}, not {figure}"
                return found.overruled(FAILS, ARITHMETIC, text)
        faster = figure is None or figure > DIRECTION
        wraps = claims_file.contains(self.system, self.against) and not self.against_at.given()
        if faster and wraps and found.verdict != HOLDS:
            return _by_containment(found, self.system, self.against)
        return found

    def _of_one_code(self, claim, evidence, needs) -> Judgement | None:
        """As published, of two names of one computation, or of one replica for both."""
        found = _one_code(evidence, [(self.system, self.against)])
        figure = claim.published
        if found and figure is not None and 1 / DIRECTION <= figure <= DIRECTION:
            return replace(found, verdict=HOLDS)
        if found or not evidence.is_one_replica(self.system, self.against):
            return found
        return evidence.waits(claim, needs, have=needs)

    def _decide(self, claim, evidence):
        def decide(rows, missing):
            ratio = time_ratio(rows["against"], rows["system"])
            found = self._compare(claim.published, ratio, rows["system"]["occasions"])
            figure = claim.published
            if evidence.is_on_card(claim, rows.values()):
                return found
            if figure is None:
                fails = evidence.is_published and found.verdict == FAILS
                return evidence.only_the_card(claim, found) if fails else found
            setting = evidence.is_its_setting(claim, rows.values(), self.at.given())
            differs = not (setting and is_close(figure, ratio))
            no_gain = figure < 1 / DIRECTION or (figure <= DIRECTION and ratio.value > figure)
            if (no_gain and found.verdict == FAILS) or (evidence.is_published and differs):
                return evidence.only_the_card(claim, found)
            return found

        return decide

    def _compare(self, figure, ratio: Interval, occasions: int) -> Judgement:
        text = f"{interval_text(ratio)} times as fast"
        up, down = ratio.low > 1, ratio.high < 1
        if figure is None:
            verdict = HOLDS if up else FAILS if down else UNDECIDED
            text += "" if up or down else more_measuring(ratio, 1, occasions)
        elif (figure > DIRECTION and down) or (figure < 1 / DIRECTION and up):
            verdict, text = FAILS, f"{text}, the opposite direction"
        elif is_close(figure, ratio) and not is_uncertain(ratio):
            verdict = HOLDS
        elif figure > DIRECTION and ratio.low > figure:
            verdict, text = HOLDS, f"{text}, more than was claimed"
        elif figure not in ratio:
            # Whatever its width, the interval does not hold the figure.
            verdict = FAILS
            text += ", more than the figure" if ratio.value > figure else ", less than the figure"
        else:
            verdict, text = UNDECIDED, f"{text}{UNCERTAIN}"
        return Judgement(verdict, RECORDS, text, measured_as(ratio, "x"))


class Ordering(Predicate):
    """Systems from least to most time (or memory): all of `order`, or `order[0]` before `among`.

    Holds when every pair is significant. Does not hold when one measured pair is significantly the
    other way round, or within DIRECTION of equal; as published, when the published `figures` (* is
    a system) are ordered otherwise, or when two names were one code; on both sides, when a system
    is before one that it contains and no record shows it so, and the other way round it holds.
    Replicas on another device than the published card decide for the order only. `advice`: what is
    advised need only not be worse, so that a draw will do, also where all were one code.
    `device_kind` cuda: only records from such a device are used, for memory of a few MiB, which the
    growth of a process on a CPU does not resolve.
    """

    order: list[SystemName] = Field(min_length=1)
    at: Shape
    among: list[SystemName] = []
    quantity: Literal["time", "memory"] = "time"
    device_kind: Literal["cuda"] | None = None
    figures: str | None = None
    advice: bool = False

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
            if self.advice:
                return f"none of {others} has less {self.quantity} than {self.order[0]} at {shape}"
            return f"{self.order[0]} has less {self.quantity} than {others} at {shape}"
        return f"{self.quantity} rises in the order {comma_separated(self.order)} at {shape}"

    def judge(self, claim, evidence):
        pairs, claims_file = self._pairs(), evidence.claims_file
        systems = dict.fromkeys(itertools.chain(*pairs))
        needs = {system: (system, self.at.given()) for system in systems}
        found = _one_code(evidence, pairs, every=self.advice)
        if found and self.advice:
            text = f"{found.reason}: nothing is lost by the advice, nor gained"
            found = replace(found, verdict=HOLDS, reason=text)
        found = found or evidence.on_records(
            claim,
            needs,
            lambda rows, missing: self._decide(claim, evidence, needs, rows),
            at_least=2,
            quantity=self.quantity,
            device_kind=self.device_kind,
        )
        refs = self.references() if evidence.is_published else {}
        for first, second in pairs if refs else ():
            if (
                claims_file.printed_range(refs[first])[0]
                > claims_file.printed_range(refs[second])[1]
            ):
                figures = [claims_file.claims[refs[s]].published for s in (first, second)]
                text = f"its own figures: {first} {figures[0]}, {second} {figures[1]}"
                return found.overruled(FAILS, ARITHMETIC, text)
        for first, second in pairs:
            wraps = self.quantity == "time" and claims_file.contains(first, second)
            if wraps and found.verdict != HOLDS:
                return _by_containment(found, first, second)
        if found.verdict in OPEN and all(claims_file.contains(b, a) for a, b in pairs):
            text = f"{pairs[0][1]} runs all of {pairs[0][0]} and more"
            return found.overruled(HOLDS, CONSTRUCTION, text)
        return found

    def _decide(self, claim, evidence, needs, rows):
        compared = [
            (ratio_of(rows[second], rows[first], self.quantity), first, second)
            for first, second in self._pairs()
            if first in rows and second in rows and not evidence.is_one_replica(first, second)
        ]
        if not compared:
            return evidence.waits(claim, needs, have=rows)
        worst, first, second = min(compared, key=lambda one: one[0].value)
        bounds = [_bounds(one, self.quantity) for one, *_ in compared]
        text = f"{self.quantity} of {second} / {first} is {interval_text(worst)}"
        equal = [low >= 1 / DIRECTION and high <= DIRECTION for low, high in bounds]
        if any(high < 1 for _, high in bounds) or (any(equal) and not self.advice):
            verdict = FAILS
        elif len(compared) < len(self._pairs()):
            found = evidence.waits(claim, needs, f"of those recorded, {text}", have=rows)
            return replace(found, measured=measured_as(worst, "x"))
        elif all(low > 1 or even for (low, _), even in zip(bounds, equal, strict=True)):
            verdict = HOLDS
        else:
            verdict = UNDECIDED
            text += more_measuring(worst, 1, rows[first]["occasions"])
        found = Judgement(verdict, RECORDS, text, measured_as(worst, "x"))
        used = (rows[first], rows[second])
        if verdict == FAILS and evidence.is_published and not evidence.is_on_card(claim, used):
            return evidence.only_the_card(claim, found)
        return found


def _bounds(ratio: Interval, quantity: str) -> tuple[float, float]:
    """Of a ratio. Memory has no interval: within DIRECTION of 1 it is equal."""
    if quantity == "time":
        return ratio.low, ratio.high
    return (1.0, 1.0) if 1 / DIRECTION < ratio.value < DIRECTION else (ratio.value, ratio.value)


def _one_code(evidence, pairs, every: bool = False) -> Judgement | None:
    """As published, where a pair, or every pair, was one code under two names: neither is first."""
    alike = [pair for pair in pairs if evidence.is_one_code(*pair)]
    if not alike or (every and len(alike) < len(pairs)):
        return None
    *names, last = dict.fromkeys(itertools.chain(*(alike if every else alike[:1])))
    text = f"{comma_separated(names)} and {last} were one computation, bit by bit"
    return Judgement(FAILS, CONSTRUCTION, text)


def _by_containment(found: Judgement, outer: str, inner: str) -> Judgement:
    text = f"{outer} runs all of {inner} and more, so it cannot be faster"
    return found.overruled(FAILS, CONSTRUCTION, text)
