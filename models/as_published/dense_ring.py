"""Dense attention with all scores written down, under three names.

`StandardRingAttention`, `DistributedRingAttention` and `HilbertRingAttention` on one device: the
Hilbert order was off by default and the benchmark never turned it on, the ring had one member, and
segment lengths and rates went into a check of divisibility and nowhere else. The three gave the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.as_published.segments import check_divides, softmax_attention
from models.oracle import reference

FORMULA = "dense attention; segments and rates play no part"
BACKEND = "scores written down"


def dense_ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """What ran. q, k, v: (B, N, H, D), N a multiple of every segment length; returns the same.

    segment_lengths, dilation_rates: checked, and then ignored, as they were.
    """
    check_divides(q, k, v, segment_lengths)
    of_heads = (x.transpose(1, 2) for x in (q, k, v))
    return softmax_attention(*of_heads, is_causal=is_causal).transpose(1, 2)


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
    """The dense oracle in float64, (B, R, H, D); magnifies no rounding."""
    return reference(q, k, v, rows=rows, is_causal=is_causal)[0], 1.0


def pairs(
    seq_len: int,
    heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
) -> int:
    """All pairs: the scores are computed whole, causal or not."""
    return heads * seq_len * seq_len
