"""Records as a GPU of the reference kind is expected to write them, before it is there.

Valid by the schema, times from `experiments.cost`; memory is the tensors of a pass, and the scores
where a system writes them down. Good for asking what could be judged from them, and no result.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from analysis.across import expected_trainings
from analysis.records.units import ITEM_BYTES
from experiments import cost
from experiments.case import Case
from experiments.cost.pairs import dense_pairs, pairs, useful_flops, whole_pairs
from experiments.digest import code_digest
from experiments.grid import Task
from experiments.record import SCHEMA_VERSION
from experiments.training.case import TrainingCase
from models.registry import VARIANTS

_EPS = {"float64": 2.2e-16, "float32": 1.2e-7, "float16": 4.9e-4, "bfloat16": 3.9e-3}
# Bytes of a score that is written down, by what writes it.
_SCORES = ("dense-eager", "dense-math", "published-dense-ring")
_SPREAD = (0.99, 0.995, 1.0, 1.005, 1.01)
_STREAM_BYTES = 1.3 * 2**30
_digest = cache(code_digest)


def expected_record(task: Task, seconds: float) -> dict:
    """The record of a task of the gpu tier, as a dictionary; seconds: its wall time."""
    case = task.case
    one = cost.seconds(case, task.limits, "cuda")
    ok, is_training = one.status == "ok", isinstance(case, TrainingCase)
    return {
        "schema_version": SCHEMA_VERSION,
        "tier": "gpu",
        "variant": case.variant,
        "case": case.to_json(),
        "status": one.status,
        "reason": None if ok else "expected",
        "backend": "expected" if ok else None,
        "realised_density": whole_pairs(case) / dense_pairs(case) if ok else None,
        "useful_flops": round(useful_flops(case)),
        "ceilings": {"matmul_flops_per_s": 6e14, "copy_bytes_per_s": 2.5e12} if ok else None,
        "replicates": [_replicate(case, one.pass_ms)] if ok else [],
        "error": _error(case) if ok else None,
        "deviation": _deviation(case) if ok and VARIANTS[case.variant].replica_of else None,
        "learning": expected_trainings.learning(case) if ok and is_training else None,
        "machine": _machine(one.device),
        "software": _SOFTWARE | {"code_digest": _digest(case.variant, task.procedure)},
        "started_at": datetime.now(UTC).isoformat(),
        "wall_s": seconds,
        "command": "python -m experiments round --tier gpu",
    }


def _replicate(case: Case, median_ms: float) -> dict:
    variant = VARIANTS[case.variant]
    is_training = isinstance(case, TrainingCase)
    samples = [median_ms * factor for factor in _SPREAD for _ in range(4)]
    memory = _memory(case)
    streamed = variant.is_streamed
    return {
        "samples_ms": samples,
        "source_ms": [0.1 * ms for ms in samples] if streamed else None,
        "peak_memory_bytes": memory,
        "ranks": _ranks(case, median_ms, memory) if case.world_size else None,
        "calls": _calls(case, median_ms, memory) if variant.replica_of else None,
        "trainings": expected_trainings.trainings(case, median_ms) if is_training else None,
    }


def _output_bytes(case: Case) -> int:
    ranks = case.world_size or 1
    numbers = case.batch * case.seq_len * case.heads * case.head_dim // ranks
    return numbers * ITEM_BYTES[case.dtype]


def _memory(case: Case) -> int:
    variant = VARIANTS[case.variant]
    if variant.is_streamed:
        return round(_STREAM_BYTES)
    held = _output_bytes(case) * (4 if variant.takes == "branches" else 2)
    held += 8 * case.batch * case.seq_len * case.heads
    if case.variant in _SCORES:
        held += 2 * ITEM_BYTES[case.dtype] * case.batch * case.heads * case.seq_len**2
    elif "gather" in case.variant:
        held += round(2 * ITEM_BYTES[case.dtype] * case.batch * pairs(case))
    return round(held * (2.5 if case.pass_ == "forward_backward" else 1))


def _ranks(case: Case, median_ms: float, memory: int) -> list[dict]:
    size = case.world_size
    of_shard = 2 * _output_bytes(case) * case.kv_heads // case.heads
    share = {"branches": 0.25, "blocks": 0.125, None: 1.0}[VARIANTS[case.variant].takes]
    return [
        {
            "rank": rank,
            "bytes_sent": round(share * (size - 1) * of_shard),
            "messages_sent": 2 * (size - 1),
            "agreement_bytes": 0,
            "compute_ms": [median_ms / size] * size,
            "wait_ms": [] if case.simulated else [0.0] * (size - 1),
            "peak_memory_bytes": memory if not case.simulated or rank == size - 1 else None,
        }
        for rank in range(size)
    ]


def _calls(case: Case, median_ms: float, memory: int) -> dict:
    return {
        "first_ms": 3 * median_ms,
        "first_peak_bytes": memory + round(8.125 * 2**20),
        "second_peak_bytes": memory,
        "kept_bytes": _output_bytes(case),
        "dropped_bytes": 0,
    }


def _error(case: Case) -> dict:
    eps = _EPS[case.dtype]
    has_own = VARIANTS[case.variant].has_exact_gradients
    is_backward = case.pass_ == "forward_backward" and has_own
    output = {"max_abs": 9 * eps, "relative_rms": eps, "baseline_relative_rms": eps}
    return {
        "reference": "expected",
        "rows_checked": 16,
        "output": output,
        "gradient": output if is_backward else None,
    }


def _deviation(case: Case) -> dict:
    return {
        "variant": VARIANTS[case.variant].replica_of,
        "max_abs": 3.0,
        "relative_rms": 0.9,
        "zero_rows": 0.0 if case.pattern or "ring" in case.variant else 0.375,
        "weight_sum_low": 0.5,
        "weight_sum_high": 3.0,
        "of_other_tokens": 0.0 if "over-heads" in case.variant else 0.4,
        "of_future_tokens": 0.1,
    }


def _machine(device: str) -> dict:
    return {
        "id": "expected-card",
        "host": None,
        "device": f"NVIDIA {device}",
        "device_kind": "cuda",
        "driver": "0",
        "cpu": "expected",
        "cores": 16,
        "memory_bytes": 128 * 2**30,
        "device_memory_bytes": 78 * 2**30,
        "system": "Linux",
    }


_SOFTWARE = {
    "python": "3.12",
    "numpy": "2.5",
    "torch": "2.11",
    "cuda": "13.0",
    "triton": "3.6",
    "flash_attn": None,
    "git_commit": None,
    "git_dirty": None,
}
