"""The order of work of `models.block_gather`: query blocks with equally long lists together.

A *tile* is the queries of one query block that read the same keys: of one head or, where all
heads share the lists, of the heads that share a key head ("stacked"). A *chunk* is the tiles that
are computed together: those of several query blocks and one key head or, where few lists have one
length, those of one query block and several key heads, whose keys lie side by side in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from models.patterns.block_mask import BlockMask

Group = TypeVar("Group")

# Elements computed at once: scores, and the keys, queries and outputs that go with them. On a CPU
# they should stay in its caches, and take little memory next to the output even of a short
# sequence: this is the least per thread, and up to four times as many are used where the
# output is large.
_SCORES_PER_THREAD = 1 << 17
_SCORES_ON_DEVICE = 1 << 25
# Longer rows are cut into pieces, so that no sequence makes a tile's scores larger.
_SCORES_PER_TILE = 1 << 19


@dataclass(frozen=True)
class Piece:
    """The same n consecutive entries of the lists of all rows of a chunk.

    Attributes:
        blocks: (rows * n,) int32, key block numbers, one less for a short last block.
        is_cut: whether the last entries are attended to only in part.
        ends: the rows whose last entry is the short last block, or None.
    """

    blocks: torch.Tensor
    is_cut: bool
    ends: slice | None


@dataclass(frozen=True)
class Chunk:
    """Tiles computed together: of some query blocks ("rows"), and of one or all heads of a group.

    Attributes:
        head: the tile head in its group, None for all of them.
        count: number of rows.
        rows: the numbers of those that are whole blocks, a slice where they are consecutive.
        has_end: whether the short last block comes after them.
        pieces: of their lists, in their order.
    """

    head: int | None
    count: int
    rows: slice | torch.Tensor
    has_end: bool
    pieces: list[Piece]


@dataclass(frozen=True)
class Schedule:
    """All chunks; tiles without keys are in none.

    Attributes:
        heads_per_group: key heads per group.
        groups: the chunks of each group, or one entry where all groups have the same.
        in_pieces: whether a chunk has several pieces.
        has_empty: whether a tile is in no chunk.
    """

    heads_per_group: int
    groups: list[list[Chunk]]
    in_pieces: bool
    has_empty: bool

    def walk(self, groups: list[Group]) -> Iterator[tuple[Chunk, Group]]:
        """Each chunk with each group that it is for.

        A chunk of all groups is done for one group after the other: its indices, and the cache
        lines in which the groups' tokens lie side by side, are then reused.

        Args:
            groups: what the caller has of each group of heads.

        Yields:
            The chunk and the entry of `groups`.
        """
        if len(self.groups) == 1:
            return ((chunk, group) for chunk in self.groups[0] for group in groups)
        pairs = zip(self.groups, groups, strict=True)
        return ((chunk, group) for chunks, group in pairs for chunk in chunks)


def schedule(mask: BlockMask, q: torch.Tensor, kv_heads: int, is_causal: bool) -> Schedule:
    """The order of work for a mask; cached with the mask.

    Args:
        mask: with no block above the diagonal when causal.
        q: (B, N, H, D), of which only the shape is used.
        kv_heads: Hkv.
        is_causal: whether the diagonal cuts blocks.

    Returns:
        The schedule, the same object for the same mask and sizes.
    """
    _, seq_len, heads, dim = q.shape
    limits = (_SCORES_PER_THREAD, _SCORES_PER_TILE, torch.get_num_threads())
    key = (seq_len, heads, dim, kv_heads, is_causal, limits)
    if key not in mask.plans:
        with torch.inference_mode(False):  # a later call may be one of autograd
            mask.plans[key] = _schedule(mask, seq_len, heads, dim, kv_heads, is_causal)
    return mask.plans[key]


def _schedule(mask, seq_len, heads, dim, kv_heads, is_causal) -> Schedule:
    per_key_head = heads // kv_heads
    size = _Size(mask, seq_len, heads, dim, per_key_head if mask.heads == 1 else 1, is_causal)
    kinds, starts = _kinds(mask, size), mask.row_ptr[:, :-1].tolist()
    if mask.heads == 1:
        heads_per_group = _heads_per_group(kinds[0], size, kv_heads)
        groups = [_chunks(mask, kinds[0], starts[0], size, None, heads_per_group)]
    else:
        heads_per_group, groups = 1, []
        for first in range(0, heads, per_key_head):
            chunks = []
            for place in range(per_key_head):
                head = first + place
                chunks += _chunks(mask, kinds[head], starts[head], size, place, 1)
            groups.append(chunks)
    in_pieces = any(len(chunk.pieces) > 1 for chunks in groups for chunk in chunks)
    rows = [sum(map(len, of_head.values())) for of_head in kinds]
    return Schedule(heads_per_group, groups, in_pieces, min(rows) < mask.blocks)


class _Size:
    """How many tiles fit into a chunk, and where the sequence ends."""

    def __init__(self, mask, seq_len, heads, dim, stacked, is_causal):
        self.blocks, self.whole = mask.blocks, seq_len // mask.block_size
        self.is_causal, self.is_ragged = is_causal, self.whole < mask.blocks
        rows = stacked * mask.block_size
        # Elements per tile (queries, outputs), and per tile and key block.
        self.per_tile, self.per_block = 2 * rows * dim, (rows + dim) * mask.block_size
        self.longest_piece = max(1, _SCORES_PER_TILE // (rows * mask.block_size))
        self.least, self.at_once = 1, _SCORES_ON_DEVICE
        if mask.device.type == "cpu":
            self.least = torch.get_num_threads()
            share = _SCORES_PER_THREAD * self.least
            by_output = _SCORES_PER_THREAD // 2 + seq_len * heads * dim // 6
            self.at_once = max(share // 2, min(8 * share, by_output))

    def tiles_at_once(self, length: float) -> int:
        elements = min(length, self.longest_piece) * self.per_block + self.per_tile
        # A multiple of the threads, which share them evenly.
        return max(1, int(self.at_once / elements) // self.least) * self.least


def _kinds(mask, size) -> list[dict[tuple[int, bool], list[int]]]:
    """For each list, the rows that are not empty, by (length, whether the last block is cut).

    In plain Python: each PyTorch op that a process has not called before maps more of the library
    into memory, which shows in the peak memory of a short sequence.
    """
    found = []
    for ptr, ends in zip(mask.row_ptr.tolist(), mask.last_blocks().tolist(), strict=True):
        kinds: dict[tuple[int, bool], list[int]] = {}
        for row, end in enumerate(ends):
            # The diagonal, where each row ends when causal, or the short last block.
            is_cut = end == row if size.is_causal else size.is_ragged and end == size.blocks - 1
            if end >= 0:
                kinds.setdefault((ptr[row + 1] - ptr[row], is_cut), []).append(row)
        found.append(dict(sorted(kinds.items())))
    return found


def _heads_per_group(kinds, size, kv_heads) -> int:
    """Key heads per chunk: several where few rows have one length."""
    rows = sum(map(len, kinds.values()))
    if rows == 0:
        return 1
    length = sum(length * len(alike) for (length, _), alike in kinds.items()) / rows
    at_once = size.tiles_at_once(length)
    heads_per_group = max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= at_once)
    return heads_per_group if rows / len(kinds) < heads_per_group else 1


def _chunks(mask, kinds, starts: list[int], size, head: int | None, heads_per_group) -> list[Chunk]:
    """The chunks of a tile head, or of `heads_per_group` ones, that have the lists at `starts`."""
    chunks = []
    for (length, is_cut), alike in kinds.items():
        step = size.tiles_at_once(length) if heads_per_group == 1 else 1
        for rows in (alike[i : i + step] for i in range(0, len(alike), step)):
            pieces = _pieces(mask, [starts[row] for row in rows], rows, length, is_cut, size)
            has_end = size.is_ragged and rows[-1] == size.blocks - 1
            whole = rows[:-1] if has_end else rows
            if not whole or whole[-1] - whole[0] == len(whole) - 1:
                places = slice(whole[0], whole[-1] + 1) if whole else slice(0, 0)
            else:
                places = torch.tensor(whole, device=mask.device)
            chunks.append(Chunk(head, len(rows), places, has_end, pieces))
    return chunks


def _pieces(mask, starts, rows, length, is_cut, size) -> list[Piece]:
    first, count = starts[0], len(rows)
    if rows[-1] - rows[0] == count - 1:
        lists = mask.col_idx[first : first + count * length].view(count, length)
    else:
        lists = torch.stack([mask.col_idx[start : start + length] for start in starts])
    pieces = []
    for place in range(0, length, size.longest_piece):
        blocks = lists[:, place : place + size.longest_piece].flatten()
        reaches_cut = is_cut and place + size.longest_piece >= length
        ends = None
        if reaches_cut and size.is_ragged:
            if not size.is_causal:
                ends = slice(0, count)
            elif rows[-1] == size.blocks - 1:
                ends = slice(count - 1, count)
        if ends is not None:
            blocks = blocks.clamp(max=max(0, size.whole - 1))
        pieces.append(Piece(blocks, reaches_cut, ends))
    return pieces
