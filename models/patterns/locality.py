"""How well an order of tokens suits attention in blocks: how few key blocks a query block needs.

Tokens attend to those near them, in a text or in a 2-D grid. They are ordered along a curve and cut
into blocks, or into shards; then the blocks that hold any pair are counted. An order has good
locality where these are few and full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.errors import as_integer
from models.patterns.curves import Grid


@dataclass(frozen=True)
class Locality:
    """Averages over all query blocks of an order.

    Attributes:
        distinct_blocks: key blocks that a query block needs.
        fill: the share of pairs in those blocks that is attended to.
        mean_step: distance of the positions of consecutive tokens of the order.
        received: keys that a shard needs from others, over the tokens of a shard.
    """

    distinct_blocks: float
    fill: float
    mean_step: float
    received: float


def locality(
    curve: str,
    seq_len: int,
    *,
    radius: int,
    block_size: int,
    world_size: int,
    width: int | None = None,
) -> Locality:
    """The locality of a curve.

    Args:
        curve: one of `models.patterns.curves.CURVES`.
        seq_len: N.
        radius: a token attends to those at most this many rows and columns away or, where width is
            None (a text), at most this many positions away.
        block_size: tokens per block.
        world_size: number of shards.
        width: tokens per row of the grid, None for ceil(sqrt(N)).

    Returns:
        Averages over the whole sequence.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len, radius, block_size, world_size = (
        as_integer(name, value)
        for name, value in (
            ("seq_len", seq_len),
            ("radius", radius),
            ("block_size", block_size),
            ("world_size", world_size),
        )
    )
    walk = Grid(curve, width).walk(seq_len)
    place = np.empty(seq_len, np.int64)
    place[walk] = np.arange(seq_len)
    shard_of = np.empty(seq_len, np.int64)
    for rank, part in enumerate(np.array_split(walk, world_size)):
        shard_of[part] = rank
    blocks = -(-seq_len // block_size)
    pairs, needed, crossing = 0, [], []
    for query, key in _neighbours(seq_len, radius, width):
        pairs += len(query)
        code = place[query] // block_size * blocks + place[key] // block_size
        needed.append(np.unique(code))
        away = shard_of[query] != shard_of[key]
        crossing.append(np.unique(shard_of[query][away] * seq_len + key[away]))
    needed = np.unique(np.concatenate(needed))
    crossing = np.unique(np.concatenate(crossing))
    sizes = np.diff(np.append(np.arange(blocks) * block_size, seq_len))
    held = (sizes[needed // blocks] * sizes[needed % blocks]).sum()
    return Locality(
        distinct_blocks=len(needed) / blocks,
        fill=float(pairs / held),
        mean_step=float(np.abs(np.diff(walk)).mean()) if seq_len > 1 else 0.0,
        received=len(crossing) / seq_len,
    )


def _neighbours(seq_len: int, radius: int, width: int | None):
    """(queries, keys) of every pair that attends, one distance at a time."""
    position = np.arange(seq_len)
    if width is None:
        for step in range(-radius, radius + 1):
            query = position[max(0, -step) : max(0, seq_len - max(0, step))]
            yield query, query + step
        return
    row, column = np.divmod(position, width)
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            key = position + down * width + right
            inside = (column + right >= 0) & (column + right < width)
            inside &= (row + down >= 0) & (key >= 0) & (key < seq_len)
            yield position[inside], key[inside]
