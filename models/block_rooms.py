"""Blocks of tokens in and out of the small memory that `models.block_gather` works in."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from models.block_chunks import Chunk, Piece, Plan, plan

# Whole blocks (heads, blocks, stacked, block_size, ...); the rest (heads, stacked, tokens, ...).
Blocks = tuple[torch.Tensor, torch.Tensor]


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
        self.memory: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        token = torch.arange(mask.block_size, device=q.device)
        last = token[:, None] if is_causal else (n - 1) % mask.block_size
        self.beyond = token > last

    def plan(self, mask) -> Plan:
        """The order of work for `mask`: the call's own, or one with less of its blocks."""
        return plan(mask, self.q, self.kv_heads, self.is_causal)

    def groups(self, b: int, plan: Plan) -> Iterator[tuple[list[Chunk], tuple, tuple]]:
        """Chunks of each group of heads, and its places in (B, N, H, ...) and (B, N, Hkv, ...)."""
        for first in range(0, self.kv_heads, plan.together):
            stop = first + plan.together
            q_heads = slice(first * self.per_key_head, stop * self.per_key_head)
            of_keys = (b, slice(None), slice(first, stop))
            yield plan.group(first), (b, slice(None), q_heads), of_keys

    def room(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory of this shape with no certain content, the same for a name each time."""
        key, size = (name, dtype or self.dtype), math.prod(shape)
        if key not in self.memory or self.memory[key].numel() < size:
            self.memory.pop(key, None)
            self.memory[key] = torch.empty(size, dtype=key[1], device=self.device)
        return self.memory[key][:size].view(shape)

    def query_blocks(self, x: torch.Tensor) -> Blocks:
        """Blocks of x (N, heads, ...), which has the queries' heads."""
        return self._blocks(x, self.stacked)

    def key_blocks(self, x: torch.Tensor) -> Blocks:
        """Blocks of x (N, heads, ...), which has the keys' heads; without "stacked"."""
        whole, rest = self._blocks(x, 1)
        return whole[:, :, 0], rest[:, 0]

    def _blocks(self, x, stacked) -> Blocks:
        x = x.unflatten(1, (-1, stacked))
        cut, features = self.whole * self.block_size, range(3, x.dim())
        whole = x[:cut].unflatten(0, (self.whole, self.block_size))
        whole = whole.permute(2, 0, 3, 1, *(d + 1 for d in features))
        return whole, x[cut:].permute(1, 2, 0, *features)

    def load(self, name: str, blocks: Blocks, chunk: Chunk, dtype=None) -> torch.Tensor:
        """The chunk's queries, (tiles, stacked * block_size, ...), zeros past the end."""
        whole, rest = (x[chunk.heads] for x in blocks)
        heads, _, stacked, size, *features = whole.shape
        shape = (heads, chunk.count, stacked, size, *features)
        tiles = self.room(name, *shape, dtype=dtype)
        if isinstance(chunk.rows, slice):
            whole = whole[:, chunk.rows]
        else:
            whole = whole.index_select(1, chunk.rows)
        tiles[:, : whole.shape[1]].copy_(whole)
        if chunk.has_end:
            tiles[:, -1, :, : self.rest].copy_(rest)
            tiles[:, -1, :, self.rest :].zero_()
        return tiles.view(heads * chunk.count, stacked * size, *features)

    def store(self, tiles: torch.Tensor, blocks: Blocks, chunk: Chunk) -> None:
        """Write what `load` reads."""
        whole, rest = (x[chunk.heads] for x in blocks)
        heads, _, stacked, size, *features = whole.shape
        tiles = tiles.view(heads, chunk.count, stacked, size, *features)
        if chunk.has_end:
            rest.copy_(tiles[:, -1, :, : self.rest])
            tiles = tiles[:, :-1]
        whole[:, chunk.rows] = tiles.to(whole.dtype)

    def gather(self, name: str, blocks: Blocks, chunk: Chunk, piece: Piece, dtype=None):
        """The piece's key blocks side by side, (tiles, n * block_size, ...), zeros past the end."""
        whole, rest = blocks
        heads, _, size, *features = whole.shape
        count = len(piece.blocks)
        room = self.room(name, heads, count, size, *features, dtype=dtype)
        for head in range(heads if self.whole else 0):
            if whole.dtype == room.dtype:
                torch.index_select(whole[head], 0, piece.blocks, out=room[head])
            else:
                room[head].copy_(whole[head].index_select(0, piece.blocks))
        if piece.ends is not None:
            last = room.view(heads, chunk.count, -1, size, *features)[:, piece.ends, -1]
            last[:, :, : self.rest].copy_(rest[:, None])
            last[:, :, self.rest :].zero_()
        return room.view(heads * chunk.count, count // chunk.count * size, *features)

    def scatter(self, x: torch.Tensor, blocks: Blocks, chunk: Chunk, piece: Piece) -> None:
        """Add x, laid out as `gather` does, to the key blocks, in a fixed order; x is lost."""
        whole, rest = blocks
        heads, _, size, *features = whole.shape
        x = x.view(heads, len(piece.blocks), size, *features)
        if piece.ends is not None:
            last = x.view(heads, chunk.count, -1, size, *features)[:, piece.ends, -1]
            rest.add_(last[:, :, : self.rest].sum(dim=1))
            last.zero_()
        for head in range(heads if self.whole else 0):
            if self.device.type == "cpu":
                whole[head].index_add_(0, piece.blocks, x[head])
            else:
                # On CUDA index_add_ adds in any order; this sorts first.
                whole[head].index_put_((piece.blocks.long(),), x[head], accumulate=True)

    def sums(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Zeros to add up x (N, heads, ...) in: x itself, unless it is of a half type."""
        return (x if x.dtype == self.dtype else self.room(name, *x.shape)).zero_()

    def scores(self, chunk: Chunk, piece: Piece, queries, keys) -> torch.Tensor:
        """(tiles, rows, n * block_size) scores; -inf past the diagonal or past the end."""
        scores = self.room("scores", *queries.shape[:2], keys.shape[1])
        torch.bmm(queries, keys.mT, out=scores)
        if piece.is_cut:
            last = scores.unflatten(1, (self.stacked, -1))[..., -self.block_size :]
            last.masked_fill_(self.beyond, -torch.inf)
        return scores
