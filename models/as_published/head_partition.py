"""Each head in one branch alone, head by head in a Python loop with all scores written down.

`DilatedAttention` cut the heads into one group per branch, so that a head sees one segment length
and rate, and divided by the number of groups though no two are ever added. Its call of fused
attention raised an error that was caught: what ran, and was timed, is this loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.as_published.segments import groups, kept, softmax_attention
from models.oracle import reference
from models.patterns.branches import HeadPartition

FORMULA = "each head in one branch, over the number of branches"
BACKEND = "python loop over heads"


def head_loop_attention(
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
        into = kept(out, group)
        parts = [kept(x, group) for x in (q, k, v)]
        for head in range(into.shape[3]):
            one = (x[:, :, :, head] for x in parts)
            into[:, :, :, head] = softmax_attention(*one, is_causal=is_causal)
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
    """The oracle on the partition, in float64, (B, R, H, D); magnifies no rounding."""
    pattern = HeadPartition(segment_lengths, dilation_rates)
    out, _ = reference(q, k, v, rows=rows, pattern=pattern, is_causal=is_causal)
    return out / len(segment_lengths), 1.0


def pairs(
    seq_len: int,
    heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> int:
    """Pairs of kept tokens, over the heads of each branch."""
    return HeadPartition(segment_lengths, dilation_rates).pairs(seq_len, heads, is_causal)
