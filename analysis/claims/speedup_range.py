"""A predicate on either end of a published range of speed-ups: "5 to 50 times as fast"."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import more_measuring, ratio_of
from analysis.claims.schema import (
    FACTOR,
    FAILS,
    HOLDS,
    RECORDS,
    UNDECIDED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import UNCERTAIN, comma_separated, interval_text, measured_as
from analysis.statistics.intervals import Interval


class SpeedupRange(Predicate):
    """The `least` or the `largest` gain of any of `systems` over `against`, at any of `shapes`.

    In time: how many times as fast. In memory: per cent of the peak beyond the inputs that is
    saved, compared as the peak of `against` over that of the system. Either end is a bound. The
    least holds when our interval lies above the figure and does not when it lies below. The largest
    holds when the figure lies in our interval or below it: more than was claimed does not
    contradict it; an interval wider than FACTOR both ways around the figure decides nothing.
    `of_range`: "5 to 50 times", said without conditions, whose largest other
    settings may reach: what stays below keeps it. While a shape has no record, only a least that
    does not hold and a largest that does are decided. `device_kind`: only records of such devices
    are used. What replicas gain on another device than the published card decides nothing.
    """

    needs_figure: ClassVar[bool] = True
    systems: list[SystemName] = Field(min_length=1)
    against: SystemName
    shapes: list[Shape] = Field(min_length=1)
    end: Literal["least", "largest"]
    quantity: Literal["time", "memory"] = "time"
    device_kind: Literal["cuda"] | None = None
    of_range: bool = False

    @property
    def figure_unit(self) -> str:
        return "%" if self.quantity == "memory" else "x"

    def words(self, claim):
        lengths = comma_separated(dict.fromkeys(at.seq_len for at in self.shapes))
        what = f"{claim.published} times as fast as"
        if self.quantity == "memory":
            what = f"{claim.published} % less memory than"
        bound = "at least" if self.end == "least" else "up to"
        return f"{comma_separated(self.systems)}: {bound} {what} {self.against} at {lengths} tokens"

    def judge(self, claim, evidence):
        needs = {
            (system, i): (system, at.given())
            for system in self.named_systems()
            for i, at in enumerate(self.shapes)
        }
        # Memory saved is compared as a ratio, like times.
        figure = claim.published if self.quantity == "time" else 1 / (1 - claim.published / 100)

        def decide(rows, missing):
            found = [
                (
                    ratio_of(rows[self.against, i], rows[system, i], self.quantity),
                    system,
                    at.seq_len,
                )
                for i, at in enumerate(self.shapes)
                for system in self.systems
                if (system, i) in rows and (self.against, i) in rows
            ]
            if not found:
                return evidence.waits(claim, needs, have=rows)
            pick = min if self.end == "least" else max
            gain, system, seq_len = pick(found, key=lambda one: one[0].value)
            low, high = self._bounds(gain)
            verdict = self._compare(figure, low, high)
            text = f"{self._text(gain)}, of {system} at {seq_len} tokens"
            if verdict == HOLDS and low > figure and self.end == "largest":
                text += ", more than was claimed"
            elif verdict == HOLDS and high < figure and self.end == "largest":
                text += ", which stays in the range"
            elif verdict == UNDECIDED and self.end == "least":
                text += more_measuring(gain, figure, next(iter(rows.values()))["occasions"])
            elif verdict == UNDECIDED:
                text += UNCERTAIN
            if missing and verdict != (FAILS if self.end == "least" else HOLDS):
                waits = evidence.waits(claim, needs, f"so far {text}", have=rows)
                return replace(waits, measured=self._measured(gain))
            judged = Judgement(verdict, RECORDS, text, self._measured(gain))
            if evidence.is_published and not evidence.is_on_card(claim, rows.values()):
                return evidence.only_the_card(claim, judged)
            return judged

        # First machines with every shape, then those with some, which may be enough to decide.
        for at_least in (None, 2):
            found = evidence.on_records(
                claim,
                needs,
                decide,
                at_least=at_least,
                quantity=self.quantity,
                device_kind=self.device_kind,
            )
            if found.rows:
                break
        return found

    def _bounds(self, gain: Interval) -> tuple[float, float]:
        """Of a gain; that in memory has no interval."""
        return (gain.low, gain.high) if self.quantity == "time" else (gain.value, gain.value)

    def _compare(self, figure: float, low: float, high: float) -> str:
        if self.end == "least":
            return HOLDS if low >= figure else FAILS if high < figure else UNDECIDED
        if low >= figure or (self.of_range and low > 1):
            return HOLDS
        if high < figure:
            return FAILS
        return UNDECIDED if high / low > FACTOR**2 else HOLDS

    def _text(self, gain: Interval) -> str:
        if self.quantity == "time":
            return f"the {self.end} is {interval_text(gain)} times as fast"
        return f"the {self.end} saved is {100 * (1 - 1 / gain.value):.3g} %"

    def _measured(self, gain: Interval) -> dict:
        if self.quantity == "time":
            return measured_as(gain, "x")
        saved = Interval.without_spread(100 * (1 - 1 / gain.value))
        return measured_as(saved, "%")
