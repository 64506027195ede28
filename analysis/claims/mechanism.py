"""How a published figure arose: the mechanism of a claim."""

from __future__ import annotations

from analysis.claims.claim import Claim, ClaimsFile
from analysis.claims.comparisons import Speedup
from analysis.claims.growth import Growth
from analysis.claims.schema import FAILS, HOLDS, UNKNOWN
from analysis.claims.stated_numbers import AbsoluteTime, Restates, Throughput


def mechanism(claims_file: ClaimsFile, claim: Claim, verdict: str) -> str | None:
    """The claim's own mechanism, else that of the figure it restates, else that of its system.

    A system's mechanism explains its times, not its memory. None where the method does the same;
    `UNKNOWN` where it does not, by `verdict`, and there is none of the three.
    """
    if verdict == HOLDS:
        return None
    found = _stated(claims_file, claim)
    return UNKNOWN if found is None and verdict == FAILS else found


def _stated(claims_file: ClaimsFile, claim: Claim) -> str | None:
    if claim.mechanism is not None:
        return claim.mechanism
    match claim.predicate:
        case Restates(of=other):
            return _stated(claims_file, claims_file.claims[other])
        case Growth(quantity="memory"):
            return None
        case (
            AbsoluteTime(system=name)
            | Throughput(system=name)
            | Speedup(system=name)
            | Growth(system=name)
        ):
            return claims_file.systems[name].mechanism
    return None
