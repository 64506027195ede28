"""A predicate on either end of a published range of speed-ups: "5 to 50 times as fast"."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import is_close, time_ratio
from analysis.claims.schema import (
    DIRECTION,
    NONE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    RECORDS,
    REFUTED,
    REPRODUCED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import comma_separated, interval_text, measured_as
from analysis.statistics.intervals import Interval


class SpeedupRange(Predicate):
    """The `least` or the `largest` gain of any of `systems` over `against`, at any of `shapes`.

    In time: how many times as fast. In memory: per cent of the peak beyond the inputs that is
    saved, compared as the peak of `against` over that of the system. Reproduced when ours is within
    FACTOR or the figure within our interval; the least also when it is above the figure. Refuted
    when the whole interval of the least is below the figure, or when even the largest is
    significantly a loss. While a shape has no record, only a refuted least or a reproduced largest
    is decided.
    """

    needs_figure: ClassVar[bool] = True
    systems: list[SystemName] = Field(min_length=1)
    against: SystemName
    shapes: list[Shape] = Field(min_length=1)
    end: Literal["least", "largest"]
    quantity: Literal["time", "memory"] = "time"

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
                (self._gain(rows[self.against, i], rows[system, i]), system, at.seq_len)
                for i, at in enumerate(self.shapes)
                for system in self.systems
                if (system, i) in rows and (self.against, i) in rows
            ]
            if not found:
                return Judgement.without_records(missing)
            pick = min if self.end == "least" else max
            gain, system, seq_len = pick(found, key=lambda one: one[0].value)
            verdict = self._compare(figure, gain)
            text = f"{self._text(gain)}, of {system} at {seq_len} tokens"
            if missing and verdict != (REFUTED if self.end == "least" else REPRODUCED):
                verdict, text = NOT_TESTABLE, f"missing: {'; '.join(missing)}; so far {text}"
            return Judgement(verdict, RECORDS, text, self._measured(gain))

        # First machines with every shape, then those with some, which may be enough to decide.
        for at_least in (None, 2):
            found = evidence.on_records(
                claim, needs, decide, at_least=at_least, quantity=self.quantity
            )
            if found.basis != NONE:
                break
        return found

    def _compare(self, figure: float, gain: Interval) -> str:
        low, high = gain.low, gain.high
        if self.quantity == "memory":  # has no interval: a factor DIRECTION counts as significant
            low, high = gain.value, gain.value * DIRECTION
        if is_close(figure, gain) or (self.end == "least" and low >= figure):
            return REPRODUCED
        return REFUTED if high < (figure if self.end == "least" else 1) else NOT_REPRODUCED

    def _gain(self, base, row) -> Interval:
        if self.quantity == "time":
            return time_ratio(base, row)
        value = base["peak_memory_bytes"] / row["peak_memory_bytes"]
        return Interval.without_spread(value)

    def _text(self, gain: Interval) -> str:
        if self.quantity == "time":
            return f"the {self.end} is {interval_text(gain)} times as fast"
        return f"the {self.end} saved is {100 * (1 - 1 / gain.value):.3g} %"

    def _measured(self, gain: Interval) -> dict:
        if self.quantity == "time":
            return measured_as(gain, "x")
        saved = Interval.without_spread(100 * (1 - 1 / gain.value))
        return measured_as(saved, "%")
