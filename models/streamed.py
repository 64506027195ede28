"""Dilated attention over sequences that do not fit in memory: chunk by chunk, exactly.

The segments of a branch are independent. A chunk that is a multiple of a segment length holds
whole segments of that branch, and is computed as a sequence of its own. A branch with other
segments (LongNet's longest may be the sequence itself) is *resident*: a first pass over the
source gathers the tokens that it keeps, one in `r`, and computes their attention; their rows are
joined in when the second pass reaches them (arXiv 2307.02486, section 2.2; joining:
`models.merge`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from models.dilated import dilated_attention, resolve_backend
from models.errors import as_integer, resolve_scale
from models.merge import merge_into
from models.ops import under_autocast, without_autocast
from models.padding import check_padding_mask
from models.patterns.branches import DilatedBranches, HeadGroup
from models.sinks import Sink, StoreInto
from models.sources import CheckedSource

__all__ = ["StoreInto", "default_chunk", "streamed_dilated_attention"]


def streamed_dilated_attention(
    source: object,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    sink: Sink,
    is_causal: bool = False,
    scale: float | None = None,
    head_offset: str = "modulo",
    backend: str = "auto",
    chunk: int | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> None:
    """`models.dilated_attention` over all tokens of a source, in the memory of a few chunks.

    Branches whose segment length does not divide `chunk` are resident: they need
    `seq_len / dilation_rate` tokens of q, k, v and out, and the source is read twice. Otherwise
    memory does not depend on `seq_len`. With "sdpa" in float32 the result is that of
    `dilated_attention` bit for bit, provided that resident branches come last in the schedule;
    other backends and dtypes, whose matrix products round by shape, agree up to rounding. No
    gradients.

    Args:
        source: one of `models.sources`, or an object with their attributes and `read`.
        segment_lengths, dilation_rates, is_causal, scale, head_offset, backend: as of
            `dilated_attention`.
        sink: called with (start, out, lse) for each chunk in order: the position of its first
            token, out (B, C, H, D) in the source's dtype (under autocast in that of
            `dilated_attention`), and LSE (B, H, C), float32 (float64 for float64). `models.sinks`
            says how it can refuse a call at its start.
        chunk: tokens read at a time, None for `default_chunk`.
        key_padding_mask: (B, N) bool on the source's device, True where a key is never attended
            to, whatever it holds.

    Raises:
        ValueError: on bad arguments, before any read; at the first chunk that does not agree with
            the source's attributes.
        UnsupportedBackend: where `backend` cannot compute this, before any read.
    """
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    source = CheckedSource(source)
    scale = resolve_scale(scale, source.head_dim)
    batch, n, heads = source.batch, source.seq_len, source.heads
    chunk = default_chunk(n, pattern.segment_lengths) if chunk is None else chunk
    chunk = as_integer("chunk", chunk)
    shape = (batch, 1, heads, source.head_dim)
    (token,) = under_autocast(torch.empty(shape, dtype=source.dtype, device=source.device))
    resolve_backend(token, backend, is_masked=key_padding_mask is not None)
    if key_padding_mask is not None:
        check_padding_mask(key_padding_mask, token.expand(-1, n, -1, -1))
    _prepare(sink, token, n)
    options = {
        "is_causal": is_causal,
        "scale": scale,
        "head_offset": head_offset,
        "backend": backend,
        "return_lse": True,
    }
    local = [branch for branch in pattern.branches() if chunk % branch[0] == 0 or chunk >= n]
    others = [branch for branch in pattern.branches() if branch not in local]
    with torch.no_grad(), without_autocast(source.device):
        resident = None
        if others:
            resident = _Resident(source, others, chunk, token.dtype, key_padding_mask, options)
        for start, stop in _chunks(n, chunk):
            q, k, v = (x.to(token.dtype) for x in source.read(start, stop))
            if local:
                padding = _cut(key_padding_mask, start, stop)
                branches = zip(*local, strict=True)
                out, lse = dilated_attention(
                    q, k, v, *branches, key_padding_mask=padding, **options
                )
            else:
                out, lse = _empty(q)
            if resident:
                out, lse = resident.join(start, stop, out, lse)
            sink(start, out, lse)
            del out, lse  # or they would be in memory together with the next chunk's


def default_chunk(seq_len: int, segment_lengths: Sequence[int]) -> int:
    """The smallest chunk in which all segments shorter than the sequence are whole.

    Args:
        seq_len: N.
        segment_lengths: w of each branch.

    Returns:
        Tokens, at most `seq_len`; at most 32768 where no segment is shorter.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len = as_integer("seq_len", seq_len)
    # Only to check the lengths: they are passed as the rates too, which do not matter here.
    lengths = DilatedBranches(segment_lengths, segment_lengths).segment_lengths
    shorter = [w for w in lengths if w < seq_len]
    return min(seq_len, math.lcm(*shorter) if shorter else 32768)


class _Resident:
    """The branches whose segments exceed a chunk: their rows, computed in a first pass."""

    def __init__(self, source, branches, chunk, dtype, key_padding_mask, options: dict):
        pattern = DilatedBranches(*zip(*branches, strict=True), options["head_offset"])
        self._options = {**options, "head_offset": "modulo"}
        self._groups = [
            _GroupRows(group) for group in pattern.head_groups(source.heads, source.kv_heads)
        ]
        for start, stop in _chunks(source.seq_len, chunk):
            tensors = [x.to(dtype) for x in source.read(start, stop)]
            padding = _cut(key_padding_mask, start, stop)
            for rows in self._groups:
                rows.gather(start, stop, tensors, padding)
                if stop == source.seq_len or stop // rows.length > start // rows.length:
                    rows.attend(stop, stop == source.seq_len, self._options)

    def join(self, start: int, stop: int, out: torch.Tensor, lse: torch.Tensor):
        """The chunk's out (B, C, H, D) and LSE (B, H, C) with these branches joined in."""
        dtype = out.dtype
        out = out.to(torch.promote_types(dtype, torch.float32))
        for rows in self._groups:
            rows.join(start, stop, out, lse)
        return out.to(dtype), lse


class _GroupRows:
    """Kept tokens of the heads of one branch that share an offset."""

    def __init__(self, group: HeadGroup):
        self._group, self.length = group, group.segment_length
        self._waiting: list[tuple[torch.Tensor, ...]] = []
        self._positions: list[torch.Tensor] = []
        self._padding: list[torch.Tensor] = []
        self._attended: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def gather(self, start: int, stop: int, tensors, padding) -> None:
        """Store the branch's tokens of a chunk's q, k, v and, if any, padding (B, C)."""
        kept = self._kept(start, stop, tensors[0].device)
        heads = (self._group.q_heads, self._group.kv_heads, self._group.kv_heads)
        pairs = zip(tensors, heads, strict=True)
        self._waiting.append(tuple(x[:, kept - start][:, :, h] for x, h in pairs))
        self._positions.append(kept)
        if padding is not None:
            self._padding.append(padding[:, kept - start])

    def attend(self, stop: int, is_last: bool, options: dict) -> None:
        """Compute attention within every segment that is complete at `stop`."""
        positions = torch.cat(self._positions)
        tensors = [torch.cat(parts, dim=1) for parts in zip(*self._waiting, strict=True)]
        padding = torch.cat(self._padding, dim=1) if self._padding else None
        complete = stop if is_last else stop // self.length * self.length
        ready = int((positions < complete).sum())
        sizes = torch.unique_consecutive(positions[:ready] // self.length, return_counts=True)[1]
        begin = 0
        for size in sizes.tolist():
            q, k, v = (x[:, begin : begin + size] for x in tensors)
            padded = _cut(padding, begin, begin + size)
            out, lse = dilated_attention(q, k, v, (size,), (1,), key_padding_mask=padded, **options)
            self._attended.append((positions[begin : begin + size], out, lse))
            begin += size
        self._positions = [positions[begin:]]
        self._waiting = [tuple(x[:, begin:].clone() for x in tensors)]
        self._padding = [] if padding is None else [padding[:, begin:].clone()]

    def join(self, start: int, stop: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Join the rows of a chunk into its out (B, C, H, D) and LSE (B, H, C), in place."""
        while self._attended and self._attended[0][0][0] < stop:
            positions, part_out, part_lse = self._attended[0]
            here = slice(
                int(torch.searchsorted(positions, start)), int(torch.searchsorted(positions, stop))
            )
            rows = positions[here] - start
            own_out = out[:, rows][:, :, self._group.q_heads].transpose(1, 2)
            own_lse = lse[:, self._group.q_heads][:, :, rows]
            merge_into(own_out, own_lse, part_out[:, here].transpose(1, 2), part_lse[:, :, here])
            heads = torch.arange(out.shape[2], device=out.device)[self._group.q_heads]
            out[:, rows[:, None], heads] = own_out.transpose(1, 2)
            lse[:, heads[:, None], rows] = own_lse
            if positions[-1] >= stop:
                break
            self._attended.pop(0)

    def _kept(self, start: int, stop: int, device) -> torch.Tensor:
        tokens = torch.arange(start, stop, device=device)
        group = self._group
        return tokens[(tokens % group.segment_length) % group.dilation_rate == group.offset]


def _chunks(seq_len: int, chunk: int) -> Iterator[tuple[int, int]]:
    for start in range(0, seq_len, chunk):
        yield start, min(start + chunk, seq_len)


def _cut(key_padding_mask: torch.Tensor | None, start: int, stop: int) -> torch.Tensor | None:
    return None if key_padding_mask is None else key_padding_mask[:, start:stop]


def _prepare(sink: Sink, token: torch.Tensor, seq_len: int) -> None:
    """Call the sink's `prepare`, if any, for `seq_len` queries like `token` (B, 1, H, D)."""
    if not callable(sink):
        kind = type(sink).__name__
        raise ValueError(f"sink={kind}: expected a function of start, out and lse")
    if hasattr(sink, "prepare"):
        batch, _, heads, head_dim = token.shape
        sink.prepare(batch, seq_len, heads, head_dim, token.dtype, _lse_dtype(token))


def _lse_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _empty(q: torch.Tensor):
    """The out and LSE of a chunk before any branch is joined in."""
    batch, tokens, heads, _ = q.shape
    return torch.zeros_like(q), q.new_full((batch, heads, tokens), -torch.inf, dtype=_lse_dtype(q))
