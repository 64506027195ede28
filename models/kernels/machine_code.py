"""What a kernel's machine code for Hopper does in its main loop, read off the disassembly."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

# Limits of a multiprocessor of capability 9.0 (CUDA C++ Programming Guide): registers, bytes of
# shared memory, bytes that each program takes beyond what it asks for, threads, programs.
REGISTERS, SHARED_BYTES, RESERVED_BYTES, THREADS, PROGRAMS = 65536, 228 * 1024, 1024, 2048, 32
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class MainLoop:
    """One step of the innermost loop that keeps the tensor cores busiest.

    instructions: all; products: asynchronous tensor-core instructions; exponentials: MUFU;
    overlapped: exponentials that are issued while a product runs. copies: from global into shared
    memory, loads: from global memory into registers; both map the bytes of one thread's
    instruction to the number of such instructions.
    """

    instructions: int
    products: int
    exponentials: int
    overlapped: int
    copies: dict[int, int]
    loads: dict[int, int]

    def __str__(self) -> str:
        copies = ", ".join(f"{n} of {width} bytes" for width, n in sorted(self.copies.items()))
        return (
            f"per step: {self.instructions} instructions, {self.products} products, "
            f"{self.overlapped} of {self.exponentials} exponentials beside one, "
            f"copies: {copies or 'none'}"
        )


def main_loop(cubin: Path) -> MainLoop | None:
    """The main loop of a kernel compiled for Hopper; None where no loop has such products."""
    tool = triton.knobs.nvidia.nvdisasm.path
    command = [tool, "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return busiest(text)


def busiest(text: str) -> MainLoop | None:
    """`main_loop` of disassembled code."""
    loops = [_read(body) for body in _innermost(text)]
    loops = [loop for loop in loops if loop.products]
    return min(loops, key=lambda loop: loop.instructions / loop.products, default=None)


def programs_per_multiprocessor(registers: int, warps: int, shared_bytes: int) -> int:
    """How many programs run at once on one multiprocessor of Hopper."""
    each = -(-registers // 8) * 8 * 32 * warps  # allocated eight at a time
    return min(
        REGISTERS // each,
        SHARED_BYTES // (shared_bytes + RESERVED_BYTES),
        THREADS // (32 * warps),
        PROGRAMS,
    )


def _innermost(text: str) -> list[list[tuple[str, str]]]:
    code, at, spans = [], {}, []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            at[label[1]] = len(code)
        elif found := _INSTRUCTION.match(line):
            target = _TARGET.search(found[2])
            if found[1].startswith("BRA") and target and target[1] in at:
                spans.append((at[target[1]], len(code) + 1))
            code.append((found[1], found[2]))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [code[first:end] for first, end in inner]


def _read(body: list[tuple[str, str]]) -> MainLoop:
    kinds = Counter(name.partition(".")[0] for name, _ in body)
    return MainLoop(
        instructions=len(body),
        products=kinds["HGMMA"],
        exponentials=kinds["MUFU"],
        overlapped=_overlapped(body),
        copies=dict(Counter(_width(name) for name, _ in body if name.startswith("LDGSTS."))),
        loads=dict(Counter(_width(name) for name, _ in body if name.startswith("LDG."))),
    )


def _overlapped(body: list[tuple[str, str]]) -> int:
    groups, is_open, overlapped = 0, False, 0
    for passing in range(2):  # the first pass finds what a step leaves running for the next
        for name, operands in body:
            if name.startswith("HGMMA"):
                is_open = "gsb0" not in operands  # gsb0 ends a group of products
                groups += not is_open
            elif name.startswith("WARPGROUP.DEPBAR"):
                groups = min(groups, int(operands.split(",")[1], 16))
            elif name.startswith("MUFU") and passing:
                overlapped += groups > 0 or is_open
    return overlapped


def _width(name: str) -> int:
    for suffix, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if suffix in name.split("."):
            return width
    return 4
