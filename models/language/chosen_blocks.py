"""Blocks by content, causally: each query block chooses the key blocks with the highest scores.

`models.patterns.block_builders.top_k` scores with the mean query of a block and the mean over the
batch, so a token's blocks depend on tokens after it and on other sequences: not a language model.
Here

    score(i, j) = q(first token of block i) . mean of the keys of block j,   j < i,

for each sequence and head by itself. The first token's blocks serve the whole block, all of whose
tokens come after it, and only complete blocks before its own are scored. Its own block is always
kept, with the `kept_blocks(i) - 1` best; equal scores go to the earlier block. No gradient. An
encoder scores all blocks but its own, a short last one with the mean of what it has. The lists
depend on what tensors hold, so torch.compile breaks its graph here and refuses `fullgraph=True`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.block_sparse import block_sparse_attention
from models.ops import without_autocast
from models.patterns import csr
from models.patterns.block_mask import BlockMask


def kept_blocks(allowed: torch.Tensor, sparsity: float) -> torch.Tensor:
    """How many blocks a row keeps, as by the builders of `models.patterns.block_builders`.

    Args:
        allowed: (M,) int64, the blocks that a row may keep, >= 1.
        sparsity: share of these to leave out.

    Returns:
        (M,) int64, >= 1.
    """
    return ((1 - sparsity) * allowed.double()).round().long().clamp(min=1)


def block_means(k: torch.Tensor, block_size: int) -> torch.Tensor:
    """Mean keys.

    Args:
        k: (B, N, Hkv, D); N need not be a multiple of block_size.
        block_size: tokens per block.

    Returns:
        (B, Hkv, ceil(N / block_size), D), float32 at least.
    """
    batch, n, heads, dim = k.shape
    blocks = -(-n // block_size)
    short = blocks * block_size - n
    sums = k.new_zeros(batch, blocks * block_size, heads, dim, dtype=_accumulator(k))
    sums[:, :n] = k.detach()
    sums = sums.unflatten(1, (blocks, block_size)).sum(dim=2)
    tokens = torch.full((blocks,), block_size, device=k.device)
    tokens[-1] -= short
    return (sums / tokens[:, None, None]).transpose(1, 2)


def chosen_row(q: torch.Tensor, means: torch.Tensor, kept: int) -> torch.Tensor:
    """The key blocks of one query block, in a decoder.

    Args:
        q: (B, H, D), of its first token.
        means: (B, Hkv, i, D), of the i complete blocks before it.
        kept: blocks that it keeps, its own, block i, among them.

    Returns:
        (B, H, kept) int64, ascending.
    """
    batch, heads = q.shape[:2]
    before = means.shape[2]
    grouped = q.detach().to(means.dtype).unflatten(1, (means.shape[1], heads // means.shape[1]))
    scores = _products(grouped, means).view(batch, heads, before)
    best = _best_first(scores)[..., : kept - 1].sort(dim=-1).values
    return torch.cat([best, best.new_full((batch, heads, 1), before)], dim=-1)


def chosen_mask(
    q: torch.Tensor, k: torch.Tensor, *, sparsity: float, block_size: int, is_causal: bool
) -> BlockMask:
    """The mask of one sequence.

    Args:
        q: (N, H, D).
        k: (N, Hkv, D), 0 where a key is padding.
        sparsity: share of the blocks that a row may keep to leave out.
        block_size: tokens per block.
        is_causal: whether only complete blocks before a row's own are scored.

    Returns:
        A mask of ceil(N / block_size) blocks with lists of H heads, on q's device.
    """
    means = block_means(k[None], block_size)[0]
    first = q.detach()[::block_size].to(means.dtype).transpose(0, 1)
    heads, blocks = first.shape[:2]
    scores = _products(first, means.repeat_interleave(heads // means.shape[0], dim=0))
    own = torch.arange(blocks, device=q.device)
    if is_causal:
        scores.masked_fill_(own > own[:, None], -torch.inf)
    scores.masked_fill_(own == own[:, None], torch.inf)
    kept = kept_blocks(own + 1 if is_causal else torch.full_like(own, blocks), sparsity)
    best = _best_first(scores)[..., : int(kept.max())]
    beyond = torch.arange(best.shape[2], device=q.device) >= kept[:, None]
    best = best.masked_fill(beyond, blocks).sort(dim=-1).values
    row_ptr = csr.row_pointers(kept[None].expand(heads, -1))
    return BlockMask(row_ptr, best[best < blocks].to(torch.int32), block_size)


def chosen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    sparsity: float,
    block_size: int,
    is_causal: bool,
    backend: str,
    key_padding_mask: torch.Tensor | None = None,
    attend: Callable[..., torch.Tensor] = block_sparse_attention,
) -> torch.Tensor:
    """Block-sparse attention, each sequence of the batch by the blocks that it chooses.

    Args:
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        sparsity, block_size, is_causal: as of `chosen_mask`.
        backend: as `attend` takes it.
        key_padding_mask: (B, N) bool, True where a key is not attended to.
        attend: the attention, with the arguments of `models.block_sparse_attention`.

    Returns:
        (B, N, H, D).
    """
    outs = []
    for one in range(q.shape[0]):
        element = slice(one, one + 1)
        padded = None if key_padding_mask is None else key_padding_mask[element]
        keys = k[one] if padded is None else k[one].masked_fill(padded[0, :, None, None], 0.0)
        options = {"sparsity": sparsity, "block_size": block_size, "is_causal": is_causal}
        mask = chosen_mask(q[one], keys, **options)
        outs.append(
            attend(
                q[element],
                k[element],
                v[element],
                mask,
                is_causal=is_causal,
                backend=backend,
                key_padding_mask=padded,
            )
        )
    return torch.cat(outs) if outs else torch.empty_like(q)


def _products(q: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """q . means, not rounded by autocast: a prompt and a step must choose the same blocks."""
    with without_autocast(q.device):
        return q @ means.mT


def _best_first(scores: torch.Tensor) -> torch.Tensor:
    """Places by falling score, the earlier of two that are equal first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def _accumulator(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
