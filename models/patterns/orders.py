"""Token orders: which positions of a sequence each rank of a ring holds, and in what order.

"contiguous", "zigzag" and "striped" are for text. "hilbert", "morton" and "snake" order tokens in
rows of a 2-D grid (an image) along a curve and cut the curve into shards; "row-major" is the curve
that changes nothing, the null hypothesis of the other three. Causality is by the original
position, whatever the order.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch

from models.errors import as_integer, check_choice
from models.patterns.curves import Grid

ORDERS = ("contiguous", "zigzag", "striped", "hilbert", "morton", "snake")


def check_order(order: object) -> None:
    """Check an argument `order`.

    Args:
        order: anything.

    Raises:
        ValueError: unless it is one of ORDERS or a `Grid`.
    """
    if not isinstance(order, Grid):
        check_choice("order", order, ORDERS)


def positions(order: str | Grid, seq_len: int, rank: int, world_size: int) -> torch.Tensor:
    """The positions that a rank holds; ranks differ by at most one token, two for "zigzag".

    Args:
        order: one of ORDERS, or a `Grid`.
        seq_len: N.
        rank: from 0 to world_size - 1.
        world_size: number of ranks.

    Returns:
        (n,) int64, in the order of the shard; n may be 0.

    Raises:
        ValueError: on bad arguments.
    """
    check_order(order)
    seq_len = as_integer("seq_len", seq_len, least=0)
    world_size = as_integer("world_size", world_size)
    rank = as_rank(rank, world_size)
    return torch.from_numpy(_positions(order, seq_len, world_size)[rank])


def as_rank(rank: object, world_size: int) -> int:
    """An argument `rank` as an int.

    Args:
        rank: any kind of integer.
        world_size: number of ranks.

    Returns:
        The rank.

    Raises:
        ValueError: unless 0 <= rank < world_size.
    """
    with suppress(ValueError):
        number = as_integer("rank", rank, least=0)
        if number < world_size:
            return number
    raise ValueError(f"rank={rank!r}: expected an integer from 0 to {world_size - 1}")


@lru_cache(maxsize=64)
def _positions(order, seq_len: int, world_size: int) -> tuple[np.ndarray, ...]:
    if order == "striped":
        return tuple(np.arange(rank, seq_len, world_size) for rank in range(world_size))
    if order == "zigzag":
        # Of 2 p chunks rank i holds the i-th from either end: equal work when causal.
        chunks = np.array_split(np.arange(seq_len), 2 * world_size)
        pairs = zip(chunks[:world_size], reversed(chunks[world_size:]), strict=True)
        return tuple(np.concatenate(pair) for pair in pairs)
    if order == "contiguous":
        walk = np.arange(seq_len)
    else:
        walk = (order if isinstance(order, Grid) else Grid(order)).walk(seq_len)
    return tuple(np.ascontiguousarray(part) for part in np.array_split(walk, world_size))


def shard(
    x: torch.Tensor, rank: int, world_size: int, order: str | Grid = "zigzag", dim: int = 1
) -> torch.Tensor:
    """The part of a sequence that a rank holds; differentiable.

    Args:
        x: (..., N, ...).
        rank: from 0 to world_size - 1.
        world_size: number of ranks.
        order: one of ORDERS, or a `Grid`.
        dim: dimension of the tokens.

    Returns:
        (..., n, ...), a view of x for "contiguous" and "striped".

    Raises:
        ValueError: on bad arguments.
    """
    held = positions(order, x.shape[dim], rank, world_size)
    if order in ("contiguous", "striped"):
        start = int(held[0]) if len(held) else 0
        step = world_size if order == "striped" else 1
        index = [slice(None)] * x.dim()
        index[dim] = slice(start, start + len(held) * step, step)
        return x[tuple(index)]
    return x.index_select(dim, held.to(x.device))


def unshard(shards: list[torch.Tensor], order: str | Grid = "zigzag", dim: int = 1) -> torch.Tensor:
    """The whole sequence, the inverse of `shard`; differentiable.

    Args:
        shards: (..., n, ...) per rank, in rank order.
        order: in which they were sharded.
        dim: dimension of the tokens.

    Returns:
        (..., N, ...).

    Raises:
        ValueError: where the shards' lengths are not those of the order.
    """
    if not shards:
        raise ValueError("shards=[]: expected one tensor per rank")
    lengths = [x.shape[dim] for x in shards]
    held = [positions(order, sum(lengths), rank, len(shards)) for rank in range(len(shards))]
    expected = [len(x) for x in held]
    if lengths != expected:
        raise ValueError(
            f"shards have {lengths} tokens: expected {expected} in the order {order!r}"
        )
    joined = torch.cat(list(shards), dim=dim)
    if order == "contiguous":
        return joined
    return joined.index_select(dim, torch.cat(held).argsort().to(joined.device))
