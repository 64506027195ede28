"""Checks the output and gradients of a case against the float64 oracle, before it is timed.

Sampled query rows of the very tensors that are timed, at O(rows x N). Allowed are twice the error
of dense attention in the same dtype on the same tensors, three times for gradients, or one unit in
the last place (eps of the dtype) where that is more: half precision rounds the output alone by a
third of it, and dense attention can be exact by chance.

The error of an output is that of its rows, each relative to its own size: a row is a mean of as
many values as it has keys, and smaller the more there are, so that relative to the size of all rows
dense attention would seem the more exact the longer the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from experiments.case import Case
from experiments.chunked_oracle import recompute
from experiments.workload import Workload

OUTPUT_ALLOWANCE = 2.0
GRADIENT_ALLOWANCE = 3.0
REFERENCE = "float64 oracle, softmax(S + log C) V"


class CheckFailed(Exception):
    """The output or a gradient is further from the oracle than allowed."""


@dataclass(frozen=True)
class Agreement:
    """Root mean squares of relative errors; `baseline` is dense attention's.

    Of an output `relative_rms_of_rows`, of a gradient `relative_rms`.
    """

    max_abs: float
    relative_rms: float
    baseline_relative_rms: float

    def ratio(self) -> float:
        """How many times dense attention's own error this is."""
        return self.relative_rms / max(self.baseline_relative_rms, 1e-30)


def sample_rows(seq_len: int, seed: int) -> torch.Tensor:
    """Sorted query positions to check: the first, the last and random ones between, (R,) int64."""
    count = max(16, min(64, 2**20 // seq_len))
    if seq_len <= count:
        return torch.arange(seq_len)
    generator = torch.Generator().manual_seed(seed)
    between = torch.randint(1, seq_len - 1, (count - 2,), generator=generator)
    return torch.cat([torch.tensor([0, seq_len - 1]), between]).unique()


def anew(what: dict, make: Callable[[], dict], device: str) -> dict:
    """References that are not kept: what `make()` returns."""
    return make()


def write_reference(work: Workload, path: Path, kept: Callable = anew) -> None:
    """Write to `path` what `compare` needs, once for all replicates of a case.

    kept: `experiments.references.References.get`, or what makes it anew each time.
    """
    rows = sample_rows(work.case.seq_len, work.case.seed).to(work.inputs[0].device)
    dtype = work.inputs[0].dtype

    @cache
    def exact(is_dense: bool):
        return recompute(work, rows, torch.float64, dense=is_dense)

    def on_pattern() -> dict:
        out, grads = exact(work.pattern is None)
        # In half precision they are 1e-4 apart: 1e-7 of rounding does not show, and each
        # replicate reads half the bytes, which at long sequences are gigabytes.
        return {"out": out, "grads": [x.float() if dtype.itemsize == 2 else x for x in grads]}

    def of_dense() -> dict:
        out, grads = recompute(work, rows, dtype, dense=True)
        exact_out, exact_grads = exact(True)
        return {
            "baseline": relative_rms_of_rows(out, exact_out),
            "grad_baselines": [
                relative_rms(*pair) for pair in zip(grads, exact_grads, strict=True)
            ],
        }

    device = work.inputs[0].device.type
    found = kept(work.identity(), on_pattern, device)
    found |= kept(work.identity(dense=True), of_dense, device)
    torch.save({"reference": REFERENCE, "rows": rows, **found}, path)


def compare(case: Case, out: torch.Tensor, gradients: list[torch.Tensor], path: Path) -> dict:
    """The record's `error` object for output `out`; CheckFailed beyond the allowance.

    gradients: of `leaves`, for a cotangent that is zero outside `sample_rows`; none on the
    forward pass.
    """
    reference = torch.load(path, map_location=out.device)
    rows = reference["rows"]
    pair = (out[:, rows], reference["out"])
    output = _agree(*pair, relative_rms_of_rows(*pair), reference["baseline"])
    against = reference["reference"]
    _require("output", output, OUTPUT_ALLOWANCE, out.dtype, against)
    gradient = None
    if case.pass_ == "forward_backward":
        expected = (reference["grads"], reference["grad_baselines"])
        agreements = [
            _agree(got, exact, relative_rms(got, exact), baseline)
            for got, exact, baseline in zip(gradients, *expected, strict=True)
        ]
        gradient = max(agreements, key=Agreement.ratio)
        for agreement in agreements:
            _require("gradient", agreement, GRADIENT_ALLOWANCE, out.dtype, against)
    return {
        "reference": against,
        "rows_checked": len(rows),
        "output": asdict(output),
        "gradient": gradient and asdict(gradient),
    }


def compare_whole(work: Workload, out: torch.Tensor, path: Path) -> dict:
    """`compare` of a whole sequence's output, and of the gradients that `work` computes."""
    rows = sample_rows(work.case.seq_len, work.case.seed).to(out.device)
    return compare(work.case, out, work.limited_to(rows).gradients(), path)


def _agree(got: torch.Tensor, reference: torch.Tensor, own: float, baseline: float) -> Agreement:
    return Agreement((got.double() - reference).abs().max().item(), own, baseline)


def relative_rms_of_rows(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square over rows (..., D) of the error of a row over its size; absolute where 0."""
    size = reference.double().square().mean(dim=-1).sqrt()
    error = (got.double() - reference).square().mean(dim=-1).sqrt()
    return torch.where(size > 0, error / size, error).square().mean().sqrt().item()


def relative_rms(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Root-mean-square error over the reference's own size; absolute where that is 0."""
    scale = reference.double().square().mean().sqrt()
    error = (got.double() - reference).square().mean().sqrt()
    return (error / scale).item() if scale > 0 else error.item()


def _require(what: str, agreement: Agreement, allowance: float, dtype, against: str) -> None:
    limit = max(allowance * agreement.baseline_relative_rms, torch.finfo(dtype).eps)
    if not agreement.relative_rms <= limit:
        raise CheckFailed(
            f"{what}: relative error {agreement.relative_rms:.2e} against the {against}; "
            f"{allowance:g}x dense attention's own allows {limit:.2e}"
        )
