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
from models.ring.block_needs import BlockNeeds
from models.ring.needs import BranchNeeds, DenseNeeds, Tokens, count
from models.ring.pieces import Piece


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
        return [part.view(batch, *size, dim) for part, size in zip(parts, self.sizes, strict=True)]

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

    def gathered(self, source: int) -> Parcel:
        """The keys of `source` that any other rank needs."""
        return self.gathered_hop(None, source).parcel

    def gathered_hop(self, to: int | None, source: int) -> Hop:
        """What rank `to` computes with the keys that `source` gives to all; None for nothing."""
        if ("gathered", to, source) not in self._hops:
            shards = self._shards
            others = np.concatenate([x.positions for x in shards if x is not shards[source]])
            others = Tokens(np.arange(len(others)), np.sort(others))
            wanted = list(self._needs.shares(others, shards[source]))
            hop = self._make(None if to is None else shards[to], shards[source], wanted)
            self._hops["gathered", to, source] = hop
        return self._hops["gathered", to, source]

    def _hop(self, to: int, source: int) -> Hop:
        if (to, source) not in self._hops:
            shards = self._shards[to], self._shards[source]
            self._hops[to, source] = self._make(*shards, self._needs.shares(*shards))
        return self._hops[to, source]

    def _make(self, to: Tokens | None, source: Tokens, wants) -> Hop:
        """wants: key heads and which tokens of `source` travel for them; to: None for no pieces."""
        shares, of_share, sizes = [], [], []
        for heads, wanted in wants:
            keys = Tokens(source.places[wanted], source.positions[wanted])
            if len(keys.places) == 0:
                continue
            is_all = to is source or len(keys.places) == len(source.places)
            # In a parcel tokens lie in order of position; where all go they lie as they are.
            tokens = None if is_all else keys.places
            lying = keys if is_all else keys.packed()
            found = () if to is None else self._needs.pieces(to, lying, heads)
            shares.append(Share(tokens, heads))
            sizes.append((len(source.places if is_all else keys.places), count(heads)))
            of_share.append(tuple(found))
        return Hop(Parcel(tuple(shares), tuple(sizes)), tuple(of_share))

    @cached_property
    def _hops(self) -> dict[tuple[int, int], Hop]:
        return {}

    @cached_property
    def _shards(self) -> list[Tokens]:
        held = (
            positions(self.order, self.seq_len, rank, self.world_size).numpy()
            for rank in range(self.world_size)
        )
        return [Tokens(places := x.argsort(kind="stable"), x[places]) for x in held]

    @cached_property
    def _needs(self):
        if self.pattern is None:
            return DenseNeeds(self.heads, self.kv_heads, self.is_causal)
        if isinstance(self.pattern, BlockMask):
            return BlockNeeds(self.pattern, self.heads, self.kv_heads, self.is_causal)
        return BranchNeeds(self.pattern, self.heads, self.kv_heads, self.is_causal)
