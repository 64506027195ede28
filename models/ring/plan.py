"""What each rank of a ring computes with each other rank's keys, and which of them it needs.

All of it follows from the order, the pattern and the sizes, so that sender and receiver plan the
same without communication.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.curves import Grid
from models.patterns.orders import positions
from models.ring.block_mask_plan import BlockMaskPlan
from models.ring.pattern_plan import DensePlan, DilatedPlan, PatternPlan, Tokens, head_count
from models.ring.pieces import Piece

Pattern = DilatedBranches | HeadPartition | BlockMask | None


@dataclass(frozen=True)
class KeySubset:
    """Key heads of which a receiver needs the same tokens.

    Args:
        tokens: (n,) int64, indices in the sender's shard; None for all tokens, in its order.
        heads: slice of the key heads.
    """

    tokens: np.ndarray | None
    heads: slice


@dataclass(frozen=True)
class KeyMessage:
    """The keys of one rank that another needs, one subset after another; so are their values.

    Args:
        subsets: what it holds; no subset is empty.
        sizes: (tokens, heads) per subset.
    """

    subsets: tuple[KeySubset, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """Rows of head_dim numbers per batch element; 0 where nothing is sent."""
        return sum(tokens * heads for tokens, heads in self.sizes)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """The message's part of x (B, n, Hkv, D): (B * rows * D,), a view where it is all of x."""
        parts = []
        for subset in self.subsets:
            part = x[:, :, subset.heads]
            if subset.tokens is not None:
                part = part.index_select(1, torch.from_numpy(subset.tokens).to(x.device))
            parts.append(part.reshape(-1))
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)

    def unpack(self, flat: torch.Tensor, batch: int) -> list[torch.Tensor]:
        """The inverse of `pack`: a view (B, tokens, heads, D) of `flat` per subset.

        Args:
            flat: (B * rows * D,).
            batch: B.
        """
        dim = len(flat) // (batch * self.rows)
        parts = flat.split([batch * tokens * heads * dim for tokens, heads in self.sizes])
        return [part.view(batch, *size, dim) for part, size in zip(parts, self.sizes, strict=True)]

    def add_to(self, x: torch.Tensor, flat: torch.Tensor) -> None:
        """Add what another rank packed to x, in place.

        Args:
            x: (B, n, Hkv, D).
            flat: (B * rows * D,), laid out as `pack` returns it.
        """
        for subset, part in zip(self.subsets, self.unpack(flat, x.shape[0]), strict=True):
            target = x[:, :, subset.heads]
            if subset.tokens is None:
                target.add_(part)
            else:
                index = torch.from_numpy(subset.tokens).to(x.device)
                target[:, index] = target[:, index] + part


@dataclass(frozen=True)
class Hop:
    """What one rank computes with another's keys.

    Args:
        message: the keys that it receives.
        pieces: the pieces of each of the message's subsets.
    """

    message: KeyMessage
    pieces: tuple[tuple[Piece, ...], ...]

    def pairs(self) -> int:
        """Query-key pairs of all heads, per batch element."""
        return sum(
            piece.pairs() * len(range(*piece.q_heads.indices(1 << 20)))
            for subset in self.pieces
            for piece in subset
        )


@lru_cache(maxsize=32)
def ring_plan(
    pattern: Pattern,
    order: str | Grid,
    seq_len: int,
    world_size: int,
    heads: int,
    kv_heads: int,
    is_causal: bool,
) -> RingPlan:
    """The `RingPlan` of these arguments; the last 32 are kept.

    Args:
        pattern, order, seq_len, world_size, heads, kv_heads, is_causal: as in `RingPlan`.
    """
    return RingPlan(pattern, order, seq_len, world_size, heads, kv_heads, is_causal)


@dataclass(frozen=True, eq=False)
class RingPlan:
    """All hops of a ring, each planned when first asked for.

    Args:
        pattern: None for dense, dilated branches, or a `BlockMask` of `seq_len` tokens.
        order: token order, a name or a `Grid`.
        seq_len: tokens of the whole sequence.
        world_size: ranks.
        heads: query heads.
        kv_heads: key heads, a divisor of `heads`.
        is_causal: causal by position in the whole sequence.
    """

    pattern: Pattern
    order: str | Grid
    seq_len: int
    world_size: int
    heads: int
    kv_heads: int
    is_causal: bool

    def local(self, rank: int) -> Hop:
        """What `rank` computes with its own keys, which stay in its shard's order."""
        return self._hop(rank, rank)

    def hop(self, to: int, source: int) -> Hop | None:
        """What rank `to` computes with the keys of rank `source`; None where it needs none."""
        found = self._hop(to, source)
        return found if found.message.rows else None

    def all_gather_message(self, source: int) -> KeyMessage:
        """The keys of rank `source` that any other rank needs."""
        return self.all_gather_hop(None, source).message

    def all_gather_hop(self, to: int | None, source: int) -> Hop:
        """What rank `to` computes with `all_gather_message(source)`; to=None: no pieces."""
        if ("all-gather", to, source) not in self._hops:
            shards = self._shards
            others = np.concatenate([x.positions for x in shards if x is not shards[source]])
            others = Tokens(np.arange(len(others)), np.sort(others))
            wanted = list(self._pattern_plan.key_subsets(others, shards[source]))
            hop = self._make_hop(None if to is None else shards[to], shards[source], wanted)
            self._hops["all-gather", to, source] = hop
        return self._hops["all-gather", to, source]

    def _hop(self, to: int, source: int) -> Hop:
        if (to, source) not in self._hops:
            shards = self._shards[to], self._shards[source]
            wanted = self._pattern_plan.key_subsets(*shards)
            self._hops[to, source] = self._make_hop(*shards, wanted)
        return self._hops[to, source]

    def _make_hop(
        self, to: Tokens | None, source: Tokens, wanted: Iterable[tuple[slice, np.ndarray]]
    ) -> Hop:
        """wanted: as `PatternPlan.key_subsets` yields. to: None for no pieces."""
        subsets, of_subset, sizes = [], [], []
        for heads, is_wanted in wanted:
            keys = Tokens(source.indices[is_wanted], source.positions[is_wanted])
            if len(keys.indices) == 0:
                continue
            is_all = to is source or len(keys.indices) == len(source.indices)
            # A message holds its tokens by position, or all tokens in the shard's order.
            tokens = None if is_all else keys.indices
            laid_out = keys if is_all else keys.packed()
            found = () if to is None else self._pattern_plan.pieces(to, laid_out, heads)
            subsets.append(KeySubset(tokens, heads))
            sizes.append((len(source.indices if is_all else keys.indices), head_count(heads)))
            of_subset.append(tuple(found))
        return Hop(KeyMessage(tuple(subsets), tuple(sizes)), tuple(of_subset))

    @cached_property
    def _hops(self) -> dict[tuple, Hop]:
        return {}

    @cached_property
    def _shards(self) -> list[Tokens]:
        held = (
            positions(self.order, self.seq_len, rank, self.world_size).numpy()
            for rank in range(self.world_size)
        )
        return [Tokens(indices := x.argsort(kind="stable"), x[indices]) for x in held]

    @cached_property
    def _pattern_plan(self) -> PatternPlan:
        sizes = (self.heads, self.kv_heads, self.is_causal)
        if self.pattern is None:
            return DensePlan(*sizes)
        if isinstance(self.pattern, BlockMask):
            return BlockMaskPlan(self.pattern, *sizes)
        return DilatedPlan(self.pattern, *sizes)
