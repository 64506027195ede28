"""Query blocks whose tiles share a program: two neighbouring ones, or the same one of two heads.

Lists are CSR, row_ptr (G, M + 1) int64 and col_idx (nnz,) int32 (`models.patterns.csr`).
"""

from __future__ import annotations

import torch

from models.patterns.csr import entry_rows

# Two query blocks go together where that loads at most this share of the key blocks that each by
# itself would. By itself a block of 64 rows does 64 FLOP for each byte of keys and values in half
# precision, about what a Hopper card's L2 cache can feed; at this share it does 85, at one half
# 128. Against that, there are half as many programs, and each lasts as long as two. Not measured.
MOST_LOADED = 0.75

PairedLists = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def neighbours(row_ptr: torch.Tensor, col_idx: torch.Tensor, is_causal: bool) -> PairedLists | None:
    """`paired` where that pays.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.
        is_causal: whether blocks on the diagonal are cut.

    Returns:
        As `paired`, or None where that loads more than MOST_LOADED of what the lists hold.
    """
    lists = paired(row_ptr, col_idx, is_causal)
    return lists if len(lists[1]) <= MOST_LOADED * len(col_idx) else None


def paired(row_ptr: torch.Tensor, col_idx: torch.Tensor, is_causal: bool) -> PairedLists:
    """CSR lists of the query blocks 2p and 2p + 1 together, P = ceil(M / 2) pairs per head.

    Blocks that need a mask for either, on the diagonal (when causal) or at the end of the
    sequence, count as listed by each alone.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32, none above the diagonal when causal.
        is_causal: whether blocks on the diagonal are cut.

    Returns:
        row_ptr: (G, 3P + 1) int64, three rows per pair: the key blocks that both list, those of
            2p alone, those of 2p + 1 alone.
        col_idx: int32, ascending within a row.
        order: (G, P) int32, pairs by falling work, ties by number.
    """
    heads, blocks = row_ptr.shape[0], row_ptr.shape[1] - 1
    pairs = -(-blocks // 2)
    row = entry_rows(row_ptr, len(col_idx)).long()
    head, row = row // blocks, row % blocks
    column = col_idx.long()
    key, order = ((head * pairs + row // 2) * blocks + column).sort(stable=True)
    row, column = row[order], column[order]
    first_uncut = row - row % 2 if is_causal else blocks - 1
    shared = torch.zeros_like(key, dtype=torch.bool)
    shared[:-1] = (key[1:] == key[:-1]) & (column < first_uncut)[1:]
    both = shared.clone()
    both[1:] |= shared[:-1]
    section = torch.where(both, 0, 1 + row % 2)
    kept = shared | ~both  # of two equal entries, the first
    key = (key // blocks * 3 + section)[kept] * blocks + column[kept]
    key = key.sort().values
    bounds = torch.arange(heads * pairs * 3 + 1, device=row_ptr.device) * blocks
    ptr = torch.searchsorted(key, bounds)
    pair_ptr = torch.cat([ptr[:-1].view(heads, -1), ptr[3 * pairs :: 3 * pairs, None]], 1)
    both, first, second = pair_ptr.diff(dim=1).view(heads, pairs, 3).unbind(2)
    longest = (2 * both + first + second).argsort(dim=1, descending=True, stable=True)
    return pair_ptr, (key % blocks).to(torch.int32), longest.to(torch.int32)


def heads_alike(row_ptr: torch.Tensor, col_idx: torch.Tensor) -> bool:
    """Whether heads 2i and 2i + 1 have the same lists, for all i.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.

    Returns:
        False also where G is odd.
    """
    heads, blocks = row_ptr.shape[0], row_ptr.shape[1] - 1
    lengths = row_ptr.diff(dim=1)
    if heads % 2 or not torch.equal(lengths[::2], lengths[1::2]):
        return False
    odd = entry_rows(row_ptr, len(col_idx)) // blocks % 2 == 1
    return torch.equal(col_idx[~odd], col_idx[odd])
