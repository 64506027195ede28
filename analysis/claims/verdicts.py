"""Verdicts on every claim, and their JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict

import pandas as pd

from analysis.claims.ledger import Book, Claim, Ledger
from analysis.claims.vocabulary import VERDICTS, Verdict


def evaluate(book: Book, frame: pd.DataFrame) -> list[Verdict]:
    """A verdict on every claim, in the file's order. `frame`: see `analysis.records.load`."""
    ledger = Ledger(book, frame)
    return [_verdict(ledger, claim) for claim in book.claims.values()]


def _verdict(ledger: Ledger, claim: Claim) -> Verdict:
    found = ledger.judge(claim)
    published = claim.published
    return Verdict(
        id=claim.id,
        writeup=claim.writeup,
        source=f"{claim.writeup}, {claim.section}",
        claim=claim.claim,
        published=claim.predicate.derived(ledger.book) if published is None else published,
        kind=claim.kind,
        predicate=claim.predicate.words(claim),
        verdict=found.verdict,
        basis=found.basis,
        reason=f"{found.reason} ({claim.note})" if claim.note else found.reason,
        measured=found.measured,
        evidence=[{"path": row["path"], "machine": row["machine"]} for row in found.rows],
    )


def counts(verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    """Write-up -> verdict -> number of claims; every verdict is a key."""
    tally = Counter((v.writeup, v.verdict) for v in verdicts)
    return {
        writeup: {verdict: tally[writeup, verdict] for verdict in VERDICTS}
        for writeup in dict.fromkeys(v.writeup for v in verdicts)
    }


def to_json(verdicts: list[Verdict]) -> str:
    """The text of `build/claims.json`: counts, then every verdict."""
    data = {"counts": counts(verdicts), "claims": [asdict(v) for v in verdicts]}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def to_csv(verdicts: list[Verdict]) -> str:
    """The text of `build/claims.csv`: a line a claim, lists joined by spaces."""
    out = io.StringIO()
    names = ["id", "source", "claim", "published", "kind", "predicate", "verdict", "basis"]
    names += ["reason"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "value", "low", "high", "unit", "machines", "evidence"])
    for v in verdicts:
        measured = v.measured or {}
        writer.writerow(
            [getattr(v, name) for name in names]
            + [measured.get(k) for k in ("value", "low", "high", "unit")]
            + [" ".join(dict.fromkeys(e["machine"] for e in v.evidence))]
            + [" ".join(e["path"] for e in v.evidence)]
        )
    return out.getvalue()
