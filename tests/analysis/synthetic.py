"""Schema-valid records with known times: what the analysis is tested and developed against.

Times follow `scale * offset_power(n)` with seeded noise; they say nothing about any real system.
Rounds differ by COMMON in all cases and by at most OWN in each, so that ratios vary less than
times. The second is exact, and so are the geometric mean and the median of all three.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from experiments import grid, rounds, trusted
from experiments.case import Case
from experiments.cost.pairs import dense_pairs, useful_flops, whole_pairs
from experiments.machine import Host, Machine
from experiments.provenance import command
from experiments.record import SCHEMA_VERSION
from tests.analysis import synthetic_ranks, synthetic_replicas

# Milliseconds at 1024 tokens and growth of each variant on the synthetic CPU; block-sparse ones are
# of no sparsity, and have a fixed cost of FIXED.
SPEED = {
    "dense": (12.0, 2.0),
    "dilated-gather": (30.0, 1.6),
    "dilated-sdpa": (9.0, 1.55),
    "dilated-triton": (6.0, 1.55),
    "dilated-streamed": (10.0, 1.0),
    "dilated-streamed-mapped": (11.0, 1.0),
    "dilated-streamed-host": (10.5, 1.0),
    "head-partitioned": (4.0, 1.5),
    "multihead-dilated-gather": (36.0, 1.55),
    "multihead-dilated-sdpa": (15.0, 1.5),
    "block-sparse": (15.0, 2.0),
    "block-sparse-sdpa": (18.0, 2.0),
    "block-sparse-flex": (24.0, 2.0),
    "dense-flash": (12.0, 2.0),
    "dense-efficient": (14.0, 2.0),
    "dense-cudnn": (10.0, 2.0),
    "dense-math": (40.0, 2.0),
    "dense-eager": (36.0, 2.0),
    "dense-flex": (16.0, 2.0),
    "dense-flash-attn-2": (9.5, 2.0),
    "dense-flash-attn-4": (8.0, 2.0),
    "ring-block-sparse": (15.0, 2.0),
    "ring-block-sparse-dilated": (15.0, 2.0),
    "ring-dilated": (9.0, 1.55),
    "distributed-dilated": (10.0, 1.55),
    "multihead-ring-dilated": (15.0, 1.55),
    "published-head-partition": (20.0, 1.0),
    "published-over-heads": (1.5, 1.0),
    "published-signed-sum": (2.0, 1.0),
    "published-block-sums": (20.0, 1.0),
    "published-dense-ring": (36.0, 2.0),
}
RING = (12.5, 2.0)  # dense, in any order and by anybody
# Milliseconds at no length at all: block-sparse attention meets dense attention at 2008, 1912 and
# 1862 tokens (90, 95, 98 %).
FIXED = {"block-sparse": 40.0, "block-sparse-sdpa": 50.0, "block-sparse-flex": 30.0}
_HOST = Host(6, 143, 8, {"L2": 2**21}, "4567cdef")
_PROCESSOR, _SYSTEM, _GIB = "Maker(R) Model(TM) CPU @ 2.0GHz", "Linux-x86_64", 2**30
_AROUND = (_PROCESSOR, 2, 16 * _GIB, 16 * _GIB, _SYSTEM)
MACHINES = (
    Machine(_HOST, _PROCESSOR, "cpu", None, *_AROUND),
    Machine(_HOST, "A Big GPU", "cuda", "570.1", _PROCESSOR, 16, 16 * _GIB, 139 * _GIB, _SYSTEM),
)
CPU, GPU = (machine.id for machine in MACHINES)
CEILINGS = {
    "cpu": {"matmul_flops_per_s": 2e11, "copy_bytes_per_s": 1.2e10},
    "cuda": {"matmul_flops_per_s": 2e13, "copy_bytes_per_s": 1.2e12},
}
CPU_NAME = "2-core Maker Model"
ROUNDS, SAMPLES = 3, 7
# Logs: of all cases in each round, and the largest of one case.
COMMON, OWN = (-0.02, 0.0, 0.02), 0.005
# Of a streamed pass: its peak at any length, and its time in the source over that without.
STREAM_BYTES, SOURCE_SHARE = 300 * 2**20, 0.25


def median_ms(case: Case, machine: str) -> float:
    """The median that the samples of `case` are made to have."""
    scale, power = SPEED.get(case.variant, RING)
    if case.sparsity is not None and not synthetic_replicas.is_replica(case):
        scale *= 1 - case.sparsity
    time = FIXED.get(case.variant, 0.3)
    time += scale * (case.seq_len / 1024) ** power * case.batch * case.heads / 8
    time /= (case.world_size or 1) ** synthetic_ranks.GAIN
    if case.pass_ == "forward_backward":
        time *= 3.1
    return time / 40 if machine == GPU else time


def cases(experiment: str, tier: str) -> tuple[Case, ...]:
    """The cases of a tier of the real grid."""
    return grid.load(experiment).tiers[tier].cases


def round_name(number: int) -> str:
    """The folder of a round, from 1."""
    return f"2026-01-0{number}T030405Z"


def effect(case: Case, number: int) -> float:
    """Log of what a round makes of the time of a case; 0 over ROUNDS."""
    rng = np.random.default_rng([case.seq_len, len(case.name)])
    return COMMON[number - 1] + float((number - 2) * OWN * (2 * rng.random() - 1))


def record(case: Case, tier: str, machine: str, status: str = "ok", number: int = 1) -> dict:
    """The record of `case` in a round, from 1; a status other than ok has no samples."""
    rng = np.random.default_rng([case.seq_len, case.batch, len(case.variant), machine == GPU])
    kind = "cuda" if machine == GPU else "cpu"
    ok = status == "ok"
    tokens = case.batch * case.seq_len
    eps = {"float32": 1.2e-7, "float16": 4.9e-4, "bfloat16": 3.9e-3}[case.dtype]
    own = eps * (0.9 + 0.2 * rng.random())
    agreement = {"max_abs": 9 * own, "relative_rms": own * 1.15, "baseline_relative_rms": own}
    training = case.pass_ == "forward_backward"
    memory = tokens * case.heads * case.head_dim * 4 * (8 if "gather" in case.variant else 2)
    if case.variant.startswith("dilated-streamed"):
        memory = STREAM_BYTES
    if case.world_size:
        memory = memory // case.world_size + synthetic_ranks.FIXED_BYTES
    memory = int(memory * (1 + 0.002 * (number - 1)))
    time = median_ms(case, machine) * math.exp(effect(case, number))
    return {
        "schema_version": SCHEMA_VERSION,
        "tier": tier,
        "variant": case.variant,
        "case": case.to_json(),
        "status": status,
        "reason": None if ok else f"{status} on purpose",
        "backend": case.variant.split("-")[-1] if ok else None,
        "realised_density": whole_pairs(case) / dense_pairs(case),
        "useful_flops": round(useful_flops(case)),
        "ceilings": CEILINGS[kind] if ok else None,
        "replicates": [_replicate(case, time, memory, rng)] if ok else [],
        "error": {
            "reference": "float64 oracle",
            "rows_checked": min(64, case.seq_len),
            "output": agreement,
            "gradient": {k: 1.3 * v for k, v in agreement.items()} if training else None,
        }
        if ok
        else None,
        "deviation": synthetic_replicas.deviation(case)
        if ok and synthetic_replicas.is_replica(case)
        else None,
        "machine": MACHINES[machine != CPU].to_json(),
        "software": {
            "python": "3.11.9",
            "numpy": "2.4.6",
            "torch": "2.13.0",
            "cuda": "13.0" if machine == GPU else None,
            "triton": None,
            "flash_attn": None,
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "git_dirty": False,
            "code_digest": "feedface" * 2,
        },
        "started_at": f"2026-01-0{number}T03:04:05Z",
        # All samples, a first call and what is not timed.
        "wall_s": 3.0 + 0.02 * time,
        "command": command(tier, case),
    }


def place(root: Path, record: dict, number: int = 1) -> Path:
    """Where a record lies under `root`, in a round from 1; its folder is made."""
    case = Case.from_mapping({"variant": record["variant"], **record["case"]})
    path = rounds.path_of(root, record["machine"]["id"], round_name(number), case)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(root: Path, experiment: str, tier: str = "laptop", failed=None) -> Path:
    """Write a tier's records of ROUNDS under `root/<machine>`, on the machine for that tier.

    `failed` maps (variant, seq_len) to a status, or is the status of all. A case that another
    experiment has too stays failed. Returns `root`.
    """
    machine = GPU if tier == "gpu" else CPU
    for case in cases(experiment, tier):
        status = failed
        if not isinstance(failed, str):
            status = (failed or {}).get((case.variant, case.seq_len), "ok")
        for number in range(1, ROUNDS + 1):
            path = rounds.path_of(root, machine, round_name(number), case)
            if path.exists() and status == "ok":
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(record(case, tier, machine, status, number=number), indent=1)
            )
    return vouch(root)


def vouch(root: Path) -> Path:
    """Vouch for all rounds as they are now, where they lie in a folder of published ones."""
    if root.name == "published":
        folders = (path.parts[-2:] for path in root.glob("*/*/"))
        trusted.add(root, folders, "nobody real")
    return root


def write_all(root: Path) -> Path:
    """A CPU and a GPU machine, all experiments, with points out of memory and out of time."""
    write(root, "comprehensive", failed={("dilated-gather", 8192): "timeout"})
    write(root, "dilated")
    write(root, "comprehensive", "gpu", {("dilated-gather", 131072): "oom"})
    failed = {("dense", 131072): "timeout", ("dilated-gather", 131072): "oom"}
    write(root, "dilated", "gpu", failed)
    write(root, "block_sparse")
    write(root, "block_sparse", "gpu", {("dense", 1048576): "timeout"})
    peers = ("ring-attention-pytorch", "ring-flash-attn-zigzag")
    write(root, "ring", failed={(peer, 4096): "unsupported" for peer in peers})
    write(root, "ring", "gpu", {("dense", 131072): "timeout"})
    write(root, "extreme")
    write(root, "extreme", "gpu", {("dense", 1048576): "timeout"})
    absent = {("dense-flash-attn-2", 2048): "unsupported", ("dense-cudnn", 2048): "unsupported"}
    write(root, "backends", failed=absent)
    write(root, "backends", "gpu", {("dense-eager", 32768): "oom"})
    write(root, "as_published")
    write(root, "as_published", "gpu", {("published-dense-ring", 16384): "oom"})
    write(root, "memory")
    write(root, "memory", "gpu", {("dense-eager", n): "oom" for n in (65536, 131072)})
    return root


def _replicate(case: Case, median: float, memory: int, rng: np.random.Generator) -> dict:
    # Symmetric offsets around the median: it is exact.
    half = np.sort(rng.gamma(2.0, 0.01, SAMPLES // 2)) * median
    samples = np.concatenate([median - half, [median], median + 2 * half])
    streamed = case.variant.startswith("dilated-streamed")
    replica = synthetic_replicas.is_replica(case)
    return {
        "samples_ms": [float(s) for s in rng.permutation(samples)],
        "source_ms": [float(s) * SOURCE_SHARE for s in samples] if streamed else None,
        "peak_memory_bytes": memory,
        "energy_j": None,
        "ranks": synthetic_ranks.of(case, median, memory) if case.world_size else None,
        "calls": synthetic_replicas.calls(case, median, memory) if replica else None,
    }
