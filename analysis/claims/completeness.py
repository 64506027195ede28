"""Whether every claim has a verdict, and every verdict its evidence."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.claims.claim import ClaimsFile
from analysis.claims.schema import (
    BASES,
    NONE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    RECORDS,
    REFUTED,
    VERDICTS,
    Verdict,
)


def missing(claims_file: ClaimsFile, verdicts: list[Verdict]) -> list[str]:
    """What is wrong, one line a claim: `<id>: <what is missing>`. Nothing where all is there.

    By records: at least one, each with its command, and a table or figure that shows it. By
    arithmetic, physics or construction: what was computed. By nothing: what is missing, and then
    the claim is not testable. A figure that does not hold: how it arose, or that this is unknown.
    """
    judged = {verdict.id for verdict in verdicts}
    lines = [f"{claim}: no verdict" for claim in claims_file.claims if claim not in judged]
    return lines + [f"{v.id}: {text}" for v in verdicts for text in _faults(claims_file, v)]


def _faults(claims_file: ClaimsFile, verdict: Verdict) -> Iterator[str]:
    if verdict.verdict not in VERDICTS:
        yield f"verdict {verdict.verdict!r}"
    if verdict.basis not in BASES:
        yield f"basis {verdict.basis!r}"
    if not verdict.reason.strip():
        yield "no reason"
    if verdict.basis == RECORDS:
        if not verdict.evidence:
            yield "judged by records, but names none"
        if not all(one["path"] and one["command"] for one in verdict.evidence):
            yield "a record without path or command"
        if not verdict.see:
            yield "judged by records, but `see` names no table or figure"
    if verdict.basis == NONE and verdict.verdict != NOT_TESTABLE:
        yield f"{verdict.verdict} without a basis"
    if (
        verdict.verdict in (REFUTED, NOT_REPRODUCED)
        and verdict.mechanism not in claims_file.mechanisms
    ):
        yield "does not hold, and no mechanism says how it arose"
