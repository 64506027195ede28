"""What a block mask asks of a pair of shards: keys that travel, and pieces of gathered blocks.

A shard may hold a part of a block only, at its ends or, when striped, of every block.
"""

from __future__ import annotations

import numpy as np

from models.patterns.block_mask import BlockMask
from models.ring.needs import Needs, Tokens
from models.ring.pieces import Rows, pieces

# Keys of a gathered piece, at most: more sets than fit are done one part after another.
_TOKENS_A_PIECE = 4096


class BlockNeeds(Needs):
    def __init__(self, mask: BlockMask, heads, kv_heads, is_causal):
        super().__init__(heads, kv_heads, is_causal)
        mask = mask.causal() if is_causal else mask
        self.block_size, self.blocks = mask.block_size, mask.blocks
        self.row_ptr, self.col_idx = mask.row_ptr.cpu().numpy(), mask.col_idx.cpu().numpy()

    @property
    def per_head(self) -> bool:
        return len(self.row_ptr) > 1

    def shares(self, to, source):
        if not self.per_head:
            yield slice(0, self.kv_heads, 1), self._wanted(0, to, source)
            return
        for kv_head in range(self.kv_heads):
            wanted = np.zeros(len(source.places), bool)
            for head in range(kv_head * self.group_size, (kv_head + 1) * self.group_size):
                wanted |= self._wanted(head, to, source)
            yield slice(kv_head, kv_head + 1, 1), wanted

    def _wanted(self, head, to, source):
        if to is source:
            return np.ones(len(source.places), bool)
        rows, row_starts, lengths = self._fragments(to)
        entry_row, entry_column = self._entries(head, rows)
        # The last position that sees each block.
        last = np.full(self.blocks, -1)
        until = to.positions[row_starts + lengths - 1]
        np.maximum.at(last, entry_column, until[entry_row])
        last = last[source.positions // self.block_size]
        return (last >= 0) & (not self.is_causal or source.positions <= last)

    def pieces(self, to, keys, heads):
        found = []
        for q_heads, kv_heads in self.head_slices(heads):
            found += self._lists(q_heads.start if self.per_head else 0, to, keys, q_heads, kv_heads)
        return found

    def _lists(self, head, to, keys, q_heads, kv_heads):
        """Pieces of one list of blocks: query blocks with as many keys go together."""
        rows, row_starts, row_lengths = self._fragments(to)
        columns, starts, lengths = self._fragments(keys)
        place = np.full(self.blocks, -1)
        place[columns] = np.arange(len(columns))
        entry_row, entry_column = self._entries(head, rows)
        entry_place = place[entry_column]
        kept = entry_place >= 0
        entry_row, entry_place = entry_row[kept], entry_place[kept]
        on_diagonal = np.zeros(len(entry_row), bool)
        if self.is_causal:
            on_diagonal = columns[entry_place] == rows[entry_row]
        # Rows lie by position; the places where they lie in memory come last.
        as_q, as_k = _Runs(to), _Runs(keys)
        found = []
        below = ~on_diagonal
        for of_rows, of_keys in _alike(
            entry_row[below], entry_place[below], row_starts, row_lengths, starts, lengths
        ):
            q, k = as_q.rows(*of_rows), as_k.rows(*of_keys)
            step = max(1, _TOKENS_A_PIECE // k.count)
            for first in range(0, k.sets, step):
                part = slice(first, first + step)
                found += pieces(q.cut(part), k.cut(part), None, q_heads, kv_heads)
        alike: dict[tuple, list[tuple[int, int]]] = {}
        for row, column in zip(entry_row[on_diagonal], entry_place[on_diagonal], strict=True):
            in_q = slice(row_starts[row], row_starts[row] + row_lengths[row])
            in_k = slice(starts[column], starts[column] + lengths[column])
            seen = np.searchsorted(keys.positions[in_k], to.positions[in_q], side="right")
            shape = (row_lengths[row], lengths[column], seen.tobytes())
            alike.setdefault(shape, []).append((row_starts[row], starts[column]))
        for (q_length, k_length, seen), sets in alike.items():
            q_starts, k_starts = (np.array(x)[:, None] for x in zip(*sets, strict=True))
            q, k = as_q.rows(q_starts, q_length), as_k.rows(k_starts, k_length)
            found += pieces(q, k, np.frombuffer(seen, np.int64), q_heads, kv_heads)
        return found

    def _fragments(self, shard):
        """Blocks that the shard has tokens of: numbers, first token by position, and lengths."""
        blocks, starts, lengths = np.unique(
            shard.positions // self.block_size, return_index=True, return_counts=True
        )
        return blocks, starts, lengths

    def _entries(self, head, rows):
        """(row, column) of every entry of these rows; rows counted in `rows`."""
        ptr = self.row_ptr[head]
        counts = ptr[rows + 1] - ptr[rows]
        row = np.arange(len(rows)).repeat(counts)
        along = np.arange(len(row)) - (counts.cumsum() - counts).repeat(counts)
        return row, self.col_idx[ptr[rows].repeat(counts) + along]


class _Runs:
    """Makes `Rows` of runs that are counted by position, in a shard that may lie otherwise."""

    def __init__(self, shard: Tokens):
        lies = np.array_equal(shard.places, np.arange(len(shard.places)))
        self.places = None if lies else shard.places

    def rows(self, starts: np.ndarray, run: int) -> Rows:
        if self.places is None:
            return Rows(starts, run)
        index = (starts[:, :, None] + np.arange(run)).reshape(len(starts), -1)
        return Rows(self.places[index], 1)


def _alike(entry_row, entry_place, row_starts, row_lengths, starts, lengths):
    """Group query blocks that have as many tokens and keys: ((S, 1), n), ((S, L), run) each."""
    if not len(entry_row):
        return
    rows, first, count = np.unique(entry_row, return_index=True, return_counts=True)
    of_entry = lengths[entry_place]
    total = np.add.reduceat(of_entry, first)
    least, most = (f.reduceat(of_entry, first) for f in (np.minimum, np.maximum))
    run = np.where(least == most, most, 1)
    kind = np.stack([row_lengths[rows], total, run], axis=1)
    for shape in np.unique(kind, axis=0):
        members = np.nonzero((kind == shape).all(axis=1))[0]
        q_length, keys, length = (int(x) for x in shape)
        if length > 1 or (most[members] == 1).all():
            entries = first[members][:, None] + np.arange(keys // length)
            key_starts = starts[entry_place[entries]]
        else:
            key_starts = np.stack(
                [
                    np.concatenate(
                        [
                            starts[p] + np.arange(lengths[p])
                            for p in entry_place[first[m] : first[m] + count[m]]
                        ]
                    )
                    for m in members
                ]
            )
        yield (row_starts[rows[members]][:, None], q_length), (key_starts, length)
