"""Records of cards that were never there: the `gpu` tier of every grid, whole or in part.

A time is a start-up and the useful FLOPs over a rate that suits the system, the type and the card;
what no card could do is out of memory, out of time or unsupported, as it would be. Everything else
of a record is that of `tests.analysis.synthetic`. They say nothing about any real system.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from experiments import grid, rounds
from experiments.case import Case
from experiments.cost.pairs import dense_pairs, whole_pairs
from experiments.cost.pairs import useful_flops as flops_of
from experiments.machine import Host, Machine
from models.registry import VARIANTS
from tests.analysis import synthetic, synthetic_ranks, synthetic_replicas

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card and its host; `speed` is over that of an H100, the ceilings are those of float16."""

    machine: Machine
    speed: float
    matmul: float
    copy: float

    @property
    def id(self) -> str:
        return self.machine.id


def _card(name: str, memory: int, speed: float, matmul: float, copy: float) -> Card:
    cpu, system = "Intel(R) Xeon(R) Platinum 8480+", "Linux 5.15.0 x86_64"
    host = Host(6, 143, 8, {"L2": 2**21}, "4567cdef")
    machine = Machine(host, name, "cuda", "570.86.15", cpu, 16, 128 * GIB, memory * GIB, system)
    return Card(machine, speed, matmul, copy)


H100 = _card("NVIDIA H100 80GB HBM3", 80, 1.0, 7.1e14, 2.6e12)
H200 = _card("NVIDIA H200", 141, 1.06, 7.4e14, 3.9e12)
# Useful TFLOP/s of a long forward pass in float16, and milliseconds before any work is done.
RATES = {
    "dense": (380.0, 0.012),
    "dense-flash": (350.0, 0.012),
    "dense-cudnn": (430.0, 0.014),
    "dense-efficient": (190.0, 0.012),
    "dense-flex": (260.0, 0.06),
    "dense-eager": (38.0, 0.05),
    "dense-math": (30.0, 0.06),
    "dilated-triton": (220.0, 0.045),
    "dilated-gluon": (260.0, 0.045),
    "dilated-sdpa": (150.0, 0.19),
    "dilated-cudnn": (160.0, 0.19),
    "dilated-gather": (24.0, 0.62),
    "dilated-streamed": (140.0, 2.0),
    "dilated-streamed-mapped": (120.0, 2.0),
    "dilated-streamed-host": (130.0, 2.0),
    "head-partitioned": (150.0, 0.15),
    "multihead-dilated-gather": (30.0, 0.8),
    "multihead-dilated-sdpa": (160.0, 0.32),
    "block-sparse": (240.0, 0.03),
    "block-sparse-sdpa": (60.0, 0.3),
    "block-sparse-flex": (170.0, 0.09),
    "published-head-partition": (20.0, 1.1),
    "published-over-heads": (40.0, 0.25),
    "published-signed-sum": (60.0, 0.3),
    "published-block-sums": (9.0, 3.0),
    "published-dense-ring": (38.0, 0.05),
}
RING = (330.0, 0.05)  # of any kind and by anybody
# Half the rate is reached at this many FLOPs: a short case does not fill the card.
HALF = 6e9
# Without tensor cores; and what training costs over a forward pass at the rate of one.
SLOWER = {"float32": 8.0, "float16": 1.0, "bfloat16": 1.0}
BACKWARD = 1.25
SAMPLES = 20
ABSENT = "the package {} is not installed (envs/cuda.txt)"


def median_ms(case: Case, card: Card) -> float:
    """The median that the samples of `case` are made to have."""
    rate, start = RATES.get(case.variant, RING)
    flops = useful_flops(case)
    rate *= 1e12 * card.speed / SLOWER[case.dtype] * flops / (flops + HALF)
    training = case.pass_ == "forward_backward"
    return (start + 1e3 * flops / rate * (BACKWARD if training else 1.0)) * (2.2 if training else 1)


@cache
def useful_flops(case: Case) -> int:
    """FLOPs of the pairs that the pattern needs, as the records count them."""
    return round(flops_of(case))


@cache
def density(case: Case) -> float:
    """Pairs over those of dense attention."""
    return whole_pairs(case) / dense_pairs(case)


def peak_bytes(case: Case) -> int:
    """Peak beyond the inputs: outputs, and all scores where they are written down."""
    item = 4 if case.dtype == "float32" else 2
    token = case.heads * case.head_dim * item
    shards = case.world_size or 1
    whole = case.batch * case.seq_len * token // shards
    if case.variant.startswith("dilated-streamed"):
        return 700 * 2**20
    scores = case.batch * case.heads * case.seq_len**2
    if case.variant in ("dense-eager", "dense-math", "published-dense-ring"):
        whole += 2 * scores * item
    elif "gather" in case.variant or case.variant.startswith("published"):
        whole += 6 * whole + round(2 * scores * density(case) * item)
    return whole * 4 if case.pass_ == "forward_backward" else whole + case.batch * 4096


def outcome(case: Case, card: Card) -> tuple[str, str | None]:
    """Status and reason on `card`, which is alone in its machine and has no other package."""
    variant, name = VARIANTS[case.variant], case.variant
    if case.is_spread and case.world_size > 1:
        return "unsupported", (
            f"{case.world_size} ranks need a GPU each, and here are 1; simulated ranks do not"
        )
    if name.startswith("dense-flash-attn"):
        package = name.removeprefix("dense-").removesuffix("-2")
        return "unsupported", f"{name.removeprefix('dense-')}: {ABSENT.format(package)}"
    if name.startswith("ring-flash-attn"):
        return "unsupported", f"{name}: {ABSENT.format('flash-attn')}"
    if name in ("dense-flash", "dense-cudnn") and case.dtype == "float32":
        return "unsupported", f"sdpa-{name.removeprefix('dense-')}: takes float16 and bfloat16"
    if variant.is_peer and case.pass_ == "forward_backward":
        return "failed", "gradient: relative error 1.10e-01 against the float64 oracle"
    if peak_bytes(case) > 0.95 * card.machine.device_memory_bytes:
        return "oom", f"CUDA out of memory. Tried to allocate {peak_bytes(case) / GIB:.2f} GiB."
    if name == "dilated-streamed" and max(case.segment_lengths) == 2**30:
        return "timeout", "over its limit of 300 s"
    return "ok", None


def record(case: Case, card: Card, number: int = 1) -> dict:
    """The record of `case` on `card` in a round."""
    status, reason = outcome(case, card)
    found = synthetic.record(case, "gpu", card.id, status, number)
    ok = status == "ok"
    share = 1 / SLOWER[case.dtype]
    found |= {
        "reason": reason,
        "realised_density": density(case) if ok else None,
        "useful_flops": useful_flops(case) if ok else None,
        "ceilings": {"matmul_flops_per_s": card.matmul * share, "copy_bytes_per_s": card.copy}
        if ok
        else None,
        "replicates": [_replicate(case, card)] if ok else [],
        "machine": card.machine.to_json(),
        "wall_s": 3.0 + 0.04 * median_ms(case, card),
    }
    found["software"] |= {
        "python": "3.12.3",
        "torch": "2.11.0+cu130",
        "cuda": "13.0",
        "triton": "3.6.0",
    }
    return found


CARD_UUIDS = [f"GPU-{place}a2b3c4d-1111-2222-3333-44444444444{place}" for place in range(8)]


def on_card(made: dict, place: int, slower: float) -> None:
    """Have a record be of one of several cards of its kind, which takes so many times as long."""
    for replicate in made["replicates"]:
        replicate["samples_ms"] = [slower * ms for ms in replicate["samples_ms"]]
        if replicate["source_ms"]:
            replicate["source_ms"] = [slower * ms for ms in replicate["source_ms"]]
    made["wall_s"] *= slower
    made["machine"] = {
        **made["machine"],
        "cards": [
            {
                "instance": None,
                "index": place,
                "uuid": CARD_UUIDS[place],
                "bus_id": f"00000000:{0x1B + place:02X}:00.0",
                "sm_mhz": 1980,
                "memory_mhz": 3201,
                "max_sm_mhz": 1980,
                "max_memory_mhz": 3201,
                "application_sm_mhz": None,
                "application_memory_mhz": None,
                "power_limit_w": 700.0,
                "ecc": True,
                "mig": False,
            }
        ],
    }


def _replicate(case: Case, card: Card) -> dict:
    rng = np.random.default_rng([case.seq_len, case.batch, len(case.variant), len(card.id)])
    median, memory = median_ms(case, card), peak_bytes(case)
    half = np.sort(rng.gamma(2.0, 0.004, SAMPLES // 2)) * median
    samples = np.concatenate([median - half, [median], median + 2 * half])
    streamed = case.variant.startswith("dilated-streamed")
    replica = synthetic_replicas.is_replica(case)
    return {
        "samples_ms": [float(s) for s in rng.permutation(samples)],
        "source_ms": [float(s) / 4 for s in samples] if streamed else None,
        "peak_memory_bytes": memory,
        "energy_j": None,
        "ranks": synthetic_ranks.of(case, median, memory) if case.world_size else None,
        "calls": synthetic_replicas.calls(case, median, memory) if replica else None,
    }


def write(root: Path, chosen: Iterable[tuple[str, Case]], card: Card, count: int) -> None:
    """Write the records of (experiment, case) under `root/<machine>`, in `count` rounds.

    Our own systems that failed are left out, as they may not be published.
    """
    for case in dict.fromkeys(case for _, case in chosen):
        for number in range(1, count + 1):
            made = record(case, card, number)
            if made["status"] == "failed" and not VARIANTS[case.variant].is_peer:
                continue
            path = rounds.path_of(root, card.id, synthetic.round_name(number), case)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made))
    synthetic.vouch(root)


def whole() -> list[tuple[str, Case]]:
    """(experiment, case) of all that the `gpu` tiers hold."""
    return [(name, case) for name in grid.names() for case in synthetic.cases(name, "gpu")]


def half_full(count: int = 120) -> list[tuple[str, Case]]:
    """The first `count` cases when the experiments take turns, as in a campaign cut short.

    Every ninth is lost as well: a hole in a series, or a baseline that is not there.
    """
    turns = [[(name, case) for case in synthetic.cases(name, "gpu")] for name in grid.names()]
    mixed = (one for turn in itertools.zip_longest(*turns) for one in turn if one is not None)
    return [one for place, one in enumerate(itertools.islice(mixed, count)) if place % 9 != 4]
