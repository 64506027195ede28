"""What a rank asks for, checked, and written in what an op of `torch.library` takes.

Tensors, numbers and strings only: groups by their name, patterns by their numbers, 0 for None.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.errors import as_integer, as_number, check_choice, check_qkv, check_same_length
from models.padding import check_padding_mask
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.orders import Grid, check_order

BACKENDS = ("auto", "sdpa", "triton", "eager")
PATTERNS = (DilatedBranches, HeadPartition, BlockMask, type(None))


class Request(NamedTuple):
    """Options that say what is computed, alike on all ranks.

    scale: 0 for 1/sqrt(D). order: its name, or that of a `Grid`'s curve; width: of the grid,
    0 for None, -1 where the order is no grid. pattern: the name of its class, "" for dense.
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
        """The caller's pattern, or its equal."""
        if self.pattern == "":
            return None
        if self.pattern == "BlockMask":
            return BlockMask.of(self.row_ptr, self.col_idx, self.block_size)
        lists = (self.segment_lengths, self.dilation_rates)
        if self.pattern == "HeadPartition":
            return HeadPartition(*lists)
        return DilatedBranches(*lists, self.head_offset)


def request(
    q, k, v, is_causal, scale, order, pattern, backend, key_padding_mask, patterns=PATTERNS
):
    """The `Request` of a call's arguments; ValueError where they are bad.

    patterns: the classes of pattern that the call takes. What hangs on the length of the whole
    sequence, or on what this machine has, is not checked here.
    """
    check_qkv(q, k, v, may_lack_tokens=True)
    check_same_length(q, k)
    check_order(order)
    if not isinstance(pattern, patterns):
        names = ", ".join("None" if x is type(None) else x.__name__ for x in patterns)
        raise ValueError(f"pattern={type(pattern).__name__}: expected one of {names}")
    check_choice("backend", backend, BACKENDS)
    if scale is not None:
        scale = as_number("scale", scale, 1e30, "a positive number or None")
    if key_padding_mask is not None:
        check_padding_mask(key_padding_mask, q)
    is_grid, is_mask = isinstance(order, Grid), isinstance(pattern, BlockMask)
    has_branches = pattern is not None and not is_mask
    return Request(
        is_causal=bool(is_causal),
        scale=scale or 0.0,
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


def length(seq_len) -> int:
    """Tokens of the whole sequence, 0 for None; ValueError where it is no integer >= 1."""
    if seq_len is None:
        return 0
    try:
        return as_integer("seq_len", seq_len)
    except ValueError as error:
        raise ValueError(f"{error} or None") from None


def seconds(timeout) -> float:
    """Seconds to wait, 0 for None; ValueError where it is no positive number."""
    if timeout is None:
        return 0.0
    return as_number("timeout", timeout, 1e9, "a positive number of seconds or None")


def group_name(group) -> str:
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
    """The group of that name, the default group for ""; None where this process is alone.

    ValueError where it was launched as one of many but is not in touch with them.
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
