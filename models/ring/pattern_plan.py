"""What dense and dilated attention need of a pair of shards: the keys that travel, and pieces.

`models.ring.block_mask_plan` is the same for block masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.patterns.branches import DilatedBranches, HeadPartition
from models.ring.pieces import Piece, Rows, pieces


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a shard or a message, ascending by position.

    Args:
        indices: (n,) int64, the index of each in the shard or message.
        positions: (n,) int64, the position of each in the whole sequence.
    """

    indices: np.ndarray
    positions: np.ndarray

    def packed(self) -> Tokens:
        """The same tokens, laid out by ascending position."""
        return Tokens(np.arange(len(self.indices)), self.positions)


class PatternPlan:
    """What a pattern needs of a pair of shards: a base class with one subclass per pattern.

    Args:
        heads: query heads.
        kv_heads: key heads, a divisor of `heads`.
        is_causal: causal by position in the whole sequence.
    """

    def __init__(self, heads: int, kv_heads: int, is_causal: bool):
        self.heads, self.kv_heads, self.is_causal = heads, kv_heads, is_causal
        self.group_size = heads // kv_heads

    def key_subsets(self, to: Tokens, source: Tokens) -> Iterator[tuple[slice, np.ndarray]]:
        """Which keys of a shard the queries of another need.

        Args:
            to: the queries' tokens.
            source: the keys' tokens; `to` itself for a rank's own keys.

        Yields:
            A slice of the key heads, and for these heads (n,) bool: the tokens of `source` that
            some query may attend to.
        """
        raise NotImplementedError

    def pieces(self, to: Tokens, keys: Tokens, heads: slice) -> list[Piece]:
        """The pieces between `to`'s queries and `keys`.

        Args:
            to: the queries' tokens.
            keys: the tokens of one subset of keys.
            heads: slice of the key heads that the subset holds.
        """
        raise NotImplementedError

    def head_slices(self, kv_heads: slice) -> list[tuple[slice, slice]]:
        """The query heads of each index in a group of query heads, and their key heads.

        kv_heads: slice of the key heads, from whose start the returned key heads count.
        """
        start, stop, step = kv_heads.indices(self.kv_heads)
        last = start + (head_count(kv_heads) - 1) * step
        size = self.group_size
        own = slice(0, head_count(kv_heads))
        return [
            (slice(start * size + member, last * size + member + 1, step * size), own)
            for member in range(size)
        ]

    def seen(self, q_positions: np.ndarray, k_positions: np.ndarray) -> np.ndarray | None:
        """The number of keys that each query sees, (n,) int64; None where each sees all.

        Args:
            q_positions: (n,) int64, ascending.
            k_positions: (m,) int64, ascending.
        """
        if not self.is_causal or (len(q_positions) and k_positions[-1] <= q_positions[0]):
            return None
        return np.searchsorted(k_positions, q_positions, side="right")

    def visible(self, to: Tokens, source: Tokens) -> np.ndarray:
        """Which tokens some query may see, by causality alone: (n,) bool over `source`.

        Args:
            to: the queries' tokens.
            source: the keys' tokens.
        """
        if not self.is_causal or not len(to.positions):
            return np.full(len(source.positions), len(to.positions) > 0)
        return source.positions <= to.positions[-1]


class DensePlan(PatternPlan):
    """What dense attention needs; see `PatternPlan`."""

    def key_subsets(self, to: Tokens, source: Tokens) -> Iterator[tuple[slice, np.ndarray]]:
        """As `PatternPlan.key_subsets`."""
        yield slice(0, self.kv_heads, 1), self.visible(to, source)

    def pieces(self, to: Tokens, keys: Tokens, heads: slice) -> list[Piece]:
        """As `PatternPlan.pieces`."""
        if not len(to.indices):
            return []
        seen = self.seen(to.positions, keys.positions)
        if seen is None:
            # Every query sees every key, so no order is needed: in memory's, without a copy.
            q, k = (Rows(np.zeros((1, 1), int), len(x.indices)) for x in (to, keys))
        else:
            q, k = Rows.from_indices(to.indices[None]), Rows.from_indices(keys.indices[None])
        found = []
        for q_heads, kv_heads in self.head_slices(heads):
            found += pieces(q, k, seen, q_heads, kv_heads)
        return found


class DilatedPlan(PatternPlan):
    """What dilated attention needs; see `PatternPlan`.

    Args:
        pattern: the branches.
        heads, kv_heads, is_causal: as in `PatternPlan`.
    """

    def __init__(
        self, pattern: DilatedBranches | HeadPartition, heads: int, kv_heads: int, is_causal: bool
    ):
        super().__init__(heads, kv_heads, is_causal)
        self.pattern = pattern

    def key_subsets(self, to: Tokens, source: Tokens) -> Iterator[tuple[slice, np.ndarray]]:
        """As `PatternPlan.key_subsets`."""
        if to is source:
            yield slice(0, self.kv_heads, 1), np.ones(len(source.indices), bool)
            return
        # The branches with a segment that lies in both shards.
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
            wanted = np.zeros(len(source.indices), bool)
            for branch, offset in set(offsets):
                for _, in_source in self._shared_segments(branch, offset, to, source):
                    wanted[in_source] = True
            for heads in as_slices(kv_heads):
                yield heads, wanted

    def pieces(self, to: Tokens, keys: Tokens, heads: slice) -> list[Piece]:
        """As `PatternPlan.pieces`."""
        found = []
        for branch in range(len(self.pattern.segment_lengths)):
            for q_heads, kv_heads in self._by_offset(branch, heads):
                offset = self.pattern.offset(branch, q_heads.start, self.heads)
                if offset is not None:
                    found += self._branch_pieces(branch, offset, to, keys, q_heads, kv_heads)
        return found

    def _by_offset(self, branch, heads):
        """`head_slices`, cut further so that the heads of a slice share an offset in the branch."""
        for q_heads, _ in self.head_slices(heads):
            by_offset: dict[int | None, list[int]] = {}
            for index, head in enumerate(range(*q_heads.indices(self.heads))):
                offset = self.pattern.offset(branch, head, self.heads)
                by_offset.setdefault(offset, []).append(index)
            for members in by_offset.values():
                for own in as_slices(members):
                    first = q_heads.start + q_heads.step * own.start
                    last = first + q_heads.step * own.step * (head_count(own) - 1)
                    step = q_heads.step * own.step
                    yield (
                        slice(first, last + 1, step),
                        slice(own.start, own.stop, own.step),
                    )

    def _branch_pieces(self, branch, offset, to, keys, q_heads, kv_heads):
        """Pieces of one branch: segments of the same shape and mask are sets of one piece."""
        alike: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
        for in_q, in_k in self._shared_segments(branch, offset, to, keys):
            seen = self.seen(to.positions[in_q], keys.positions[in_k])
            shape = (len(in_q), len(in_k), None if seen is None else seen.tobytes())
            alike.setdefault(shape, []).append((to.indices[in_q], keys.indices[in_k]))
        found = []
        for (_, _, seen), sets in alike.items():
            q, k = (Rows.from_indices(np.stack(x)) for x in zip(*sets, strict=True))
            seen = None if seen is None else np.frombuffer(seen, np.int64)
            found += pieces(q, k, seen, q_heads, kv_heads)
        return found

    def _shared_segments(self, branch, offset, to, source):
        """Per segment with kept tokens in both shards: the kept tokens of `to` and of `source`.

        When causal, only queries that see a key, and keys that a query sees.
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


def head_count(heads: slice) -> int:
    """The number of heads in a slice with a start and a stop."""
    return len(range(heads.start, heads.stop, heads.step or 1))


def as_slices(heads: list[int]) -> list[slice]:
    """Ascending head numbers as one slice where evenly spaced, else one slice per head."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    if heads == list(range(heads[0], heads[-1] + 1, step)):
        return [slice(heads[0], heads[-1] + 1, step)]
    return [slice(head, head + 1, 1) for head in heads]
