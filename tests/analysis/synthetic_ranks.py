"""Ranks for synthetic records: what they send by a formula, what they wait a fixed share of."""

from __future__ import annotations

from analysis.records.units import ITEM_BYTES
from experiments.case import Case
from models.registry import VARIANTS

# Times as fast on p ranks: p to this power.
GAIN = 0.9
# Of a rank's time, what it waits; of what a dense ring sends, what another pattern does.
WAITING = 0.2
SENT = {"branches": 0.25, "blocks": 0.125, None: 1.0}
# What a process of its own holds, beside a share of the sequence in proportion.
FIXED_BYTES = 100_000


def is_counted(variant: str) -> bool:
    """Whether the variant counts what it sends: another's ring does not."""
    return VARIANTS[variant].module != "models.ring.peers"


def hop_bytes(case: Case) -> int:
    """Bytes of a shard's keys and values."""
    shard = case.batch * case.seq_len // case.world_size * case.kv_heads * case.head_dim
    return 2 * shard * ITEM_BYTES[case.dtype]


def of(case: Case, median_ms: float, memory: int) -> list[dict]:
    """The `ranks` of a replicate: each a little slower than the one before.

    Of simulated ones all are counted, and the memory of the last alone is measured.
    """
    return [_rank(case, rank, median_ms, memory) for rank in range(case.world_size)]


def _rank(case: Case, rank: int, median_ms: float, memory: int) -> dict:
    size, counted = case.world_size, is_counted(case.variant)
    passes = 3 if case.pass_ == "forward_backward" else 1
    sent = SENT[VARIANTS[case.variant].takes] * (size - 1) * hop_bytes(case) * passes
    busy = median_ms * (1 - 0.01 * (size - 1 - rank))
    waits = size > 1 and not case.simulated
    share = WAITING if waits else 0.0
    return {
        "rank": rank,
        "bytes_sent": int(sent) if counted else 0,
        "messages_sent": 2 * (size - 1) * passes if counted else 0,
        "agreement_bytes": 104 if counted else 0,
        "compute_ms": [busy * (1 - share) / size] * size if counted else [],
        "wait_ms": [busy * share / (size - 1)] * (size - 1) if waits and counted else [],
        "peak_memory_bytes": None if case.simulated and rank < size - 1 else memory,
    }
