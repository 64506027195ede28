"""Each branch's output over its own sum along the sequence, a sum that may be near zero.

The first public code (2023), which the plots of 64 to 288 million tokens timed. Its groups of heads
start at i times their own size: where sizes differ some heads are computed twice, the last never.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from models.as_published.segments import check_divides, kept, softmax_attention
from models.patterns.branches import HeadGroup, HeadPartition

FORMULA = "one branch per head, over its own sum along the sequence and the number of branches"
BACKEND = "sdpa"


def signed_sum_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """What ran. q, k, v: (B, N, H, D), N a multiple of every segment length; returns the same."""
    check_divides(q, k, v, segment_lengths)
    out = torch.zeros_like(q)
    for group in _groups(q.shape[2], segment_lengths, dilation_rates):
        folded = (kept(x, group).flatten(0, 1).transpose(1, 2) for x in (q, k, v))
        x = F.scaled_dot_product_attention(*folded, is_causal=is_causal)
        x = x.transpose(1, 2).unflatten(0, (len(q), -1))
        kept(out, group).add_(x / x.sum(dim=(1, 2), keepdim=True))
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
    """Segment by segment in float64, (B, R, H, D), and the condition of its division.

    A rounding error of x, relative to |x|, comes out multiplied by sum |x| / |sum x| at most: the
    second value is the root mean square of that over the output, weighted by the output.
    """
    check_divides(q, k, v, segment_lengths)
    batch, n, heads, dim = q.shape
    out = q.new_zeros(batch, len(rows), heads, dim, dtype=torch.float64)
    bound = torch.zeros_like(out)
    for group in _groups(heads, segment_lengths, dilation_rates):
        inside = rows % group.segment_length % group.dilation_rate == group.offset
        for head in range(heads)[group.q_heads]:
            x = q.new_zeros(batch, n, dim, dtype=torch.float64)
            for start in range(0, n, group.segment_length):
                span = slice(
                    start + group.offset, start + group.segment_length, group.dilation_rate
                )
                one = (y[:, span, head].double() for y in (q, k, v))
                x[:, span] = softmax_attention(*one, is_causal=is_causal)
            total, size = x.sum(dim=1, keepdim=True), x.abs().sum(dim=1, keepdim=True)
            found = x[:, rows[inside]] / total / len(segment_lengths)
            out[:, inside, head] += found
            bound[:, inside, head] += (found * size / total).abs()
    return out, max(1.0, (bound.square().mean() / out.square().mean()).sqrt().item())


def pairs(
    seq_len: int,
    heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> int:
    """Pairs of kept tokens, over the heads of each branch, one computed twice counting twice."""
    # As many heads per branch as without the overlap.
    return HeadPartition(segment_lengths, dilation_rates).pairs(seq_len, heads, is_causal)


def _groups(heads: int, segment_lengths, dilation_rates) -> Iterator[HeadGroup]:
    branches = HeadPartition(segment_lengths, dilation_rates).branches()
    base, extra = divmod(heads, len(segment_lengths))
    for i, (w, r) in enumerate(branches):
        size = base + (i < extra)
        of_group = slice(i * size, (i + 1) * size)
        yield HeadGroup(w, r, i % r, of_group, of_group)
