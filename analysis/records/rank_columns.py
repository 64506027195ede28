"""What the ranks of a record sent and waited for, as columns of the frame (`analysis.records`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from experiments.schema import Record

NAN = math.nan


def columns(record: Record) -> dict:
    """The columns of a record's ranks; NaN, and None as `ranks`, where it has none.

    ranks: the raw object of every rank of every replicate, as dicts with the number of the
    `replicate`. bytes_sent, messages_sent: the largest of any rank. measured_rank: of a simulated
    ring the one whose time and memory were measured. Other people's rings count nothing: NaN, not
    zero.
    compute_ms, wait_ms: of the slowest rank, and wait_share its wait over both; a median over
    replicates. They are NaN where nothing says: simulated ranks wait for nobody, other people's
    rings time no hops, and on a CUDA device the host sees launches only.
    """
    found = [
        {"replicate": number, **rank.model_dump()}
        for number, replicate in enumerate(record.replicates)
        for rank in replicate.ranks or ()
    ]
    ok = record.status == "ok" and bool(found)
    # Only our own rings time their hops, and only they count what they send.
    counted = ok and any(rank["compute_ms"] for rank in found)
    simulated = bool(record.case.simulated)
    timed = counted and not simulated and record.machine.device_kind == "cpu"
    slow = [slowest(ranks) for ranks in by_replicate(found)] if timed else []
    compute, wait = ([sum(rank[key]) for rank in slow] for key in ("compute_ms", "wait_ms"))
    shares = [w / (c + w) for c, w in zip(compute, wait, strict=True)]
    return {
        "ranks": found if ok else None,
        "measured_rank": _measured(found) if ok and simulated else NAN,
        "bytes_sent": float(max(r["bytes_sent"] for r in found)) if counted else NAN,
        "messages_sent": float(max(r["messages_sent"] for r in found)) if counted else NAN,
        "compute_ms": median(compute) if slow else NAN,
        "wait_ms": median(wait) if slow else NAN,
        "wait_share": median(shares) if slow else NAN,
    }


def _measured(ranks: Sequence[dict]) -> float:
    known = (rank["rank"] for rank in ranks if rank["peak_memory_bytes"] is not None)
    return float(next(known, NAN))


def by_replicate(ranks: Sequence[dict]) -> list[list[dict]]:
    """The ranks of each replicate."""
    found: dict[int, list[dict]] = {}
    for rank in ranks:
        found.setdefault(rank["replicate"], []).append(rank)
    return list(found.values())


def slowest(ranks: Sequence[dict]) -> dict:
    """The rank of one replicate that computed and waited longest."""
    return max(ranks, key=busy_ms)


def busy_ms(rank: dict) -> float:
    """Milliseconds that a rank computed or waited."""
    return sum(rank["compute_ms"]) + sum(rank["wait_ms"])
