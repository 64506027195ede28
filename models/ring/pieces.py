"""Pieces: the rectangles and triangles of query-key pairs that a hop is made of.

A mask between some queries and some keys, both ascending by position, is a staircase: query i
sees the first `seen[i]` keys. It is cut into full rectangles and square causal triangles, which
fused kernels do, and where it has steps of odd sizes into small masked rectangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

# A masked rectangle has at most so many rows, a triangle at least so many unless it is all.
_FEW_ROWS = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens of a shard: S sets of n each, at `starts[s, i // run] + step * (i % run)`.

    starts: (S, n / run) int64 numpy. Where a set is one run and the sets follow each other
    evenly, `of` is a view of memory, whatever the step; else a copy.
    """

    starts: np.ndarray
    run: int
    step: int = 1

    @classmethod
    def at(cls, places: np.ndarray) -> Rows:
        """The rows at `places` (S, n), as few runs as an even spacing allows."""
        sets, count = places.shape
        step = int(places[0, 1] - places[0, 0]) if count > 1 else 1
        if step > 0 and (np.diff(places, axis=1) == step).all():
            return cls(places[:, :1], count, step)
        return cls(places, 1)

    @property
    def sets(self) -> int:
        return self.starts.shape[0]

    @property
    def count(self) -> int:
        return self.starts.shape[1] * self.run

    def cut(self, sets: slice) -> Rows:
        """Some of the sets."""
        return Rows(self.starts[sets], self.run, self.step)

    def sub(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of every set."""
        if self.starts.shape[1] == 1:
            return Rows(self.starts + start * self.step, stop - start, self.step)
        return Rows(self.places()[:, start:stop], 1)

    def places(self) -> np.ndarray:
        """(S, n) int64: every token's place."""
        along = self.step * np.arange(self.run)
        return (self.starts[:, :, None] + along).reshape(self.sets, -1)

    def of(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """x (B, N, H, ...) at these rows and heads: (B, S, n, h, ...), a view if `is_view`."""
        x = x[:, :, heads]
        if not self.is_view:
            return x[:, self._index(x.device)]
        start = x.storage_offset() + int(self.starts[0, 0]) * x.stride(1)
        size = (x.shape[0], self.sets, self.count, *x.shape[2:])
        along = (self._spacing * x.stride(1), self.step * x.stride(1))
        return x.as_strided(size, (x.stride(0), *along, *x.stride()[2:]), start)

    def put(self, x: torch.Tensor, heads: slice, value: torch.Tensor) -> None:
        """Write `value` (B, S, n, h, ...) into x at these rows and heads."""
        x[:, :, heads][:, self._index(x.device)] = value

    def add(self, x: torch.Tensor, heads: slice, value: torch.Tensor) -> None:
        """Add `value` (B, S, n, h, ...) to x, in a fixed order where sets share rows."""
        if self.is_view and (self.sets == 1 or self._spacing >= self.step * self.count):
            self.of(x, heads).add_(value)
            return
        target, index = x[:, :, heads], self._index(x.device).flatten()
        if x.device.type == "cpu":
            target.index_add_(1, index, value.flatten(1, 2).to(x.dtype))
        else:
            # On CUDA index_add_ adds in any order; this sorts first.
            batch = torch.arange(x.shape[0], device=x.device)[:, None]
            target.index_put_((batch, index), value.flatten(1, 2).to(x.dtype), accumulate=True)

    @property
    def is_view(self) -> bool:
        """Whether `of` copies nothing."""
        return self._spacing is not None

    @property
    def is_whole(self) -> bool:
        """Whether it is one set of consecutive rows from the first on."""
        return self.starts.size == 1 and self.starts[0, 0] == 0 and self.step == 1

    @cached_property
    def _spacing(self) -> int | None:
        """From one set to the next, if every set is one run and all are evenly spaced."""
        if self.starts.shape[1] != 1:
            return None
        if self.sets == 1:
            return 0
        spacing = np.diff(self.starts[:, 0])
        return int(spacing[0]) if (spacing == spacing[0]).all() and spacing[0] > 0 else None

    def _index(self, device) -> torch.Tensor:
        starts = torch.from_numpy(self.starts).to(device)
        return (starts[:, :, None] + self.step * torch.arange(self.run, device=device)).flatten(1)


@dataclass(frozen=True, eq=False)
class Piece:
    """Queries of S sets, each with the keys of the same set.

    q, k: rows of the query's and of the key's tensor. q_heads, kv_heads: slices of their
    heads, as many each. is_causal: as many queries as keys, and query i sees keys up to i.
    seen: (n,) int64, how many keys each query sees; None for all of them.
    """

    q: Rows
    k: Rows
    q_heads: slice
    kv_heads: slice
    is_causal: bool = False
    seen: np.ndarray | None = None

    def pairs(self) -> int:
        """Query-key pairs of a head."""
        if self.is_causal:
            return self.q.sets * self.q.count * (self.q.count + 1) // 2
        if self.seen is not None:
            return self.q.sets * int(self.seen.sum())
        return self.q.sets * self.q.count * self.k.count


def staircase(seen: np.ndarray) -> list[tuple[slice, slice, np.ndarray | bool]]:
    """Cut the mask in which row i sees keys 0 ... seen[i] - 1; `seen` never falls.

    Returns (rows, keys, kind): kind is False for a full rectangle, True for a square causal
    triangle, or the number of keys that each row sees, none of which is 0.
    """
    tiles: list[tuple[slice, slice, np.ndarray | bool]] = []

    def descend(first: int, stop: int, base: int) -> None:
        """Rows first ... stop - 1, of which keys before `base` are done."""
        first += int(np.searchsorted(seen[first:stop], base, side="right"))
        if first >= stop:
            return
        off = np.nonzero(seen[first:stop] - base != np.arange(1, stop - first + 1))[0]
        diagonal = int(off[0]) if len(off) else stop - first
        if diagonal == stop - first or diagonal >= _FEW_ROWS:
            tiles.append((slice(first, first + diagonal), slice(base, base + diagonal), True))
            # The rows after the triangle see all of its keys.
            rest = first + diagonal
            if rest < stop:
                done = base + diagonal
                tiles.append((slice(rest, stop), slice(base, done), False))
                descend(rest, stop, done)
            return
        least = int(seen[first])
        if seen[stop - 1] == least:
            tiles.append((slice(first, stop), slice(base, least), False))
        elif stop - first <= _FEW_ROWS:
            # Every row sees the first key at least, so that no row of the tile is empty.
            keys = slice(base, int(seen[stop - 1]))
            tiles.append((slice(first, stop), keys, seen[first:stop] - base))
        else:
            if least - base >= _FEW_ROWS:
                tiles.append((slice(first, stop), slice(base, least), False))
                base = least
            middle = (first + stop) // 2
            descend(first, middle, base)
            descend(middle, stop, base)

    descend(0, len(seen), 0)
    return tiles


def pieces(
    q: Rows, k: Rows, seen: np.ndarray | None, q_heads: slice, kv_heads: slice
) -> list[Piece]:
    """Pieces of queries `q` and keys `k`, alike in every set; seen: None where all see all."""
    if seen is None:
        return [Piece(q, k, q_heads, kv_heads)]
    found = []
    for rows, keys, kind in staircase(seen):
        part_q, part_k = q.sub(rows.start, rows.stop), k.sub(keys.start, keys.stop)
        counts = None if isinstance(kind, bool) else kind
        found.append(Piece(part_q, part_k, q_heads, kv_heads, kind is True, counts))
    return found
