"""Dilated attention over sequences that no memory holds: chunk by chunk, exactly.

The segments of a branch are independent. A chunk that is a multiple of a segment length holds
whole segments of that branch, and is attended to as a sequence of its own. A branch with
other segments (LongNet's longest may be the sequence itself) is *resident*: a first pass over the
source gathers the tokens that it keeps, one in `r`, and attends to them; their rows are joined in
when the second pass comes to them (arXiv 2307.02486, section 2.2; joining: `models.merge`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from models.dilated import dilated_attention, resolve_backend
from models.errors import resolve_scale
from models.merge import merge_into
from models.patterns.branches import DilatedBranches, HeadGroup

Sink = Callable[[int, torch.Tensor, torch.Tensor], None]


def streamed_dilated_attention(
    source,
    segment_lengths,
    dilation_rates,
    *,
    sink: Sink,
    is_causal: bool = False,
    scale: float | None = None,
    head_offset: str = "modulo",
    backend: str = "auto",
    chunk: int | None = None,
) -> None:
    """`models.dilated_attention` over all tokens of `source`, in the memory of a few chunks.

    source: one of `models.sources`. sink(start, out, lse): called for each chunk in order with
    the first token's position, out (B, C, H, D) in the source's dtype and LSE (B, H, C), float32
    (float64 for float64). chunk: tokens read at a time, by default `default_chunk`. Other options
    are those of `dilated_attention`.

    Branches whose segment length does not divide `chunk` are resident: they need
    `seq_len / dilation_rate` tokens of q, k, v and out, and the source is read twice. Memory does
    not depend on `seq_len` otherwise. With "sdpa" in float32 the result is that of
    `dilated_attention` bit for bit, where resident branches come last in the schedule; other
    backends and types, whose matrix products round by shape, give it to rounding. No gradients.

    Raises ValueError on bad arguments, UnsupportedBackend where `backend` cannot, before any read.
    """
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    scale = resolve_scale(scale, source.head_dim)
    n = source.seq_len
    if chunk is None:
        chunk = default_chunk(n, pattern.segment_lengths)
    if type(chunk) is not int or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: expected an integer >= 1")
    shape = (source.batch, 1, source.heads, source.head_dim)
    resolve_backend(torch.empty(shape, dtype=source.dtype, device=source.device), backend)
    options = {
        "is_causal": is_causal,
        "scale": scale,
        "head_offset": head_offset,
        "backend": backend,
        "return_lse": True,
    }
    local = [branch for branch in pattern.branches() if chunk % branch[0] == 0 or chunk >= n]
    others = [branch for branch in pattern.branches() if branch not in local]
    with torch.no_grad():
        resident = _Resident(source, others, chunk, options) if others else None
        for start, stop in _chunks(n, chunk):
            q, k, v = source.read(start, stop)
            if local:
                out, lse = dilated_attention(q, k, v, *zip(*local, strict=True), **options)
            else:
                out, lse = _nothing(q)
            if resident:
                out, lse = resident.join(start, stop, out, lse)
            sink(start, out, lse)
            del out, lse  # or they would lie beside those of the next chunk


def default_chunk(seq_len: int, segment_lengths) -> int:
    """The least chunk in which all segments shorter than the sequence are whole, in tokens.

    At most `seq_len`; where no segment is shorter, 32768.
    """
    shorter = [w for w in segment_lengths if w < seq_len]
    return min(seq_len, math.lcm(*shorter) if shorter else 32768)


class StoreInto:
    """A sink that writes to tensors or arrays in host memory, such as `numpy.memmap`s.

    out: (B, N, H, D). lse: (B, H, N) or None to let it go.
    """

    def __init__(self, out, lse=None):
        self._out, self._lse = torch.as_tensor(out), None if lse is None else torch.as_tensor(lse)

    def __call__(self, start: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        self._out[:, start : start + out.shape[1]] = out
        if self._lse is not None:
            self._lse[:, :, start : start + out.shape[1]] = lse


class _Resident:
    """The branches that reach beyond a chunk: their rows, attended to in a pass of their own."""

    def __init__(self, source, branches, chunk: int, options: dict):
        pattern = DilatedBranches(*zip(*branches, strict=True), options["head_offset"])
        self._options = {**options, "head_offset": "modulo"}
        self._groups = [
            _GroupRows(group) for group in pattern.head_groups(source.heads, source.kv_heads)
        ]
        for start, stop in _chunks(source.seq_len, chunk):
            tensors = source.read(start, stop)
            for rows in self._groups:
                rows.gather(start, stop, tensors)
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
        self._done: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def gather(self, start: int, stop: int, tensors) -> None:
        """Keep what the branch keeps of a chunk's q, k, v."""
        kept = self._kept(start, stop, tensors[0].device)
        heads = (self._group.q_heads, self._group.kv_heads, self._group.kv_heads)
        pairs = zip(tensors, heads, strict=True)
        self._waiting.append(tuple(x[:, kept - start][:, :, h] for x, h in pairs))
        self._positions.append(kept)

    def attend(self, stop: int, is_last: bool, options: dict) -> None:
        """Attend within every segment that is complete at `stop`."""
        positions = torch.cat(self._positions)
        tensors = [torch.cat(parts, dim=1) for parts in zip(*self._waiting, strict=True)]
        complete = stop if is_last else stop // self.length * self.length
        ready = int((positions < complete).sum())
        sizes = torch.unique_consecutive(positions[:ready] // self.length, return_counts=True)[1]
        begin = 0
        for size in sizes.tolist():
            q, k, v = (x[:, begin : begin + size] for x in tensors)
            out, lse = dilated_attention(q, k, v, (size,), (1,), **options)
            self._done.append((positions[begin : begin + size], out, lse))
            begin += size
        self._positions = [positions[begin:]]
        self._waiting = [tuple(x[:, begin:].clone() for x in tensors)]

    def join(self, start: int, stop: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Join the rows of a chunk into its out (B, C, H, D) and LSE (B, H, C), in place."""
        while self._done and self._done[0][0][0] < stop:
            positions, part_out, part_lse = self._done[0]
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
            self._done.pop(0)

    def _kept(self, start: int, stop: int, device) -> torch.Tensor:
        tokens = torch.arange(start, stop, device=device)
        group = self._group
        return tokens[(tokens % group.segment_length) % group.dilation_rate == group.offset]


def _chunks(seq_len: int, chunk: int) -> Iterator[tuple[int, int]]:
    for start in range(0, seq_len, chunk):
        yield start, min(start + chunk, seq_len)


def _nothing(q: torch.Tensor):
    """The out and LSE of a chunk before any branch."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    batch, tokens, heads, _ = q.shape
    return torch.zeros_like(q), q.new_full((batch, heads, tokens), -torch.inf, dtype=dtype)
