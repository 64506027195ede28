"""Blocks of tokens in and out of the small memory that `models.block_gather` works in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from models.block_chunks import Chunk, Piece, Plan, plan

Blocks = tuple[torch.Tensor, torch.Tensor]


class Keys(NamedTuple):
    """Keys or values as they are gathered: `Blocks`, or token by token where that is faster.

    rows: (n, D), packed, in which token t is row t * step; None where they do not lie so.
    """

    whole: torch.Tensor
    rest: torch.Tensor
    rows: torch.Tensor | None
    step: int


class Work:
    """Memory that all chunks use again, and the steps between it and (N, heads, ...) tensors.

    Tensors are read and written in place, as `Blocks`: views of their whole blocks, and of the
    tokens that are left, the short last block.
    """

    def __init__(self, q, k, mask, is_causal):
        self.batch, n, _, _ = q.shape
        self.kv_heads, self.per_key_head = k.shape[2], q.shape[2] // k.shape[2]
        self.q, self.is_causal = q, is_causal
        self.block_size, self.stacked = mask.block_size, self.per_key_head if mask.heads == 1 else 1
        self.whole, self.rest = divmod(n, mask.block_size)
        self.dtype, self.device = torch.promote_types(q.dtype, torch.float32), q.device
        self.memory: dict[str, torch.Tensor] = {}
        self.views: dict[tuple, torch.Tensor] = {}
        self.apart: dict[int, torch.Tensor] = {}
        self.indexed: tuple[Piece | None, int] = (None, 0)
        token = torch.arange(mask.block_size, device=q.device)
        last = token[:, None] if is_causal else (n - 1) % mask.block_size
        self.beyond = token > last

    def plan(self, mask) -> Plan:
        """The order of work for `mask`: the call's own, or one with less of its blocks."""
        return plan(mask, self.q, self.kv_heads, self.is_causal)

    def places(self, b: int, plan: Plan) -> Iterator[tuple[tuple, tuple]]:
        """Where each group of heads is in (B, N, H, ...) and (B, N, Hkv, ...)."""
        for first in range(0, self.kv_heads, plan.together):
            stop = first + plan.together
            q_heads = slice(first * self.per_key_head, stop * self.per_key_head)
            yield (b, slice(None), q_heads), (b, slice(None), slice(first, stop))

    def room(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory of this shape with no certain content, the same for a name each time."""
        if (name, shape) not in self.views:
            size = math.prod(shape)
            if name not in self.memory or self.memory[name].numel() < size:
                self.views = {key: x for key, x in self.views.items() if key[0] != name}
                self.memory.pop(name, None)
                self.memory[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
            self.views[name, shape] = self.memory[name][:size].view(shape)
        return self.views[name, shape]

    def query_blocks(self, x: torch.Tensor) -> Blocks:
        """Of x (N, heads, ...): whole blocks (tile heads, blocks, stacked, block_size, ...)
        and the rest (tile heads, stacked, tokens, ...)."""
        whole, rest = self.key_blocks(x.unflatten(1, (-1, self.stacked)))
        features = range(3, x.dim() + 1)
        whole = whole.permute(2, 0, 3, 1, *(d + 1 for d in features))
        return whole, rest.permute(1, 2, 0, *features)

    def key_blocks(self, x: torch.Tensor) -> Blocks:
        """Of x (N, heads, ...): (blocks, block_size, heads, ...) and (tokens, heads, ...)."""
        cut = self.whole * self.block_size
        return x[:cut].unflatten(0, (self.whole, self.block_size)), x[cut:]

    def keys(self, x: torch.Tensor) -> Keys:
        """x (N, heads, D) to be gathered from.

        A head's tokens that lie apart are read as rows of a matrix: a copy of 256 bytes at a time
        is as fast as one of whole packed blocks, where one of blocks that lie apart is not.
        """
        step, rest = divmod(x.stride(0), x.shape[2])
        is_apart = x.shape[1] == 1 and x.stride(2) == 1 and step > 1 and rest == 0
        rows = None
        count = step * (x.shape[0] - 1) + 1
        if is_apart and x.dtype == self.dtype and count < 2**31:
            rows = x.as_strided((count, x.shape[2]), (x.shape[2], 1))
        return Keys(*self.key_blocks(x), rows, step)

    def load(
        self, name: str, blocks: Blocks, chunk: Chunk, *, scale: float = 1.0, dtype=None
    ) -> torch.Tensor:
        """The chunk's queries, (tiles, stacked * block_size, ...), zeros past the end; scaled."""
        whole, rest = blocks if chunk.head is None else (x[chunk.head, None] for x in blocks)
        heads, _, stacked, size, *features = whole.shape
        tiles = self.room(name, heads, chunk.count, stacked, size, *features, dtype=dtype)
        if isinstance(chunk.rows, slice):
            part = whole[:, chunk.rows]
        else:
            part = whole.index_select(1, chunk.rows)
        if chunk.has_end:
            tiles[:, :-1].copy_(part)
            tiles[:, -1, :, : self.rest].copy_(rest)
            tiles[:, -1, :, self.rest :].zero_()
        elif scale != 1.0 and part.dtype == tiles.dtype:
            torch.mul(part, scale, out=tiles)
            scale = 1.0
        else:
            tiles.copy_(part)
        tiles = self.room(name, heads * chunk.count, stacked * size, *features)
        return tiles if scale == 1.0 else tiles.mul_(scale)

    def store(self, tiles: torch.Tensor, blocks: Blocks, chunk: Chunk) -> None:
        """Write what `load` reads."""
        whole, rest = blocks if chunk.head is None else (x[chunk.head, None] for x in blocks)
        heads, _, stacked, size, *features = whole.shape
        tiles = tiles.view(heads, chunk.count, stacked, size, *features)
        if chunk.has_end:
            rest.copy_(tiles[:, -1, :, : self.rest])
            tiles = tiles[:, :-1]
        if isinstance(chunk.rows, slice):
            whole[:, chunk.rows].copy_(tiles)
        else:
            whole[:, chunk.rows] = tiles.to(whole.dtype)

    def gather(self, name: str, keys: Keys, chunk: Chunk, piece: Piece, dtype=None):
        """The piece's key blocks side by side, (tiles, n * block_size, ...), zeros past the end.

        Of one head, tile by tile; of several, which are of one row, token by token.
        """
        whole, rest = keys.whole, keys.rest
        _, size, *features = whole.shape
        count = len(piece.blocks)
        room = self.room(name, count, size, *features, dtype=dtype)
        if self.whole and keys.rows is not None and room.dtype == whole.dtype:
            index = self.rows_of(piece, keys.step)
            torch.index_select(keys.rows, 0, index, out=room.view(count * size, -1))
        elif self.whole and whole.dtype == room.dtype:
            torch.index_select(whole, 0, piece.blocks, out=room)
        elif self.whole:
            room.copy_(whole.index_select(0, piece.blocks))
        if piece.ends is not None:
            last = room.unflatten(0, (chunk.count, -1))[piece.ends, -1]
            last[:, : self.rest].copy_(rest)
            last[:, self.rest :].zero_()
        tokens, heads = count // chunk.count * size, features[0]
        if heads == 1:
            return self.room(name, chunk.count, tokens, *features[1:])
        return self.room(name, tokens, *features).movedim(1, 0)

    def rows_of(self, piece: Piece, step: int) -> torch.Tensor:
        """Rows of `Keys` of all tokens of a piece's blocks, block after block, int32."""
        count, size = len(piece.blocks), self.block_size
        index = self.room("index", count, size, dtype=torch.int32)
        # Values mostly lie as keys do.
        if self.indexed[0] is not piece or self.indexed[1] != step:
            if step not in self.apart:
                token = torch.arange(size, dtype=torch.int32, device=self.device)
                self.apart[step] = token.mul_(step)
            torch.add(self.apart[step], piece.blocks[:, None], alpha=size * step, out=index)
            self.indexed = (piece, step)
        return index.view(-1)

    def scatter(self, x: torch.Tensor, blocks: Blocks, chunk: Chunk, piece: Piece) -> None:
        """Add x (tiles, n * block_size, D) to the key blocks, in a fixed order; x is lost."""
        whole, rest = blocks
        _, size, heads, dim = whole.shape
        x = x.view(heads, len(piece.blocks), size, dim)
        if piece.ends is not None:
            last = x.unflatten(1, (chunk.count, -1))[:, piece.ends, -1]
            rest.add_(last[:, :, : self.rest].sum(dim=1).movedim(0, 1))
            last.zero_()
        for head in range(heads if self.whole else 0):
            if self.device.type == "cpu":
                whole[:, :, head].index_add_(0, piece.blocks, x[head])
            else:
                # On CUDA index_add_ adds in any order; this sorts first.
                places = (piece.blocks.long(),)
                whole[:, :, head].index_put_(places, x[head], accumulate=True)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros to add up x (N, heads, ...) in: x itself, unless it is of a half type."""
        return (x if x.dtype == self.dtype else torch.empty_like(x, dtype=self.dtype)).zero_()

    def scores(self, chunk: Chunk, piece: Piece, queries, keys) -> torch.Tensor:
        """(tiles, rows, n * block_size) scores; -inf past the diagonal or past the end."""
        scores = self.room("scores", *queries.shape[:2], keys.shape[1])
        torch.bmm(queries, keys.mT, out=scores)
        if piece.is_cut:
            last = scores.unflatten(1, (self.stacked, -1))[..., -self.block_size :]
            last.masked_fill_(self.beyond, -torch.inf)
        return scores
