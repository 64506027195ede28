"""Verdicts on published claims: `paper/claims.yaml` judged over the frame of records.

A predicate kind is a class listed in `registry`: its fields are the arguments in YAML, its
docstring the rule. A verdict names what it rests on (`basis`):

arithmetic    the published figures contradict each other, or follow from each other; or the work
              of the stated pattern, counted;
physics       a time below the card's FLOP or bandwidth floor, a memory below the tensors;
construction  a system cannot be faster than one that it contains; what a pattern or an order of
              tokens is, counted;
records       what was measured, on one machine: the published card itself, else a CUDA machine,
              else a CPU; the reason names other machines that disagree;
none          nothing above applies: not testable here, and the reason says what is missing.

A mechanism (`mechanisms` in the file) says how a published figure arose, once for all claims that
it explains; `completeness.missing` lists what has no verdict, evidence or mechanism.

An absolute time is never carried from one card to another. Ratios, orderings and growth are.
"""

from analysis.claims.claim import Claim, ClaimsFile, Subject
from analysis.claims.completeness import missing
from analysis.claims.evidence import Evidence
from analysis.claims.load import load
from analysis.claims.schema import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    QUANTITIES,
    REFUTED,
    REPRODUCED,
    UNKNOWN,
    VERDICTS,
    ClaimsError,
    Judgement,
    Verdict,
)
from analysis.claims.verdicts import counts, evaluate, to_csv, to_json

__all__ = [
    "NOT_REPRODUCED",
    "NOT_TESTABLE",
    "QUANTITIES",
    "REFUTED",
    "REPRODUCED",
    "UNKNOWN",
    "VERDICTS",
    "ClaimsFile",
    "Claim",
    "ClaimsError",
    "Judgement",
    "Evidence",
    "Subject",
    "Verdict",
    "counts",
    "evaluate",
    "load",
    "to_csv",
    "to_json",
    "missing",
]
