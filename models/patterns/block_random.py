"""Random subsets, many rows at once, from counters: the same on every device and in any order.

The numbers are SplitMix64's (Steele, Lea and Flood 2014), in int64 arithmetic that wraps.
"""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15


def distinct(
    pool: torch.Tensor, count: torch.Tensor, row: torch.Tensor, seed: int, width: int
) -> torch.Tensor:
    """For each row, different integers from 0 to pool - 1, uniformly drawn.

    Duplicates are drawn again until all differ, which keeps the subset uniform (to pool / 2^31,
    the resolution of the numbers).

    Args:
        pool: (R, 1) int64.
        count: (R, 1) int64, how many to draw, at most pool / 2.
        row: (R, 1) int64, the row's number, which with `seed` determines the draw.
        seed: an integer >= 0.
        width: columns of the result, at least the largest count.

    Returns:
        (R, width) int64, ascending; places from `count` on hold 2^31 - 1.
    """
    place = torch.arange(width, device=row.device)
    state = _mixed(_mixed(torch.full_like(row, _signed(seed * _GOLDEN))) + row)
    values = _scaled(_mixed(state + _signed(_GOLDEN) * place), pool)
    values = values.masked_fill(place >= count, 2**31 - 1).to(torch.int32).sort(dim=1).values
    attempt = 0
    while True:
        twice = (values[:, 1:] == values[:, :-1]) & (place[1:] < count)
        rows = twice.any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            return values.long()
        attempt += 1
        again = _mixed(state[rows] + _signed(_GOLDEN) * (place[1:] + (attempt << 32)))
        values[rows, 1:] = torch.where(
            twice[rows], _scaled(again, pool[rows]).to(torch.int32), values[rows, 1:]
        )
        values[rows] = values[rows].sort(dim=1).values


def left_out(chosen: torch.Tensor, count: torch.Tensor, width: int) -> torch.Tensor:
    """The smallest integers >= 0 that were not chosen.

    Args:
        chosen: (R, C) int64, ascending.
        count: (R, 1), how many places of each row of `chosen` are valid.
        width: how many to return.

    Returns:
        (R, width) int64, ascending.
    """
    place = torch.arange(chosen.shape[1], device=chosen.device)
    # Of the integers below chosen[t], t are chosen and chosen[t] - t are not.
    before = (chosen - place).masked_fill(place >= count, 2**31 - 1)
    t = torch.arange(width, device=chosen.device).expand(len(chosen), width).contiguous()
    return t + torch.searchsorted(before, t, right=True)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64 counters."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _scaled(x: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """The upper 31 bits of x as integers from 0 to pool - 1."""
    return (_shifted(x, 33) * pool) >> 31


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x >> bits as if x were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
