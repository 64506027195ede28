"""What a block mask needs of a pair of shards: the keys that travel, and pieces of blocks.

A shard may hold a block in part only: at its ends or, in the striped order, every block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.patterns.block_mask import BlockMask
from models.ring.pattern_plan import PatternPlan, Tokens
from models.ring.pieces import Piece, Rows, pieces

# Most keys of a piece whose keys are gathered; more sets than that become several pieces.
_KEYS_PER_PIECE = 4096


class BlockMaskPlan(PatternPlan):
    """What a block mask needs; see `PatternPlan`.

    Args:
        mask: the blocks of the whole sequence, for 1 or `heads` heads.
        heads, kv_heads, is_causal: as in `PatternPlan`.
    """

    def __init__(self, mask: BlockMask, heads: int, kv_heads: int, is_causal: bool):
        super().__init__(heads, kv_heads, is_causal)
        mask = mask.causal() if is_causal else mask
        self.block_size, self.blocks = mask.block_size, mask.blocks
        self.row_ptr, self.col_idx = mask.row_ptr.cpu().numpy(), mask.col_idx.cpu().numpy()

    @property
    def per_head(self) -> bool:
        """Whether each head has blocks of its own."""
        return len(self.row_ptr) > 1

    def key_subsets(self, to: Tokens, source: Tokens) -> Iterator[tuple[slice, np.ndarray]]:
        """As `PatternPlan.key_subsets`."""
        if not self.per_head:
            yield slice(0, self.kv_heads, 1), self._wanted(0, to, source)
            return
        for kv_head in range(self.kv_heads):
            wanted = np.zeros(len(source.indices), bool)
            for head in range(kv_head * self.group_size, (kv_head + 1) * self.group_size):
                wanted |= self._wanted(head, to, source)
            yield slice(kv_head, kv_head + 1, 1), wanted

    def _wanted(self, head, to, source):
        if to is source:
            return np.ones(len(source.indices), bool)
        rows, row_starts, lengths = self._fragments(to)
        entry_row, entry_column = self._entries(head, rows)
        # The last query position that each key block is kept for.
        last = np.full(self.blocks, -1)
        until = to.positions[row_starts + lengths - 1]
        np.maximum.at(last, entry_column, until[entry_row])
        last = last[source.positions // self.block_size]
        return (last >= 0) & (not self.is_causal or source.positions <= last)

    def pieces(self, to: Tokens, keys: Tokens, heads: slice) -> list[Piece]:
        """As `PatternPlan.pieces`."""
        found = []
        for q_heads, kv_heads in self.head_slices(heads):
            head = q_heads.start if self.per_head else 0
            found += self._block_list_pieces(head, to, keys, q_heads, kv_heads)
        return found

    def _block_list_pieces(self, head, to, keys, q_heads, kv_heads):
        """Pieces of one head: query blocks with equally many keys are sets of one piece."""
        rows, row_starts, row_lengths = self._fragments(to)
        columns, starts, lengths = self._fragments(keys)
        fragment_of = np.full(self.blocks, -1)
        fragment_of[columns] = np.arange(len(columns))
        entry_row, entry_column = self._entries(head, rows)
        entry_fragment = fragment_of[entry_column]
        kept = entry_fragment >= 0
        entry_row, entry_fragment = entry_row[kept], entry_fragment[kept]
        on_diagonal = np.zeros(len(entry_row), bool)
        if self.is_causal:
            on_diagonal = columns[entry_fragment] == rows[entry_row]
        # Rows are counted by position; `_RowsByPosition` finds their indices in memory.
        as_q, as_k = _RowsByPosition(to), _RowsByPosition(keys)
        found = []
        below = ~on_diagonal
        for of_rows, of_keys in _same_size_rows(
            entry_row[below], entry_fragment[below], row_starts, row_lengths, starts, lengths
        ):
            q, k = as_q.rows(*of_rows), as_k.rows(*of_keys)
            step = max(1, _KEYS_PER_PIECE // k.count)
            for first in range(0, k.sets, step):
                part = slice(first, first + step)
                found += pieces(q.select_sets(part), k.select_sets(part), None, q_heads, kv_heads)
        same_mask: dict[tuple, list[tuple[int, int]]] = {}
        for row, column in zip(entry_row[on_diagonal], entry_fragment[on_diagonal], strict=True):
            in_q = slice(row_starts[row], row_starts[row] + row_lengths[row])
            in_k = slice(starts[column], starts[column] + lengths[column])
            seen = np.searchsorted(keys.positions[in_k], to.positions[in_q], side="right")
            shape = (row_lengths[row], lengths[column], seen.tobytes())
            same_mask.setdefault(shape, []).append((row_starts[row], starts[column]))
        for (q_length, k_length, seen), sets in same_mask.items():
            q_starts, k_starts = (np.array(x)[:, None] for x in zip(*sets, strict=True))
            q, k = as_q.rows(q_starts, q_length), as_k.rows(k_starts, k_length)
            found += pieces(q, k, np.frombuffer(seen, np.int64), q_heads, kv_heads)
        return found

    def _fragments(self, shard):
        """The blocks that the shard has tokens of: block number, first token, number of tokens."""
        blocks, starts, lengths = np.unique(
            shard.positions // self.block_size, return_index=True, return_counts=True
        )
        return blocks, starts, lengths

    def _entries(self, head, rows):
        """(row, column) of every kept block of these rows; row: its index in `rows`."""
        ptr = self.row_ptr[head]
        counts = ptr[rows + 1] - ptr[rows]
        row = np.arange(len(rows)).repeat(counts)
        along = np.arange(len(row)) - (counts.cumsum() - counts).repeat(counts)
        return row, self.col_idx[ptr[rows].repeat(counts) + along]


class _RowsByPosition:
    """Makes `Rows` of runs that are counted by position, in a shard of any order."""

    def __init__(self, shard: Tokens):
        is_sorted = np.array_equal(shard.indices, np.arange(len(shard.indices)))
        self.indices = None if is_sorted else shard.indices

    def rows(self, starts: np.ndarray, run: int) -> Rows:
        if self.indices is None:
            return Rows(starts, run)
        index = (starts[:, :, None] + np.arange(run)).reshape(len(starts), -1)
        return Rows(self.indices[index], 1)


def _same_size_rows(entry_row, entry_fragment, row_starts, row_lengths, starts, lengths):
    """Group query blocks that have the same numbers of queries and of keys.

    Yields ((S, 1) starts, queries), ((S, L) starts, run) per group.
    """
    if not len(entry_row):
        return
    rows, first, count = np.unique(entry_row, return_index=True, return_counts=True)
    of_entry = lengths[entry_fragment]
    total = np.add.reduceat(of_entry, first)
    least, most = (f.reduceat(of_entry, first) for f in (np.minimum, np.maximum))
    run = np.where(least == most, most, 1)
    kind = np.stack([row_lengths[rows], total, run], axis=1)
    for shape in np.unique(kind, axis=0):
        members = np.nonzero((kind == shape).all(axis=1))[0]
        q_length, keys, length = (int(x) for x in shape)
        if length > 1 or (most[members] == 1).all():
            entries = first[members][:, None] + np.arange(keys // length)
            key_starts = starts[entry_fragment[entries]]
        else:
            key_starts = np.stack(
                [
                    np.concatenate(
                        [
                            starts[p] + np.arange(lengths[p])
                            for p in entry_fragment[first[m] : first[m] + count[m]]
                        ]
                    )
                    for m in members
                ]
            )
        yield (row_starts[rows[members]][:, None], q_length), (key_starts, length)
