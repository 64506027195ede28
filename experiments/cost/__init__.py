"""What a case will cost, in seconds of the device, before anything runs: no torch is imported.

Useful FLOPs over an expected rate, or bytes over the expected bandwidth; what processes take to
start, what the check recomputes, passes that are not timed, then the samples that the limits ask
for. The rates are data: `rates.yaml`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.case import Case
from experiments.cost import training
from experiments.cost.pairs import (
    attention_flops,
    dense_pairs,
    pairs,
    projection_flops,
    useful_flops,
    whole_pairs,
)
from experiments.cost.rates import Device, Family, device
from experiments.grid import Limits
from experiments.training.case import TrainingCase
from experiments.warm_up import LONG_MS, WARM_UP_MS
from models.registry import VARIANTS

__all__ = ["Cost", "input_bytes", "reference_device", "seconds", "total", "useful_flops"]

_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# Tokens of a chunk on a GPU, at least: `experiments.procedures.streamed`.
_CUDA_CHUNK = 2**18


@dataclass(frozen=True)
class Cost:
    """Expected seconds of a case, by part, cut off at its limit.

    start_up: processes, compiling and inputs. reference: the oracle and the ceilings. untimed:
    measuring memory, checking and warming up, and trainings. samples: what is timed. status: how
    the case is expected to end. pass_ms: one timed pass, NaN where there is none. device: whose
    rates it used.
    """

    start_up: float
    reference: float
    untimed: float
    samples: float
    status: str
    pass_ms: float
    device: str

    @property
    def total(self) -> float:
        return self.start_up + self.reference + self.untimed + self.samples


def input_bytes(case: Case) -> int:
    """What the queries, keys and values of a case take in memory; 0 where they are streamed."""
    if VARIANTS[case.variant].is_streamed:
        return 0
    heads = case.heads + 2 * case.kv_heads
    return case.batch * case.seq_len * heads * case.head_dim * _ITEM_BYTES[case.dtype]


def total(costs: Iterable[Cost]) -> float:
    """Seconds of all of them, one after another."""
    return math.fsum(cost.total for cost in costs)


def reference_device(kind: str) -> str:
    """The device whose rates stand for those of its kind that are not known."""
    return device(kind).names[0]


def seconds(
    case: Case,
    limits: Limits,
    device_kind: str,
    device_name: str = "",
    *,
    replicates: int | None = None,
    cores: int | None = None,
    cards: int = 1,
) -> Cost:
    """The expected cost of `case` measured within `limits` on a device.

    device_kind: "cpu" or "cuda"; device_name: as its machine calls it. A device that the rates do
    not know is taken for the reference device of its kind, which `Cost.device` names.
    replicates: fresh processes, None for those of the limits. cores: of a CPU, None for those here.
    cards: of a GPU's kind, over which ranks are spread.
    """
    rates = device(device_kind, device_name)
    name = rates.names[0]
    family = rates.family(case.variant)
    units = _cores(cores) if device_kind == "cpu" else cards if case.is_spread else 1
    few = case.is_spread and case.world_size > units
    if family is None or case.dtype not in family.gflops or few:
        start = 2 * rates.process_s if device_kind == "cuda" else rates.process_s
        return Cost(start, 0.0, 0.0, 0.0, "unsupported", math.nan, name)
    replicates = limits.replicates if replicates is None else replicates
    if isinstance(case, TrainingCase):
        *parts, step = training.parts(case, limits, rates, units, replicates)
        one = Cost(*parts, "ok", 1e3 * step, name)
    else:
        one = _Model(case, limits, rates, family, units).cost(replicates, name)
    return _bounded(one, limits)


def _bounded(cost: Cost, limits: Limits) -> Cost:
    """Cut off at the limit of the case, its last parts first."""
    if cost.total <= limits.timeout_s:
        return cost
    left, parts = limits.timeout_s, []
    for part in (cost.start_up, cost.reference, cost.untimed, cost.samples):
        parts.append(min(part, left))
        left -= parts[-1]
    return Cost(*parts, cost.status, cost.pass_ms, cost.device)


def _cores(given: int | None) -> int:
    return given or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Model:
    case: Case
    limits: Limits
    rates: Device
    family: Family
    cores: int

    def cost(self, replicates: int, name: str) -> Cost:
        variant = VARIANTS[self.case.variant]
        start = (1 + replicates) * self._process_s() + self._compile_s(replicates)
        if self._is_out_of_memory():
            # The oracle's rows fit; the first replicate ends at its first pass.
            reference = self._reference_s() + self.rates.ceilings_s
            start = 2 * self._process_s()
            return Cost(start, reference, 0.0, 0.0, "oom", math.nan, name)
        once = self.pass_s()
        reference = self._reference_s() + self.rates.ceilings_s
        if variant.is_streamed:
            once_in_source = self._source_s()
            short = min(1.0, 2 * self._chunk() / self.case.seq_len)
            untimed = short * (once + once_in_source)
            # A sample goes by without the time in its source, which is waited for all the same.
            samples = self._samples_s(once) * (1 + once_in_source / once)
            reference += self._own_keys_s()
        else:
            passes, samples = self._untimed_passes(), self._samples_s(once)
            untimed = passes * once + self._warm_up_s(once)
            if variant.replica_of:
                # How it deviates: the pass again, with other values and causal.
                reference += 6 * once
        untimed *= replicates
        fits = start / (1 + replicates) + reference + untimed / replicates + samples
        status = "ok" if fits <= self.limits.timeout_s else "timeout"
        return Cost(start, reference, untimed, replicates * samples, status, 1e3 * once, name)

    def pass_s(self) -> float:
        """Seconds of one pass as timed."""
        case, rates, family = self.case, self.rates, self.family
        rate = 1e9 * family.gflops[case.dtype] * self._units()
        rate *= family.causal if case.is_causal else 1.0
        rate *= family.backward if self._is_training else 1.0
        rate *= (
            family.wide if case.head_dim > 64 else min(1.0, (case.head_dim / 64) ** rates.narrow)
        )
        spent = attention_flops(case) / rate
        traffic = self._computed_pairs() * family.bytes_per_pair
        traffic += self._numbers() * family.bytes_per_number
        spent = max(spent, (1 + 2 * self._is_training) * traffic / self._bandwidth())
        matmul = 1e9 * rates.matmul_gflops[case.dtype] * self._units()
        return spent + projection_flops(case) / matmul + 1e-3 * family.call_ms

    @property
    def _is_training(self) -> bool:
        return self.case.pass_ == "forward_backward"

    def _units(self) -> int:
        """Cores at work, or cards."""
        return min(self.cores, self.case.world_size) if self.case.is_spread else self.cores

    def _bandwidth(self) -> float:
        return 1e9 * self.rates.copy_gb

    def _numbers(self) -> int:
        case = self.case
        ranks = case.world_size if case.simulated else 1
        return case.batch * case.seq_len * case.heads * case.head_dim // ranks

    def _computed_pairs(self) -> float:
        """Pairs whose scores are written down, in which the masked half of causal ones counts."""
        case = self.case
        whole = dense_pairs(case) if VARIANTS[case.variant].takes is None else pairs(case)
        return case.batch * whole * (2 if case.is_causal else 1)

    def _is_out_of_memory(self) -> bool:
        held = self.family.held_backward if self._is_training else self.family.held_per_pair
        size = _ITEM_BYTES[self.case.dtype] / (4 if self.rates.kind == "cpu" else 2)
        return self._computed_pairs() * held * size > self.rates.memory_gib * 2**30

    def _process_s(self) -> float:
        """A process with its inputs: a fork, a device's context, random numbers."""
        spent = self.rates.process_s + self.rates.backward_s * self._is_training
        if self.case.is_spread:
            spent += self.rates.group_s * self.case.world_size
        if VARIANTS[self.case.variant].is_streamed:
            return spent
        case = self.case
        values = case.batch * case.seq_len * case.heads * case.head_dim
        return spent + (3 + self._is_training) * values / self.rates.normals_per_s

    def _compile_s(self, replicates: int) -> float:
        forms = 2 if self._is_training else 1
        return forms * (self.family.compile_s + (replicates - 1) * self.family.again_s)

    def _reference_s(self) -> float:
        """The oracle of the sampled rows, twice, and dense attention beside it."""
        case = self.case
        variant = VARIANTS[case.variant]
        if variant.is_streamed:
            return 0.0
        batch = case.batch
        if variant.replica_of:
            batch = min(batch, max(1, 2**15 // case.seq_len))
        rows = min(case.seq_len, max(16, min(64, 2**20 // case.seq_len)))
        scores = batch * rows * case.seq_len * case.heads
        spent = (3 + 3 * self._is_training) * scores / self.rates.scores_per_s
        if variant.replica_of:
            # Its formula in float64, of all rows.
            share = batch / case.batch
            rate = 1e9 * self.rates.matmul_gflops["float64"] * self.cores / 4
            spent += share * attention_flops(case) / rate
        return spent

    def _untimed_passes(self) -> float:
        """Passes that each replicate makes before the first that is timed, or after the last."""
        case = self.case
        if VARIANTS[case.variant].replica_of:
            return 4
        passes = 1 + self._is_training
        if case.simulated and case.world_size > 1:
            # All ranks once for the check and once to be counted.
            whole = whole_pairs(case) / pairs(case)
            passes += (2 + self._is_training) * whole
        elif case.simulated:
            passes += 2 + self._is_training
        return passes

    def _warm_up_s(self, once: float) -> float:
        """Seconds of the passes before the timed ones: see `experiments.warm_up`."""
        if self.rates.kind == "cuda" and not self.case.is_spread:
            return self.rates.warm_ups * once
        return 0.0 if once >= 1e-3 * LONG_MS else max(once, 1e-3 * WARM_UP_MS)

    def _samples_s(self, once: float) -> float:
        """Seconds of the timed passes of one replicate."""
        limits = self.limits
        least, most = limits.min_samples * once, limits.max_samples * once
        wanted = limits.sample_seconds + 0.5 * once
        return max(least, min(most, wanted)) + 1e-3 * self.rates.flush_ms * limits.max_samples

    def _chunk(self) -> int:
        case = self.case
        shorter = [w for w in case.segment_lengths if w < case.seq_len]
        least = min(case.seq_len, math.lcm(*shorter) if shorter else 32768)
        return least if self.rates.kind == "cpu" else least * max(1, _CUDA_CHUNK // least)

    def _source_s(self) -> float:
        """Seconds that a pass waits for its source."""
        case = self.case
        source = VARIANTS[case.variant].options["source"]
        values = 3 * case.batch * case.seq_len * case.heads * case.head_dim
        resident = any(self._chunk() % w for w in case.segment_lengths)
        spent = (1 + resident) * values / self.rates.generated_per_s
        if source == "generated":
            return spent
        # Read from memory or a file, and over the bus.
        return values * _ITEM_BYTES[case.dtype] / (1e9 * min(self.rates.copy_gb, 10))

    def _own_keys_s(self) -> float:
        """Blocks of the source that hold a key of a sampled row are read once, in float64 terms."""
        case = self.case
        rows = min(case.seq_len, max(16, min(64, 2**20 // case.seq_len)))
        reach = max(case.segment_lengths)
        tokens = min(case.seq_len, rows * max(32768, reach))
        values = 3 * case.batch * tokens * case.heads * case.head_dim
        keys = rows * sum(
            w // r for w, r in zip(case.segment_lengths, case.dilation_rates, strict=True)
        )
        scores = 2 * keys * case.heads / self.rates.scores_per_s
        return values / self.rates.generated_per_s + scores
