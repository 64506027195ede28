"""Lists of key blocks as FlexAttention and FlashAttention-4 take them: padded row by row.

Two kinds: *partial* blocks, of which single tokens are masked (the diagonal when causal, a short
last key block), and *full* ones, kept whole. Input are CSR lists (`models.patterns.csr`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from models.patterns.csr import Lists, entry_rows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class BlockLists(NamedTuple):
    """Partial and full blocks of each row.

    counts: (1, G, M) int32; blocks: (1, G, M, W) int32, ascending, of which the first `counts` of
    a row are valid. Both kinds have one width W: torch 2.11 reads both by the strides of one.
    """

    partial_counts: torch.Tensor
    partial_blocks: torch.Tensor
    full_counts: torch.Tensor
    full_blocks: torch.Tensor


class PaddedMask(Protocol):
    """What backends need of a `models.patterns.BlockMask`; dense attention does without that file.

    The methods are described there.
    """

    @property
    def block_size(self) -> int: ...

    def check_fits(self, seq_len: int, heads: int) -> None: ...

    def padded_lists(self, seq_len: int, is_causal: bool) -> tuple[BlockLists, BlockLists]: ...

    def to_flex(self, seq_len: int, is_causal: bool = False) -> BlockMask: ...


def padded_lists(
    by_query: Lists, by_key: Lists, *, is_causal: bool, is_short: bool
) -> tuple[BlockLists, BlockLists]:
    """Both lists in the padded format.

    No M x M step: W is the longest row's length, rounded up to a power of two, so that similar
    masks share a compiled kernel.

    Args:
        by_query: row_ptr (G, M + 1) int64 and col_idx (nnz,) int32, the key blocks of each query
            block, none above the diagonal when causal.
        by_key: likewise, the query blocks of each key block.
        is_causal: whether diagonal blocks are partial.
        is_short: whether the last key block is, being shorter than the others.

    Returns:
        The lists by query block and by key block.
    """

    def pad(row_ptr: torch.Tensor, col_idx: torch.Tensor, rows_are_keys: bool) -> BlockLists:
        blocks = row_ptr.shape[1] - 1
        rows = entry_rows(row_ptr, len(col_idx)).long()
        row = rows % blocks
        partial = torch.zeros_like(col_idx, dtype=torch.bool)
        if is_causal:
            partial |= row == col_idx
        if is_short:
            partial |= (row if rows_are_keys else col_idx) == blocks - 1
        return _pad(row_ptr, col_idx, rows, partial)

    return pad(*by_query, False), pad(*by_key, True)


def _pad(row_ptr, col_idx, rows, partial) -> BlockLists:
    heads, blocks = row_ptr.shape[0], row_ptr.shape[1] - 1
    kinds = (partial, ~partial)
    before = [F.pad(kind.cumsum(0), (1, 0)) for kind in kinds]
    counts = [seen[row_ptr].diff(dim=1) for seen in before]
    longest = max(1, *(int(count.max()) for count in counts))
    width = min(1 << (longest - 1).bit_length(), blocks)
    padded = []
    for kind, seen, count in zip(kinds, before, counts, strict=True):
        # Enough for the last row, too, to be read as M entries (`_as_if_wide`).
        flat = col_idx.new_zeros((heads * blocks - 1) * width + blocks)
        place = seen[:-1] - seen[row_ptr[:, :-1]].flatten()[rows]
        flat[(rows * width + place)[kind]] = col_idx[kind]
        entries = flat[: heads * blocks * width]
        padded += [count.to(torch.int32)[None], entries.view(1, heads, blocks, width)]
    return BlockLists(*padded)


def flex_mask(
    by_query: BlockLists, by_key: BlockLists, seq_len: int, block_size: int, is_causal: bool
) -> BlockMask:
    """PyTorch's BlockMask of these lists.

    Args:
        by_query, by_key: as `padded_lists` returns them.
        seq_len: tokens.
        block_size: tokens per block.
        is_causal: whether partial blocks are cut at the diagonal.

    Returns:
        A mask for `flex_attention`, in the memory of the lists.
    """
    from torch.nn.attention.flex_attention import BlockMask, noop_mask

    return BlockMask(
        (seq_len, seq_len),
        *_as_if_wide(by_query),
        *_as_if_wide(by_key),
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=up_to_self if is_causal else noop_mask,
    )


def _as_if_wide(lists: BlockLists) -> BlockLists:
    """The same memory as overlapping rows of M entries: PyTorch infers M from their number."""

    def widen(blocks):
        _, heads, rows, _ = blocks.shape
        return blocks.as_strided((1, heads, rows, rows), blocks.stride())

    return lists._replace(
        partial_blocks=widen(lists.partial_blocks), full_blocks=widen(lists.full_blocks)
    )


def up_to_self(
    batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The causal `mask_mod` of FlexAttention.

    Args:
        batch, head: not used, as the interface demands them.
        query, key: int positions.

    Returns:
        bool, True where the query attends to the key.
    """
    return query >= key
