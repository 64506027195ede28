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
    """What is missing, as lines `<id>: <what>`; empty where nothing is.

    A verdict by records needs at least one record, each with its command, and a table or figure
    that shows it; one without a basis must be "not testable here". Every verdict needs a reason,
    and a figure that does not hold a mechanism, which may be `unknown`.
    """
    judged = {verdict.id for verdict in verdicts}
    lines = [f"{claim}: no verdict" for claim in claims_file.claims if claim not in judged]
    return lines + [f"{v.id}: {text}" for v in verdicts for text in _lacks(claims_file, v)]


def _lacks(claims_file: ClaimsFile, verdict: Verdict) -> Iterator[str]:
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
