"""A predicate on the ends of a published range of gains: "5 to 50 times as fast"."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.schema import (
    DIRECTION,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REFUTED,
    REPRODUCED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import in_text, is_close, joined, measured_as, ratio_of
from analysis.statistics import intervals


class Gains(Predicate):
    """The `least` or the `largest` gain of any of `systems` over `against`, at any of `shapes`.

    Of time: how many times as fast. Of memory: per cent saved of the peak beyond the inputs,
    compared as what was there over what is left. Reproduced within FACTOR or our interval, the
    least also above the figure. Refuted when the least lies below it, interval and all, or when
    even the largest is significantly a loss. While a shape has no record nothing but a refuted
    least or a reproduced largest is settled.
    """

    needs_figure: ClassVar[bool] = True
    systems: list[SystemName] = Field(min_length=1)
    against: SystemName
    shapes: list[Shape] = Field(min_length=1)
    end: Literal["least", "largest"]
    quantity: Literal["time", "memory"] = "time"

    def words(self, claim):
        lengths = joined(dict.fromkeys(at.seq_len for at in self.shapes))
        what = f"{claim.published} times as fast as"
        if self.quantity == "memory":
            what = f"{claim.published} % less memory than"
        bound = "at least" if self.end == "least" else "up to"
        return f"{joined(self.systems)}: {bound} {what} {self.against} at {lengths} tokens"

    def judge(self, claim, evidence):
        needs = {
            (system, i): (system, at.given())
            for system in self.named_systems()
            for i, at in enumerate(self.shapes)
        }
        # Memory is compared as what was there over what is left, as times are.
        figure = claim.published if self.quantity == "time" else 1 / (1 - claim.published / 100)

        def decide(rows, missing):
            found = [
                (self._gain(rows[self.against, i], rows[system, i]), system, at.seq_len)
                for i, at in enumerate(self.shapes)
                for system in self.systems
                if (system, i) in rows and (self.against, i) in rows
            ]
            if not found:
                return Judgement(NOT_TESTABLE, "none", f"missing: {'; '.join(missing)}")
            pick = min if self.end == "least" else max
            gain, system, seq_len = pick(found, key=lambda one: one[0].value)
            verdict = self._compare(figure, gain)
            text = f"{self._text(gain)}, of {system} at {seq_len} tokens"
            if missing and verdict != (REFUTED if self.end == "least" else REPRODUCED):
                verdict, text = NOT_TESTABLE, f"missing: {'; '.join(missing)}; so far {text}"
            return Judgement(verdict, "records", text, self._measured(gain))

        # Shapes that have all before shapes that have some, which may still settle it.
        for at_least in (None, 2):
            found = evidence.on_records(
                claim, needs, decide, at_least=at_least, quantity=self.quantity
            )
            if found.basis != "none":
                break
        return found

    def _compare(self, figure: float, gain: intervals.Interval) -> str:
        low, high = gain.low, gain.high
        if self.quantity == "memory":  # which has no interval: DIRECTION is significance
            low, high = gain.value, gain.value * DIRECTION
        if is_close(figure, gain) or (self.end == "least" and low >= figure):
            return REPRODUCED
        return REFUTED if high < (figure if self.end == "least" else 1) else NOT_REPRODUCED

    def _gain(self, base, row) -> intervals.Interval:
        if self.quantity == "time":
            return ratio_of(base, row)
        value = base["peak_memory_bytes"] / row["peak_memory_bytes"]
        return intervals.Interval(value, math.nan, math.nan, 0.0)

    def _text(self, gain: intervals.Interval) -> str:
        if self.quantity == "time":
            return f"the {self.end} is {in_text(gain)} times as fast"
        return f"the {self.end} saved is {100 * (1 - 1 / gain.value):.3g} %"

    def _measured(self, gain: intervals.Interval) -> dict:
        if self.quantity == "time":
            return measured_as(gain, "x")
        saved = intervals.Interval(100 * (1 - 1 / gain.value), math.nan, math.nan, 0.0)
        return measured_as(saved, "%")
