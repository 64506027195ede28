"""Whether every claim has its verdicts, and every verdict its evidence."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.claims.claim import ClaimsFile
from analysis.claims.schema import (
    BASES,
    CARD,
    CLAIM,
    CONSISTENCY,
    FAILS,
    NONE,
    NOT_MEASURED,
    RECORDS,
    RESTATEMENT,
    SIDES,
    VERDICTS,
    Side,
    Verdict,
)


def missing(claims_file: ClaimsFile, verdicts: list[Verdict]) -> list[str]:
    """What is missing, as lines `<id>: <what>`; empty where nothing is.

    A verdict by records needs at least one record, each with its command, and a table or figure
    that shows it; one without a basis waits for a card or for a measurement, and says for which.
    Every verdict needs a reason, and what does not hold a mechanism, which may be `unknown`.
    """
    judged = {verdict.id for verdict in verdicts}
    lines = [f"{claim}: no verdict" for claim in claims_file.claims if claim not in judged]
    return lines + [f"{v.id}: {text}" for v in verdicts for text in _lacks(claims_file, v)]


def _lacks(claims_file: ClaimsFile, verdict: Verdict) -> Iterator[str]:
    own = claims_file.claims[verdict.id].predicate.judged_sides
    expected = {CLAIM: own, RESTATEMENT: (*own, CONSISTENCY), CONSISTENCY: (CONSISTENCY,)}
    for name in (*SIDES, CONSISTENCY):
        side = getattr(verdict, name)
        if (side is not None) != (name in expected.get(verdict.sort, ())):
            yield f"{name}: {'not expected' if side else 'no verdict'} of a {verdict.sort}"
        elif side is not None:
            yield from (f"{name}: {text}" for text in _lacks_side(verdict, side))
    main = verdict.method or verdict.consistency or verdict.as_published
    fails = main is not None and main.verdict == FAILS
    if fails and verdict.mechanism not in claims_file.mechanisms:
        yield "does not hold, and no mechanism says how it arose"


def _lacks_side(verdict: Verdict, side: Side) -> Iterator[str]:
    if side.verdict not in VERDICTS:
        yield f"verdict {side.verdict!r}"
    if side.basis not in BASES:
        yield f"basis {side.basis!r}"
    if not side.reason.strip():
        yield "no reason"
    if side.basis == RECORDS:
        if not side.evidence:
            yield "judged by records, but names none"
        if not all(one["path"] and one["command"] for one in side.evidence):
            yield "a record without path or command"
        if not verdict.see:
            yield "judged by records, but `see` names no table or figure"
    if side.basis == NONE and side.verdict not in (CARD, NOT_MEASURED):
        yield f"{side.verdict} without a basis"
    if side.verdict in (CARD, NOT_MEASURED) and not side.needs:
        yield f"{side.verdict}, but not what it needs"
