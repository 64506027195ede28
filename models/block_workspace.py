"""The small memory that `models.block_gather` computes in, and copies of blocks to and from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from models.block_schedule import Chunk, Piece, Schedule, schedule
from models.patterns.block_mask import BlockMask

# Views of a tensor's whole blocks, and of the tokens after them, the short last block.
Blocks = tuple[torch.Tensor, torch.Tensor]


class GatherSource(NamedTuple):
    """Keys or values to gather from: as `Blocks`, or token by token where that is faster.

    Attributes:
        whole: (blocks, block_size, heads, ...).
        rest: (tokens, heads, ...), the short last block.
        rows: (n, D), packed, in which token t is row t * step; None where memory is laid out
            otherwise.
        step: 1 where `rows` is None.
    """

    whole: torch.Tensor
    rest: torch.Tensor
    rows: torch.Tensor | None
    step: int


class Workspace:
    """Buffers that all chunks reuse, and the copies between them and (N, heads, ...) tensors.

    Tensors are read and written in place, as `Blocks`. Tiles are (tiles, stacked * block_size, ...)
    with zeros past the end of the sequence, in float32 at least.

    Args:
        q: (B, N, H, D).
        k: (B, N, Hkv, D).
        mask: with no block above the diagonal when causal.
        is_causal: whether the diagonal cuts blocks.
    """

    def __init__(self, q: torch.Tensor, k: torch.Tensor, mask: BlockMask, is_causal: bool):
        self.batch, n, _, _ = q.shape
        self.kv_heads, self.per_key_head = k.shape[2], q.shape[2] // k.shape[2]
        self.q, self.is_causal = q, is_causal
        self.block_size, self.stacked = mask.block_size, self.per_key_head if mask.heads == 1 else 1
        self.whole, self.rest = divmod(n, mask.block_size)
        self.dtype, self.device = torch.promote_types(q.dtype, torch.float32), q.device
        self.memory: dict[str, torch.Tensor] = {}
        self.views: dict[tuple, torch.Tensor] = {}
        self.token_offsets: dict[int, torch.Tensor] = {}
        self.indexed: tuple[Piece | None, int] = (None, 0)
        token = torch.arange(mask.block_size, device=q.device)
        last = token[:, None] if is_causal else (n - 1) % mask.block_size
        # Which keys of the last block are above the diagonal or past the end.
        self.cut = token > last

    def schedule(self, mask: BlockMask) -> Schedule:
        """The order of work.

        Args:
            mask: that of the call, or one with fewer of its blocks.

        Returns:
            As `models.block_schedule.schedule`.
        """
        return schedule(mask, self.q, self.kv_heads, self.is_causal)

    def places(self, b: int, order: Schedule) -> Iterator[tuple[tuple, tuple]]:
        """Indices of each group of heads.

        Args:
            b: batch element.
            order: which says how many key heads make a group.

        Yields:
            The index into (B, N, H, ...) and that into (B, N, Hkv, ...).
        """
        for first in range(0, self.kv_heads, order.heads_per_group):
            stop = first + order.heads_per_group
            q_heads = slice(first * self.per_key_head, stop * self.per_key_head)
            yield (b, slice(None), q_heads), (b, slice(None), slice(first, stop))

    def buffer(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory of this shape, uninitialised; the same memory each time for one name.

        Args:
            name: which buffer.
            shape: of the result.
            dtype: of the buffer, always the same for a name; None for the accumulator's.

        Returns:
            A tensor of this shape, contiguous.
        """
        if (name, shape) not in self.views:
            size = math.prod(shape)
            if name not in self.memory or self.memory[name].numel() < size:
                self.views = {key: x for key, x in self.views.items() if key[0] != name}
                self.memory.pop(name, None)
                self.memory[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
            self.views[name, shape] = self.memory[name][:size].view(shape)
        return self.views[name, shape]

    def query_blocks(self, x: torch.Tensor) -> Blocks:
        """Blocks of queries, or of what else there is per query.

        Args:
            x: (N, heads, ...).

        Returns:
            (tile heads, blocks, stacked, block_size, ...) and (tile heads, stacked, tokens, ...).
        """
        whole, rest = self.key_blocks(x.unflatten(1, (-1, self.stacked)))
        features = range(3, x.dim() + 1)
        whole = whole.permute(2, 0, 3, 1, *(d + 1 for d in features))
        return whole, rest.permute(1, 2, 0, *features)

    def key_blocks(self, x: torch.Tensor) -> Blocks:
        """Blocks of keys.

        Args:
            x: (N, heads, ...).

        Returns:
            (blocks, block_size, heads, ...) and (tokens, heads, ...).
        """
        cut = self.whole * self.block_size
        return x[:cut].unflatten(0, (self.whole, self.block_size)), x[cut:]

    def source(self, x: torch.Tensor) -> GatherSource:
        """Keys or values to gather from.

        Where a head's tokens are not adjacent in memory they are read as rows of a matrix: copying
        256 bytes at a time is as fast as copying packed blocks, and faster than copying blocks of
        such tokens.

        Args:
            x: (N, heads, D).

        Returns:
            Views of x.
        """
        step, rest = divmod(x.stride(0), x.shape[2])
        is_strided = x.shape[1] == 1 and x.stride(2) == 1 and step > 1 and rest == 0
        rows = None
        count = step * (x.shape[0] - 1) + 1
        if is_strided and x.dtype == self.dtype and count < 2**31:
            rows = x.as_strided((count, x.shape[2]), (x.shape[2], 1))
        return GatherSource(*self.key_blocks(x), rows, step)

    def load(
        self,
        name: str,
        blocks: Blocks,
        chunk: Chunk,
        *,
        scale: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Copy a chunk's queries, or what else there is per query, into a buffer.

        Args:
            name: of the buffer.
            blocks: of `query_blocks`.
            chunk: which queries.
            scale: factor on them.
            dtype: of the buffer, as of `buffer`.

        Returns:
            (tiles, stacked * block_size, ...), zeros past the end.
        """
        whole, rest = blocks if chunk.head is None else (x[chunk.head, None] for x in blocks)
        heads, _, stacked, size, *features = whole.shape
        tiles = self.buffer(name, heads, chunk.count, stacked, size, *features, dtype=dtype)
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
        tiles = self.buffer(name, heads * chunk.count, stacked * size, *features)
        return tiles if scale == 1.0 else tiles.mul_(scale)

    def store(self, tiles: torch.Tensor, blocks: Blocks, chunk: Chunk) -> None:
        """Copy tiles to where `load` reads them.

        Args:
            tiles: (tiles, stacked * block_size, ...).
            blocks: of `query_blocks`, written to.
            chunk: which queries.
        """
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

    def gather(
        self,
        name: str,
        keys: GatherSource,
        chunk: Chunk,
        piece: Piece,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Copy a piece's key blocks side by side into a buffer.

        Args:
            name: of the buffer.
            keys: what to copy from.
            chunk, piece: which blocks.
            dtype: of the buffer, as of `buffer`.

        Returns:
            (tiles, n * block_size, ...), zeros past the end. In memory tile by tile for one head;
            token by token for several, which are of one row.
        """
        whole, rest = keys.whole, keys.rest
        _, size, *features = whole.shape
        count = len(piece.blocks)
        gathered = self.buffer(name, count, size, *features, dtype=dtype)
        if self.whole and keys.rows is not None and gathered.dtype == whole.dtype:
            index = self.row_index(piece, keys.step)
            torch.index_select(keys.rows, 0, index, out=gathered.view(count * size, -1))
        elif self.whole and whole.dtype == gathered.dtype:
            torch.index_select(whole, 0, piece.blocks, out=gathered)
        elif self.whole:
            gathered.copy_(whole.index_select(0, piece.blocks))
        if piece.ends is not None:
            last = gathered.unflatten(0, (chunk.count, -1))[piece.ends, -1]
            last[:, : self.rest].copy_(rest)
            last[:, self.rest :].zero_()
        tokens, heads = count // chunk.count * size, features[0]
        if heads == 1:
            return self.buffer(name, chunk.count, tokens, *features[1:])
        return self.buffer(name, tokens, *features).movedim(1, 0)

    def row_index(self, piece: Piece, step: int) -> torch.Tensor:
        """Which rows of a `GatherSource` hold the tokens of a piece's blocks.

        Args:
            piece: which blocks.
            step: of the source.

        Returns:
            (rows * n * block_size,) int32, block after block.
        """
        count, size = len(piece.blocks), self.block_size
        index = self.buffer("index", count, size, dtype=torch.int32)
        # Values mostly have the same layout as keys: the index is reused.
        if self.indexed[0] is not piece or self.indexed[1] != step:
            if step not in self.token_offsets:
                token = torch.arange(size, dtype=torch.int32, device=self.device)
                self.token_offsets[step] = token.mul_(step)
            torch.add(self.token_offsets[step], piece.blocks[:, None], alpha=size * step, out=index)
            self.indexed = (piece, step)
        return index.view(-1)

    def scatter(self, x: torch.Tensor, blocks: Blocks, chunk: Chunk, piece: Piece) -> None:
        """Add gradients to the key blocks, in a fixed order.

        Args:
            x: (tiles, n * block_size, D), overwritten.
            blocks: of `key_blocks`, added to.
            chunk, piece: which blocks.
        """
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
                # On CUDA index_add_ adds in any order; index_put_ sorts first.
                places = (piece.blocks.long(),)
                whole[:, :, head].index_put_(places, x[head], accumulate=True)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros to accumulate a gradient in.

        Args:
            x: (N, heads, ...), the gradient.

        Returns:
            x itself, or a float32 tensor where x is of a half type.
        """
        return (x if x.dtype == self.dtype else torch.empty_like(x, dtype=self.dtype)).zero_()

    def scores(self, piece: Piece, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Scores, -inf above the diagonal and past the end.

        Args:
            piece: which blocks.
            queries: (tiles, stacked * block_size, D), scaled.
            keys: (tiles, n * block_size, D).

        Returns:
            (tiles, stacked * block_size, n * block_size).
        """
        scores = self.buffer("scores", *queries.shape[:2], keys.shape[1])
        torch.bmm(queries, keys.mT, out=scores)
        if piece.is_cut:
            last = scores.unflatten(1, (self.stacked, -1))[..., -self.block_size :]
            last.masked_fill_(self.cut, -torch.inf)
        return scores
