"""The predicate of what no procedure here can measure."""

from __future__ import annotations

from typing import ClassVar

from analysis.claims.claim import Predicate
from analysis.claims.schema import CARD, METHOD, NONE, NOT_MEASURED, Judgement


class Unmeasured(Predicate):
    """A statement about the method that no procedure here measures; `needs`: what would.

    card: whether it needs one before anything else.
    """

    needs_card: ClassVar[bool] = False
    judged_sides: ClassVar[tuple[str, ...]] = (METHOD,)
    reason: str
    needs: str
    card: bool = False

    def words(self, claim):
        return "nothing here can be compared with it"

    def judge(self, claim, evidence):
        verdict = CARD if self.card else NOT_MEASURED
        return Judgement(verdict, NONE, self.reason, needs=self.needs)
