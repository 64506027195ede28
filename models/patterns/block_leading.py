"""The leading blocks of a block mask: what it says of the first tokens of its sequence."""

from __future__ import annotations

import torch

from models.errors import as_integer
from models.patterns.block_mask import BlockMask
from models.patterns.csr import row_pointers


def leading(mask: BlockMask, blocks: int) -> BlockMask:
    """The first rows and columns of a mask.

    Without blocks above the diagonal this cuts no row's list, so that attention over a sequence is
    the same whatever follows it.

    Args:
        mask: of M blocks.
        blocks: how many to keep, from 1 to M.

    Returns:
        A mask of `blocks` blocks; the mask itself where it has no more.

    Raises:
        ValueError: where it has fewer.
    """
    blocks = as_integer("blocks", blocks)
    if blocks > mask.blocks:
        raise ValueError(f"blocks={blocks}: expected at most the mask's {mask.blocks}")
    if blocks == mask.blocks:
        return mask
    kept = (mask.entry_rows() % mask.blocks < blocks) & (mask.col_idx < blocks)
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    lengths = before[mask.row_ptr].diff(dim=1)[:, :blocks]
    return BlockMask(row_pointers(lengths), mask.col_idx[kept], mask.block_size)
