"""A picture of a block mask that stays readable, and cheap, for any number of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELLS = 512


def shares(row_ptr: torch.Tensor, col_idx: torch.Tensor, cells: int = _CELLS) -> torch.Tensor:
    """The share of blocks kept in each cell of a picture.

    A cell covers the blocks whose number times S / M falls into it.

    Args:
        row_ptr: (M + 1,) int64, offsets of one head's lists in `col_idx`.
        col_idx: int32, key block numbers.
        cells: cells per side, at most.

    Returns:
        (S, S) float64 on the CPU, S = min(M, cells); rows are query blocks.
    """
    blocks = len(row_ptr) - 1
    size = min(blocks, cells)
    cell = torch.arange(blocks, device=row_ptr.device) * size // blocks
    row = cell.repeat_interleave(row_ptr.diff())
    column = cell[col_idx[row_ptr[0] : row_ptr[-1]].long()]
    kept = torch.bincount(row * size + column, minlength=size * size).view(size, size)
    covered = torch.bincount(cell, minlength=size)
    return (kept / (covered[:, None] * covered[None, :])).cpu()


def draw(row_ptr: torch.Tensor, col_idx: torch.Tensor, ax: Axes) -> None:
    """Draw one head's lists into matplotlib axes, measured in blocks: dark where all are kept.

    A cell of several blocks is shaded by the square root of the share that is kept, so that a
    single kept block is visible.

    Args:
        row_ptr: (M + 1,) int64, offsets of one head's lists in `col_idx`.
        col_idx: int32, key block numbers.
        ax: where to draw.
    """
    blocks = len(row_ptr) - 1
    image = shares(row_ptr, col_idx).sqrt().numpy()
    extent = (0, blocks, blocks, 0)
    # Mean when shrinking: picking the nearest cell would drop thin lines.
    ax.imshow(image, cmap="Greys", vmin=0, vmax=1, extent=extent, interpolation="antialiased")
    ax.set_xlabel("key block")
    ax.set_ylabel("query block")
