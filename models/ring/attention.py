"""Ring attention: each rank holds a shard of the sequence and gets attention to all of it.

In hop t a rank takes keys and values from the rank t before it and gives its own to the rank
t after it: straight, not handed on from neighbour to neighbour, so that a hop carries just the
keys which its one receiver needs (all of them for dense attention, then as many bytes as a ring
hands on), no hop waits for the one before, and in the backward pass gradients go straight home.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches
from models.patterns.orders import Grid
from models.ring.call import resolve_backend as resolve_backend
from models.ring.op import attend, rank_op
from models.ring.passes import backward_steps, forward_steps

_op = rank_op("ring_attention", forward_steps, backward_steps)


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
    key_padding_mask: torch.Tensor | None = None,
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
    every rank. backend: "sdpa", PyTorch's fused ops; "triton", ours, whose parts stay float32;
    "eager", the explicit softmax; "auto". scale: factor on q.k, None for 1/sqrt(D).
    key_padding_mask: (B, n) bool, this rank's, on all ranks or none: True where a key is never
    attended to, whatever it holds, inf and NaN included; its k and v get zero gradients.

    seq_len: tokens of the whole sequence. None: the ranks first tell each other their
    arguments, a small message to each, and all raise where these differ. Given: nothing is
    checked between ranks. timeout: seconds that one rank waits for another; None for the
    group's own limit.

    Returns this rank's out (B, n, H, D) in q's dtype, under autocast in autocast's, and with
    `return_lse` also LSE (B, H, n), natural log, float32 (float64 for float64); rows without keys
    give 0 and -inf. Both are differentiable once, exactly; all ranks must then run the backward
    pass. Bitwise repeatable on a CPU. The same values, at any world size, as the call on one
    device. One op to torch.compile and torch.func: what ranks compile must call in one order.

    Raises ValueError on bad arguments, on every rank and before any work where these differ
    between ranks; UnsupportedBackend; RingError where a rank does not answer in time.
    Sources: Ring Attention (arXiv 2310.01889); striped order (arXiv 2311.09431).
    """
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    out, lse = attend(_op, q, k, v, group, *options, seq_len, timeout)
    return (out, lse) if return_lse else out
