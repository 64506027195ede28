"""Verdicts on every claim, and their JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict

import pandas as pd

from analysis.claims.claim import Claim, ClaimsFile
from analysis.claims.evidence import Evidence
from analysis.claims.mechanism import mechanism
from analysis.claims.schema import VERDICTS, Verdict
from analysis.claims.stated_numbers import Restates


def evaluate(claims_file: ClaimsFile, frame: pd.DataFrame) -> list[Verdict]:
    """A verdict on every claim, in the file's order. `frame`: see `analysis.records.load`."""
    evidence = Evidence(claims_file, frame)
    return [_verdict(evidence, claim) for claim in claims_file.claims.values()]


def _verdict(evidence: Evidence, claim: Claim) -> Verdict:
    found = evidence.judge(claim)
    published = claim.published
    return Verdict(
        id=claim.id,
        writeup=claim.writeup,
        source=f"{claim.writeup}, {claim.section}",
        claim=claim.claim,
        published=claim.predicate.derived(evidence.claims_file) if published is None else published,
        kind=claim.kind,
        predicate=claim.predicate.words(claim),
        verdict=found.verdict,
        basis=found.basis,
        reason=f"{found.reason} ({claim.note})" if claim.note else found.reason,
        measured=found.measured,
        mechanism=mechanism(evidence.claims_file, claim, found.verdict),
        see=_outputs(evidence.claims_file, claim),
        evidence=[
            {"path": path, "machine": row["machine"], "command": command}
            for row in found.rows
            for path, command in zip(row["paths"], row["commands"], strict=True)
        ],
    )


def _outputs(claims_file: ClaimsFile, claim: Claim) -> list[str]:
    """The claim's tables and figures; where it restates a figure, those of that."""
    while not claim.see and isinstance(claim.predicate, Restates):
        claim = claims_file.claims[claim.predicate.of]
    return list(claim.see)


def counts(verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    """Write-up -> verdict -> number of claims; every verdict is a key."""
    tally = Counter((v.writeup, v.verdict) for v in verdicts)
    return {
        writeup: {verdict: tally[writeup, verdict] for verdict in VERDICTS}
        for writeup in dict.fromkeys(v.writeup for v in verdicts)
    }


def to_json(claims_file: ClaimsFile, verdicts: list[Verdict]) -> str:
    """The text of `build/claims.json`: counts, mechanisms, then every verdict."""
    data = {
        "counts": counts(verdicts),
        "mechanisms": {name: m.model_dump() for name, m in claims_file.mechanisms.items()},
        "claims": [asdict(v) for v in verdicts],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def to_csv(verdicts: list[Verdict]) -> str:
    """The text of `build/claims.csv`: one line per claim, lists joined by spaces.

    command: what measured the first record of `evidence`.
    """
    out = io.StringIO()
    names = ["id", "source", "claim", "published", "kind", "predicate", "verdict", "basis"]
    names += ["reason", "mechanism"]
    writer = csv.writer(out, lineterminator="\n")
    more = ["value", "low", "high", "unit", "see", "machines", "evidence", "command"]
    writer.writerow([*names, *more])
    for v in verdicts:
        measured = v.measured or {}
        writer.writerow(
            [getattr(v, name) for name in names]
            + [measured.get(k) for k in ("value", "low", "high", "unit")]
            + [" ".join(v.see)]
            + [" ".join(dict.fromkeys(e["machine"] for e in v.evidence))]
            + [" ".join(e["path"] for e in v.evidence)]
            + [v.evidence[0]["command"] if v.evidence else None]
        )
    return out.getvalue()
