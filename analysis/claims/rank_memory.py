"""The predicate on memory per rank, as a sequence is spread over more ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.schema import (
    EXPONENT,
    FAILS,
    HOLDS,
    RECORDS,
    UNDECIDED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import comma_separated, measured_as
from analysis.records.units import MIB
from analysis.statistics.intervals import Interval


class RankMemory(Predicate):
    """Memory per rank, with its part of q, k and v, is its share of the sequence: O(n / P).

    Judged at the first of `lengths` that has three or more of `world_sizes` on one machine, real
    ranks before virtual ones. The exponent against n / P is the slope of a straight line through
    log-log points, so a cost that stays on every rank counts against the claim. Holds within
    EXPONENT of 1; does not hold below 0.5, nearer to 0, where more ranks do not help.
    """

    figure_unit: ClassVar[str] = "exponent"
    system: SystemName
    at: Shape
    lengths: list[int] = Field(min_length=1)
    world_sizes: list[int] = Field(min_length=3)

    def words(self, claim):
        ranks = f"{comma_separated(self.world_sizes)} ranks"
        return f"memory per rank of {self.system} over {ranks} grows as its share of the sequence"

    def judge(self, claim, evidence):
        for seq_len in self.lengths:
            for simulated in (False, True):
                at = self.at.given() | {"seq_len": seq_len, "simulated": simulated}
                needs = {p: (self.system, at | {"world_size": p}) for p in self.world_sizes}
                decide = self._decide(claim, evidence, at)
                found = evidence.on_records(claim, needs, decide, at_least=3, quantity="memory")
                if found.rows:
                    return found
        where = f"three of {comma_separated(self.world_sizes)} ranks"
        text = f"needed: {where}, at one of {comma_separated(self.lengths)} tokens"
        return replace(found, reason=f"{text}; {found.reason}")

    def _decide(self, claim, evidence, at):
        def decide(rows, missing):
            ranks = sorted(rows)
            used = []
            for p in ranks:
                own = {k: rows[p][k] for k in ("batch", "dtype")}
                shard = evidence.tensor_bytes(claim, at | own) / p
                used.append(rows[p]["peak_memory_bytes"] + 3 * shard)
            share = [at["seq_len"] / p for p in ranks]
            power = float(np.polyfit(np.log(share), np.log(used), 1)[0])
            verdict = UNDECIDED if power > 0.5 else FAILS
            if abs(power - 1) <= EXPONENT:
                verdict = HOLDS
            kind = "virtual" if at["simulated"] else "real"
            text = (
                f"{used[0] / MIB:.4g} to {used[-1] / MIB:.4g} MiB per rank from {ranks[0]} to "
                f"{ranks[-1]} {kind} ranks at {at['seq_len']} tokens, as (n/P)^{power:.2f}"
            )
            value = Interval.without_spread(power)
            return Judgement(verdict, RECORDS, text, measured_as(value, "exponent"))

        return decide
