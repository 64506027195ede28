"""Ring attention: each rank holds a shard of the sequence and gets attention to all of it.

In hop t a rank takes keys and values from the rank t before it and gives its own to the rank
t after it: straight, not handed on from neighbour to neighbour, so that a hop carries just the
keys which its one receiver needs (all of them for dense attention, then as many bytes as a ring
hands on), no hop waits for the one before, and in the backward pass gradients go straight home.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.errors import (
    UnsupportedBackend,
    check_choice,
    check_qkv,
    check_same_length,
    resolve_scale,
)
from models.fused_ops import fused_op
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.orders import Grid, check_order, positions
from models.ring.agreement import agree, check_lengths, terms
from models.ring.exchange import Alone, Exchange
from models.ring.hops import Eager
from models.ring.passes import backward_steps, forward_steps, run
from models.ring.plan import plan

BACKENDS = ("auto", "sdpa", "eager")


@torch.compiler.disable
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    order: str | Grid = "zigzag",
    pattern: DilatedBranches | BlockMask | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    seq_len: int | None = None,
    timeout: float | None = None,
):
    """Self-attention over a sequence that is sharded over the ranks of `group`.

    q: (B, n, H, D), k, v: (B, n, Hkv, D) with H a multiple of Hkv: this rank's shard, as
    `models.ring.shard(x, rank, world_size, order)` cuts it; n may differ by rank and may be 0.
    Float dtypes, accumulated in float32 at least. group: a ProcessGroup, a 1-D DeviceMesh, or
    None for the default group; without torch.distributed this process alone is the ring.
    is_causal: by position in the whole sequence, in every order. pattern: None for dense,
    `patterns.DilatedBranches`, or a `patterns.BlockMask` over the whole sequence, the same on
    every rank. backend: "sdpa", PyTorch's fused ops; "eager", the explicit softmax; "auto".
    scale: factor on q.k, None for 1/sqrt(D).

    seq_len: tokens of the whole sequence. None: the ranks first tell each other their
    arguments, a small message to each, and all raise where these differ. Given: nothing is
    checked between ranks. timeout: seconds that one rank waits for another; None for the
    group's own limit.

    Returns this rank's out (B, n, H, D) in q's dtype, and with `return_lse` also LSE (B, H, n),
    natural log, float32 (float64 for float64); rows without keys give 0 and -inf. Both are
    differentiable, exactly; all ranks must then run the backward pass. Bitwise repeatable on a
    CPU. The same values, at any world size, as the call on one device.

    Raises ValueError on bad arguments, on every rank and before any work where these differ
    between ranks; UnsupportedBackend; RingError where a rank does not answer in time.
    Sources: Ring Attention (arXiv 2310.01889); striped order (arXiv 2311.09431).
    """
    group = _resolve_group(group)
    exchange = None if group is None else Exchange(group, timeout)
    try:
        _check_arguments(q, k, v, order, pattern, seq_len, timeout)
        scale = resolve_scale(scale, q.shape[3])
        op = resolve_op(q, backend)
        own = terms(q, k, v, is_causal, scale, order, pattern, backend)
    except (ValueError, UnsupportedBackend):
        if exchange is not None and seq_len is None:
            agree(exchange, None, q.device)
        raise
    if exchange is None:
        total = q.shape[1]
    elif seq_len is None:
        total = check_lengths(agree(exchange, own, q.device), order)
    else:
        total = seq_len
    rank, world_size = (0, 1) if exchange is None else (exchange.rank, exchange.world_size)
    held = len(positions(order, total, rank, world_size))
    if held != q.shape[1]:
        raise ValueError(
            f"seq_len={total}: expected {held} tokens on rank {rank} of {world_size} in the order "
            f"{order!r}, got {q.shape[1]}"
        )
    if isinstance(pattern, BlockMask):
        pattern.check_fits(total, q.shape[2])
    hops = plan(pattern, order, total, world_size, q.shape[2], k.shape[2], bool(is_causal))
    out, lse = _Ring.apply(q, k, v, exchange or Alone(), hops, op, scale)
    return (out, lse) if return_lse else out


def resolve_backend(q: torch.Tensor, backend: str) -> str:
    """The backend that a call with `q` runs, with the op beneath it: "sdpa (cpu-flash)"."""
    op = resolve_op(q, backend)
    return "eager" if isinstance(op, Eager) else f"sdpa ({op.name})"


def resolve_op(q: torch.Tensor, backend: str):
    """The op that does a hop's pieces; UnsupportedBackend where a named backend has none."""
    check_choice("backend", backend, BACKENDS)
    if backend == "eager":
        return Eager()
    try:
        return fused_op(q)
    except UnsupportedBackend:
        if backend == "sdpa":
            raise
        return Eager()


class _Ring(torch.autograd.Function):
    """One rank's part: (q, k, v) -> (out, LSE)."""

    @staticmethod
    def forward(ctx, q, k, v, exchange, hops, op, scale):
        out, lse, saved = run(forward_steps(q, k, v, exchange, hops, op, scale))
        exchange.finish()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.set_materialize_grads(False)
        ctx.options = (exchange, hops, op, scale, saved)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        if grad_out is None and grad_lse is None:
            return (None,) * 7
        exchange, hops, op, scale, saved = ctx.options
        state = (*ctx.saved_tensors, grad_out, grad_lse)
        grads = run(backward_steps(*state, exchange, hops, op, scale, saved))
        exchange.finish()
        return *grads, *(None,) * 4


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


def _check_arguments(q, k, v, order, pattern, seq_len, timeout) -> None:
    check_qkv(q, k, v, may_lack_tokens=True)
    check_same_length(q, k)
    check_order(order)
    if not isinstance(pattern, (DilatedBranches, HeadPartition, BlockMask, type(None))):
        raise ValueError(
            f"pattern={type(pattern).__name__}: expected None, DilatedBranches or BlockMask"
        )
    if seq_len is not None and (type(seq_len) is not int or seq_len < 1):
        raise ValueError(f"seq_len={seq_len!r}: expected an integer >= 1 or None")
    if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
        raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds or None")
