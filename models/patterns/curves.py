"""Curves through tokens in rows of a 2-D grid (an image); torch is not imported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.errors import as_integer, check_choice

CURVES = ("row-major", "snake", "morton", "hilbert")


@dataclass(frozen=True)
class Grid:
    """Tokens in a 2-D grid, row after row, ordered along a curve.

    Args:
        curve: one of CURVES.
        width: tokens per row, None for ceil(sqrt(N)), the smallest square that holds them.

    Raises:
        ValueError: on bad arguments.
    """

    curve: str
    width: int | None = None

    def __post_init__(self):
        check_choice("curve", self.curve, CURVES)
        if self.width is not None:
            object.__setattr__(self, "width", as_integer("width", self.width))

    def walk(self, seq_len: int) -> np.ndarray:
        """The positions in the order of the curve.

        Args:
            seq_len: N.

        Returns:
            (N,) int64, a permutation of 0 ... N - 1.
        """
        position = np.arange(seq_len)
        row, column = np.divmod(position, self.width or math.isqrt(max(seq_len - 1, 0)) + 1)
        if self.curve == "row-major":
            return position
        if self.curve == "snake":
            return np.lexsort((np.where(row % 2, -column, column), row))
        bits = int(max(row.max(initial=0), column.max(initial=0))).bit_length()
        along = {"morton": _morton, "hilbert": _hilbert}[self.curve](row, column, bits)
        return along.argsort(kind="stable")


def _morton(row, column, bits) -> np.ndarray:
    """The place along the Z curve: the bits of both coordinates interleaved."""
    place = np.zeros_like(row)
    for bit in range(bits):
        place |= ((column >> bit & 1) << 2 * bit) | ((row >> bit & 1) << 2 * bit + 1)
    return place


def _hilbert(row, column, bits) -> np.ndarray:
    """The place along Hilbert's curve through a square of side 2^bits.

    From the largest quadrant down: which quadrant, then turn it to the standard one
    (Hilbert 1891; the iteration is that of Warren, Hacker's Delight, section 16).
    """
    x, y, place = column.copy(), row.copy(), np.zeros_like(row)
    for bit in reversed(range(bits)):
        right, upper = x >> bit & 1, y >> bit & 1
        place = place << 2 | (3 * right ^ upper)
        turned, mirrored = upper == 0, (upper == 0) & (right == 1)
        low = (1 << bit) - 1
        x, y = x & low, y & low
        x, y = np.where(mirrored, low - x, x), np.where(mirrored, low - y, y)
        x, y = np.where(turned, y, x), np.where(turned, x, y)
    return place
