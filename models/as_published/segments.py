"""What the branched replicas share: heads cut into one group per branch, tokens into segments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from models.patterns.branches import HeadGroup, HeadPartition
from models.qkv import check_qkv, check_same_length


def groups(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
) -> list[HeadGroup]:
    """One group of heads a branch, as the published code cut them; see `HeadPartition`."""
    check_divides(q, k, v, segment_lengths)
    pattern = HeadPartition(segment_lengths, dilation_rates)
    return list(pattern.head_groups(q.shape[2], k.shape[2]))


def check_divides(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment_lengths: Sequence[int]
) -> None:
    """ValueError unless the shapes are those that the published code took."""
    check_qkv(q, k, v)
    check_same_length(q, k)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"k has {k.shape[2]} heads: expected {q.shape[2]}, as q")
    for w in segment_lengths:
        if q.shape[1] % w:
            raise ValueError(
                f"segment_lengths={segment_lengths!r}: {w} does not divide {len(q[0])}"
            )


def kept(x: torch.Tensor, group: HeadGroup) -> torch.Tensor:
    """The tokens and heads of a group, segment by segment: a view (B, N / w, kept, g, D) of x."""
    segments = x.unflatten(1, (-1, group.segment_length))
    return segments[:, :, group.offset :: group.dilation_rate, group.q_heads]


def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool
) -> torch.Tensor:
    """Plain attention (..., S, D) over the last dimension but one, in the inputs' type."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        future = torch.ones(scores.shape[-2:], device=q.device, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(dim=-1) @ v
