"""The order of work of `models.block_gather`: query blocks with equally long lists together.

A *tile* is the queries of one query block that read the same keys: of one head or, where all
heads share the lists, of the heads that share a key head ("stacked"). Key heads are worked
on in groups, mostly one by one, whose tiles and key blocks are numbered from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.patterns.block_mask import BlockMask

# Scores worked on at once. On a CPU, a thread's share of them and its keys are to stay in
# its cache: the fastest of 2^16 to 2^20 on 2 cores with 1 MB each.
_SCORES_A_THREAD = 1 << 18
_SCORES_ELSEWHERE = 1 << 24
# Longer rows are cut into pieces, so that no sequence makes a tile's scores larger.
_SCORES_A_TILE = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Tiles done together, each with n key blocks: one piece of as many lists.

    count: how many tiles. tiles: their numbers, a slice where they follow each other.
    blocks: (count * n,) int32 numbers of their key blocks. is_cut: whether the last of the n
    is attended to in part only. is_first: whether this is the first piece of the lists,
    is_whole: whether it is all of them.
    """

    count: int
    tiles: slice | torch.Tensor
    blocks: torch.Tensor
    is_cut: bool
    is_first: bool
    is_whole: bool


@dataclass(frozen=True)
class Plan:
    """All chunks, a tile's in the order of its list; tiles without keys are in none.

    stacked: query heads in a tile. together: key heads in a group. groups: the chunks of
    each group, of one only where all are alike. in_pieces: whether a tile is in several
    chunks. has_empty: whether one is in none.
    """

    stacked: int
    together: int
    groups: list[list[Chunk]]
    in_pieces: bool
    has_empty: bool

    def group(self, key_head: int) -> list[Chunk]:
        """The chunks of the group that starts with `key_head`."""
        return self.groups[key_head // self.together % len(self.groups)]


def plan(mask: BlockMask, seq_len: int, heads: int, kv_heads: int, is_causal: bool) -> Plan:
    """How to do `mask`, which holds no block above the diagonal when causal."""
    per_key_head = heads // kv_heads
    stacked = per_key_head if mask.heads == 1 else 1
    size = _Size(mask.blocks, stacked * mask.block_size**2, mask.device)
    lengths = mask.lengths().cpu()
    kinds = [_kinds(*rows) for rows in zip(lengths, _is_cut(mask, seq_len, is_causal), strict=True)]
    starts = mask.row_ptr[:, :-1].cpu()
    if mask.heads == 1:
        together = _together(kinds[0], size, kv_heads)
        groups = [_chunks(mask, kinds[0], starts[0], size, range(together))]
    else:
        together, groups = 1, []
        for key_head in range(kv_heads):
            chunks = []
            for place in range(per_key_head):
                head = key_head * per_key_head + place
                tile_heads = range(place, place + 1)
                chunks += _chunks(mask, kinds[head], starts[head], size, tile_heads)
            groups.append(chunks)
    in_pieces = int(lengths.max()) > size.longest_piece
    return Plan(stacked, together, groups, in_pieces, int(lengths.min()) == 0)


@dataclass(frozen=True)
class _Size:
    blocks: int
    scores_a_block: int
    device: torch.device

    @property
    def longest_piece(self) -> int:
        return max(1, _SCORES_A_TILE // self.scores_a_block)

    def tiles_at_once(self, length: float) -> int:
        on_cpu = self.device.type == "cpu"
        scores = _SCORES_A_THREAD * torch.get_num_threads() if on_cpu else _SCORES_ELSEWHERE
        return max(1, int(scores / (min(length, self.longest_piece) * self.scores_a_block)))


def _is_cut(mask, seq_len, is_causal) -> torch.Tensor:
    """(G, M) bool on the CPU: rows whose last block is attended to in part only."""
    ends = mask.last_blocks().cpu()
    if is_causal:
        # The diagonal; past the end of the sequence nothing else reaches.
        return ends == torch.arange(mask.blocks)
    return (ends == mask.blocks - 1) & (seq_len < mask.blocks * mask.block_size)


def _kinds(lengths: torch.Tensor, is_cut: torch.Tensor) -> list[tuple[int, bool, torch.Tensor]]:
    """(length, is cut, rows) of rows that are alike, without the empty ones."""
    kind, rows = (2 * lengths + is_cut).sort(stable=True)
    kind, counts = kind.unique_consecutive(return_counts=True)
    found = zip(kind.tolist(), rows.split(counts.tolist()), strict=True)
    return [(kind // 2, kind % 2 == 1, rows) for kind, rows in found if kind > 1]


def _together(kinds, size, kv_heads) -> int:
    """One key head, whose blocks then stay in cache, or more where few of its rows are alike."""
    rows = sum(len(rows) for *_, rows in kinds)
    if rows == 0:
        return 1
    length = sum(length * len(rows) for length, _, rows in kinds) / rows
    wanted = max(1, size.tiles_at_once(length) * len(kinds) / rows)
    return max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= wanted)


def _chunks(mask, kinds, starts, size, tile_heads: range) -> list[Chunk]:
    """The chunks of some tile heads that share the lists starting at `starts` (M,).

    Key heads are numbered as tile heads are from the first one.
    """
    chunks = []
    head = torch.arange(len(tile_heads), dtype=torch.int32, device=mask.device)[:, None, None]
    for length, is_cut, alike in kinds:
        for rows in alike.split(max(1, size.tiles_at_once(length) // len(tile_heads))):
            first, last, count = int(rows[0]), int(rows[-1]), len(rows)
            consecutive = last - first == count - 1
            if consecutive:
                start = int(starts[first])
                lists = mask.col_idx[start : start + count * length].view(count, length)
            else:
                place = starts[rows, None] + torch.arange(length)
                lists = mask.col_idx[place.to(mask.device)]
            if consecutive and (len(tile_heads) == 1 or count == size.blocks):
                start = tile_heads.start * size.blocks + first
                tiles = slice(start, start + len(tile_heads) * count)
            else:
                tiles = (head[:, 0] + tile_heads.start) * size.blocks + rows.to(mask.device)
                tiles = tiles.flatten()
            for place in range(0, length, size.longest_piece):
                piece = lists[:, place : place + size.longest_piece]
                is_last = place + piece.shape[1] == length
                blocks = (piece + head * size.blocks).flatten()
                cut, is_first = is_cut and is_last, place == 0
                flags = (cut, is_first, is_first and is_last)
                chunks.append(Chunk(len(tile_heads) * count, tiles, blocks, *flags))
    return chunks
