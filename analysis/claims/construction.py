"""Predicates on what a system is, counted without running it: its sparsity, its token order."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.schema import (
    CONSTRUCTION,
    FAILS,
    HOLDS,
    NONE,
    NOT_MEASURED,
    RECORDS,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import measured_as, shape_words
from analysis.statistics.intervals import Interval
from models.patterns.branches import DilatedBranches
from models.patterns.curves import CURVES
from models.patterns.locality import locality


class Sparsity(Predicate):
    """The published share (per cent) of the pairs of dense attention that the system leaves out.

    Counted in the pattern that the write-up's conditions give; as published, what the replica
    leaves out. A block mask keeps whole blocks, so it may be off by one block per row.
    """

    figure_unit: ClassVar[str] = "%"
    needs_figure: ClassVar[bool] = True
    system: SystemName
    at: Shape

    def words(self, claim):
        shape = shape_words(self.at.given())
        return f"{self.system} leaves out {claim.published} % of the pairs at {shape}"

    def judge(self, claim, evidence):
        if evidence.is_published:
            needs = {"system": (self.system, self.at.given())}
            return evidence.on_records(claim, needs, self._of_replica(claim.published))
        at = self.at.given()
        shape = evidence.shape(claim, at, self.system)
        n = shape["seq_len"]
        pairs = evidence.pairs(claim, self.system, at)
        dense = DilatedBranches([n], [1]).pairs(n, shape["heads"], shape["is_causal"])
        blocks = evidence.claims_file.systems[self.system].pattern == "blocks"
        tolerance = self.resolution / 2 + (100 * shape["block_size"] / n if blocks else 0)
        share = 100 * (1 - pairs / dense)
        verdict = HOLDS if abs(share - claim.published) <= tolerance else FAILS
        text = f"{pairs:,} of {dense:,} pairs are kept, {share:.3g} % are left out"
        return Judgement(verdict, CONSTRUCTION, text)

    def _of_replica(self, figure):
        def decide(rows, missing):
            share = 100 * (1 - rows["system"]["realised_density"])
            verdict = HOLDS if abs(share - figure) <= self.resolution / 2 else FAILS
            value = Interval.without_spread(share)
            return Judgement(
                verdict, RECORDS, f"{share:.3g} % are left out", measured_as(value, "%")
            )

        return decide


class Locality(Predicate):
    """Along `curve` a query block meets fewer key blocks than in the order of the sequence.

    Tokens attend to those at most `radius` away, in a text (`width` null) or in a grid with rows
    of `width` tokens. Attention to all tokens meets all blocks in any order.
    """

    curve: Literal[CURVES]
    seq_len: int
    radius: int = Field(ge=1)
    block_size: int
    width: int | None = None

    def words(self, claim):
        where = f"a grid {self.width} wide" if self.width else "a text"
        return (
            f"in {where} of {self.seq_len} tokens, a block of {self.block_size} along the "
            f"{self.curve} curve meets fewer blocks within {self.radius} tokens than in order"
        )

    def judge(self, claim, evidence):
        if evidence.is_published:
            text = "no replica that orders tokens along a curve"
            return Judgement(NOT_MEASURED, NONE, text, needs="a replica")
        curve, order = (
            locality(
                one,
                self.seq_len,
                radius=self.radius,
                block_size=self.block_size,
                world_size=1,
                width=self.width,
            )
            for one in (self.curve, "row-major")
        )
        text = (
            f"a block meets {curve.distinct_blocks:.3g} along the curve, "
            f"{order.distinct_blocks:.3g} in order"
        )
        fewer = curve.distinct_blocks < order.distinct_blocks
        return Judgement(HOLDS if fewer else FAILS, CONSTRUCTION, text)
