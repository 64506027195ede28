"""The drift gauge: three fixed things, measured between the cases of a round.

What they take says how fast the machine is at that moment, whatever is measured: a case beside
which they take longer than usual was measured beside something else, and is measured again (no
training, see `disturbed`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

import torch

from experiments import ceilings, measure

# Heads, head size and tokens of the dense attention.
_HEADS, _HEAD_DIM = 8, 64
_TOKENS = {"cpu": 1024, "cuda": 8192}
DTYPE = {"cpu": "float32", "cuda": "float16"}
# A gauge that is further than this factor from the round's median is off. A copy is not judged:
# which pages a process is given makes it vary by two where nothing else runs.
BOUND, JUDGED = 1.25, ("dense_ms", "matmul_ms")
# Below this many gauges a round has no median to speak of.
_FEWEST = 6


def read(device: str) -> dict:
    """The record's gauge on `device` ("cpu" or "cuda"): ms, the best of a few repeats each."""
    measure.prepare(device)
    shape = (1, _HEADS, _TOKENS[device], _HEAD_DIM)
    dtype = getattr(torch, DTYPE[device])
    q = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def dense():
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    found = ceilings.rates_in_seconds(dtype, device)
    return {
        "dense_ms": 1e3 * ceilings.best_seconds(dense, device),
        "matmul_ms": 1e3 * found["matmul"],
        "copy_ms": 1e3 * found["copy"],
    }


def ceilings_beside(gauge: dict | None, dtype: str, device: str) -> dict | None:
    """A record's `ceilings`, where the gauge just read found them in its dtype; else None."""
    if gauge is None or dtype != DTYPE[device]:
        return None
    seconds = {key: gauge[f"{key}_ms"] / 1e3 for key in ("matmul", "copy")}
    return ceilings.of_seconds(seconds, device)


def medians(gauges: Iterable[dict]) -> dict | None:
    """The median of each of the three; None of few gauges."""
    gauges = list(gauges)
    if len(gauges) < _FEWEST:
        return None
    return {key: statistics.median(one[key] for one in gauges) for key in gauges[0]}


def is_off(gauge: dict, usual: dict) -> bool:
    """Whether one of those that are judged is further than BOUND from what is usual."""
    return any(abs(math.log(gauge[key] / usual[key])) > math.log(BOUND) for key in JUDGED)


def disturbed(records: Mapping[str, dict]) -> set[str]:
    """The names of those records of a round beside which a gauge is off; by the gauges alone.

    No trainings: what they learn does not depend on the machine's speed, and to time a few steps
    anew would be to train anew for a minute. Their gauges count in what is usual.
    """
    gauges = {name: [*one["gauges"].values()] for name, one in records.items() if one.get("gauges")}
    usual = medians(gauge for pair in gauges.values() for gauge in pair)
    if usual is None:
        return set()
    return {
        name
        for name, pair in gauges.items()
        if not (records[name].get("case") or {}).get("recipe")
        and any(is_off(one, usual) for one in pair)
    }
