"""The oracle's rows of a large case, a few sequences and heads at a time, in bounded memory.

At a million tokens float64 copies of the inputs, gradients of each head in the shape of all,
and the scores that a backward pass keeps are some 50 GiB; no head needs those of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from experiments.case import Case
from experiments.workload import Workload

# What a piece may take; a case below is one piece.
PIECE_BYTES = 4 * 2**30
# Matrices of scores, and what is computed of them, that a head holds at once.
_SCORES = 5


def recompute(
    work: Workload, rows: torch.Tensor, dtype: torch.dtype, *, dense: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What `work.recompute` returns, in as many pieces as its memory asks for.

    Rounding aside the values are the same: a product of fewer matrices may sum in another order.
    """
    parts = pieces(work.case, len(rows), dtype, splits_heads=work.module is None)
    if len(parts) == 1:
        return work.recompute(rows, dtype, dense=dense)
    batch, _, *rest = work.inputs[0].shape
    out = work.inputs[0].new_empty((batch, len(rows), *rest), dtype=dtype)
    backward = work.case.pass_ == "forward_backward"
    leaves = [x.detach() for x in work.leaves] if backward else []
    grads = [torch.zeros_like(x, dtype=dtype) for x in leaves]
    for sequences, kv_heads in parts:
        piece, places = _cut(work, sequences, kv_heads)
        of_out, of_leaves = piece.recompute(rows, dtype, dense=dense)
        out[places[0]] = of_out
        # Parameters have no place of their own: theirs add up.
        places += [...] * (len(grads) - len(places))
        for grad, place, found in zip(grads, places, of_leaves, strict=False):
            grad[place] += found
    return out, grads


def pieces(
    case: Case, rows: int, dtype: torch.dtype, *, splits_heads: bool
) -> list[tuple[slice, slice]]:
    """Slices of the batch and of the key heads, a pair each, that cover the case.

    Each needs PIECE_BYTES at most, or is one sequence (and, with splits_heads, one key head).
    """
    fits = max(1, PIECE_BYTES // _bytes(case, case.kv_heads, rows, dtype))
    heads = case.kv_heads
    if splits_heads and _bytes(case, heads, rows, dtype) > PIECE_BYTES:
        few = [n for n in range(1, heads) if _bytes(case, n, rows, dtype) <= PIECE_BYTES]
        heads = max(few, default=1)
    return [
        (slice(start, min(start + fits, case.batch)), slice(head, min(head + heads, case.kv_heads)))
        for start in range(0, case.batch, fits)
        for head in range(0, case.kv_heads, heads)
    ]


def _bytes(case: Case, kv_heads: int, rows: int, dtype: torch.dtype) -> int:
    """What one sequence and so many key heads of it take: tensors, and scores of sampled rows."""
    heads = kv_heads * (case.heads // case.kv_heads)
    backward = case.pass_ == "forward_backward"
    tensors = case.seq_len * case.head_dim * (heads + 2 * kv_heads) * (2 if backward else 1)
    scores = _SCORES * rows * case.seq_len * (heads if backward else 1)
    return tensors * dtype.itemsize + scores * max(4, dtype.itemsize)


def _cut(work: Workload, sequences: slice, kv_heads: slice) -> tuple[Workload, list]:
    """A piece of the workload, and where each of its inputs lies in the whole."""
    if work.module is not None:
        places = [(sequences,)]
        pattern = work.pattern
    else:
        group = work.case.heads // work.case.kv_heads
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        places = [(sequences, slice(None), part) for part in (heads, kv_heads, kv_heads)]
        pattern = work.pattern and _OfHeads(work.pattern, heads.start, work.case.heads)
    inputs = [x[place] for x, place in zip(work.inputs, places, strict=True)]
    cotangent = None if work.cotangent is None else work.cotangent[places[0]]
    return replace(work, inputs=inputs, pattern=pattern, cotangent=cotangent), places


@dataclass(frozen=True)
class _OfHeads:
    """A pattern as some of its heads see it, from `first` on."""

    pattern: object
    first: int
    heads: int

    def counts(self, head: int, heads: int, rows: torch.Tensor, n_keys: int) -> torch.Tensor:
        return self.pattern.counts(self.first + head, self.heads, rows, n_keys)
