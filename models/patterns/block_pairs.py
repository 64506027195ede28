"""Rows of a block mask that go together: two neighbouring query blocks, or a block of two heads."""

from __future__ import annotations

import torch

from models.patterns.block_mask import BlockMask

# Two query blocks go together where that loads at most this share of the key blocks that each by
# itself would. By itself a block of 64 rows does 64 FLOP for each byte of keys and values in half
# precision, about what a Hopper card's L2 cache can feed; at this share it does 85, at one half
# 128. Against that, there are half as many programs, and each lasts as long as two. Not measured.
MOST_LOADED = 0.75


def neighbours(mask: BlockMask, is_causal: bool) -> tuple[torch.Tensor, ...] | None:
    """`paired`, or None where that loads more than MOST_LOADED of what `mask` lists."""
    lists = paired(mask, is_causal)
    return lists if len(lists[1]) <= MOST_LOADED * len(mask.col_idx) else None


def paired(mask: BlockMask, is_causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """row_ptr, col_idx, order: CSR lists of the query blocks 2p and 2p + 1, P pairs a head.

    row_ptr: (G, 3P + 1) int64, of three rows a pair: the key blocks that both list, those of 2p
    alone, those of 2p + 1 alone. col_idx: int32, ascending within a row. order: (G, P) int32,
    pairs by falling work, ties by number. Blocks that the diagonal cuts for either (when causal)
    or the end of the sequence may cut count as listed by each alone.
    """
    heads, blocks = mask.heads, mask.blocks
    pairs = -(-blocks // 2)
    row = mask.entry_rows().long()
    head, row = row // blocks, row % blocks
    column = mask.col_idx.long()
    key, order = ((head * pairs + row // 2) * blocks + column).sort(stable=True)
    row, column = row[order], column[order]
    first_uncut = row - row % 2 if is_causal else blocks - 1
    shared = torch.zeros_like(key, dtype=torch.bool)
    shared[:-1] = (key[1:] == key[:-1]) & (column < first_uncut)[1:]
    both = shared.clone()
    both[1:] |= shared[:-1]
    section = torch.where(both, 0, 1 + row % 2)
    kept = shared | ~both  # of two that are one, the first
    key = (key // blocks * 3 + section)[kept] * blocks + column[kept]
    key = key.sort().values
    bounds = torch.arange(heads * pairs * 3 + 1, device=mask.device) * blocks
    ptr = torch.searchsorted(key, bounds)
    row_ptr = torch.cat([ptr[:-1].view(heads, -1), ptr[3 * pairs :: 3 * pairs, None]], 1)
    both, first, second = row_ptr.diff(dim=1).view(heads, pairs, 3).unbind(2)
    longest = (2 * both + first + second).argsort(dim=1, descending=True, stable=True)
    return row_ptr, (key % blocks).to(torch.int32), longest.to(torch.int32)


def heads_alike(mask: BlockMask) -> bool:
    """Whether heads 2i and 2i + 1 have the same lists, for all i."""
    lengths = mask.lengths()
    if mask.heads % 2 or not torch.equal(lengths[::2], lengths[1::2]):
        return False
    odd = mask.entry_rows() // mask.blocks % 2 == 1
    return torch.equal(mask.col_idx[~odd], mask.col_idx[odd])
