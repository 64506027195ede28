"""A replica: checked against its own formula, and how far that is from attention.

A replica computes what published code computed (`models.as_published`), so the oracle of the
system that it was named after is no check of it: its own formula in float64 is. The distance from
that oracle, and what distinguishes the two, goes into the record as `deviation`.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

# What a dispatch mode imports when it is first entered, 2 s: here it is before the forks.
import torch._dynamo
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments import check, measure
from experiments.case import Case
from experiments.workload import Workload, build
from models.registry import VARIANTS

# Tokens, over the batch, whose sampled rows are checked: of more sequences the first few.
_TOKENS_CHECKED = 2**15


def make_reference(case: Case, device: str, reference: Path, kept: Callable = check.anew) -> dict:
    """What `attention.make_reference` does, of the replica's formula; and `deviation`.

    ValueError unless the pass is "forward": the published code was timed on nothing else.
    """
    if case.pass_ != "forward":
        raise ValueError(f"pass={case.pass_!r}: expected forward, of a replica")
    measure.prepare(device)
    variant = VARIANTS[case.variant]
    replica = importlib.import_module(variant.module)
    work = build(case, device)
    pattern = {"branches": (case.segment_lengths, case.dilation_rates), "blocks": (work.pattern,)}
    pattern = pattern[variant.takes]
    few = _checked_batch(case)
    exact = build(replace(case, variant=variant.replica_of), device)
    exact = replace(exact, inputs=[x[:few] for x in work.inputs])
    check.write_reference(exact, reference, kept)
    # The oracle of the exact system gives way to the formula once the two are compared.
    found = torch.load(reference)
    rows = found["rows"]

    def formula() -> dict:
        options = {"is_causal": case.is_causal}
        out, condition = replica.formula(*exact.inputs, rows, *pattern, **options)
        return {"out": out, "baseline": condition * found["baseline"]}

    own = kept({"formula": variant.name, **case.to_json(), "device": device}, formula, device)
    deviation = _deviation(work, found["out"], rows)
    found |= own
    found["reference"] = f"replica's own formula in float64: {replica.FORMULA}"
    torch.save(found, reference)
    pairs = replica.pairs(case.seq_len, case.heads, *pattern, is_causal=case.is_causal)
    n = case.seq_len
    dense = case.heads * (n * (n + 1) // 2 if case.is_causal else n * n)
    return {
        "realised_density": pairs / dense,
        "useful_flops": 4 * case.head_dim * case.batch * pairs,
        "backend": replica.BACKEND,
        "deviation": deviation,
    }


def replicate(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """What `attention.replicate` returns, and "calls": the first calls come before all else."""
    work = build(case, device)
    calls = _first_calls(work, device)
    measure.prepare(device)
    calls |= _held(work)
    out, peak = measure.peak_memory(work.step, device)
    error = check.compare(case, out[: _checked_batch(case)], [], reference)
    del out
    samples = measure.take_samples(work.step, device, limits)
    return {**samples, "peak_memory_bytes": peak, "error": error, "calls": calls}


def _checked_batch(case: Case) -> int:
    return min(case.batch, max(1, _TOKENS_CHECKED // case.seq_len))


def _first_calls(work: Workload, device: str) -> dict:
    """Two identical calls of a process in which nothing has run yet but making the inputs."""
    taken = []

    def step():
        start = time.perf_counter()
        work.step()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))

    _, first = measure.peak_memory(step, device)
    _, second = measure.peak_memory(step, device)
    return {"first_ms": taken[0], "first_peak_bytes": first, "second_peak_bytes": second}


class _MadeStorages(TorchDispatchMode):
    """Knows the storages of all tensors that operations return, as long as anything holds them."""

    def __init__(self, given: list[torch.Tensor]):
        super().__init__()
        self._given = {x.untyped_storage()._cdata for x in given}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self._given:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        """Bytes of the storages that are still held."""
        return sum(size for held, size in self._made.values() if not held.expired())


def _held(work: Workload) -> dict:
    """Bytes alive after a call, with its output and without: the same on every device.

    Peak memory is what a call needs while it runs; the difference of what is allocated before and
    after is what it leaves behind, which is its output or nothing.
    """
    with _MadeStorages(work.inputs) as made:
        out = work.step()
    kept = made.alive()
    del out
    return {"kept_bytes": kept, "dropped_bytes": made.alive()}


def _deviation(work: Workload, expected: torch.Tensor, rows: torch.Tensor) -> dict:
    """The record's `deviation`, from `expected`, the exact system's rows in float64."""
    out = work.step()
    found = out[: len(expected), rows].double()
    error = found - expected
    q, k, v = work.inputs
    with torch.no_grad():
        ones = work.run(q, k, torch.ones_like(v)).float().mean(dim=-1)
    sums = ones[ones != 0]
    # None are left where a half-precision sum over the sequence overflows.
    ends = (sums.min(), sums.max()) if len(sums) else 2 * (torch.tensor(math.nan),)
    causal = build(replace(work.case, is_causal=True), str(q.device))
    causal = replace(causal, inputs=work.inputs)  # the same, and held once
    return {
        "variant": work.variant.replica_of,
        "max_abs": _finite(error.abs().max()),
        "relative_rms": _finite(error.square().mean().sqrt() / expected.square().mean().sqrt()),
        "zero_rows": (out == 0).all(dim=-1).double().mean().item(),
        "weight_sum_low": _finite(ends[0]),
        "weight_sum_high": _finite(ends[1]),
        "of_other_tokens": _change(work, 1),
        "of_future_tokens": _change(causal, work.case.seq_len // 2),
    }


def _change(work: Workload, start: int) -> float | None:
    """The largest change before position `start` when all from there on is drawn anew."""
    before = work.step()[:, :start]
    inputs = [x.clone() for x in work.inputs]
    generator = torch.Generator(inputs[0].device).manual_seed(work.case.seed + 1)
    for x in inputs:
        x[:, start:].normal_(generator=generator)
    after = replace(work, inputs=inputs).step()[:, :start]
    return _finite((after.float() - before.float()).abs().max())


def _finite(x: torch.Tensor) -> float | None:
    return x.item() if math.isfinite(x.item()) else None
