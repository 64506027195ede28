"""The findings of the write-ups that other things depend on, each with its two verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.claims.claim import ClaimsFile
from analysis.claims.schema import (
    CARD,
    CLAIM,
    CONSISTENCY,
    DIFFERS,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    RESTATEMENT,
    SIDES,
    UNDECIDED,
    Verdict,
)

# A statement of several parts is as good as the worst of them.
_WORST_FIRST = (FAILS, DIFFERS, CARD, NOT_MEASURED, UNDECIDED, HOLDS)


@dataclass(frozen=True)
class Part:
    """One side of a headline.

    count, of: how many claims give this verdict, of those that decide it. measured: of the one, or
    of both where there are two, the least and the largest of a range. beside, reason, decided_by:
    of the first that gives the verdict.
    """

    verdict: str
    stand_in: str
    count: int
    of: int
    measured: list[dict]
    beside: dict | None
    reason: str
    decided_by: str

    @property
    def words(self) -> str:
        """The verdict with what stood in."""
        return f"{self.verdict}, {self.stand_in}" if self.stand_in else self.verdict


@dataclass(frozen=True)
class Finding:
    """A headline, judged. rank: from 1. claims, restatements: ids of all that belongs to it.

    of_paper: whether it is a paper's, of which no code is judged. as_published, method: None where
    it is a matter of the write-up's own arithmetic, which `consistency` then judges.
    """

    name: str
    rank: int
    title: str
    published: str
    why: str
    of_paper: bool
    as_published: Part | None
    method: Part | None
    consistency: Part | None
    claims: list[str]
    restatements: list[str]


def findings(claims_file: ClaimsFile, verdicts: Sequence[Verdict]) -> list[Finding]:
    """The headlines in the file's order, with the verdicts that those of their claims give."""
    by_id = {verdict.id: verdict for verdict in verdicts}
    found = []
    for rank, (name, headline) in enumerate(claims_file.headlines.items(), start=1):
        deciding = [by_id[one] for one in headline.decided_by]
        own = [verdict for verdict in verdicts if verdict.headline == name]
        found.append(
            Finding(
                name=name,
                rank=rank,
                title=headline.title,
                published=headline.published,
                why=headline.why,
                of_paper=any(claims_file.writeups[v.writeup].paper for v in deciding),
                **{side: _part(deciding, side) for side in (*SIDES, CONSISTENCY)},
                claims=[v.id for v in own if v.sort == CLAIM],
                restatements=[v.id for v in own if v.sort in (RESTATEMENT, CONSISTENCY)],
            )
        )
    return found


def _part(deciding: Sequence[Verdict], side: str) -> Part | None:
    """The worst of the verdicts, with what its first claim says."""
    own = [(v, getattr(v, side)) for v in deciding if getattr(v, side) is not None]
    if not own:
        return None
    for verdict in _WORST_FIRST:
        of_it = [(v, one) for v, one in own if one.verdict == verdict]
        if of_it:
            first, one = of_it[0]
            shown = [side for _, side in own] if len(own) == 2 else [one]
            return Part(
                verdict=verdict,
                stand_in=one.stand_in,
                count=len(of_it),
                of=len(own),
                measured=[side.measured for side in shown if side.measured],
                beside=one.beside,
                reason=one.reason,
                decided_by=first.id,
            )
    raise AssertionError("every verdict is one of VERDICTS")
