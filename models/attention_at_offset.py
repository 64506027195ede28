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

    return _in_pieces(partial(_attend_branches, pattern, scale), q, k, v, return_lse)


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


def _attend_branches(pattern, scale, q, k, v):
    parts = []
    for w, r in pattern.branches():
        # Offsets of a branch do not depend on the other branches.
        branch = DilatedBranches((w,), (r,), pattern.head_offset)
        parts.append(_attend_branch(w, r, _heads(branch, q, k), scale, q, k, v))
    return merge([out for out, _ in parts], [lse for _, lse in parts])


def _heads(branch: DilatedBranches, q, k) -> dict[tuple, list[int]]:
    """The heads of a branch that read the same keys: {(offset, key heads): places in the group}."""
    per_head = q.shape[2] // k.shape[2]
    found: dict[tuple, list[int]] = {}
    for group in branch.head_groups(q.shape[2], k.shape[2]):
        heads = (group.kv_heads.start, group.kv_heads.stop, group.kv_heads.step)
        place = group.q_heads.start - group.kv_heads.start * per_head
        found.setdefault((group.offset, heads), []).append(place)
    return found


def _attend_branch(w, r, heads, scale, q, k, v):
    n, total = q.shape[1], k.shape[1]
    first = total - n
    q, out, lse = _by_key_head(q, k)
    for (offset, of_keys), places in heads.items():
        own = slice(*of_keys)
        for segment in range(first // w * w, total, w):
            end = min(segment + w, total)
            least = segment + offset
            # The first query that these heads keep in this segment.
            query = least + -(-max(0, first - least) // r) * r
            if query >= end:
                continue
            rows, keys = slice(query - first, end - first, r), slice(least, end, r)
            part = (q[:, rows, own, places], k[:, keys, own], v[:, keys, own])
            out[:, rows, own, places], lse[:, own, places, rows] = _softmax(*part, scale)
    return out.flatten(2, 3), lse.flatten(1, 2)


def _attend_blocks(mask, scale, q, k, v):
    n, total, size = q.shape[1], k.shape[1], mask.block_size
    first, per_head = total - n, q.shape[2] // k.shape[2]
    pointers, columns = _on_the_host(mask)
    q, out, lse = _by_key_head(q, k)
    for block in range(first // size, -(-total // size)):
        start, end = max(first, block * size), min((block + 1) * size, total)
        rows = slice(start - first, end - first)
        for i in range(mask.heads):
            kept = columns[pointers[i][block] : pointers[i][block + 1]].long()
            keys = (kept[kept <= block, None] * size + torch.arange(size)).flatten()
            keys = keys[keys < end]
            if len(keys) == 0:
                continue
            hidden = (keys > torch.arange(start, end)[:, None]).to(q.device)
            keys = keys.to(q.device)
            # One list for all heads, or one for each.
            own, places = slice(None), slice(None)
            if mask.heads > 1:
                own, places = slice(i // per_head, i // per_head + 1), [i % per_head]
            part = (q[:, rows, own, places], k[:, keys, own], v[:, keys, own])
            out[:, rows, own, places], lse[:, own, places, rows] = _softmax(*part, scale, hidden)
    return out.flatten(2, 3), lse.flatten(1, 2)


def _on_the_host(mask: BlockMask) -> tuple[list[list[int]], torch.Tensor]:
    """row_ptr and col_idx, copied from a device once."""
    if "on the host" not in mask.plans:
        mask.plans["on the host"] = (mask.row_ptr.tolist(), mask.col_idx.cpu())
    return mask.plans["on the host"]


def _by_key_head(q, k) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, n, Hkv, G, D), and out likewise and LSE (B, Hkv, G, n) of queries without keys."""
    q = q.unflatten(2, (k.shape[2], -1))
    accumulator = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=accumulator)
    batch, n, kv_heads, group_size, _ = q.shape
    shape = (batch, kv_heads, group_size, n)
    return q, out, q.new_full(shape, -torch.inf, dtype=accumulator)


def _softmax(q, k, v, scale, hidden=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (B, n, Hkv, G, D) to (B, K, Hkv, D): out and LSE in the accumulator's dtype.

    hidden: (n, K) bool, True where a query does not attend; None where the queries are the last n
    of the keys.
    """
    n, keys = q.shape[1], k.shape[1]
    accumulator = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(accumulator) for x in (q, k, v))
    scores = scale * torch.einsum("bqhgd,bkhd->bhgqk", q, k)
    if hidden is None and n > 1:
        hidden = torch.ones(n, keys, dtype=torch.bool, device=q.device).triu(keys - n + 1)
    if hidden is not None:
        # A finite filler, so that rows without keys have no NaN gradients.
        scores = scores.masked_fill(hidden, torch.finfo(accumulator).min / 4)
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse[..., None]).exp()
    if hidden is not None:
        weights = weights.masked_fill(hidden, 0.0)
        lse = lse.masked_fill(hidden.all(dim=1), -torch.inf)
    return torch.einsum("bhgqk,bkhd->bqhgd", weights, v), lse
