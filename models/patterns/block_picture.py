"""A picture of a block mask that stays readable, and cheap, for any number of blocks."""

from __future__ import annotations

import torch

from models.patterns.block_mask import BlockMask

_CELLS = 512


def shares(mask: BlockMask, head: int = 0, cells: int = _CELLS) -> torch.Tensor:
    """(S, S) float64 on the CPU, S = min(M, cells): the share of blocks kept in each cell.

    Rows are query blocks. A cell covers the blocks whose number times S / M falls into it.
    """
    size = min(mask.blocks, cells)
    ptr = mask.row_ptr[head if mask.heads > 1 else 0]
    cell = torch.arange(mask.blocks, device=mask.device) * size // mask.blocks
    row = cell.repeat_interleave(ptr.diff())
    column = cell[mask.col_idx[ptr[0] : ptr[-1]].long()]
    kept = torch.bincount(row * size + column, minlength=size * size).view(size, size)
    covered = torch.bincount(cell, minlength=size)
    return (kept / (covered[:, None] * covered[None, :])).cpu()


def draw(mask: BlockMask, ax, head: int = 0) -> None:
    """Draw the mask of `head` into matplotlib axes: axes in blocks, dark where all are kept.

    Where a cell stands for several blocks, its shade is the square root of the share that
    is kept, so that a lone block shows.
    """
    image = shares(mask, head).sqrt().numpy()
    extent = (0, mask.blocks, mask.blocks, 0)
    # Mean when shrinking: picking the nearest cell would drop thin lines.
    ax.imshow(image, cmap="Greys", vmin=0, vmax=1, extent=extent, interpolation="antialiased")
    ax.set_xlabel("key block")
    ax.set_ylabel("query block")
