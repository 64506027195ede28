"""Registers, spills and shared memory of a compiled kernel, from the log of ptxas."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import triton

from models.kernels.machine_code import MainLoop, main_loop

# Bytes per thread that the prologue or epilogue may spill; a loop would spill more.
SPILL_BYTES = 64
# Bytes of shared memory per program, at most (CUDA C++ Programming Guide, table of compute
# capabilities). The tiles of 80 also serve 8.6, 8.9 and 12.0, which have 99 KiB.
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class ResourceUsage:
    """Registers and spilled bytes per thread, and bytes of shared memory per program.

    serialized: whether the assembler makes tensor-core instructions wait for one another. seconds:
    that compiling took. rotated: whether the loop is, see `tiles.Tile`. loop: the main loop, where
    it was read.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    serialized: bool
    seconds: float
    rotated: bool = False
    loop: MainLoop | None = None

    def __str__(self) -> str:
        text = (
            f"{self.registers} registers, {self.spill_bytes} bytes spilled, "
            f"{self.shared_bytes} of shared memory"
        )
        return text if self.loop is None else f"{text}; {self.loop}"

    def fault(self, capability: int) -> str | None:
        """Why the kernel may not be used on a card of `capability`, or None."""
        if self.serialized:
            return "its tensor-core instructions are serialized"
        if self.spill_bytes > SPILL_BYTES:
            return f"spills {self.spill_bytes} bytes per thread, {SPILL_BYTES} are allowed"
        if self.shared_bytes > SHARED_BYTES[capability]:
            return (
                f"takes {self.shared_bytes} bytes of shared memory, the card has "
                f"{SHARED_BYTES[capability]}"
            )
        if self.rotated and capability != 90:
            return "its loop is rotated, which is for the asynchronous products of Hopper"
        return None


def why_not_raced(kernels: Iterable[ResourceUsage], capability: int) -> str | None:
    """Why the kernels of one tile cannot be the fastest, or None.

    kernels: may be lazy; none is asked for after the first fault.
    """
    loops = []
    for kernel in kernels:
        if fault := kernel.fault(capability):
            return fault
        if kernel.rotated:
            loops.append(kernel.loop)
    if loops and not any(loop and loop.overlapped for loop in loops):
        return "its loop is rotated, and yet no exponential runs beside a product"
    return None


@contextlib.contextmanager
def ptxas_log() -> Iterator[io.StringIO]:
    """A context in which ptxas' log, and all else that is printed, goes to the text yielded."""
    before = triton.knobs.nvidia.dump_ptxas_log
    triton.knobs.nvidia.dump_ptxas_log = True
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            yield text
    finally:
        triton.knobs.nvidia.dump_ptxas_log = before


def read_usage(
    files: dict[str, str],
    shared: int,
    capability: int,
    log: str,
    seconds: float,
    *,
    rotated: bool = False,
    with_loop: bool = False,
) -> ResourceUsage:
    """What a kernel in Triton's cache takes.

    Args:
        files: name -> path in the cache, Triton's metadata_group.
        shared: bytes of shared memory.
        capability: that it is compiled for.
        log: of ptxas when the kernel was compiled, "" where it was in the cache. The log is kept
            beside the kernel, which is assembled again only where no log was kept.
        seconds: that compiling took.
        rotated: whether the loop is; its main loop is read then.
        with_loop: whether the main loop is read in any case, on Hopper.
    """
    ptx, cubin = (
        Path(next(path for name, path in files.items() if name.endswith(suffix)))
        for suffix in (".ptx", ".cubin")
    )
    kept = ptx.with_suffix(".ptxas")
    if "Used " not in log:
        log = kept.read_text() if kept.exists() else _assemble(ptx, capability)
    if not kept.exists():
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_text(log)
        os.replace(partial, kept)
    registers, stores = (
        int(re.search(pattern, log)[1]) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill st")
    )
    loop = main_loop(cubin) if capability == 90 and (rotated or with_loop) else None
    return ResourceUsage(registers, stores, shared, "serialized" in log, seconds, rotated, loop)


def _assemble(ptx: Path, capability: int) -> str:
    """ptxas' log of a kernel, remarks on performance included."""
    # Hopper's and Blackwell's tensor-core instructions need "sm_90a", "sm_100a".
    target = f"sm_{capability}{'a' if capability >= 90 else ''}"
    tool = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        command = [tool.path, "-v", f"--gpu-name={target}", str(ptx), "-o", f"{folder}/kernel"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
