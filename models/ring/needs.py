"""What dense and dilated attention ask of a pair of shards: keys that travel, and pieces.

`models.ring.block_needs` is the same for block masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.ring.pieces import Rows, pieces


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens by ascending position: where each lies, and its position."""

    places: np.ndarray
    positions: np.ndarray

    def packed(self) -> Tokens:
        """The same tokens, lying by ascending position."""
        return Tokens(np.arange(len(self.places)), self.positions)


class Needs:
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
        last = start + (count(kv_heads) - 1) * step
        size = self.group_size
        own = slice(0, count(kv_heads))
        return [
            (slice(start * size + place, last * size + place + 1, step * size), own)
            for place in range(size)
        ]

    def seen(self, q_positions: np.ndarray, k_positions: np.ndarray) -> np.ndarray | None:
        """How many of the keys each query sees; None where it is all of them."""
        if not self.is_causal or (len(q_positions) and k_positions[-1] <= q_positions[0]):
            return None
        return np.searchsorted(k_positions, q_positions, side="right")

    def visible(self, to: Tokens, source: Tokens) -> np.ndarray:
        """Which tokens of `source` some query of `to` sees, as far as causality goes."""
        if not self.is_causal or not len(to.positions):
            return np.full(len(source.positions), len(to.positions) > 0)
        return source.positions <= to.positions[-1]


class DenseNeeds(Needs):
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


class BranchNeeds(Needs):
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
            for heads in slices(kv_heads):
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
                for own in slices(places):
                    first = q_heads.start + q_heads.step * own.start
                    last = first + q_heads.step * own.step * (count(own) - 1)
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


def count(heads: slice) -> int:
    return len(range(heads.start, heads.stop, heads.step or 1))


def slices(members: list[int]) -> list[slice]:
    """The members as one slice where they are evenly spaced, else one each."""
    step = members[1] - members[0] if len(members) > 1 else 1
    if members == list(range(members[0], members[-1] + 1, step)):
        return [slice(members[0], members[-1] + 1, step)]
    return [slice(member, member + 1, 1) for member in members]
