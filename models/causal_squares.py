"""Causal attention on a CPU as triangles on the diagonal and the squares below them.

PyTorch's causal op computes whole blocks of 512 keys for 64 or 256 queries, so that of 512 tokens
it computes every pair, twice what is asked for. Here the sequence is halved until its halves
are short: the triangles that are left are computed as they are, for each pair of halves the
later queries see all of the earlier keys, and the parts are joined by LSE. Pieces of equal size
are one call, a strided view of their tokens with one more batch dimension; nothing is copied.
Layout as in `models.fused_ops`, (B, H, N, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.merge import merge_into

# The triangles' length and the lengths for which this is faster than the undivided op.
TRIANGLE = 128
LENGTHS = range(192, 1281)


@dataclass(frozen=True)
class Squares:
    """`count` pieces, one every `period` tokens from `start` on, of some batch elements.

    queries, keys: token ranges within a piece; the same range where it is a triangle.
    """

    batch: slice
    start: int
    count: int
    period: int
    queries: slice
    keys: slice

    @property
    def is_causal(self) -> bool:
        return self.queries == self.keys

    def of(self, x: torch.Tensor, tokens: slice) -> torch.Tensor:
        """The view of x (B, H, N, ...) as (B * count, H, tokens, ...)."""
        x = x[self.batch, :, self.start : self.start + self.count * self.period]
        step = self.period * x.stride(2)
        size, strides = list(x.shape), list(x.stride())
        if self.count > 1:
            size[0], strides[0] = size[0] * self.count, step
        size[2] = self.period
        return x.as_strided(size, strides)[:, :, tokens]


def squares(n: int, batch: int, tensors) -> Iterator[Squares]:
    """Pieces that hold each pair of `n` tokens with no later one once; triangles come first.

    tensors: (B, H, N, ...), all that views will be taken of.
    """
    whole = slice(0, TRIANGLE)
    yield from _level(n, batch, tensors, TRIANGLE, whole, whole)
    half = TRIANGLE
    while half < n:
        yield from _level(n, batch, tensors, 2 * half, slice(half, 2 * half), slice(0, half))
        half *= 2


def _level(n, batch, tensors, period, queries, keys) -> Iterator[Squares]:
    count, rest = divmod(n, period)
    one_dimension = all(x.stride(0) == count * period * x.stride(2) for x in tensors)
    if count == 1 or batch == 1 or one_dimension:
        if count:
            yield Squares(slice(None), 0, count, period, queries, keys)
    elif count <= batch:
        for piece in range(count):
            yield Squares(slice(None), piece * period, 1, period, queries, keys)
    else:
        for element in range(batch):
            yield Squares(slice(element, element + 1), 0, count, period, queries, keys)
    if rest > queries.start:
        last = slice(queries.start, rest)
        yield Squares(
            slice(None), count * period, 1, rest, last, last if queries == keys else keys
        )


def forward(op, q, k, v, scale: float):
    """out and LSE of `op` (`fused_ops.CpuFlash.undivided`), in the layout that it gives them."""
    batch, heads, n, dim = q.shape
    out = q.new_empty(batch, n, heads, dim).transpose(1, 2)
    lse = q.new_empty(batch, n, heads).transpose(1, 2)
    for piece in squares(n, batch, (q, k, v, out)):
        queries, keys = piece.queries, piece.keys
        parts = op(
            piece.of(q, queries), piece.of(k, keys), piece.of(v, keys), piece.is_causal, scale
        )
        joined = [piece.of(x, queries) for x in (out, lse)]
        if not piece.is_causal:
            merge_into(*joined, *parts)
            continue
        for x, part in zip(joined, parts, strict=True):
            x.copy_(part)
    return out, lse


def backward(op, grad_out, q, k, v, out, lse, scale: float):
    """dq, dk, dv of `op`; P = exp(S - lse) is each piece's part of the softmax: they add up."""
    batch, heads, n, dim = q.shape
    grads = [q.new_empty(batch, n, heads, dim).transpose(1, 2) for _ in range(3)]
    of_queries = (grad_out, q, out, lse)
    for piece in squares(n, batch, (*of_queries, k, v, grads[0])):
        queries, keys = piece.queries, piece.keys
        part_grad_out, part_q, part_out, part_lse = (piece.of(x, queries) for x in of_queries)
        part_k, part_v = piece.of(k, keys), piece.of(v, keys)
        parts = op(
            part_grad_out, part_q, part_k, part_v, part_out, part_lse, piece.is_causal, scale
        )
        for grad, tokens, part in zip(grads, (queries, keys, keys), parts, strict=True):
            add = torch.Tensor.copy_ if piece.is_causal else torch.Tensor.add_
            add(piece.of(grad, tokens), part)
    return tuple(grads)
