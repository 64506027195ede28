"""Pieces: the rectangles and triangles of query-key pairs that a hop is made of.

A causal mask between some queries and some keys, both ascending by position, is a staircase:
query i sees the first `seen[i]` keys. It is cut into full rectangles and square causal triangles,
which fused kernels compute, and into small masked rectangles where steps have odd sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

# Most rows of a masked rectangle, and fewest rows of a triangle that is not the whole mask.
_FEW_ROWS = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens of a shard: S sets of n tokens each, at `starts[s, i // run] + step * (i % run)`.

    Where each set is one run and the sets are evenly spaced, `gather` returns a view, whatever
    the step; else a copy.

    Args:
        starts: (S, n / run) int64, index in the shard of the first token of each run.
        run: tokens per run.
        step: distance in the shard between two tokens of a run.
    """

    starts: np.ndarray
    run: int
    step: int = 1

    @classmethod
    def from_indices(cls, indices: np.ndarray) -> Rows:
        """The tokens at `indices` (S, n) int64, in one run per set where evenly spaced."""
        sets, count = indices.shape
        step = int(indices[0, 1] - indices[0, 0]) if count > 1 else 1
        if step > 0 and (np.diff(indices, axis=1) == step).all():
            return cls(indices[:, :1], count, step)
        return cls(indices, 1)

    @property
    def sets(self) -> int:
        """S."""
        return self.starts.shape[0]

    @property
    def count(self) -> int:
        """n, tokens per set."""
        return self.starts.shape[1] * self.run

    def select_sets(self, sets: slice) -> Rows:
        """Some of the sets."""
        return Rows(self.starts[sets], self.run, self.step)

    def select_rows(self, start: int, stop: int) -> Rows:
        """Tokens `start` to `stop` of every set."""
        if self.starts.shape[1] == 1:
            return Rows(self.starts + start * self.step, stop - start, self.step)
        return Rows(self.indices()[:, start:stop], 1)

    def indices(self) -> np.ndarray:
        """(S, n) int64: the index of each token in the shard."""
        along = self.step * np.arange(self.run)
        return (self.starts[:, :, None] + along).reshape(self.sets, -1)

    def gather(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """x at these tokens and heads: (B, S, n, h, ...), a view where `is_view`.

        Args:
            x: (B, N, H, ...).
            heads: slice of the H heads.
        """
        x = x[:, :, heads]
        if not self.is_view:
            return x[:, self._index(x.device)]
        start = x.storage_offset() + int(self.starts[0, 0]) * x.stride(1)
        size = (x.shape[0], self.sets, self.count, *x.shape[2:])
        along = (self._spacing * x.stride(1), self.step * x.stride(1))
        return x.as_strided(size, (x.stride(0), *along, *x.stride()[2:]), start)

    def scatter(self, x: torch.Tensor, heads: slice, value: torch.Tensor) -> None:
        """Write into x at these tokens and heads, in place.

        Args:
            x: (B, N, H, ...).
            heads: slice of the H heads.
            value: (B, S, n, h, ...).
        """
        x[:, :, heads][:, self._index(x.device)] = value

    def scatter_add(self, x: torch.Tensor, heads: slice, value: torch.Tensor) -> None:
        """Add to x at these tokens and heads, in place.

        In a fixed order where sets share tokens, so that every bit repeats.

        Args:
            x: (B, N, H, ...).
            heads: slice of the H heads.
            value: (B, S, n, h, ...).
        """
        if self.is_view and (self.sets == 1 or self._spacing >= self.step * self.count):
            self.gather(x, heads).add_(value)
            return
        target, index = x[:, :, heads], self._index(x.device).flatten()
        if x.device.type == "cpu":
            target.index_add_(1, index, value.flatten(1, 2).to(x.dtype))
        else:
            # On CUDA index_add_ adds in any order; index_put_ sorts first.
            batch = torch.arange(x.shape[0], device=x.device)[:, None]
            target.index_put_((batch, index), value.flatten(1, 2).to(x.dtype), accumulate=True)

    @property
    def is_view(self) -> bool:
        """Whether `gather` copies nothing."""
        return self._spacing is not None

    @property
    def is_whole(self) -> bool:
        """Whether it is one set of consecutive tokens that starts with the shard's first."""
        return self.starts.size == 1 and self.starts[0, 0] == 0 and self.step == 1

    @cached_property
    def _spacing(self) -> int | None:
        """Distance from one set to the next; None unless each is one run, all evenly spaced."""
        if self.starts.shape[1] != 1:
            return None
        if self.sets == 1:
            return 0
        spacing = np.diff(self.starts[:, 0])
        return int(spacing[0]) if (spacing == spacing[0]).all() and spacing[0] > 0 else None

    def _index(self, device: torch.device) -> torch.Tensor:
        starts = torch.from_numpy(self.starts).to(device)
        return (starts[:, :, None] + self.step * torch.arange(self.run, device=device)).flatten(1)


@dataclass(frozen=True, eq=False)
class Piece:
    """Queries of S sets, each with the keys of the same set.

    Args:
        q: tokens of the query tensor.
        k: tokens of the key tensor.
        q_heads: slice of the query heads.
        kv_heads: slice of the key heads, as many as `q_heads`.
        is_causal: query i of a set sees its keys up to i; as many queries as keys.
        seen: (n,) int64, the number of keys that each query sees, none 0; None for all keys.
    """

    q: Rows
    k: Rows
    q_heads: slice
    kv_heads: slice
    is_causal: bool = False
    seen: np.ndarray | None = None

    def pairs(self) -> int:
        """Query-key pairs per head and batch element."""
        if self.is_causal:
            return self.q.sets * self.q.count * (self.q.count + 1) // 2
        if self.seen is not None:
            return self.q.sets * int(self.seen.sum())
        return self.q.sets * self.q.count * self.k.count


def staircase(seen: np.ndarray) -> list[tuple[slice, slice, np.ndarray | bool]]:
    """Cut the mask in which row i sees keys 0 ... seen[i] - 1 into tiles.

    Args:
        seen: (n,) int64, nondecreasing; rows that see 0 keys are in no tile.

    Returns:
        (rows, keys, kind) per tile: kind is False for a full rectangle, True for a square causal
        triangle, else (rows,) int64, the number of the tile's keys that each row sees, none 0.
    """
    tiles: list[tuple[slice, slice, np.ndarray | bool]] = []

    def descend(first: int, stop: int, base: int) -> None:
        """Rows first ... stop - 1, whose keys before `base` are done."""
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
            # Every row sees at least the first key, so that no row of the tile is empty.
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
    """The pieces between queries and keys whose mask is the same in every set.

    Args:
        q: S sets of n queries.
        k: S sets of keys, both ascending by position.
        seen: (n,) int64, the number of keys that each query sees; None for all keys.
        q_heads: slice of the query heads.
        kv_heads: slice of the key heads, as many as `q_heads`.
    """
    if seen is None:
        return [Piece(q, k, q_heads, kv_heads)]
    found = []
    for rows, keys, kind in staircase(seen):
        part_q, part_k = q.select_rows(rows.start, rows.stop), k.select_rows(keys.start, keys.stop)
        counts = None if isinstance(kind, bool) else kind
        found.append(Piece(part_q, part_k, q_heads, kv_heads, kind is True, counts))
    return found
