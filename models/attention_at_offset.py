"""Causal attention of a sequence's last tokens to all of it: a step with a key/value cache.

n queries stand at the positions N - n to N - 1 of N keys. The result is the last n rows of causal
attention over the whole sequence. Dilated attention reads the kept keys of the queries' segments
alone, as strided views, block-sparse attention the key blocks on the queries' lists. Plain PyTorch,
differentiable; queries are few, so scores are written down, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from models.errors import UnsupportedBackend, resolve_scale
from models.merge import merge
from models.ops import under_autocast, without_autocast
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches
from models.qkv import check_qkv

# Scores that exist at once: 64 MB of float32.
_SCORES_AT_ONCE = 1 << 24


def dilated_attention_at_offset(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    scale: float | None = None,
    head_offset: str = "modulo",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The last n rows of causal `models.dilated_attention` (LongNet, arXiv 2307.02486).

    Args:
        q: (B, n, H, D), the queries at positions N - n to N - 1; float64, float32, float16 or
            bfloat16, accumulated in float32 at least.
        k, v: (B, N, Hkv, D), H a multiple of Hkv, n <= N.
        segment_lengths, dilation_rates, scale, head_offset, return_lse: as of
            `models.dilated_attention`.

    Returns:
        out (B, n, H, D) in q's dtype, and with `return_lse` also LSE (B, H, n), natural log,
        float32 (float64 for float64). A query in no branch gives 0 and -inf.

    Raises:
        ValueError: on bad arguments.
    """
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    q, k, v, scale = _prepared(q, k, v, scale)

    def attend(q, k, v):
        parts = [_attend_branch(q, k, v, scale, *branch) for branch in _one_by_one(pattern)]
        return merge([out for out, _ in parts], [lse for _, lse in parts])

    return _in_pieces(attend, q, k, v, return_lse)


def block_sparse_attention_at_offset(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The last n rows of causal `models.block_sparse_attention`.

    Args:
        q: (B, n, H, D), the queries at positions N - n to N - 1, as of
            `dilated_attention_at_offset`.
        k, v: (B, N, Hkv, D), H a multiple of Hkv, n <= N.
        mask: of at least ceil(N / block_size) blocks, so that one mask serves a growing cache, with
            lists for 1 or H heads; rows and columns of later blocks are not read.
        scale, return_lse: as of `models.block_sparse_attention`.

    Returns:
        As `dilated_attention_at_offset`; a query without keys gives 0 and -inf.

    Raises:
        ValueError: on bad arguments.
        UnsupportedBackend: inside torch.compile.
    """
    if torch.compiler.is_compiling():
        raise UnsupportedBackend(
            "block_sparse_attention_at_offset reads its mask on the host: not available inside "
            "torch.compile"
        )
    if not isinstance(mask, BlockMask):
        raise ValueError(f"mask={type(mask).__name__}: expected a models.patterns.BlockMask")
    q, k, v, scale = _prepared(q, k, v, scale)
    needed = -(-k.shape[1] // mask.block_size)
    if mask.blocks < needed:
        raise ValueError(
            f"mask has {mask.blocks} blocks of {mask.block_size} tokens: expected at least "
            f"{needed} for {k.shape[1]} keys"
        )
    mask.check_fits(mask.blocks * mask.block_size, q.shape[2])
    return _in_pieces(partial(_attend_blocks, mask, scale), q, k, v, return_lse)


def _prepared(q, k, v, scale):
    """Check the arguments and apply autocast."""
    if all(isinstance(x, torch.Tensor) for x in (q, k, v)):
        q, k, v = under_autocast(q, k, v)
    check_qkv(q, k, v)
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"q.shape={tuple(q.shape)}: expected at most k's {k.shape[1]} tokens")
    return q, k, v, resolve_scale(scale, q.shape[3])


def _in_pieces(attend, q, k, v, return_lse):
    """`attend` on as many of the queries at a time as the scores allow."""
    batch, n, heads, _ = q.shape
    total = k.shape[1]
    step = max(1, _SCORES_AT_ONCE // max(1, batch * heads * total))
    outs, lses = [], []
    with without_autocast(q.device):
        for start in range(0, n, step):
            stop = min(start + step, n)
            keys = slice(0, total - n + stop)
            out, lse = attend(q[:, start:stop], k[:, keys], v[:, keys])
            outs.append(out.to(q.dtype))
            lses.append(lse)
    out, lse = torch.cat(outs, dim=1), torch.cat(lses, dim=2)
    return (out, lse) if return_lse else out


def _one_by_one(pattern: DilatedBranches):
    """Each branch as a pattern of its own: offsets do not depend on the other branches."""
    for w, r in pattern.branches():
        yield w, r, DilatedBranches((w,), (r,), pattern.head_offset)


def _attend_branch(q, k, v, scale, w, r, pattern):
    _, n, heads, _ = q.shape
    total = k.shape[1]
    first = total - n
    out, lse = _nothing(q)
    for group in pattern.head_groups(heads, k.shape[2]):
        for segment in range(first // w * w, total, w):
            end = min(segment + w, total)
            least = segment + group.offset
            # The first query that the group keeps in this segment.
            query = least + -(-max(0, first - least) // r) * r
            if query >= end:
                continue
            rows, keys = slice(query - first, end - first, r), slice(least, end, r)
            part = (k[:, keys, group.kv_heads], v[:, keys, group.kv_heads])
            part_out, part_lse = _softmax(q[:, rows, group.q_heads], *part, scale)
            out[:, rows, group.q_heads] = part_out
            lse[:, group.q_heads, rows] = part_lse
    return out, lse


def _attend_blocks(mask, scale, q, k, v):
    _, n, heads, _ = q.shape
    total, size = k.shape[1], mask.block_size
    first = total - n
    per_head = heads // k.shape[2]
    pointers, columns = _on_the_host(mask)
    out, lse = _nothing(q)
    for block in range(first // size, -(-total // size)):
        start, end = max(first, block * size), min((block + 1) * size, total)
        rows = slice(start - first, end - first)
        for i in range(mask.heads):
            kept = columns[pointers[i][block] : pointers[i][block + 1]].long()
            keys = (kept[kept <= block, None] * size + torch.arange(size)).flatten()
            keys = keys[keys < end]
            if len(keys) == 0:
                continue
            # One list for all heads, or a list and a key head for each.
            own = slice(0, heads) if mask.heads == 1 else slice(i, i + 1)
            of_keys = slice(own.start // per_head, -(-own.stop // per_head))
            hidden = (keys > torch.arange(start, end)[:, None]).to(q.device)
            keys = keys.to(q.device)
            part = (k[:, keys, of_keys], v[:, keys, of_keys])
            part_out, part_lse = _softmax(q[:, rows, own], *part, scale, hidden)
            out[:, rows, own] = part_out
            lse[:, own, rows] = part_lse
    return out, lse


def _on_the_host(mask: BlockMask) -> tuple[list[list[int]], torch.Tensor]:
    """row_ptr and col_idx, copied from a device once."""
    if "on the host" not in mask.plans:
        mask.plans["on the host"] = (mask.row_ptr.tolist(), mask.col_idx.cpu())
    return mask.plans["on the host"]


def _nothing(q) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, n, H, D) and LSE (B, H, n) of queries without keys."""
    batch, n, heads, _ = q.shape
    accumulator = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=accumulator)
    return out, q.new_full((batch, heads, n), -torch.inf, dtype=accumulator)


def _softmax(q, k, v, scale, hidden=None):
    """Attention of (B, n, H, D) to (B, K, Hkv, D); out in the accumulator's dtype.

    hidden: (n, K) bool, True where a query does not attend; None where the queries are the last n
    of the keys.
    """
    n, keys = q.shape[1], k.shape[1]
    accumulator = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(accumulator) for x in (q, k, v))
    q = q.unflatten(2, (k.shape[2], -1))
    scores = scale * torch.einsum("bqhgd,bkhd->bhgqk", q, k)
    if hidden is None and n > 1:
        hidden = torch.ones(n, keys, dtype=torch.bool, device=q.device).triu(keys - n + 1)
    if hidden is None:
        lse, is_empty = scores.logsumexp(dim=-1), None
    else:
        # A finite filler, so that rows without keys have no NaN gradients.
        scores = scores.masked_fill(hidden, torch.finfo(accumulator).min / 4)
        lse, is_empty = scores.logsumexp(dim=-1), hidden.all(dim=1)
    weights = (scores - lse[..., None]).exp()
    if is_empty is not None:
        weights = weights.masked_fill(hidden, 0.0)
        lse = lse.masked_fill(is_empty, -torch.inf)
    out = torch.einsum("bhgqk,bkhd->bqhgd", weights, v)
    return out.flatten(2, 3), lse.flatten(1, 2)
