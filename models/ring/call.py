"""The arguments of a call of ring attention, checked and agreed on by all ranks."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models import kernels
from models.errors import (
    RingError,
    UnsupportedBackend,
    check_choice,
    check_qkv,
    check_same_length,
    resolve_scale,
)
from models.fused_ops import fused_op
from models.padding import check_padding_mask
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.orders import check_order, positions
from models.ring.agreement import agree, check_lengths, terms
from models.ring.exchange import Alone, Exchange
from models.ring.hops import Eager
from models.ring.plan import RingPlan, plan

BACKENDS = ("auto", "sdpa", "triton", "eager")


_PATTERNS = (DilatedBranches, HeadPartition, BlockMask, type(None))


@dataclass(frozen=True)
class Call:
    """What a rank works by: its exchange with others, the plan of hops, and the op of a piece."""

    exchange: Exchange | Alone
    hops: RingPlan
    op: object
    scale: float

    @property
    def rank(self) -> int:
        return self.exchange.rank


def negotiate(
    q, k, v, group, is_causal, scale, order, pattern, backend, key_padding_mask, seq_len, timeout,
    patterns=_PATTERNS,
) -> Call:  # fmt: skip
    """Check this rank's arguments of `ring_attention`, and unless seq_len is given all ranks'.

    patterns: the classes of pattern that the call takes.
    """
    group = _resolve_group(group)
    limit = timeout if _is_seconds(timeout) else None
    exchange = Alone() if group is None else Exchange(group, limit)
    try:
        _check_arguments(q, k, v, order, pattern, patterns, seq_len, timeout)
        scale = resolve_scale(scale, q.shape[3])
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, q)
        op = resolve_op(q, backend)
        own = terms(q, k, v, is_causal, scale, order, pattern, backend, key_padding_mask)
    except (ValueError, UnsupportedBackend):
        if seq_len is None:
            # What is wrong here matters more than who else is lost.
            with suppress(RingError):
                agree(exchange, None, q.device if isinstance(q, torch.Tensor) else "cpu")
        raise
    if seq_len is None:
        seq_len = check_lengths(agree(exchange, own, q.device), order)
    rank, world_size = exchange.rank, exchange.world_size
    held = len(positions(order, seq_len, rank, world_size))
    if held != q.shape[1]:
        raise ValueError(
            f"seq_len={seq_len}: expected {held} tokens on rank {rank} of {world_size} in the "
            f"order {order!r}, got {q.shape[1]}"
        )
    if isinstance(pattern, BlockMask):
        pattern.check_fits(seq_len, q.shape[2])
    sizes = (seq_len, world_size, q.shape[2], k.shape[2])
    return Call(exchange, plan(pattern, order, *sizes, bool(is_causal)), op, scale)


def resolve_backend(q: torch.Tensor, backend: str) -> str:
    """The backend that a call with `q` runs, with the op beneath it: "sdpa (cpu-flash)"."""
    op = resolve_op(q, backend)
    return op.name if op.name in BACKENDS else f"sdpa ({op.name})"


def resolve_op(q: torch.Tensor, backend: str):
    """The op that does a hop's pieces; UnsupportedBackend where a named backend has none."""
    check_choice("backend", backend, BACKENDS)
    if backend == "eager":
        return Eager()
    # PyTorch's ops on CUDA round each part to half types before parts are joined.
    trusted = not kernels.why_withdrawn("hop", str(q.dtype), q.shape[3])
    wants_triton = backend == "auto" and q.is_cuda and q.element_size() == 2 and trusted
    if backend == "triton" or wants_triton:
        reason = _why_not_triton(q)
        if reason is None:
            from models.kernels.hop import Triton

            return Triton()
        if backend == "triton":
            raise UnsupportedBackend(f"triton: {reason}")
    try:
        return fused_op(q)
    except UnsupportedBackend:
        if backend == "sdpa":
            raise
        return Eager()


def _why_not_triton(q: torch.Tensor) -> str | None:
    """Why our Triton op cannot take q (B, N, H, D), or None if it can."""
    if not kernels.HAS_TRITON:
        return kernels.MISSING
    from models.kernels import hop

    return hop.why_not(q)


def _resolve_group(group) -> dist.ProcessGroup | None:
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group={group}: expected a mesh of one dimension, as mesh['name'] is")
        return group.get_group()
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group={group!r}: expected a ProcessGroup, a DeviceMesh or None")
    if group is not None:
        return group
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise ValueError(
            f"group=None: launched with WORLD_SIZE={launched}, but torch.distributed is not "
            "initialised; call torch.distributed.init_process_group first"
        )
    return None


def _check_arguments(q, k, v, order, pattern, patterns, seq_len, timeout) -> None:
    check_qkv(q, k, v, may_lack_tokens=True)
    check_same_length(q, k)
    check_order(order)
    if not isinstance(pattern, patterns):
        names = ", ".join("None" if x is type(None) else x.__name__ for x in patterns)
        raise ValueError(f"pattern={type(pattern).__name__}: expected one of {names}")
    if seq_len is not None and (type(seq_len) is not int or seq_len < 1):
        raise ValueError(f"seq_len={seq_len!r}: expected an integer >= 1 or None")
    if not _is_seconds(timeout):
        raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds or None")


def _is_seconds(timeout) -> bool:
    return timeout is None or (type(timeout) in (int, float) and 0 < timeout < 1e9)
