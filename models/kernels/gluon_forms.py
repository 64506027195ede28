"""The forms of the Gluon kernel that are compiled ahead of time, for Hopper only; needs no GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from models.kernels import gluon_forward
from models.kernels.dilated_gluon import BLOCK_M, BLOCK_N, BUFFERS
from models.kernels.gluon_descriptors import LAYOUT
from models.kernels.limits import LIMITS, Limit, over
from models.kernels.resource_usage import ResourceUsage, ptxas_log, read_usage

TABLE, CAPABILITY = "gluon", 90
# Per program: two groups of four for the consumers, and one that the producer is part of.
WARPS = 12
_BASE = {"N_CARRIED": 3, "BASE": True, "HAS_KEYS": True, "SHORT": False, "IS_CAUSAL": True}
_BASE |= {"GROUP": 1, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "INDEX": 32}
_TYPES = {
    **dict.fromkeys(["lse", "part", "part_lse"], "*fp32"),
    **dict.fromkeys(gluon_forward.NUMBERS, "i32"),
    "table": "*i64",
    "scale": "fp32",
}


@dataclass(frozen=True)
class Form:
    """One compiled form: dtype ("fp16", "bf16") and constants."""

    dtype: str
    constants: tuple[tuple[str, object], ...]
    capability: int = CAPABILITY

    def __str__(self) -> str:
        flags = " ".join(f"{name}={value}" for name, value in self.constants)
        return f"{TABLE}.forward sm_{self.capability} {self.dtype} {flags}"


def forms(capabilities) -> Iterator[Form]:
    """Every form that is compiled: launches in half precision, and each rarer constant once."""
    if CAPABILITY not in capabilities:
        return
    rare = [{"HAS_KEYS": False}, {"SHORT": True, "INDEX": 64, "GROUP": 4}]
    for dim in BUFFERS:
        common = [{"IS_CAUSAL": a, "BASE": b} for a in (True, False) for b in (True, False)]
        for changes in [*common, *(rare if dim == 64 else [])]:
            constants = {**_BASE, "D": dim, "BUFFERS": BUFFERS[dim], **changes}
            yield Form("fp16", tuple(constants.items()))
        yield Form("bf16", tuple({**_BASE, "D": dim, "BUFFERS": BUFFERS[dim]}.items()))


def compiled(form: Form):
    """Triton's compiled kernel of a form."""
    kernel = gluon_forward.forward
    names, constants = kernel.arg_names, dict(form.constants)
    constants["INDEX"] = {32: tl.int32, 64: tl.int64}[constants["INDEX"]]
    types = {**_TYPES, "out": f"*{form.dtype}"}
    for name, block in (("q", BLOCK_M // 2), ("k", BLOCK_N), ("v", BLOCK_N)):
        box = f"tensordesc<{form.dtype}[1, {block}, 1, 1, {constants['D']}],{LAYOUT!r}>"
        types |= dict.fromkeys([f"{name}_long", f"{name}_short"], box)
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    # As at a launch: pointers are multiples of 16.
    aligned = [name for name in names if signature[name].startswith("*")]
    source = GluonASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", form.capability, 32)
    return triton.compile(source, target=target, options={"num_warps": 4})


def limit_of(form: Form) -> Limit | None:
    """The limit of a form; None for one without a main loop."""
    constants = dict(form.constants)
    return LIMITS[TABLE, "forward", constants["D"]] if constants["HAS_KEYS"] else None


def fault(form: Form, built: ResourceUsage) -> str | None:
    """Why a form may not be used, or None; it may not spill at all."""
    if built.spill_bytes:
        return f"spills {built.spill_bytes} bytes per thread"
    limit, scores = limit_of(form), BLOCK_M // 2 * BLOCK_N / 128
    return built.fault(form.capability) or (limit and over(limit, built, scores, WARPS))


def build(form: Form) -> ResourceUsage:
    """Compile one form down to machine code."""
    start = time.monotonic()
    with ptxas_log() as log:
        kernel = compiled(form)
    seconds = time.monotonic() - start
    files, shared = kernel.metadata_group, kernel.metadata.shared
    has_loop = limit_of(form) is not None
    return read_usage(
        files, shared, form.capability, log.getvalue(), seconds,
        rotated=has_loop, with_loop=has_loop,
    )  # fmt: skip
