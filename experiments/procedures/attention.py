"""Attention on one device: run once untimed for memory and the check, then time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments import check, measure
from experiments.case import Case
from experiments.workload import build
from models.errors import UnsupportedBackend


def make_reference(case: Case, device: str, reference: Path, kept: Callable = check.anew) -> dict:
    """Write the oracle's rows for `case` to `reference`; what is known of it before it is timed.

    Fields of the record: realised_density, useful_flops, and backend, or `unsupported`, the reason
    why no backend can, before any work. kept: as of `check.write_reference`.
    """
    measure.prepare(device)
    work = build(case, device)
    known = {"realised_density": work.density(), "useful_flops": work.useful_flops()}
    try:
        known["backend"] = work.backend()
    except UnsupportedBackend as error:
        return {**known, "unsupported": str(error)}
    check.write_reference(work, reference, kept)
    return known


def replicate(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """One replicate: `measure.take_samples`, "peak_memory_bytes" and "error"; CheckFailed if wrong.

    limits: min_samples, max_samples, sample_seconds of `grid.Limits`.
    """
    measure.prepare(device)
    work = build(case, device)
    out, peak = measure.peak_memory(work.step, device)
    error = check.compare_whole(work, out, reference)
    del out
    return {
        **measure.take_samples(work.step, device, limits),
        "peak_memory_bytes": peak,
        "error": error,
    }
