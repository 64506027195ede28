"""Ring attention: each rank holds a shard of the sequence and attends to all of it.

In hop t each rank receives keys and values from the rank t before it and sends its own to the
rank t after it: directly, not handed on from neighbour to neighbour. So a hop carries only the
keys that its one receiver needs (all of them for dense attention, then as many bytes as a ring
that hands on), no hop waits for the one before, and gradients return in one message.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches
from models.patterns.curves import Grid
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Self-attention over a sequence that is sharded over the ranks of `group`.

    The same values, at any world size, as the call on one device; bitwise repeatable on a CPU. One
    op to torch.compile and torch.func: ranks must make their compiled calls in the same order.

    Args:
        q: (B, n, H, D) float64, float32, float16 or bfloat16: this rank's shard, as
            `models.ring.shard(x, rank, world_size, order)` cuts it; n may differ between ranks
            and may be 0. Sums are in float32 at least.
        k: (B, n, Hkv, D), q's dtype, H a multiple of Hkv.
        v: (B, n, Hkv, D), q's dtype.
        group: a ProcessGroup, a 1-D DeviceMesh, or None for the default group; without
            torch.distributed this process is a ring of one rank.
        is_causal: causal by position in the whole sequence, in every order.
        scale: factor on q.k; None for 1/sqrt(D).
        order: token order, one of `models.patterns.orders.ORDERS` or a `Grid`.
        pattern: None for dense, `patterns.DilatedBranches`, or a `patterns.BlockMask` of the
            whole sequence, the same on every rank.
        backend: "sdpa", PyTorch's fused ops; "triton", our kernel, whose partial results stay
            float32; "eager", the explicit softmax; "auto".
        return_lse: return LSE as well.
        key_padding_mask: (B, n) bool, this rank's, on all ranks or none: True where a key is
            never attended to, whatever it holds, inf and NaN included; its k and v get zero
            gradients.
        seq_len: tokens of the whole sequence. None: the ranks first send each other their
            arguments, 104 bytes to each, and all raise where these differ.
            Given: nothing is checked between ranks.
        timeout: seconds that a rank waits for another; None for the group's own limit.

    Returns:
        out: (B, n, H, D) in q's dtype, under autocast in autocast's; 0 in rows without keys.
        lse: with `return_lse`, (B, H, n), natural log, float32 (float64 for float64); -inf in
            rows without keys.
        Both are differentiable once, exactly; all ranks must then run the backward pass.

    Raises:
        ValueError: bad arguments; where they differ between ranks, on every rank and before any
            work.
        UnsupportedBackend: the named backend cannot take q.
        RingError: a rank does not answer in time; names it.

    Sources: Ring Attention (arXiv 2310.01889); striped order (arXiv 2311.09431).
    """
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    out, lse = attend(_op, q, k, v, group, *options, seq_len, timeout)
    return (out, lse) if return_lse else out
