"""Predicates on memory: how much a system needs, and whether a card has it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from analysis.claims.claim import Predicate
from analysis.claims.criteria import is_close
from analysis.claims.schema import (
    CARD,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    OPEN,
    PHYSICS,
    RECORDS,
    UNDECIDED,
    CardName,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import interval_text, measured_as, shape_words
from analysis.records.units import MIB
from analysis.statistics.intervals import Interval


class MemoryBytes(Predicate):
    """An amount of memory in MiB: the peak beyond the inputs, or the `total` with them.

    `per_token`: in KiB per token of the batch. Does not hold where it is less than the output
    tensor (of a total: the output and the inputs), which any code needs. Otherwise records of a
    CUDA device decide, within FACTOR; of what is said to be `enough`, whether it is.
    """

    needs_figure: ClassVar[bool] = True
    system: SystemName
    at: Shape
    counts: Literal["peak", "total"] = "peak"
    per_token: bool = False
    enough: bool = False

    @property
    def figure_unit(self) -> str:
        return "KiB/token" if self.per_token else "MiB"

    def _size(self, claim, evidence) -> float:
        """The unit of the figure, in bytes."""
        if not self.per_token:
            return MIB
        shape = evidence.shape(claim, self.at.given())
        return 1024 * shape["batch"] * shape["seq_len"]

    def words(self, claim):
        what = {"peak": "peak memory beyond the inputs", "total": "peak memory with the inputs"}
        shape, unit = shape_words(self.at.given()), "KiB per token" if self.per_token else "MiB"
        bound = "is at most" if self.enough else "is"
        return f"{what[self.counts]} of {self.system} at {shape} {bound} {claim.published} {unit}"

    def judge(self, claim, evidence):
        unit, size = self.figure_unit, self._size(claim, evidence)
        output = evidence.tensor_bytes(claim, self.at.given()) / size
        wrapped = evidence.claims_file.systems[self.system].projections > 0
        inputs = output * (1 if wrapped else 3) * (self.counts == "total")
        if claim.published + self.resolution / 2 < output + inputs:
            what = "the inputs and the output" if inputs else "the output alone"
            text = f"below {what}, {output + inputs:.4g} {unit}"
            return Judgement(FAILS, PHYSICS, text)

        def decide(rows, missing):
            value = rows["system"]["peak_memory_bytes"] / size + inputs
            value = Interval.without_spread(value)
            suits = is_close(claim.published, value)
            suits = value.value <= claim.published if self.enough else suits
            verdict = HOLDS if suits else FAILS
            text = f"{interval_text(value)} {unit}"
            return Judgement(verdict, RECORDS, text, measured_as(value, unit))

        needs = {"system": (self.system, self.at.given())}
        found = evidence.on_records(claim, needs, decide, device_kind="cuda", quantity="memory")
        if found.verdict in (CARD, NOT_MEASURED):
            return replace(found, reason=f"{found.reason}, on a CUDA device; physically possible")
        return found


class Fits(Predicate):
    """The system at the shape `fits` in the memory of `card`, or `exceeds` it.

    Without a card: in the published MiB. Decided by the tensors alone, and the whole score matrices
    that the system writes down, where these exceed it; else by a recorded peak with the inputs
    added, on any device (on a CPU it is the growth of the process), or by a record that ran out of
    memory on a device with at least as much.
    """

    figure_unit: ClassVar[str] = "MiB"
    system: SystemName
    at: Shape
    card: CardName | None = None
    expect: Literal["fits", "exceeds"]

    def words(self, claim):
        room = f"in the memory of {self.card}" if self.card else f"{claim.published} MiB"
        return f"{self.system} at {shape_words(self.at.given())} {self.expect} {room}"

    def judge(self, claim, evidence):
        at, room = self.at.given(), "the card has"
        if self.card is None:
            capacity, room = claim.published * MIB, "of"
        else:
            capacity = evidence.claims_file.cards[self.card].memory_bytes
        tensor = evidence.tensor_bytes(claim, at)
        if 4 * tensor > capacity:
            text = f"q, k, v and the output alone are {4 * tensor / MIB:.4g} MiB"
            return Judgement(HOLDS if self.expect == "exceeds" else FAILS, PHYSICS, text)
        scores = evidence.score_bytes(claim, self.system, at)
        if scores + 4 * tensor > capacity:
            text = f"scores, q, k, v and the output are {(scores + 4 * tensor) / MIB:,.0f} MiB"
            return Judgement(HOLDS if self.expect == "exceeds" else FAILS, PHYSICS, text)

        def decide(rows, missing):
            row = rows["system"]
            own = evidence.tensor_bytes(claim, at | {"dtype": row["dtype"], "batch": row["batch"]})
            total = row["peak_memory_bytes"] + 3 * own
            fits = total <= capacity
            text = f"needs {total / MIB:.4g} MiB with its inputs, {room} {capacity / MIB:.4g}"
            verdict = HOLDS if fits == (self.expect == "fits") else FAILS
            if own < tensor if fits else own > tensor:
                verdict, text = UNDECIDED, f"{text}, at another size of tensors"
            value = Interval.without_spread(total / MIB)
            return Judgement(verdict, RECORDS, text, measured_as(value, "MiB"))

        needs = {"system": (self.system, at)}
        found = evidence.on_records(claim, needs, decide, quantity="memory")
        if found.verdict not in OPEN:
            return found
        out_of_memory = [
            row
            for row in evidence.rows(claim, self.system, at)
            if row["status"] == "oom" and row["device_memory_bytes"] >= capacity
        ]
        if not out_of_memory:
            return found
        verdict = HOLDS if self.expect == "exceeds" else FAILS
        text = f"out of memory on {out_of_memory[0]['machine']}, which has more"
        return Judgement(verdict, RECORDS, text, rows=(out_of_memory[0],))
