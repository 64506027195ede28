"""Who attends to whom: dilated branches, written as arithmetic on positions.

A pattern gives, for every head and branch, the offset that the head keeps. All
else follows: position p is kept when `(p mod w) mod r == offset`, and a kept
query attends to the kept keys of its segment.

Torch is imported where tensors are made: pairs are counted without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from models.errors import as_integer, check_choice

if TYPE_CHECKING:
    import torch

HEAD_OFFSETS = ("modulo", "block")


@dataclass(frozen=True)
class HeadGroup:
    """Heads of one branch that share an offset.

    Attributes:
        segment_length: w, tokens.
        dilation_rate: r.
        offset: kept positions p have `(p mod w) mod r == offset`.
        q_heads: slice of the H query heads.
        kv_heads: slice of the Hkv key heads, as long.
    """

    segment_length: int
    dilation_rate: int
    offset: int
    q_heads: slice
    kv_heads: slice


class _Branches:
    """What both kinds of branched pattern share; subclasses have `offset`."""

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    # Segments are counted from the start of each document of a packed sequence.
    restarts_per_document: ClassVar[bool] = True

    def offset(self, branch: int, head: int, heads: int) -> int | None:
        """The offset of a head in a branch.

        Args:
            branch: its number.
            head: query head.
            heads: H.

        Returns:
            From 0 to r - 1, or None where the head is not in the branch.
        """
        raise NotImplementedError

    def _check(self) -> None:
        for name in ("segment_lengths", "dilation_rates"):
            values = getattr(self, name)
            if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, str):
                raise ValueError(f"{name}={values!r}: expected a non-empty sequence of integers")
            if len(values) == 0:
                raise ValueError(f"{name}={values!r}: expected a non-empty sequence of integers")
            object.__setattr__(self, name, _integers(name, values))
        if len(self.segment_lengths) != len(self.dilation_rates):
            raise ValueError(
                f"dilation_rates={self.dilation_rates!r}: expected {len(self.segment_lengths)} "
                f"rates, one for each of segment_lengths={self.segment_lengths!r}"
            )

    def branches(self) -> Iterator[tuple[int, int]]:
        """The (segment length, dilation rate) of each branch."""
        return zip(self.segment_lengths, self.dilation_rates, strict=True)

    def counts(self, head: int, heads: int, rows: torch.Tensor, n_keys: int) -> torch.Tensor:
        """C[i, j], the number of branches in which query row i attends to key j.

        Causality is not applied.

        Args:
            head: query head.
            heads: H.
            rows: (R,) int64, positions of the queries.
            n_keys: N.

        Returns:
            (R, N) int64.
        """
        import torch

        keys = torch.arange(n_keys, device=rows.device)
        total = torch.zeros(len(rows), n_keys, dtype=torch.int64, device=rows.device)
        for branch, (w, r) in enumerate(self.branches()):
            offset = self.offset(branch, head, heads)
            if offset is None:
                continue
            kept_rows = (rows % w) % r == offset
            kept_keys = (keys % w) % r == offset
            same_segment = (rows // w)[:, None] == (keys // w)[None, :]
            total += same_segment & kept_rows[:, None] & kept_keys[None, :]
        return total

    def keys(self, head: int, heads: int, row: int, seq_len: int, is_causal: bool) -> torch.Tensor:
        """The multiset of keys that the softmax of one query is over.

        Args:
            head: query head.
            heads: H.
            row: position of the query.
            seq_len: N.
            is_causal: whether only keys up to the query count.

        Returns:
            (K,) int64, positions branch after branch; a key of two branches is there twice.
        """
        import torch

        found = [torch.empty(0, dtype=torch.int64)]
        for branch, (w, r) in enumerate(self.branches()):
            offset, start = self.offset(branch, head, heads), row // w * w
            if offset is not None and (row - start) % r == offset:
                stop = row + 1 if is_causal else min(start + w, seq_len)
                found.append(torch.arange(start + offset, stop, r))
        return torch.cat(found)

    def pairs(self, seq_len: int, heads: int, is_causal: bool) -> int:
        """Query-key pairs over all heads; a pair of two branches counts twice.

        Args:
            seq_len: N.
            heads: H.
            is_causal: whether only keys up to the query count.

        Returns:
            Their number.
        """
        total = 0
        for branch, (w, r) in enumerate(self.branches()):
            full, rest = divmod(seq_len, w)
            for head in range(heads):
                offset = self.offset(branch, head, heads)
                if offset is None:
                    continue
                for segments, length in ((full, w), (1, rest)):
                    kept = max(0, -(-(length - offset) // r))
                    total += segments * (kept * (kept + 1) // 2 if is_causal else kept * kept)
        return total

    def head_groups(self, heads: int, kv_heads: int) -> Iterator[HeadGroup]:
        """Groups of heads that are slices of q and of k, v at once, for every branch.

        With grouped queries, head `h` reads key head `h // (heads // kv_heads)`; heads at the same
        place of their group form slices on both sides.

        Args:
            heads: H.
            kv_heads: Hkv.

        Yields:
            Groups, branch after branch; each head of a branch is in one.
        """
        group_size = heads // kv_heads
        for branch, (w, r) in enumerate(self.branches()):
            for place in range(group_size):
                by_offset: dict[int, list[int]] = {}
                for kv_head in range(kv_heads):
                    offset = self.offset(branch, kv_head * group_size + place, heads)
                    if offset is not None:
                        by_offset.setdefault(offset, []).append(kv_head)
                for offset, members in by_offset.items():
                    kv = _as_slice(members)
                    q = slice(
                        kv.start * group_size + place,
                        (kv.stop - 1) * group_size + place + 1,
                        kv.step * group_size,
                    )
                    yield HeadGroup(w, r, offset, q, kv)


@dataclass(frozen=True)
class DilatedBranches(_Branches):
    """LongNet: every head takes part in every branch (arXiv 2307.02486, sections 2.2-2.3).

    Args:
        segment_lengths: w of each branch, tokens, >= 1.
        dilation_rates: r of each branch, >= 1.
        head_offset: "modulo", offset `h mod r` (the paper, eq. 10), or "block", offset
            `h // ceil(H / r)` (torchscale).

    Raises:
        ValueError: on bad arguments.
    """

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    head_offset: str = "modulo"

    def __post_init__(self):
        self._check()
        check_choice("head_offset", self.head_offset, HEAD_OFFSETS)

    def offset(self, branch: int, head: int, heads: int) -> int:
        """The offset of a head in a branch, in which every head is.

        Args:
            branch: its number.
            head: query head.
            heads: H.

        Returns:
            From 0 to r - 1.
        """
        r = self.dilation_rates[branch]
        return head % r if self.head_offset == "modulo" else head // -(-heads // r)


@dataclass(frozen=True)
class HeadPartition(_Branches):
    """Each head is in one branch: what `dilated-attention-pytorch` computes instead of LongNet.

    The heads are cut into as many contiguous groups as there are branches, the
    first groups one head larger where it does not divide; group i runs branch i
    with offset `i mod r_i`. Rows that a head does not keep are zero.

    Args:
        segment_lengths, dilation_rates: as of `DilatedBranches`.

    Raises:
        ValueError: on bad arguments.
    """

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]

    head_offset: ClassVar[str] = "partition"

    def __post_init__(self):
        self._check()

    def offset(self, branch: int, head: int, heads: int) -> int | None:
        """The offset of a head in a branch.

        Args:
            branch: its number.
            head: query head.
            heads: H.

        Returns:
            From 0 to r - 1, or None where the head is not in the branch.
        """
        base, extra = heads // len(self.segment_lengths), heads % len(self.segment_lengths)
        start = branch * base + min(branch, extra)
        stop = start + base + (branch < extra)
        return branch % self.dilation_rates[branch] if start <= head < stop else None


def pattern_of(
    head_offset: str, segment_lengths: Sequence[int], dilation_rates: Sequence[int]
) -> DilatedBranches | HeadPartition:
    """The pattern of the arguments of an op.

    Args:
        head_offset: as of `DilatedBranches`, or "partition" for `HeadPartition`.
        segment_lengths, dilation_rates: as of `DilatedBranches`.

    Returns:
        The pattern.
    """
    if head_offset == "partition":
        return HeadPartition(tuple(segment_lengths), tuple(dilation_rates))
    return DilatedBranches(tuple(segment_lengths), tuple(dilation_rates), head_offset)


def _as_slice(members: list[int]) -> slice:
    step = members[1] - members[0] if len(members) > 1 else 1
    if members != list(range(members[0], members[-1] + 1, step)):
        raise AssertionError(f"heads {members} of one offset are not evenly spaced")
    return slice(members[0], members[-1] + 1, step)


def _integers(name: str, values) -> tuple[int, ...]:
    try:
        return tuple(as_integer(name, value) for value in values)
    except ValueError:
        raise ValueError(f"{name}={values!r}: expected integers >= 1") from None
