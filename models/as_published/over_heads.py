"""Attention across the heads at one position: no token ever sees another.

`ImprovedDilatedAttention`, and `RingDilatedAttention` on one device, handed PyTorch's fused
attention tensors (B', S, g, D). It attends over the last dimension but one, which held the g heads
of a group and not the S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from models.as_published.segments import groups, kept, softmax_attention

FORMULA = "softmax over the heads of a group at one position, over the number of groups"
BACKEND = "sdpa over heads"


def over_heads_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """What ran. q, k, v: (B, N, H, D), N a multiple of every segment length; returns the same."""
    out = torch.zeros_like(q)
    for group in groups(q, k, v, segment_lengths, dilation_rates):
        folded = (kept(x, group).flatten(0, 1) for x in (q, k, v))
        x = F.scaled_dot_product_attention(*folded, is_causal=is_causal)
        kept(out, group).copy_(x.unflatten(0, (len(q), -1)))
    return out.div_(len(segment_lengths))


def formula(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> tuple[torch.Tensor, float]:
    """Position by position in float64, (B, R, H, D); magnifies no rounding."""
    out = torch.zeros_like(q[:, rows], dtype=torch.float64)
    for group in groups(q, k, v, segment_lengths, dilation_rates):
        inside = rows % group.segment_length % group.dilation_rate == group.offset
        at = (x[:, rows[inside], group.q_heads].double() for x in (q, k, v))
        out[:, inside, group.q_heads] = softmax_attention(*at, is_causal=is_causal)
    return out / len(segment_lengths), 1.0


def pairs(
    seq_len: int,
    heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> int:
    """Pairs of heads, over all kept positions."""
    total = 0
    base, extra = divmod(heads, len(segment_lengths))
    for i, (w, r) in enumerate(zip(segment_lengths, dilation_rates, strict=True)):
        size = base + (i < extra)
        positions = seq_len // w * len(range(i % r, w, r))
        total += positions * (size * (size + 1) // 2 if is_causal else size * size)
    return total
