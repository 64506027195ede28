"""Attention of the newest token to views of the cache: what a step of generation computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from models.fused_ops import as_operand, fused_op, head_dim_multiple
from models.merge import merge_into
from models.patterns.branches import DilatedBranches, HeadGroup, HeadPartition

Step = tuple[torch.Tensor, int]


def attend_to_all(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padded: torch.Tensor | None
) -> Step:
    """The dense step.

    Args:
        q: (B, 1, H, D), of the last of the tokens.
        k, v: (B, n, Hkv, D).
        padded: (B, n) bool, True where a key is not attended to, or None.

    Returns:
        out (B, 1, H, D), 0 without keys, and the keys read, added up over heads.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    # The heads of one key head are rows of one small attention, which reads each key once.
    rows = q[:, 0].unflatten(1, (kv_heads, heads // kv_heads))
    out, _ = _attend(rows, k, v, None if padded is None else padded[:, None])
    return out.flatten(1, 2)[:, None].to(q.dtype), heads * k.shape[1]


def attend_in_branches(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padded: torch.Tensor | None,
    pattern: DilatedBranches | HeadPartition,
) -> Step:
    """The dilated step: per branch a strided view of the cache, joined by LSE.

    At position n the branch (w, r) is of the heads whose offset is `(n mod w) mod r`; they read
    every r-th key from the segment's start and their offset on. No key is copied.

    Args:
        q, k, v, padded: as of `attend_to_all`.
        pattern: who attends to whom.

    Returns:
        As `attend_to_all`; heads that no branch holds at n give 0.
    """
    n = k.shape[1] - 1
    accumulator = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=accumulator)[:, 0]
    lse = q.new_full(out.shape[:2], -torch.inf, dtype=accumulator)
    keys_read = 0
    for groups in _concerned(pattern, q.shape[2], k.shape[2], n):
        start = n // groups[0].segment_length * groups[0].segment_length
        places = slice(start + groups[0].offset, n + 1, groups[0].dilation_rate)
        part_out, part_lse = _attend(
            torch.stack([q[:, 0, group.q_heads] for group in groups], dim=2),
            k[:, places, groups[0].kv_heads],
            v[:, places, groups[0].kv_heads],
            None if padded is None else padded[:, None, places],
        )
        for row, group in enumerate(groups):
            into = (out[:, group.q_heads], lse[:, group.q_heads])
            merge_into(*into, part_out[:, :, row], part_lse[:, :, row])
        keys_read += part_lse.shape[1:].numel() * len(range(*places.indices(n + 1)))
    return out[:, None].to(q.dtype), keys_read


def _concerned(pattern, heads, kv_heads, n) -> Iterable[list[HeadGroup]]:
    """The head groups of the branches that hold position n, those that read the same keys together:
    with grouped queries they are rows of one small attention, which reads each key once."""
    found: dict[tuple, list[HeadGroup]] = {}
    for group in pattern.head_groups(heads, kv_heads):
        if n % group.segment_length % group.dilation_rate == group.offset:
            kv = group.kv_heads
            keys = (group.segment_length, group.dilation_rate, kv.start, kv.stop, kv.step)
            found.setdefault(keys, []).append(group)
    return found.values()


def attend_to_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padded: torch.Tensor | None,
    blocks: torch.Tensor,
    block_size: int,
) -> Step:
    """The block-sparse step: the keys of the kept blocks, copied together.

    Args:
        q, k, v, padded: as of `attend_to_all`.
        blocks: (1, 1, kept) for all sequences and heads, (1, H, kept) or (B, H, kept) int64,
            ascending, the block of the last token among them and last.
        block_size: tokens per block.

    Returns:
        As `attend_to_all`.
    """
    n, heads, kv_heads = k.shape[1], q.shape[2], k.shape[2]
    tokens = blocks[..., None] * block_size + torch.arange(block_size, device=q.device)
    # All kept blocks but the last are complete.
    short = -n % block_size
    tokens = tokens.flatten(-2)[..., : blocks.shape[-1] * block_size - short]
    if blocks.shape[:2] == (1, 1):
        tokens = tokens[0, 0]
        padded = None if padded is None else padded[:, tokens]
        return attend_to_all(q, k[:, tokens], v[:, tokens], padded)
    element = torch.arange(q.shape[0], device=q.device)[:, None, None]
    kv_head = torch.arange(heads, device=q.device)[:, None] // (heads // kv_heads)
    k, v = (x[element, tokens, kv_head].transpose(1, 2) for x in (k, v))
    padded = None if padded is None else padded[element, tokens]
    out, _ = _attend(q.transpose(1, 2), k, v, padded)
    return out.transpose(1, 2).to(q.dtype), heads * tokens.shape[-1]


def _attend(rows, k, v, padded):
    """rows (B, h, G, D), k, v (B, L, h, D) of any strides, padded (B, 1 or h, L) bool or None.

    Returns out (B, h, G, D) and LSE (B, h, G), 0 and -inf where all keys are padding.
    """
    head_dim, dtype = rows.shape[3], rows.dtype
    extra = -head_dim % head_dim_multiple(rows)
    if extra:
        rows, k, v = (F.pad(x, (0, extra)) for x in (rows, k, v))
    op = fused_op(rows, is_masked=padded is not None)
    bias = None
    if padded is not None:
        bias = torch.zeros_like(padded, dtype=dtype).masked_fill_(padded, -torch.inf)[:, :, None]
    k, v = (as_operand(x).transpose(1, 2) for x in (k, v))
    out, lse = op.forward(as_operand(rows), k, v, False, head_dim**-0.5, bias)
    out = out[..., :head_dim]
    if padded is not None:
        is_empty = padded.all(dim=-1)[..., None]
        out = out.masked_fill(is_empty[..., None], 0.0)
        lse = lse.masked_fill(is_empty, -torch.inf)
    return out, lse
