"""Predicates on single numbers: absolute times, arithmetic, support, restatements."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from analysis.claims.claim import Claim, ClaimsFile, Predicate
from analysis.claims.criteria import is_close
from analysis.claims.expressions import value_range
from analysis.claims.schema import (
    ARITHMETIC,
    AS_PUBLISHED,
    CARD,
    CONSISTENCY,
    CONTEXT,
    DIFFERS,
    FAILS,
    HEADROOM,
    HOLDS,
    NEARLY,
    NONE,
    NOT_MEASURED,
    PHYSICS,
    RECORDS,
    RESTATEMENT,
    UNDECIDED,
    CardName,
    Judgement,
    Number,
    Shape,
    SystemName,
)
from analysis.claims.wording import comma_separated, interval_text, measured_as, shape_words
from analysis.records.frame import time_interval
from analysis.statistics.intervals import Interval


class AbsoluteTime(Predicate):
    """A time in ms on a `card` (null: a device that the write-up does not name).

    Of the method it does not hold below the card's least time for the exact useful work of the
    system (its floor); published code may do less work. Otherwise records from that very card
    decide, within FACTOR.
    """

    figure_unit: ClassVar[str] = "ms"
    needs_figure: ClassVar[bool] = True
    system: SystemName
    at: Shape
    card: CardName | None
    statistic: Literal["mean", "std"] = "mean"

    def words(self, claim):
        where = f"on {self.card}" if self.card else "on a device that is not named"
        shape = shape_words(self.at.given())
        return f"{self.statistic} time of {self.system} at {shape} {where} is {claim.published} ms"

    def judge(self, claim, evidence):
        if self.card is None:
            text = "the device is not named"
            return Judgement(NOT_MEASURED, NONE, text, needs="the name of the device")
        floor = evidence.floor_ms(claim, self.system, self.at.given(), self.card)
        remark = ""
        if self.statistic == "mean" and not evidence.is_published:
            least = f"the card's floor of {floor:.3g} ms at {HEADROOM:g} times its rated speed"
            remark = f"; {claim.published / floor:.3g} times {least}"
            if claim.published + self.resolution / 2 < floor:
                text = f"below {least}"
                return Judgement(FAILS, PHYSICS, text)

        def decide(rows, missing):
            row = rows["system"]
            value = time_interval(row)
            if self.statistic == "std":
                spread = float(np.std([s for one in row["samples"] for s in one.all]))
                value = Interval.without_spread(spread)
            verdict = HOLDS if is_close(claim.published, value) else FAILS
            return Judgement(
                verdict, RECORDS, f"{interval_text(value)} ms{remark}", measured_as(value, "ms")
            )

        needs = {"system": (self.system, self.at.given())}
        found = evidence.on_records(claim, needs, decide, card=self.card)
        return _with_remark(found, remark)


def _with_remark(found: Judgement, remark: str) -> Judgement:
    """`found`, with the remark where no record decides."""
    return found if found.verdict != CARD else replace(found, reason=f"{found.reason}{remark}")


class Throughput(Predicate):
    """Tokens per second, batch x length over the time, on a `card`.

    Of the method it does not hold above the card's ceiling for the exact useful work. Otherwise
    records from that very card decide, within FACTOR.
    """

    figure_unit: ClassVar[str] = "tokens/s"
    needs_figure: ClassVar[bool] = True
    system: SystemName
    at: Shape
    card: CardName

    def words(self, claim):
        shape = shape_words(self.at.given())
        return f"{self.system} at {shape} does {claim.published} tokens/s on {self.card}"

    def judge(self, claim, evidence):
        at = self.at.given()
        shape = evidence.shape(claim, at, self.system)
        tokens = 1000 * shape["batch"] * shape["seq_len"]  # over ms gives tokens per second
        ceiling = tokens / evidence.floor_ms(claim, self.system, at, self.card)
        most = f"the card's ceiling of {ceiling:.4g} tokens/s at {HEADROOM:g} times its rated speed"
        if claim.published - self.resolution / 2 > ceiling and not evidence.is_published:
            text = f"above {most}"
            return Judgement(FAILS, PHYSICS, text)
        remark = "" if evidence.is_published else f"; {claim.published / ceiling:.2g} of {most}"

        def decide(rows, missing):
            value = time_interval(rows["system"]).inverted().times(tokens)
            verdict = HOLDS if is_close(claim.published, value) else FAILS
            text = f"{interval_text(value)} tokens/s{remark}"
            return Judgement(verdict, RECORDS, text, measured_as(value, "tokens/s"))

        found = evidence.on_records(claim, {"system": (self.system, at)}, decide, card=self.card)
        return _with_remark(found, remark)


class Arithmetic(Predicate):
    """`left` (default: the published figure) stands in `relation` to `right`, within rounding.

    Both are expressions of + - * / ** min max over `names`: numbers, or ids of claims whose
    published numbers are meant.
    """

    needs_card: ClassVar[bool] = False
    sort: ClassVar[str] = CONSISTENCY
    right: str
    left: str = "published"
    relation: Literal["equal", "at_least", "at_most"] = "equal"
    names: dict[str, Number | str] = {}

    def references(self):
        return {name: value for name, value in self.names.items() if isinstance(value, str)}

    def words(self, claim):
        left = claim.published if self.left == "published" else self.left
        relation = {"equal": "equals", "at_least": "is at least", "at_most": "is at most"}
        given = [f"{n} = {v}" for n, v in self.names.items()]
        where = f" with {comma_separated(given)}" if given else ""
        return f"{left} {relation[self.relation]} {self.right}{where}"

    def sides(self, claim: Claim, claims_file: ClaimsFile) -> list[tuple[float, float]]:
        """Lowest and highest value of left and right, as printed figures are rounded."""
        ranges = {
            n: claims_file.printed_range(v) if isinstance(v, str) else (v, v)
            for n, v in self.names.items()
        }
        if claim.published is not None:
            half = self.resolution / 2
            ranges["published"] = (claim.published - half, claim.published + half)
        return [value_range(side, ranges) for side in (self.left, self.right)]

    def judge(self, claim, evidence):
        (left_low, left_high), (low, high) = self.sides(claim, evidence.claims_file)
        above, below = left_low - high, low - left_high  # > 0: by how much left is off
        off = {"equal": max(above, below), "at_least": below, "at_most": above}[self.relation]
        span = f"{low:.10g}" if low == high else f"{low:.7g} to {high:.7g}"
        left = "" if self.left == "published" else f"left gives {left_low:.10g}, "
        verdict, text = HOLDS, f"{left}the formula gives {span}"
        if off > 0:
            near = self.relation == "equal" and off <= NEARLY * abs(high)
            verdict = FAILS
            if self.relation == "equal":
                text += f", off by {off:.3g}" + (", a little, but beyond rounding" if near else "")
        return Judgement(verdict, ARITHMETIC, text)


class Support(Predicate):
    """The system `runs`, or `fails`, at the conditions: at every one of `shapes`, where given.

    runs: does not hold when none ran; where a shape has no record it is not measured. fails: does
    not hold when any ran, or, as published, when a time of the system in that dtype is published
    (`contradicted_by`: such claims). Running out of memory or time is not failing, nor is asking
    for more devices than a machine has.
    """

    system: SystemName
    expect: Literal["runs", "fails"]
    at: Shape = Shape()
    shapes: list[Shape] = []
    contradicted_by: list[str] = []

    def references(self):
        return {f"contradicted_by[{i}]": other for i, other in enumerate(self.contradicted_by)}

    def words(self, claim):
        where = shape_words(self.at.given()) or "all shapes"
        if self.shapes:
            where = f"all {len(self.shapes)} shapes"
        return f"{self.system} {self.expect} at {where}"

    def judge(self, claim, evidence):
        found = self._by_records(claim, evidence)
        for other in self.contradicted_by if evidence.is_published else ():
            figure = evidence.claims_file.claims[other]
            ran = getattr(figure.predicate, "system", None) == self.system
            shapes = [evidence.shape(c, c.predicate.at.given()) for c in (claim, figure)]
            if ran and shapes[0]["dtype"] == shapes[1]["dtype"] and self.expect == "fails":
                text = f"a time of it is published: {other}, {figure.published} ms"
                return found.overruled(FAILS, ARITHMETIC, text)
        return found

    def _by_records(self, claim, evidence):
        if not self.shapes:
            at = self.at.given()
            return evidence.on_machines(claim, self.system, at, self._of(claim, evidence, at))
        found = []
        for shape in self.shapes:
            at = self.at.given() | shape.given()
            found.append(
                evidence.on_machines(claim, self.system, at, self._of(claim, evidence, at))
            )
        for verdict in (FAILS, DIFFERS, NOT_MEASURED, CARD, UNDECIDED):
            of_it = [one for one in found if one.verdict == verdict]
            if of_it:
                text = f"at {len(of_it)} of {len(found)} shapes: {of_it[0].reason}"
                return replace(of_it[0], reason=text)
        text = f"it {'ran' if self.expect == 'runs' else 'failed'} at all {len(found)} shapes"
        return replace(found[0], reason=text, rows=tuple(row for one in found for row in one.rows))

    def _of(self, claim, evidence, at):
        def decide(rows):
            count = Counter(
                "short of devices" if _is_short_of_devices(row) else row["status"] for row in rows
            )
            ran, failed = count["ok"], count["failed"] + count["unsupported"]
            text = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
            if not ran and not failed:
                return evidence.waits(claim, {"system": (self.system, at)}, text)
            if self.expect == "fails":
                verdict = FAILS if ran else HOLDS
            else:
                verdict = FAILS if not ran else UNDECIDED if failed else HOLDS
            return Judgement(verdict, RECORDS, text)

        return decide


def _is_short_of_devices(row) -> bool:
    # `experiments.workload` words it so; a backend that cannot says something else.
    over_ranks = row["world_size"] > 1 and row["status"] == "unsupported"
    return over_ranks and f"{row['world_size']:.0f} ranks need a " in row["reason"]


class Restates(Predicate):
    """The number of claim `of` again: its verdicts, and whether the two numbers are the same."""

    needs_figure: ClassVar[bool] = True
    sort: ClassVar[str] = RESTATEMENT
    of: str

    def references(self):
        return {"of": self.of}

    def words(self, claim):
        return f"{claim.published} is the figure of {self.of}"

    def agrees(self, claim: Claim, claims_file: ClaimsFile) -> Judgement:
        """Whether the two numbers are the same, as printed figures are rounded."""
        low, high = claims_file.printed_range(self.of)
        half = self.resolution / 2
        agree = low <= claim.published + half and claim.published - half <= high
        text = f"{self.of} has {claims_file.claims[self.of].published}"
        return Judgement(HOLDS if agree else FAILS, ARITHMETIC, text)

    def judge(self, claim, evidence):
        found = evidence.judge(evidence.claims_file.claims[self.of])
        return replace(found, reason=f"as {self.of}: {found.reason}")


class AboutCode(Predicate):
    """A statement about the published code alone, which its public history decides.

    Of the method it says nothing.
    """

    judged_sides: ClassVar[tuple[str, ...]] = (AS_PUBLISHED,)

    def words(self, claim):
        return "what the published code is and does"

    def judge(self, claim, evidence):
        text = "not looked at by running, and the repository has no replica of it"
        return Judgement(NOT_MEASURED, NONE, text, needs="a replica")


class Context(Predicate):
    """Set-up, plans, files, opinions: kept, and not judged. `reason`: why not."""

    needs_card: ClassVar[bool] = False
    sort: ClassVar[str] = CONTEXT
    reason: str

    def words(self, claim):
        return "none"
