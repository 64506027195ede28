"""A softmax inside each block, the blocks' results added up, block by block in a Python loop.

The block-sparse code kept the diagonal block and those 1, 2 and 4 away on either side, whatever
sparsity it was asked for, so that 90, 95 and 98 % are one computation. A row's weights sum to the
number of its blocks and not to 1; causal, only the diagonal block was cut, and later ones stayed.
"""

from __future__ import annotations

import math

import torch

from models.as_published.segments import softmax_attention
from models.patterns.block_mask import BlockMask
from models.qkv import check_qkv, check_same_length

FORMULA = "a softmax inside each kept block, added up over a row's blocks"
BACKEND = "python loop over blocks"
DISTANCES = (0, 1, 2, 4)


def block_sums_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, *, is_causal: bool = False
) -> torch.Tensor:
    """What ran. q, k, v: (B, N, H, D), N a multiple of the block size; returns the same.

    mask: a `BlockMask`, of which the block size alone is used: what it keeps is ignored, as it was.
    """
    size = _block_size(q, k, v, mask)
    # (B, H, M, size, D)
    q, k, v = (x.transpose(1, 2).unflatten(2, (-1, size)) for x in (q, k, v))
    row, column = kept_blocks(q.shape[2])
    scores = q[:, :, row] @ k[:, :, column].transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        future = torch.ones(size, size, device=q.device, dtype=torch.bool).triu(1)
        diagonal = torch.tensor(row, device=q.device) == torch.tensor(column, device=q.device)
        scores.masked_fill_(future & diagonal[:, None, None], -torch.inf)
    parts = scores.softmax(dim=-1) @ v[:, :, column]
    out = torch.zeros_like(q)
    for place, block in enumerate(row):
        out[:, :, block] += parts[:, :, place]
    return out.flatten(2, 3).transpose(1, 2)


def formula(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    mask: BlockMask,
    *,
    is_causal: bool = False,
) -> tuple[torch.Tensor, float]:
    """Row by row in float64, (B, R, H, D); magnifies no rounding."""
    size = _block_size(q, k, v, mask)
    out = torch.zeros_like(q[:, rows], dtype=torch.float64)
    for block, column in zip(*kept_blocks(q.shape[1] // size), strict=True):
        inside = rows // size == block
        # Within the diagonal block a row sees the keys up to its own.
        for place in inside.nonzero()[:, 0].tolist():
            stop = rows[place].item() + 1 if is_causal and column == block else (column + 1) * size
            keys, values = (x[:, column * size : stop].double().transpose(1, 2) for x in (k, v))
            query = q[:, rows[place], :, None].double()
            out[:, place] += softmax_attention(query, keys, values, is_causal=False)[:, :, 0]
    return out, 1.0


def pairs(seq_len: int, heads: int, mask: BlockMask, *, is_causal: bool = False) -> int:
    """Pairs of tokens in all kept blocks: they are scored whole."""
    return heads * len(kept_blocks(seq_len // mask.block_size)[0]) * mask.block_size**2


def kept_blocks(blocks: int) -> tuple[list[int], list[int]]:
    """Query blocks and key blocks of all pairs that were kept, row by row."""
    signed = sorted({sign * distance for distance in DISTANCES for sign in (-1, 1)})
    found = [(i, i + d) for i in range(blocks) for d in signed if 0 <= i + d < blocks]
    return [i for i, _ in found], [j for _, j in found]


def _block_size(q, k, v, mask) -> int:
    check_qkv(q, k, v)
    check_same_length(q, k)
    mask.check_fits(q.shape[1], q.shape[2])
    if q.shape[1] % mask.block_size:
        raise ValueError(f"mask has blocks of {mask.block_size}: expected a divisor of {len(q[0])}")
    return mask.block_size
