"""One judgement of what several machines found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from analysis.claims.schema import CARD, DIFFERS, OPEN, SETTLED, UNDECIDED, Judgement


def of_all_machines(results: list[Judgement]) -> Judgement:
    """The judgement of the preferred machine, or that machines differ, with each one's finding.

    A machine that settles the claim is preferred to one that leaves it open.
    """
    settled = [one for one in results if one.verdict not in OPEN] or results[:1]
    first = settled[0]
    if not first.rows:
        return first
    opposed = [one for one in settled if one.verdict != first.verdict]
    if opposed:
        both = [first, *opposed]
        text = "; ".join(f"{_where(one)}: {one.verdict} ({one.reason})" for one in both)
        return replace(
            first, verdict=DIFFERS, reason=text, stand_in=_joined(one.stand_in for one in both),
            rows=tuple(row for one in both for row in one.rows),
        )  # fmt: skip
    stand_in = first.stand_in if first.verdict in (*SETTLED, UNDECIDED) else ""
    told = [f"{first.reason}; on {_where(first)}"]
    # Another device than the published card may not contradict the claim, but it is told.
    other = [one for one in results if one.verdict == CARD and one.rows and one is not first]
    other = other if first.verdict in SETTLED else []
    told += [f"{_where(one)}: {one.verdict} ({one.reason})" for one in other]
    rows = first.rows + tuple(row for one in other for row in one.rows)
    return replace(first, reason="; ".join(told), stand_in=stand_in, rows=rows)


def _where(found: Judgement) -> str:
    row = found.rows[0]
    return f"{row['machine']} ({row['device_kind']})"


def _joined(words: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(filter(None, words)))
