"""The float64 reference: `softmax(S + log C) V`, written to be read.

C[h, i, j] counts the branches that hold the pair (all ones for dense
attention), so mixing branches by their softmax denominators is one softmax
over the multiset of their keys (LongNet, arXiv 2307.02486, section 2.2).
Only the query rows asked for are computed: O(rows x N), at any length.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from models.errors import resolve_scale
from models.qkv import check_qkv


class Pattern(Protocol):
    """Who attends to whom: `models.patterns.DilatedBranches`, `HeadPartition`, `BlockMask`.

    restarts_per_document: whether positions are counted from the start of each document of a
    packed sequence, or of the whole sequence.
    """

    restarts_per_document: ClassVar[bool]

    def counts(self, head: int, heads: int, rows: torch.Tensor, n_keys: int) -> torch.Tensor:
        """C[i, j] of one head.

        Args:
            head: query head.
            heads: H.
            rows: (R,) int64, positions of the queries.
            n_keys: N.

        Returns:
            (R, N) int64.
        """


def attend_rows(
    q_rows: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    *,
    pattern: Pattern | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of some query rows to all keys; differentiable, computed in float32 at least.

    Args:
        q_rows: (B, R, H, D), any float dtype.
        k, v: (B, N, Hkv, D).
        rows: (R,) int64, positions of the queries.
        pattern: who attends to whom, None for dense attention.
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k, None for 1/sqrt(D).
        key_padding_mask: (B, N) bool, True where a key is never attended to, whatever it holds.
        document_ids: (B, N) integers; tokens attend to those of their own document, in which
            dilated segments start anew.

    Returns:
        out (B, R, H, D) in q_rows' dtype, and LSE (B, H, R), natural log, float32 at least; a row
        without keys gives 0 and -inf.

    Raises:
        ValueError: on bad q, k, v or scale.
    """
    check_qkv(q_rows, k, v)
    scale = resolve_scale(scale, q_rows.shape[3])
    dtype = q_rows.dtype
    # In half precision scores of large activations overflow.
    q_rows, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q_rows, k, v))
    if key_padding_mask is not None:
        # A weight of 0 times inf or NaN would be NaN.
        k, v = (x.masked_fill(key_padding_mask[:, :, None, None], 0.0) for x in (k, v))
        nonfinite = key_padding_mask[:, rows, None, None] & ~q_rows.isfinite()
        q_rows = q_rows.masked_fill(nonfinite, 0.0)
    options = {"is_causal": is_causal, "scale": scale}
    if document_ids is None:
        out, lse = _attend(q_rows, k, v, rows, pattern, key_padding_mask, **options)
        return out.to(dtype), lse
    out = torch.zeros_like(q_rows)
    lse = out.new_full((out.shape[0], out.shape[2], out.shape[1]), -torch.inf)
    for batch, ids in enumerate(document_ids):
        for document in ids.unique():
            tokens, own = ((x == document).nonzero()[:, 0] for x in (ids, ids[rows]))
            places = torch.searchsorted(tokens, rows[own])
            inside = pattern
            if pattern is not None and not pattern.restarts_per_document:
                inside = _Restricted(pattern, tokens, k.shape[1])
            element = slice(batch, batch + 1)
            padded = None if key_padding_mask is None else key_padding_mask[element, tokens]
            qkv = (q_rows[element, own], k[element, tokens], v[element, tokens])
            part, part_lse = _attend(*qkv, places, inside, padded, **options)
            out[batch, own], lse[batch, :, own] = part[0], part_lse[0]
    return out.to(dtype), lse


class _Restricted:
    """A pattern of the whole sequence, restricted to the tokens of a document."""

    def __init__(self, pattern, tokens, seq_len):
        self.pattern, self.tokens, self.seq_len = pattern, tokens, seq_len

    def counts(self, head, heads, rows, n_keys):
        whole = self.pattern.counts(head, heads, self.tokens[rows], self.seq_len)
        return whole[:, self.tokens]


def _attend(q_rows, k, v, rows, pattern, key_padding_mask, *, is_causal, scale):
    heads, n_keys = q_rows.shape[2], k.shape[1]
    group_size = heads // k.shape[2]
    future = torch.arange(n_keys, device=k.device)[None, :] > rows[:, None]
    outs, lses = [], []
    for head in range(heads):
        scores = scale * q_rows[:, :, head] @ k[:, :, head // group_size].transpose(1, 2)
        held = torch.ones_like(scores, dtype=torch.bool)
        if pattern is not None:
            counts = pattern.counts(head, heads, rows, n_keys)
            scores = scores + counts.clamp(min=1).to(scores.dtype).log()
            held &= counts > 0
        if is_causal:
            held &= ~future
        if key_padding_mask is not None:
            held &= ~key_padding_mask[:, None, :]
        # A finite filler, so that rows without keys have no NaN gradients.
        scores = scores.masked_fill(~held, torch.finfo(scores.dtype).min / 4)
        lse = scores.logsumexp(dim=-1)
        weights = (scores - lse[..., None]).exp() * held
        outs.append(weights @ v[:, :, head // group_size])
        lses.append(lse.masked_fill(~held.any(dim=-1), -torch.inf))
    return torch.stack(outs, dim=2), torch.stack(lses, dim=1)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 attention.

    Args:
        q: (B, N, H, D), any float dtype.
        k, v: (B, N, Hkv, D).
        rows: (R,) int64, the positions whose queries are computed; None for all.
        options: as of `attend_rows`.

    Returns:
        out (B, R, H, D) and LSE (B, H, R), float64.
    """
    if rows is None:
        rows = torch.arange(q.shape[1], device=q.device)
    return attend_rows(q[:, rows].double(), k.double(), v.double(), rows, **options)


def reference_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_out: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    grad_lse: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float64 gradients of `sum(out * grad_out) + sum(lse * grad_lse)` over the rows asked for.

    The cotangents of other rows are zero, so dk and dv are complete.

    Args:
        q, k, v, rows, options: as of `reference`.
        grad_out: (B, R, H, D).
        grad_lse: (B, H, R) or None.

    Returns:
        dq (zero outside of `rows`), dk and dv in the shapes of q, k, v, float64.
    """
    inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, lse = reference(*inputs, rows=rows, **options)
    outputs, cotangents = [out], [grad_out.double()]
    if grad_lse is not None:
        outputs.append(lse)
        cotangents.append(grad_lse.double())
    return torch.autograd.grad(outputs, inputs, cotangents)
