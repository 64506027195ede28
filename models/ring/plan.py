"""What each rank of a ring computes with each other rank's keys, and which keys it needs for it.

Everything follows from the order, the pattern and the sizes, so that sender and receiver
find the same without asking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from models.patterns.block_mask import BlockMask
from models.patterns.orders import positions
from models.ring.pieces import Piece, Rows, pieces

# Keys of a gathered piece, at most: more sets than fit are done one part after another.
_TOKENS_A_PIECE = 4096


@dataclass(frozen=True)
class Share:
    """Key heads that need the same tokens of a shard.

    tokens: (n,) int64 places in the shard, None for all of them in the shard's order.
    heads: slice of the key heads.
    """

    tokens: np.ndarray | None
    heads: slice


@dataclass(frozen=True)
class Parcel:
    """The keys of one rank that another needs, share by share.

    sizes: tokens and heads of each share.
    """

    shares: tuple[Share, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """Rows of head_dim numbers, of one batch element."""
        return sum(tokens * heads for tokens, heads in self.sizes)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """The parcel's part of x (B, n, Hkv, D), flat; x itself where that is all of it."""
        parts = []
        for share in self.shares:
            part = x[:, :, share.heads]
            if share.tokens is not None:
                part = part.index_select(1, torch.from_numpy(share.tokens).to(x.device))
            parts.append(part.reshape(-1))
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)

    def unpack(self, flat: torch.Tensor, batch: int) -> list[torch.Tensor]:
        """Views (B, tokens, heads, D) of what `pack` gave, one a share."""
        dim = len(flat) // (batch * self.rows)
        parts = flat.split([batch * tokens * heads * dim for tokens, heads in self.sizes])
        return [
            part.view(batch, *size, dim) for part, size in zip(parts, self.sizes, strict=True)
        ]

    def add(self, x: torch.Tensor, flat: torch.Tensor) -> None:
        """Add what lies as `pack` packs to x (B, n, Hkv, D)."""
        for share, part in zip(self.shares, self.unpack(flat, x.shape[0]), strict=True):
            target = x[:, :, share.heads]
            if share.tokens is None:
                target.add_(part)
            else:
                index = torch.from_numpy(share.tokens).to(x.device)
                target[:, index] = target[:, index] + part


@dataclass(frozen=True)
class Hop:
    """Rank `to`'s work with rank `source`'s keys: the parcel, and the pieces of each share."""

    parcel: Parcel
    pieces: tuple[tuple[Piece, ...], ...]

    def pairs(self) -> int:
        """Query-key pairs of all heads."""
        return sum(
            piece.pairs() * len(range(*piece.q_heads.indices(1 << 20)))
            for share in self.pieces
            for piece in share
        )


@lru_cache(maxsize=32)
def plan(pattern, order, seq_len, world_size, heads, kv_heads, is_causal) -> RingPlan:
    """The plan of these arguments; the last few are kept."""
    return RingPlan(pattern, order, seq_len, world_size, heads, kv_heads, is_causal)


@dataclass(frozen=True, eq=False)
class RingPlan:
    """All hops of a ring, made when asked for.

    pattern: None for dense, `patterns.DilatedBranches` or a `BlockMask` that fits.
    """

    pattern: object | None
    order: object
    seq_len: int
    world_size: int
    heads: int
    kv_heads: int
    is_causal: bool

    def local(self, rank: int) -> Hop:
        """What a rank computes with its own keys, which lie as they are."""
        return self._hop(rank, rank)

    def hop(self, to: int, source: int) -> Hop | None:
        """What rank `to` computes with the keys of `source`; None where it needs none."""
        found = self._hop(to, source)
        return found if found.parcel.rows else None

    def _hop(self, to: int, source: int) -> Hop:
        if (to, source) not in self._hops:
            self._hops[to, source] = self._make(self._shards[to], self._shards[source])
        return self._hops[to, source]

    def _make(self, to: _Shard, source: _Shard) -> Hop:
        needs = self._needs
        shares, of_share, sizes = [], [], []
        for heads, wanted in needs.shares(to, source):
            keys = _Shard(source.places[wanted], source.positions[wanted])
            if len(keys.places) == 0:
                continue
            is_all = to is source or len(keys.places) == len(source.places)
            # In a parcel tokens lie in order of position; where all go they lie as they are.
            tokens = None if is_all else keys.places
            found = needs.pieces(to, keys if is_all else keys.packed(), heads)
            if not found:
                continue
            shares.append(Share(tokens, heads))
            sizes.append((len(source.places if is_all else keys.places), _count(heads)))
            of_share.append(tuple(found))
        return Hop(Parcel(tuple(shares), tuple(sizes)), tuple(of_share))

    @cached_property
    def _hops(self) -> dict[tuple[int, int], Hop]:
        return {}

    @cached_property
    def _shards(self) -> list[_Shard]:
        held = (
            positions(self.order, self.seq_len, rank, self.world_size).numpy()
            for rank in range(self.world_size)
        )
        return [_Shard(places := x.argsort(kind="stable"), x[places]) for x in held]

    @cached_property
    def _needs(self):
        if self.pattern is None:
            return _Dense(self.heads, self.kv_heads, self.is_causal)
        if isinstance(self.pattern, BlockMask):
            return _Blocks(self.pattern, self.heads, self.kv_heads, self.is_causal)
        return _Branches(self.pattern, self.heads, self.kv_heads, self.is_causal)


@dataclass(frozen=True, eq=False)
class _Shard:
    """Tokens by ascending position: where each lies, and its position."""

    places: np.ndarray
    positions: np.ndarray

    def packed(self) -> _Shard:
        """The same tokens, lying by ascending position."""
        return _Shard(np.arange(len(self.places)), self.positions)


class _Needs:
    """What a pattern asks of a pair of shards; subclasses are the three kinds of pattern.

    `shares(to, source)` yields key heads and, for them, which of the source's tokens (bool)
    some query of `to` may see. `pieces(to, keys, heads)`: the pairs of `to`'s queries and
    `keys`, for the query heads that read these key heads.
    """

    def __init__(self, heads: int, kv_heads: int, is_causal: bool):
        self.heads, self.kv_heads, self.is_causal = heads, kv_heads, is_causal
        self.group_size = heads // kv_heads

    def head_slices(self, kv_heads: slice) -> list[tuple[slice, slice]]:
        """Query heads and, counted within the share, their key heads: one pair for each place
        in a group of query heads."""
        start, stop, step = kv_heads.indices(self.kv_heads)
        last = start + (_count(kv_heads) - 1) * step
        size = self.group_size
        own = slice(0, _count(kv_heads))
        return [
            (slice(start * size + place, last * size + place + 1, step * size), own)
            for place in range(size)
        ]

    def seen(self, q_positions: np.ndarray, k_positions: np.ndarray) -> np.ndarray | None:
        """How many of the keys each query sees; None where it is all of them."""
        if not self.is_causal or (len(q_positions) and k_positions[-1] <= q_positions[0]):
            return None
        return np.searchsorted(k_positions, q_positions, side="right")

    def visible(self, to: _Shard, source: _Shard) -> np.ndarray:
        """Which tokens of `source` some query of `to` sees, as far as causality goes."""
        if not self.is_causal or not len(to.positions):
            return np.full(len(source.positions), len(to.positions) > 0)
        return source.positions <= to.positions[-1]


class _Dense(_Needs):
    def shares(self, to, source):
        yield slice(0, self.kv_heads, 1), self.visible(to, source)

    def pieces(self, to, keys, heads):
        if not len(to.places):
            return []
        seen = self.seen(to.positions, keys.positions)
        if seen is None:
            # Where all see all the order is free: as the tokens lie, copying none.
            q, k = (Rows(np.zeros((1, 1), int), len(x.places)) for x in (to, keys))
        else:
            q, k = Rows.at(to.places[None]), Rows.at(keys.places[None])
        found = []
        for q_heads, kv_heads in self.head_slices(heads):
            found += pieces(q, k, seen, q_heads, kv_heads)
        return found


class _Branches(_Needs):
    def __init__(self, pattern, heads, kv_heads, is_causal):
        super().__init__(heads, kv_heads, is_causal)
        self.pattern = pattern

    def shares(self, to, source):
        if to is source:
            yield slice(0, self.kv_heads, 1), np.ones(len(source.places), bool)
            return
        # Of the branches that have a segment in both shards.
        reaching = [
            branch
            for branch, (w, _) in enumerate(self.pattern.branches())
            if len(np.intersect1d(to.positions // w, source.positions // w))
        ]
        by_offsets: dict[tuple, list[int]] = {}
        for kv_head in range(self.kv_heads):
            of_group = range(kv_head * self.group_size, (kv_head + 1) * self.group_size)
            offsets = tuple(
                (branch, self.pattern.offset(branch, head, self.heads))
                for branch in reaching
                for head in of_group
            )
            by_offsets.setdefault(offsets, []).append(kv_head)
        for offsets, kv_heads in by_offsets.items():
            wanted = np.zeros(len(source.places), bool)
            for branch, offset in set(offsets):
                for _, in_source in self._segments(branch, offset, to, source):
                    wanted[in_source] = True
            for heads in _slices(kv_heads):
                yield heads, wanted

    def pieces(self, to, keys, heads):
        found = []
        for branch in range(len(self.pattern.segment_lengths)):
            for q_heads, kv_heads in self._by_offset(branch, heads):
                offset = self.pattern.offset(branch, q_heads.start, self.heads)
                if offset is not None:
                    found += self._branch(branch, offset, to, keys, q_heads, kv_heads)
        return found

    def _by_offset(self, branch, heads):
        """`head_slices`, cut so that all heads of a slice have one offset in the branch."""
        for q_heads, _ in self.head_slices(heads):
            by_offset: dict[int | None, list[int]] = {}
            for place, head in enumerate(range(*q_heads.indices(self.heads))):
                offset = self.pattern.offset(branch, head, self.heads)
                by_offset.setdefault(offset, []).append(place)
            for places in by_offset.values():
                for own in _slices(places):
                    first = q_heads.start + q_heads.step * own.start
                    last = first + q_heads.step * own.step * (_count(own) - 1)
                    step = q_heads.step * own.step
                    yield (
                        slice(first, last + 1, step),
                        slice(own.start, own.stop, own.step),
                    )

    def _branch(self, branch, offset, to, keys, q_heads, kv_heads):
        """Pieces of one branch: segments that are alike go together, as sets."""
        alike: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
        for in_q, in_k in self._segments(branch, offset, to, keys):
            seen = self.seen(to.positions[in_q], keys.positions[in_k])
            shape = (len(in_q), len(in_k), None if seen is None else seen.tobytes())
            alike.setdefault(shape, []).append((to.places[in_q], keys.places[in_k]))
        found = []
        for (_, _, seen), sets in alike.items():
            q, k = (Rows.at(np.stack(x)) for x in zip(*sets, strict=True))
            seen = None if seen is None else np.frombuffer(seen, np.int64)
            found += pieces(q, k, seen, q_heads, kv_heads)
        return found

    def _segments(self, branch, offset, to, source):
        """For each segment with kept tokens on both sides: their numbers in either shard.

        When causal, only keys that some of these queries sees, and queries that see some key.
        """
        if offset is None:
            return
        w, r = self.pattern.segment_lengths[branch], self.pattern.dilation_rates[branch]
        q, k = (np.nonzero(x.positions % w % r == offset)[0] for x in (to, source))
        q_segment, k_segment = to.positions[q] // w, source.positions[k] // w
        for segment in np.intersect1d(q_segment, k_segment):
            in_q, in_k = (
                numbers[slice(*np.searchsorted(of, (segment, segment + 1)))]
                for numbers, of in ((q, q_segment), (k, k_segment))
            )
            if self.is_causal:
                in_k = in_k[source.positions[in_k] <= to.positions[in_q[-1]]]
                if not len(in_k):
                    continue
                in_q = in_q[to.positions[in_q] >= source.positions[in_k[0]]]
            yield in_q, in_k


class _Blocks(_Needs):
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
            found += self._lists(
                q_heads.start if self.per_head else 0, to, keys, q_heads, kv_heads
            )
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

    def __init__(self, shard: _Shard):
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


def _count(heads: slice) -> int:
    return len(range(heads.start, heads.stop, heads.step or 1))


def _slices(members: list[int]) -> list[slice]:
    """The members as one slice where they are evenly spaced, else one each."""
    step = members[1] - members[0] if len(members) > 1 else 1
    if members == list(range(members[0], members[-1] + 1, step)):
        return [slice(members[0], members[-1] + 1, step)]
    return [slice(member, member + 1, 1) for member in members]
