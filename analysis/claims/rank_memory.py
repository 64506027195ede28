"""Predicates on what happens as a sequence is spread over more ranks."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.schema import (
    EXPONENT,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REFUTED,
    REPRODUCED,
    Judgement,
    Shape,
    SystemName,
)
from analysis.claims.wording import joined, measured_as
from analysis.records.units import MIB
from analysis.statistics import intervals


class RankMemory(Predicate):
    """Memory of a rank, its part of q, k and v with it, is its share of the sequence: O(n / P).

    At the first of `lengths` that has three or more of `world_sizes` on one machine, real ranks
    before virtual ones. The exponent against n / P is a straight line through log-log points, so
    that a cost which no rank gets rid of counts against the claim. Reproduced within EXPONENT of
    1; refuted nearer to 0, where more ranks do not help.
    """

    system: SystemName
    at: Shape
    lengths: list[int] = Field(min_length=1)
    world_sizes: list[int] = Field(min_length=3)

    def words(self, claim):
        ranks = f"{joined(self.world_sizes)} ranks"
        return f"memory of a rank of {self.system} over {ranks} grows as its share of the sequence"

    def judge(self, claim, evidence):
        for seq_len in self.lengths:
            for simulated in (False, True):
                at = self.at.given() | {"seq_len": seq_len, "simulated": simulated}
                needs = {p: (self.system, at | {"world_size": p}) for p in self.world_sizes}
                decide = self._decide(claim, evidence, at)
                found = evidence.on_records(claim, needs, decide, at_least=3, quantity="memory")
                if found.verdict != NOT_TESTABLE:
                    return found
        variant = evidence.claims_file.systems[self.system].variant
        text = f"missing: {variant} over three of {joined(self.world_sizes)} ranks"
        text += f", at one of {joined(self.lengths)} tokens"
        return Judgement(NOT_TESTABLE, "none", text)

    def _decide(self, claim, evidence, at):
        def decide(rows, missing):
            ranks = sorted(rows)
            held = []
            for p in ranks:
                own = {k: rows[p][k] for k in ("batch", "dtype")}
                shard = evidence.tensor_bytes(claim, at | own) / p
                held.append(rows[p]["peak_memory_bytes"] + 3 * shard)
            share = [at["seq_len"] / p for p in ranks]
            power = float(np.polyfit(np.log(share), np.log(held), 1)[0])
            verdict = NOT_REPRODUCED if power > 0.5 else REFUTED
            if abs(power - 1) <= EXPONENT:
                verdict = REPRODUCED
            kind = "virtual" if at["simulated"] else "real"
            text = (
                f"{held[0] / MIB:.4g} to {held[-1] / MIB:.4g} MiB a rank from {ranks[0]} to "
                f"{ranks[-1]} {kind} ranks at {at['seq_len']} tokens, as (n/P)^{power:.2f}"
            )
            value = intervals.Interval(power, math.nan, math.nan, 0.0)
            return Judgement(verdict, "records", text, measured_as(value, "exponent"))

        return decide
