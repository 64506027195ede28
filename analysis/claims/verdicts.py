"""Verdicts on every claim, and their JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import pandas as pd

from analysis.claims.claim import Claim, ClaimsFile
from analysis.claims.evidence import Evidence
from analysis.claims.headlines import findings
from analysis.claims.mechanism import mechanism
from analysis.claims.schema import (
    AS_PUBLISHED,
    CLAIM,
    CONSISTENCY,
    CONTEXT,
    FAILS,
    HOLDS,
    METHOD,
    RESTATEMENT,
    SIDES,
    VERDICTS,
    Judgement,
    Side,
    Verdict,
)
from analysis.claims.stated_numbers import Restates
from analysis.rendering.escaping import csv_text


def evaluate(claims_file: ClaimsFile, frame: pd.DataFrame) -> list[Verdict]:
    """A verdict on every claim, in the file's order. `frame`: see `analysis.records.load`."""
    evidence = {side: Evidence(claims_file, frame, side) for side in SIDES}
    return [_verdict(claims_file, evidence, claim) for claim in claims_file.claims.values()]


def _verdict(claims_file: ClaimsFile, evidence: dict[str, Evidence], claim: Claim) -> Verdict:
    published, sides = claim.published, dict.fromkeys((*SIDES, CONSISTENCY))
    if claim.sort in (CLAIM, RESTATEMENT):
        sides |= {side: _side(evidence[side].judge(claim)) for side in claim.predicate.judged_sides}
    if claim.sort == RESTATEMENT:
        sides[CONSISTENCY] = _side(claim.predicate.agrees(claim, claims_file))
    if claim.sort == CONSISTENCY:
        sides[CONSISTENCY] = _side(evidence[METHOD].judge(claim))
    deciding = sides[METHOD] or sides[CONSISTENCY] or sides[AS_PUBLISHED]
    figure = claim.predicate.derived(claims_file) if published is None else published
    return Verdict(
        id=claim.id,
        writeup=claim.writeup,
        section=claim.section,
        line=claim.line,
        sort=claim.sort,
        strength=claim.strength,
        scope=claim.scope,
        subject=claim.subject,
        claim=claim.claim,
        published=figure,
        unit=_unit(claims_file, claim, figure),
        kind=claim.kind,
        predicate=claim.predicate.words(claim),
        headline=claims_file.headline_of.get(claim.id),
        **sides,
        mechanism=mechanism(claims_file, claim, deciding.verdict) if deciding else claim.mechanism,
        see=_outputs(claims_file, claim),
        note=claim.note or (claim.predicate.reason if claim.sort == CONTEXT else None),
    )


def _unit(claims_file: ClaimsFile, claim: Claim, figure: object) -> str:
    """Of the published figure, that of the one which it restates; none where it is no number."""
    if not isinstance(figure, int | float):
        return ""
    of = claim.predicate.references().get("of") if claim.sort == RESTATEMENT else None
    return claim.unit or (claims_file.claims[of].unit if of else "")


def _side(found: Judgement) -> Side:
    return Side(
        verdict=found.verdict,
        basis=found.basis,
        reason=found.reason,
        stand_in=found.stand_in,
        measured=found.measured,
        needs=found.needs,
        command=found.command,
        beside=found.beside,
        evidence=list(
            {
                path: {"path": path, "machine": row["machine"], "command": command}
                for row in found.rows
                for path, command in zip(row["paths"], row["commands"], strict=True)
            }.values()
        ),
    )


def _outputs(claims_file: ClaimsFile, claim: Claim) -> list[str]:
    """The claim's tables and figures; where it restates a figure, those of that."""
    while not claim.see and isinstance(claim.predicate, Restates):
        claim = claims_file.claims[claim.predicate.of]
    return list(claim.see)


def counts(verdicts: Iterable[Verdict]) -> dict:
    """Write-up -> how many of its entries are what, and what of the claims holds.

    {sort: number}, and for "as_published" and "method" {verdict: number of claims}; for
    "agrees" {holds, does not hold: number}, of consistency checks and restatements.
    """
    found = {}
    for verdict in verdicts:
        own = found.setdefault(
            verdict.writeup,
            {sort: 0 for sort in (CLAIM, RESTATEMENT, CONSISTENCY, CONTEXT)}
            | {side: dict.fromkeys(VERDICTS, 0) for side in SIDES}
            | {"agrees": {HOLDS: 0, FAILS: 0}},
        )
        own[verdict.sort] += 1
        if verdict.sort == CLAIM:
            for side in SIDES:
                if (one := getattr(verdict, side)) is not None:
                    own[side][one.verdict] += 1
        if verdict.consistency is not None:
            own["agrees"][verdict.consistency.verdict] += 1
    return found


def to_json(claims_file: ClaimsFile, verdicts: list[Verdict]) -> str:
    """The text of `build/claims.json`: counts, sources, mechanisms, headlines, every verdict."""
    data = {
        "counts": counts(verdicts),
        "writeups": {
            name: one.origin.model_dump() | {"url": one.origin.url}
            for name, one in claims_file.writeups.items()
        },
        "mechanisms": {name: m.model_dump() for name, m in claims_file.mechanisms.items()},
        "headlines": [asdict(one) for one in findings(claims_file, verdicts)],
        "claims": [asdict(v) for v in verdicts],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


_PLAIN = ("id", "writeup", "section", "line", "sort", "strength", "scope", "subject", "claim")
_PLAIN += ("published", "unit", "kind", "predicate", "headline", "mechanism", "note")
_OF_SIDE = ("verdict", "stand_in", "basis", "reason", "needs", "command")
_MEASURED = ("value", "low", "high", "unit")


def to_csv(verdicts: list[Verdict]) -> str:
    """The text of `build/claims.csv`: one line per claim, lists joined by spaces.

    command: what would measure what is missing, else what measured the first record.
    """
    of_side = [*_OF_SIDE, *_MEASURED, "machines", "evidence"]
    head = [*_PLAIN, *(f"{side}_{name}" for side in SIDES for name in of_side)]
    lines = [[*head, "consistency", "consistency_reason", "see"]]
    for v in verdicts:
        row = [getattr(v, name) for name in _PLAIN]
        for side in SIDES:
            row += _cells(getattr(v, side))
        checked = v.consistency
        row += [checked.verdict, checked.reason] if checked else [None, None]
        lines.append([*row, " ".join(v.see)])
    return csv_text(lines)


def _cells(side: Side | None) -> list:
    if side is None:
        return [None] * (len(_OF_SIDE) + len(_MEASURED) + 2)
    measured = side.measured or {}
    command = side.command or (side.evidence[0]["command"] if side.evidence else None)
    return [
        *(side.verdict, side.stand_in, side.basis, side.reason, side.needs, command),
        *(measured.get(name) for name in _MEASURED),
        " ".join(dict.fromkeys(one["machine"] for one in side.evidence)),
        " ".join(one["path"] for one in side.evidence),
    ]
