"""Verdicts on published claims: `paper/claims.yaml` judged over the frame of records.

Each entry is a claim, a restatement of one, a check of the write-up's figures against each other,
or context, which nothing judges. A claim has two verdicts: *as published*, whether the code that
was published does it (by its replica, by the published figures, by its public history), and *the
method, computed exactly*. A predicate kind is a class listed in `registry`: its fields are the
arguments in YAML, its docstring the rule. A verdict names what it rests on (`basis`):

arithmetic      the published figures contradict each other, or follow from each other; or the work
                of the stated pattern, counted;
physics         a time below the card's FLOP or bandwidth floor, a memory below the tensors;
construction    a system cannot be faster than one that it contains; what a pattern or an order of
                tokens is, counted; two names of one computation;
public history  what reading or running the published code shows, at the commit that is named;
records         what was measured: what stands in for the published card, type or batch, or for the
                published size of models that were trained, is part of the verdict; machines that
                disagree make it "differs by machine";
none            nothing above applies: it needs a card or was not measured, and says what would do.

A mechanism (`mechanisms` in the file) says how a published figure arose, once for all claims that
it explains; a headline (`headlines`) groups what states one finding; `completeness.missing` lists
what has no verdict, evidence or mechanism.

An absolute time is never carried from one card to another. Ratios, orderings and growth of the
method are; what another device shows of published code decides only where it agrees.
"""

from analysis.claims.claim import Claim, ClaimsFile, Subject
from analysis.claims.completeness import missing
from analysis.claims.evidence import Evidence
from analysis.claims.load import load
from analysis.claims.schema import (
    CARD,
    DIFFERS,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    QUANTITIES,
    SIDES,
    UNDECIDED,
    UNKNOWN,
    VERDICTS,
    ClaimsError,
    Judgement,
    Verdict,
)
from analysis.claims.verdicts import counts, evaluate, to_csv, to_json

__all__ = [
    "CARD",
    "DIFFERS",
    "FAILS",
    "HOLDS",
    "NOT_MEASURED",
    "QUANTITIES",
    "SIDES",
    "UNDECIDED",
    "UNKNOWN",
    "VERDICTS",
    "Claim",
    "ClaimsError",
    "ClaimsFile",
    "Evidence",
    "Judgement",
    "Subject",
    "Verdict",
    "counts",
    "evaluate",
    "load",
    "missing",
    "to_csv",
    "to_json",
]
