"""Limits on the main loops of our kernels on Hopper, read off compiled code.

They hold for the head dimensions and forms named; NOTES.md has the numbers and what each change
was predicted to bring. If a tile that exceeds a limit is measured to be faster, the limit is
changed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.kernels.machine_code import programs_per_multiprocessor
from models.kernels.resource_usage import ResourceUsage


@dataclass(frozen=True)
class Limit:
    """For one kernel, in half precision.

    per_score: instructions per step and per score of a thread, at most. beside: exponentials per
    step issued while a product runs, at least. narrow: copies of less than 16 bytes per step, at
    most. programs: on one multiprocessor at once, at least.
    """

    per_score: float
    beside: int = 0
    narrow: int = 0
    programs: int = 1


# By table, kernel and head dimension; block masks of 64, whose entries are copied ahead, 4 bytes
# each. At 40 columns, padded to 64, only the width of the loads is limited: 16 bytes at a time.
LIMITS = {
    ("dilated", "forward", 64): Limit(7.4, beside=48),
    ("dilated", "backward_q", 64): Limit(8.0, beside=28),
    ("dilated", "backward_kv", 64): Limit(10.2, beside=30),
    ("dilated", "forward", 128): Limit(8.5),
    ("dilated", "forward", 40): Limit(16),
    ("dilated", "backward_q", 40): Limit(16),
    ("dilated", "backward_kv", 40): Limit(16),
    ("hop", "forward", 64): Limit(7.4, beside=48),
    ("hop", "backward_q", 64): Limit(8.0, beside=28),
    ("hop", "backward_kv", 64): Limit(10.3, beside=30),
    ("hop", "forward", 128): Limit(8.5, beside=48),
    ("hop", "forward", 40): Limit(16),
    ("hop", "backward_q", 40): Limit(16),
    ("hop", "backward_kv", 40): Limit(16),
    ("gluon", "forward", 64): Limit(6.7, beside=66),
    ("gluon", "forward", 128): Limit(7.4, beside=66),
    ("block_sparse", "forward", 64): Limit(8.0, narrow=2, programs=3),
    ("block_sparse", "forward_pair", 64): Limit(8.4, beside=40, narrow=2, programs=2),
    ("block_sparse", "backward_q", 64): Limit(7.4, beside=48, narrow=2, programs=2),
    ("block_sparse", "backward_kv", 64): Limit(10.0, beside=30, narrow=1, programs=2),
}


def over(limit: Limit, built: ResourceUsage, scores: float, warps: int) -> str | None:
    """Which limit a kernel exceeds, or None.

    Args:
        limit: the kernel's.
        built: what it takes; with its main loop.
        scores: per thread and step.
        warps: per program.
    """
    if built.loop is None:
        return "its main loop has no asynchronous products"
    each = built.loop.instructions / scores
    if each > limit.per_score:
        return f"{each:.2f} instructions for each score, {limit.per_score:g} are allowed"
    narrow = sum(n for width, n in built.loop.copies.items() if width < 16)
    if narrow > limit.narrow:
        return f"{narrow} copies of less than 16 bytes in a step, {limit.narrow} are allowed"
    if built.loop.loads:
        return f"waits for {sum(built.loop.loads.values())} loads in a step"
    if built.loop.overlapped < limit.beside:
        beside = f"{built.loop.overlapped} of {built.loop.exponentials}"
        return f"{beside} exponentials run beside a product, {limit.beside} are wanted"
    programs = programs_per_multiprocessor(built.registers, warps, built.shared_bytes)
    if programs < limit.programs:
        return f"{programs} on a multiprocessor at once, {limit.programs} are wanted"
    return None
