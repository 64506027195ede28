"""What a compiled kernel takes, read off the one run of the assembler that made it."""

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

# Bytes a thread: what the prologue or epilogue may put aside; a loop would take more.
SPILL_BYTES = 64
# Bytes of shared memory a program may have (CUDA C++ Programming Guide, table of compute
# capabilities). The tiles of 80 also serve 8.6, 8.9 and 12.0, which have 99 KiB.
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class ResourceUsage:
    """What a form takes: registers and spilled bytes a thread, bytes of shared memory.

    serialized: whether the assembler makes tensor-core instructions wait for one another.
    rotated: whether its loop is (`tiles.Tile`). loop: what that does, where it was asked for.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    serialized: bool
    seconds: float
    rotated: bool = False
    loop: MainLoop | None = None

    def __str__(self) -> str:
        told = (
            f"{self.registers} registers, {self.spill_bytes} bytes spilled, "
            f"{self.shared_bytes} of shared memory"
        )
        return told if self.loop is None else f"{told}; {self.loop}"

    def fault(self, capability: int) -> str | None:
        """What is wrong with it, or None."""
        if self.serialized:
            return "its tensor-core instructions are serialized"
        if self.spill_bytes > SPILL_BYTES:
            return f"spills {self.spill_bytes} bytes a thread, {SPILL_BYTES} are allowed"
        if self.shared_bytes > SHARED_BYTES[capability]:
            return (
                f"takes {self.shared_bytes} bytes of shared memory, the card has "
                f"{SHARED_BYTES[capability]}"
            )
        if self.rotated and capability != 90:
            return "its loop is rotated, which is for the asynchronous products of Hopper"
        return None


def why_not_raced(kernels: Iterable[ResourceUsage], capability: int) -> str | None:
    """Why the kernels of one tile cannot win a race, or None. Lazily: the first fault decides."""
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
def remarks() -> Iterator[io.StringIO]:
    """Within, what Triton's assembler says goes to the text yielded, as all that is printed."""
    before = triton.knobs.nvidia.dump_ptxas_log
    triton.knobs.nvidia.dump_ptxas_log = True
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            yield said
    finally:
        triton.knobs.nvidia.dump_ptxas_log = before


def built(
    files: dict[str, str],
    shared: int,
    capability: int,
    said: str,
    seconds: float,
    *,
    rotated: bool = False,
    with_loop: bool = False,
) -> ResourceUsage:
    """What the kernel in Triton's cache takes. files: name -> path there, its metadata_group.

    said: by the assembler when it was made, "" where it was made before. It is kept beside the
    kernel, which is assembled again only where another process left nothing. with_loop: read the
    main loop too, of Hopper's; that of a rotated one always is.
    """
    ptx, cubin = (
        Path(next(path for name, path in files.items() if name.endswith(suffix)))
        for suffix in (".ptx", ".cubin")
    )
    log = ptx.with_suffix(".ptxas")
    if "Used " not in said:
        said = log.read_text() if log.exists() else _assemble(ptx, capability)
    if not log.exists():
        partial = log.with_name(f"{log.name}.{os.getpid()}")
        partial.write_text(said)
        os.replace(partial, log)
    registers, stores = (
        int(re.search(pattern, said)[1]) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill st")
    )
    loop = main_loop(cubin) if capability == 90 and (rotated or with_loop) else None
    return ResourceUsage(registers, stores, shared, "serialized" in said, seconds, rotated, loop)


def _assemble(ptx: Path, capability: int) -> str:
    """What the assembler says of a kernel, remarks on performance included."""
    # Hopper's and Blackwell's tensor-core instructions are of "sm_90a", "sm_100a".
    target = f"sm_{capability}{'a' if capability >= 90 else ''}"
    tool = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        command = [tool.path, "-v", f"--gpu-name={target}", str(ptx), "-o", f"{folder}/kernel"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
