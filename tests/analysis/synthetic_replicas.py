"""Replicas for synthetic records: far from attention, by known numbers."""

from __future__ import annotations

from experiments.case import Case
from models.registry import VARIANTS

# MiB more that the first call in a process takes, and how many times as long.
WORKSPACE, COLD = 8.125, 3.0
# Of each replica: relative rms from the exact system, rows of zeros, weight sums, changes.
KNOWN = {
    "published-head-partition": (0.86, 0.375, 1 / 3, 1 / 3, 0.26, 0.0),
    "published-over-heads": (1.4, 0.375, 1 / 3, 1 / 3, 0.0, 0.0),
    "published-signed-sum": (None, 0.59, 1e-4, 2e-3, 2.5, 239.0),
    "published-block-sums": (3.2, 0.0, 4.0, 7.0, 1.5, 2.4),
    "published-dense-ring": (0.93, 0.0, 1.0, 1.0, 0.4, 0.0),
}


def is_replica(case: Case) -> bool:
    return VARIANTS[case.variant].replica_of is not None


def deviation(case: Case) -> dict:
    """The record's `deviation`."""
    rms, zeros, low, high, others, future = KNOWN[case.variant]
    return {
        "variant": VARIANTS[case.variant].replica_of,
        "max_abs": None if rms is None else 4 * rms,
        "relative_rms": rms,
        "zero_rows": zeros,
        "weight_sum_low": low,
        "weight_sum_high": high,
        "of_other_tokens": others,
        "of_future_tokens": future,
    }


def calls(case: Case, median_ms: float, memory: int) -> dict:
    """The `calls` of a replicate: the output is all that is left."""
    item = 2 if case.dtype == "float16" else 4
    return {
        "first_ms": COLD * median_ms,
        "first_peak_bytes": memory + int(WORKSPACE * 2**20),
        "second_peak_bytes": memory,
        "kept_bytes": case.batch * case.seq_len * case.heads * case.head_dim * item,
        "dropped_bytes": 0,
    }
