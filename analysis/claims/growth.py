"""Predicates on what happens as the length grows: exponents, crossovers, rising speed-ups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.criteria import (
    exponent,
    growth_of_time,
    is_close,
    is_uncertain,
    judged_ratio,
    more_measuring,
)
from analysis.claims.schema import (
    ARITHMETIC,
    CONSTRUCTION,
    EXPONENT,
    EXPONENT_SLACK,
    FACTOR,
    FAILS,
    HOLDS,
    PHYSICS,
    RECORDS,
    UNDECIDED,
    Judgement,
    Number,
    Shape,
    SystemName,
)
from analysis.claims.wording import (
    UNCERTAIN,
    comma_separated,
    ids_from_pattern,
    interval_text,
    measured_as,
)
from analysis.statistics import crossovers
from analysis.statistics.intervals import Interval, geometric_mean_speedup


class Growth(Predicate):
    """Exponent of time or memory against length, over `lengths` (three or more recorded).

    Without a bound it is that of the published `figures` (* is a length): it holds within EXPONENT
    of ours or in our interval. `at_most` and `at_least` are orders of growth, O(n) and n^2, equal
    to what is within EXPONENT of them: they hold where the whole interval lies on the good side of
    that, and do not where it lies beyond. `below` is strict, the bound itself too much. Of memory,
    a bound below n^1 does not hold and at least n^1 does without records, since the output alone is
    linear.
    `any_lengths`: the claim names none, so that all that were recorded will do; else the longest
    must be there. An interval wider than EXPONENT both ways decides only a bound that it lies
    beyond.
    """

    figure_unit: ClassVar[str] = "exponent"
    system: SystemName
    quantity: Literal["time", "memory"]
    at: Shape
    lengths: list[int] = Field(min_length=3)
    figures: str | None = None
    below: Number | None = None
    at_most: Number | None = None
    at_least: Number | None = None
    any_lengths: bool = False

    def references(self):
        return ids_from_pattern(self.figures, self.lengths)

    def derived(self, claims_file):
        refs = self.references()
        if not refs:
            return None
        values = [claims_file.claims[refs[n]].published for n in self.lengths]
        if min(values) <= 0:
            return None
        return round(float(np.polyfit(np.log(self.lengths), np.log(values), 1)[0]), 3)

    def words(self, claim):
        bounds = {"below": self.below, "at most": self.at_most, "at least": self.at_least}
        given = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        bound = comma_separated(given) or "that of the published figures"
        lengths = f"{self.lengths[0]} to {self.lengths[-1]} tokens"
        return f"exponent of {self.quantity} of {self.system} over {lengths} is {bound}"

    def judge(self, claim, evidence):
        figure = self.derived(evidence.claims_file)
        needs = {n: (self.system, self.at.given() | {"seq_len": n}) for n in self.lengths}
        decide = self._decide(claim, evidence, needs, figure)
        found = evidence.on_records(claim, needs, decide, at_least=3, quantity=self.quantity)
        if self.quantity == "memory" and self.below is not None and self.below <= 1:
            text = "the output alone grows linearly with the length"
            return found.overruled(FAILS, PHYSICS, text)
        if self.quantity == "memory" and self.at_least is not None and self.at_least <= 1:
            text = "the output alone grows linearly with the length"
            return found.overruled(HOLDS, PHYSICS, text)
        return found

    def _decide(self, claim, evidence, needs, figure):
        def decide(rows, missing):
            lengths = sorted(rows)
            k = exponent([rows[n] for n in lengths], self.quantity)
            shown = f"{k:.2f}" if k.confidence else f"{k.value:.2f}"
            text = f"grows as n^{shown} over {comma_separated(lengths)} tokens"
            uncertain = k.high - k.low > 2 * EXPONENT
            slack = -EXPONENT_SLACK if self.below is not None else EXPONENT
            bound = self.below if self.below is not None else self.at_most
            low, high = k.low, k.high
            if self.at_least is not None:  # a bound from below, mirrored
                bound, low, high = -self.at_least, -k.high, -k.low
            if bound is not None and low > bound + slack and high >= bound:
                verdict = FAILS
            elif max(self.lengths) not in rows and not self.any_lengths:
                return replace(
                    evidence.waits(claim, needs, f"so far it {text}", have=rows),
                    measured=measured_as(k, "exponent"),
                )
            elif bound is not None and high <= bound + slack:
                verdict = HOLDS
            elif uncertain:
                verdict, text = UNDECIDED, f"{text}{UNCERTAIN}"
            elif bound is not None:
                inside = low <= bound <= high
                near = "which does not exclude the bound" if inside else "too close to the bound"
                verdict, text = UNDECIDED, f"{text}, {near}"
            else:
                close = figure in k or abs(k.value - figure) <= EXPONENT
                verdict = HOLDS if close else FAILS
                text = f"{text}, published n^{figure}"
            return Judgement(verdict, RECORDS, text, measured_as(k, "exponent"))

        return decide


class WorkGrowth(Predicate):
    """The system's exact work grows with the length as n to the published power.

    Decided by arithmetic: the query-key pairs of the pattern, heads and sparsity that the write-up
    states, at the two `lengths`; as published, by what share of the pairs the replica keeps at the
    shortest and the longest that it was measured at. Holds within EXPONENT of the power.
    """

    figure_unit: ClassVar[str] = "exponent"
    needs_figure: ClassVar[bool] = True
    system: SystemName
    lengths: list[int] = Field(min_length=2, max_length=2)

    def words(self, claim):
        lengths = " to ".join(map(str, self.lengths))
        return f"pairs of {self.system} grow as n^{claim.published} over {lengths} tokens"

    def judge(self, claim, evidence):
        if evidence.is_published:
            return self._of_replica(claim, evidence)
        pairs = [evidence.pairs(claim, self.system, {"seq_len": n}) for n in self.lengths]
        return self._compare(claim, self.lengths, pairs, ARITHMETIC)

    def _of_replica(self, claim, evidence):
        rows = evidence.rows(claim, self.system, {"batch": 1, "dtype": None})
        ends = sorted((r for r in rows if r["status"] == "ok"), key=lambda r: r["seq_len"])
        if len({row["seq_len"] for row in ends}) < 2:
            needs = {n: (self.system, {"batch": 1, "seq_len": n}) for n in self.lengths}
            return evidence.waits(claim, needs)
        first, last = ends[0], ends[-1]
        pairs = [
            round(row["realised_density"] * row["heads"] * row["seq_len"] ** 2)
            for row in (first, last)
        ]
        found = self._compare(claim, [first["seq_len"], last["seq_len"]], pairs, CONSTRUCTION)
        return replace(found, rows=(first, last))

    @staticmethod
    def _compare(claim, lengths, pairs, basis):
        power = math.log(pairs[1] / pairs[0]) / math.log(lengths[1] / lengths[0])
        counted = " and ".join(f"{count:,}" for count in pairs)
        text = f"{counted} pairs at {' and '.join(map(str, lengths))} tokens, n^{power:.2f}"
        close = abs(power - claim.published) <= EXPONENT
        return Judgement(HOLDS if close else FAILS, basis, text)


class Crossover(Predicate):
    """`system` is as fast as `against` at the published length, and faster beyond it.

    Judged by the fitted times over `lengths`, within the measured range. Holds when ours is within
    FACTOR or the figure within our interval; does not hold when `against` is the faster one at the
    end of the range, when `system` is the faster one from far below the figure on, or, as
    published, when the published speed-ups (`figures`, * is a length) do not cross 1 between the
    lengths on either side.
    """

    figure_unit: ClassVar[str] = "tokens"
    needs_figure: ClassVar[bool] = True
    system: SystemName
    against: SystemName
    at: Shape
    lengths: list[int] = Field(min_length=3)
    figures: str | None = None
    figure_lengths: list[int] = []

    def references(self):
        return ids_from_pattern(self.figures, self.figure_lengths)

    def words(self, claim):
        return (
            f"{self.system} is as fast as {self.against} at {claim.published} tokens, "
            "and faster beyond"
        )

    def judge(self, claim, evidence):
        needs = {
            (system, n): (system, self.at.given() | {"seq_len": n})
            for system in (self.system, self.against)
            for n in self.lengths
        }
        decide = self._decide(claim, evidence, needs)
        found = evidence.on_records(claim, needs, decide, at_least=6)
        refs = self.references()
        if not refs or not evidence.is_published:
            return found
        claims_file = evidence.claims_file
        ends = [(n, *claims_file.printed_range(refs[n])) for n in self.figure_lengths]
        below = max((n for n, low, _ in ends if low < 1), default=0)
        above = min((n for n, _, high in ends if high > 1 and n > below), default=math.inf)
        text = f"its own speed-ups cross 1 between {below} and {above} tokens"
        if not below <= claim.published <= above:
            return found.overruled(FAILS, ARITHMETIC, text)
        return found

    def _decide(self, claim, evidence, needs):
        figure = claim.published

        def decide(rows, missing):
            fits = []
            for system in (self.system, self.against):
                own = [n for n in self.lengths if (system, n) in rows]
                if len(own) < 3:
                    return evidence.waits(claim, needs, have=rows)
                fits.append(growth_of_time([rows[system, n] for n in own]))
            cross = crossovers.crossover(*fits)
            low, high = cross.n_range
            span = f"{low:.0f} to {high:.0f} tokens"
            if cross.smaller_at_end != "a":
                value = Interval.without_spread(high)
                text = f"{self.against} is still the faster one at {high:.0f} tokens"
                verdict = FAILS if high >= figure else UNDECIDED
            elif cross.n is None:
                value = Interval.without_spread(low)
                text = f"not in range: {self.system} is the faster one over {span}"
                verdict = FAILS if low * FACTOR <= figure else UNDECIDED
            else:
                value = cross.n
                text = f"as fast as each other at {cross.n:.0f} tokens of {span}"
                verdict = HOLDS if is_close(figure, value) else FAILS
                if is_uncertain(value) and figure in value:
                    verdict, text = UNDECIDED, f"{text}{UNCERTAIN}"
            return Judgement(verdict, RECORDS, text, measured_as(value, "tokens"))

        return decide


class RisingSpeedup(Predicate):
    """The speed-up of `system` over `against` is larger at the last of `shapes` than at the first.

    Decided by the interval of the last over the first; as published, it
    does not hold when the last of the published `figures` (* is a length) is below the first.
    """

    system: SystemName
    against: SystemName
    shapes: list[Shape] = Field(min_length=2)
    figures: str | None = None

    def references(self):
        return ids_from_pattern(self.figures, [at.seq_len for at in self.shapes])

    def words(self, claim):
        first, last = (self.shapes[i].seq_len for i in (0, -1))
        of = f"speed-up of {self.system} over {self.against}"
        return f"{of} is larger at {last} tokens than at {first}"

    def judge(self, claim, evidence):
        ends = (self.shapes[0], self.shapes[-1])
        needs = {
            (system, i): (system, at.given())
            for system in (self.system, self.against)
            for i, at in enumerate(ends)
        }
        found = evidence.on_records(claim, needs, self._decide)
        ids = list(self.references().values()) if evidence.is_published else []
        claims_file = evidence.claims_file
        if ids:
            (low, _), (_, high) = (claims_file.printed_range(ids[i]) for i in (0, -1))
            if high < low:
                printed = [claims_file.claims[one].published for one in ids]
                text = f"its own speed-ups are {comma_separated(printed)}"
                return found.overruled(FAILS, ARITHMETIC, text)
        return found

    def _decide(self, rows, missing):
        system, against = self.system, self.against
        samples = {key: row["samples"] for key, row in rows.items()}
        # Last over first: the square of the geometric mean of the two ratios.
        pairs = [
            (samples[against, 1], samples[system, 1]),
            (samples[system, 0], samples[against, 0]),
        ]
        spread = rows[system, 0]["spread"]
        mean = judged_ratio(geometric_mean_speedup(pairs, spread))
        rise = mean.squared()
        verdict = HOLDS if rise.low > 1 else FAILS if rise.high < 1 else UNDECIDED
        ends = " and ".join(str(self.shapes[i].seq_len) for i in (0, -1))
        text = f"between {ends} tokens the speed-up changes by a factor {interval_text(rise)}"
        if verdict == UNDECIDED:
            text += more_measuring(rise, 1, rows[system, 0]["occasions"])
        return Judgement(verdict, RECORDS, text, measured_as(rise, "x"))
