"""How a published figure arose: the mechanism of a claim."""

from __future__ import annotations

from analysis.claims.comparisons import Speedup
from analysis.claims.figures import AbsoluteTime, Restates, Throughput
from analysis.claims.ledger import Book, Claim
from analysis.claims.over_length import Growth
from analysis.claims.vocabulary import NOT_REPRODUCED, REFUTED, REPRODUCED, UNKNOWN


def mechanism(book: Book, claim: Claim, verdict: str) -> str | None:
    """The claim's own mechanism, else that of the figure it restates, else that of its system.

    The system's is that of its times. None of a claim that is reproduced; one that does not hold
    has `UNKNOWN` at the least.
    """
    if verdict == REPRODUCED:
        return None
    found = _stated(book, claim)
    return UNKNOWN if found is None and verdict in (REFUTED, NOT_REPRODUCED) else found


def _stated(book: Book, claim: Claim) -> str | None:
    if claim.mechanism is not None:
        return claim.mechanism
    match claim.predicate:
        case Restates(of=other):
            return _stated(book, book.claims[other])
        case Growth(quantity="memory"):
            return None
        case (
            AbsoluteTime(system=name)
            | Throughput(system=name)
            | Speedup(system=name)
            | Growth(system=name)
        ):
            return book.systems[name].mechanism
    return None
