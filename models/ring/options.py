"""The arguments of a ring call, checked, and in the types that an op of `torch.library` takes.

These are tensors, numbers and strings only: a group is its name, a pattern its numbers, None 0.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.errors import as_integer, as_number, check_choice
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.curves import Grid
from models.patterns.orders import check_order

BACKENDS = ("auto", "sdpa", "triton", "eager")
PATTERNS = (DilatedBranches, HeadPartition, BlockMask, type(None))


class RingOptions(NamedTuple):
    """The options that determine what is computed, the same on all ranks.

    Args:
        is_causal: causal by position in the whole sequence.
        scale: factor on q.k.
        backend: one of BACKENDS.
        order: name of the token order, or of a `Grid`'s curve.
        width: of the `Grid`, 0 for None; -1 where the order is not a `Grid`.
        pattern: name of the pattern's class, "" for dense.
        segment_lengths: of the branches; empty without branches.
        dilation_rates: of the branches; empty without branches.
        head_offset: of `DilatedBranches`, else "".
        row_ptr: (G, M + 1) int64, of the block mask; None without one.
        col_idx: (nnz,) int32, of the block mask; None without one.
        block_size: of the block mask, in tokens; 0 without one.
    """

    is_causal: bool
    scale: float
    backend: str
    order: str
    width: int
    pattern: str
    segment_lengths: list[int]
    dilation_rates: list[int]
    head_offset: str
    row_ptr: torch.Tensor | None
    col_idx: torch.Tensor | None
    block_size: int

    def given_order(self) -> str | Grid:
        """The order as the caller gave it."""
        return self.order if self.width < 0 else Grid(self.order, self.width or None)

    def given_pattern(self) -> DilatedBranches | HeadPartition | BlockMask | None:
        """The pattern as the caller gave it, or one equal to it."""
        if self.pattern == "":
            return None
        if self.pattern == "BlockMask":
            return BlockMask.of(self.row_ptr, self.col_idx, self.block_size)
        lists = (self.segment_lengths, self.dilation_rates)
        if self.pattern == "HeadPartition":
            return HeadPartition(*lists)
        return DilatedBranches(*lists, self.head_offset)


def ring_options(
    is_causal: bool,
    scale: float,
    order: str | Grid,
    pattern: DilatedBranches | HeadPartition | BlockMask | None,
    backend: str,
    patterns: tuple[type, ...] = PATTERNS,
) -> RingOptions:
    """The options of a call, checked as far as neither the whole length nor the device matters.

    Args:
        is_causal: causal by position in the whole sequence.
        scale: factor on q.k, > 0.
        order: token order.
        pattern: None for dense.
        backend: one of BACKENDS.
        patterns: the pattern classes that the call takes.

    Raises:
        ValueError: the order, the pattern's class or the backend is not one of those taken.
    """
    check_order(order)
    if not isinstance(pattern, patterns):
        names = ", ".join("None" if x is type(None) else x.__name__ for x in patterns)
        raise ValueError(f"pattern={type(pattern).__name__}: expected one of {names}")
    check_choice("backend", backend, BACKENDS)
    is_grid, is_mask = isinstance(order, Grid), isinstance(pattern, BlockMask)
    has_branches = pattern is not None and not is_mask
    return RingOptions(
        is_causal=bool(is_causal),
        scale=scale,
        backend=backend,
        order=order.curve if is_grid else order,
        width=(order.width or 0) if is_grid else -1,
        pattern="" if pattern is None else type(pattern).__name__,
        segment_lengths=list(pattern.segment_lengths) if has_branches else [],
        dilation_rates=list(pattern.dilation_rates) if has_branches else [],
        head_offset=pattern.head_offset if isinstance(pattern, DilatedBranches) else "",
        row_ptr=pattern.row_ptr if is_mask else None,
        col_idx=pattern.col_idx if is_mask else None,
        block_size=pattern.block_size if is_mask else 0,
    )


def checked_seq_len(seq_len: int | None) -> int:
    """Tokens of the whole sequence, 0 for None; ValueError unless an integer >= 1."""
    if seq_len is None:
        return 0
    try:
        return as_integer("seq_len", seq_len)
    except ValueError as error:
        raise ValueError(f"{error} or None") from None


def checked_timeout(timeout: float | None) -> float:
    """Seconds to wait, 0 for None; ValueError unless a positive number."""
    if timeout is None:
        return 0.0
    return as_number("timeout", timeout, 1e9, "a positive number of seconds or None")


def group_name(group: dist.ProcessGroup | DeviceMesh | None) -> str:
    """The name of a ProcessGroup or a 1-D DeviceMesh, "" for None; ValueError for all else."""
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group={group}: expected a mesh of one dimension, as mesh['name'] is")
        group = group.get_group()
    if group is None:
        return ""
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group={group!r}: expected a ProcessGroup, a DeviceMesh or None")
    return group.group_name


def process_group(name: str) -> dist.ProcessGroup | None:
    """The group of that name, the default group for ""; None where this process has no others.

    Raises:
        ValueError: launched as one of several processes, but torch.distributed is not initialised.
    """
    if name:
        return dist.distributed_c10d._resolve_process_group(name)
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise ValueError(
            f"group=None: launched with WORLD_SIZE={launched}, but torch.distributed is not "
            "initialised; call torch.distributed.init_process_group first"
        )
    return None
