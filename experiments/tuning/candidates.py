"""The tiles that are worth a try for an entry, best guesses first."""

from __future__ import annotations

import itertools

from experiments.tuning.plan import Entry
from models.kernels.tiles import Tile

# Best guesses first, by (kernel, bits) and head dimension: (block_m, block_n, warps, stages), then
# the limit of registers and whether the loop is rotated, where other than none and no.
# Sources: Triton's fused-attention tutorial and FlashAttention-2's tiles for sm_80 and sm_90.
_SMALL = {
    16: ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    32: ((32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 4, 1)),
}
_UNBLOCKED = {
    ("forward", 16): {
        32: ((128, 128, 8, 3, None, True), (128, 128, 4, 3), (128, 64, 4, 3)),
        64: (
            (128, 128, 8, 3, None, True),
            (64, 128, 4, 2, None, True),
            (128, 64, 4, 3),
            (128, 128, 8, 2, None, True),
            (128, 128, 8, 3),
            (128, 64, 8, 3),
            (128, 128, 8, 2),
            (128, 64, 4, 5),
        ),
        128: (
            (128, 128, 8, 2, None, True),
            (128, 128, 8, 2),
            (128, 64, 8, 3, None, True),
            (128, 64, 8, 3),
            (128, 64, 8, 2),
            (128, 32, 8, 2),
        ),
        256: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
    },
    ("backward_q", 16): {
        32: ((128, 64, 4, 3), (128, 64, 8, 3)),
        64: ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3)),
        128: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2)),
        256: ((64, 64, 8, 1), (64, 32, 8, 2), (64, 32, 8, 1), (32, 32, 8, 1)),
    },
    ("backward_kv", 16): {
        32: ((64, 128, 4, 3), (64, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 2)),
        64: (
            (64, 128, 8, 3),
            (64, 128, 8, 2),
            (32, 128, 8, 2),
            (64, 64, 8, 2),
            (64, 64, 4, 3),
        ),
        128: (
            (64, 128, 8, 2),
            (64, 64, 8, 2),
            (32, 128, 8, 2),
            (32, 64, 8, 2),
            (64, 64, 4, 3),
        ),
        256: ((32, 64, 8, 2), (32, 64, 8, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    },
    ("forward", 32): {
        32: ((64, 64, 8, 2),),
        64: ((64, 64, 8, 2), (64, 32, 8, 2)),
        128: ((64, 32, 8, 2), (32, 32, 8, 2)),
        256: ((32, 32, 8, 2), (32, 32, 8, 1), (32, 16, 8, 1)),
    },
}
_UNBLOCKED["backward_q", 32] = _UNBLOCKED["forward", 32]
_UNBLOCKED["backward_kv", 32] = {32: ((32, 32, 4, 2),), 64: (), 128: (), 256: ()}


def candidates(entry: Entry) -> list[Tile]:
    """Tiles to try, best guesses first."""
    kernel, head_dim, bits, block_size = (
        entry.kernel,
        entry.head_dim,
        entry.bits,
        entry.block_size,
    )
    if block_size is None:
        known = _UNBLOCKED[kernel, bits][head_dim]
        return [Tile(*values) for values in dict.fromkeys((*known, *_SMALL[bits]))]
    # The mask's block is one side of the tile; the other takes several blocks per step.
    widest = {32: 128, 64: 128, 128: 64, 256: 32}[head_dim]
    widths = [w for w in (widest, 64, 32, 16) if w >= block_size] or [block_size]
    found = []
    # Five stages: loading the list of blocks takes depth of the pipeline.
    for width, (warps, stages) in itertools.product(
        dict.fromkeys(widths), ((4, 3), (8, 3), (4, 2), (8, 2), (4, 1), (8, 1), (4, 5))
    ):
        sides = (width, block_size) if kernel == "backward_kv" else (block_size, width)
        found.append(Tile(*sides, warps, stages))
    return found
