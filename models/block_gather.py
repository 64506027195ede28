"""Block-sparse attention by gathered key blocks: plain PyTorch, any device, any float dtype.

The key blocks of some query blocks are copied side by side, and each row is one softmax over
them; query blocks with equally long lists go together (`models.block_chunks`). All is done in
the same small memory, half types in float32. The two passes are plain functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from models import block_documents
from models.block_chunks import plan
from models.block_hidden import Hidden
from models.block_rooms import Blocks, Keys, Work
from models.merge import merge_into


def backward_needs_lse(q, k, mask, is_causal: bool) -> bool:
    """Whether `backward` cannot do without the LSE: where rows are done in pieces."""
    mask = mask.causal() if is_causal else mask
    return q.shape[0] > 0 and plan(mask, q, k.shape[2], is_causal).in_pieces


@torch.no_grad()
def forward(
    q,
    k,
    v,
    mask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask=None,
    document_ids=None,
    return_lse: bool,
):
    """Attention under `mask`, a `models.patterns.BlockMask` that fits; no autograd.

    q: (B, N, H, D), k, v: (B, N, Hkv, D). key_padding_mask: (B, N) bool, True where a key is
    never attended to; k and v are finite there. document_ids: (B, N) integers; a token attends
    to those of its own document, and what others hold, inf and NaN too, makes no difference.

    Returns out (B, N, H, D) in q's dtype and LSE (B, H, N), float32 at least, or None unless
    asked for; both contiguous. Rows without keys give 0 and -inf. Bitwise repeatable; besides
    the results, memory is that of a few blocks.
    """
    masks = {"key_padding_mask": key_padding_mask, "document_ids": document_ids}
    if document_ids is not None and not block_documents.all_finite(q, k, v):
        options = {"return_lse": return_lse, **masks}
        return block_documents.forward(_forward, q, k, v, mask, is_causal, scale, **options)
    return _forward(q, k, v, mask, is_causal, scale, return_lse=return_lse, **masks)


def _forward(q, k, v, mask, is_causal, scale, *, return_lse, **masks):
    mask = mask.causal() if is_causal else mask
    work = Work(q, k, mask, is_causal)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = None
    if return_lse:
        shape = (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.empty(shape, dtype=work.dtype, device=q.device)
    for b in range(work.batch):
        hidden = Hidden(work, mask, *(x if x is None else x[b] for x in masks.values()))
        order = work.plan(hidden.mask)
        if order.has_empty:
            out[b].zero_()
            if return_lse:
                lse[b].fill_(-torch.inf)
        heads = [
            _Head(
                work.query_blocks(q[of_queries]),
                work.keys(k[of_keys]),
                work.keys(v[of_keys]),
                work.query_blocks(out[of_queries]),
                work.query_blocks(lse.transpose(1, 2)[of_queries]) if return_lse else None,
            )
            for of_queries, of_keys in work.places(b, order)
        ]
        for chunk, head in order.walk(heads):
            queries = work.load("q", head.q, chunk, scale=scale)
            with_lse = return_lse or len(chunk.pieces) > 1
            parts = (
                _attend(work, hidden, chunk, piece, queries, head.k, head.v, with_lse)
                for piece in chunk.pieces
            )
            joined, joined_lse = next(parts)
            for part, part_lse in parts:
                merge_into(joined, joined_lse, part, part_lse)
            work.store(joined, head.out, chunk)
            if return_lse:
                work.store(joined_lse, head.lse, chunk)
    return out, lse


class _Head(NamedTuple):
    """Of a group of heads: q, out and LSE by blocks of queries, and what keys are gathered from."""

    q: Blocks
    k: Keys
    v: Keys
    out: Blocks
    lse: Blocks | None


def _attend(work, hidden, chunk, piece, queries, keys, values, with_lse):
    """Output (tiles, rows, D) and LSE (tiles, rows), or None, of a piece of the chunk."""
    keys = work.gather("keys", keys, chunk, piece)
    scores = work.scores(chunk, piece, queries, keys)
    hidden.fill(scores, hidden.where(chunk, piece), -torch.inf)
    largest = scores.amax(dim=2) if with_lse or hidden.is_any else None
    if hidden.is_any:
        empty = largest.isneginf()
        scores.masked_fill_(empty[..., None], 0.0)
    # In place, which the op allows: it reads an element before it writes it.
    weights = torch.softmax(scores, dim=2, out=scores)
    # The largest weight is exp(largest - LSE), and at least 1 / keys.
    lse = largest - weights.amax(dim=2).log_() if with_lse else None
    if with_lse and hidden.is_any:
        lse.masked_fill_(empty, -torch.inf)
    # The keys are done with: the values take their place in cache.
    values = work.gather("keys", values, chunk, piece)
    name = "out" if piece is chunk.pieces[0] else "part"
    out = torch.bmm(weights, values, out=work.room(name, *queries.shape))
    if hidden.is_any:
        out.masked_fill_(empty[..., None], 0.0)
    return out, lse


@torch.no_grad()
def backward(
    grad_out,
    grad_lse,
    q,
    k,
    v,
    out,
    lse,
    mask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask=None,
    document_ids=None,
):
    """dq, dk, dv of `forward`, in the shapes and dtypes of q, k, v, contiguous; no autograd.

    grad_out: (B, N, H, D); grad_lse: (B, H, N) or None; out, lse: results of `forward`, the
    latter possibly None where `backward_needs_lse` is False.
    """
    masks = {"key_padding_mask": key_padding_mask, "document_ids": document_ids}
    arguments = (grad_out, grad_lse, q, k, v, out, lse, mask, is_causal, scale)
    if document_ids is not None and not block_documents.all_finite(q, k, v, grad_out, out):
        return block_documents.backward(_backward, *arguments, **masks)
    return _backward(*arguments, **masks)


def _backward(grad_out, grad_lse, q, k, v, out, lse, mask, is_causal, scale, **masks):
    mask = mask.causal() if is_causal else mask
    work = Work(q, k, mask, is_causal)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    of_rows = {"q": q, "grads": grad_out, "out": out}
    of_rows |= {"grad_lse": grad_lse.transpose(1, 2)} if grad_lse is not None else {}
    of_rows |= {"lse": lse.transpose(1, 2)} if lse is not None else {}
    for b in range(work.batch):
        hidden = Hidden(work, mask, *(x if x is None else x[b] for x in masks.values()))
        order = work.plan(hidden.mask)
        if order.has_empty:
            dq[b].zero_()
        heads = []
        for of_queries, of_keys in work.places(b, order):
            rows = {name: work.query_blocks(x[of_queries]) for name, x in of_rows.items()}
            dq_blocks = work.query_blocks(dq[of_queries])
            keys, values = work.keys(k[of_keys]), work.keys(v[of_keys])
            sums = [work.sums(x[of_keys]) for x in (dk, dv)]
            blocks = [work.key_blocks(x) for x in sums]
            heads.append((rows, dq_blocks, keys, values, blocks, (of_keys, *sums)))
        for chunk, (rows, dq_blocks, *of_keys, blocks, _) in order.walk(heads):
            part = _add_gradients(work, hidden, chunk, rows, *of_keys, *blocks, scale)
            work.store(part, dq_blocks, chunk)
        if dk.dtype != work.dtype:
            for *_, (of_keys, dk_sum, dv_sum) in heads:
                dk[of_keys].copy_(dk_sum)
                dv[of_keys].copy_(dv_sum)
    return dq, dk, dv


def _add_gradients(work, hidden, chunk, rows, all_keys, all_values, dk, dv, scale):
    """Add the chunk's share to dk and dv; its dq (tiles, rows, D)."""
    queries = work.load("q", rows["q"], chunk, scale=scale)
    grads = work.load("grads", rows["grads"], chunk)
    # dS = P (dO V' - delta): through the output and, as P dLSE, through the LSE.
    delta = work.load("dq", rows["out"], chunk).mul_(grads).sum(dim=2)
    if "grad_lse" in rows:
        delta -= work.load("grad_lse", rows["grad_lse"], chunk)
    is_whole = len(chunk.pieces) == 1
    if not is_whole:
        lse = work.load("lse", rows["lse"], chunk)
        if hidden.is_any:
            _clear(lse.isneginf(), lse, queries, grads, delta)
    dq = work.room("dq", *queries.shape)
    for piece in chunk.pieces:
        keys = work.gather("keys", all_keys, chunk, piece)
        values = work.gather("values", all_values, chunk, piece)
        scores = work.scores(chunk, piece, queries, keys)
        where = hidden.where(chunk, piece)
        hidden.fill(scores, where, -torch.inf)
        if not is_whole:
            weights = scores.sub_(lse[..., None]).exp_()
        elif not hidden.is_any:
            weights = torch.softmax(scores, dim=2, out=scores)
        else:
            empty = scores.amax(dim=2).isneginf()
            _clear(empty, scores, queries, grads, delta)
            weights = torch.softmax(scores, dim=2, out=scores)
            _clear(empty, weights)
        ds = work.room("ds", *weights.shape)
        torch.bmm(grads, values.mT, out=ds).sub_(delta[..., None]).mul_(weights)
        # A product with another document's values may overflow, and 0 times inf is NaN.
        hidden.fill(ds, where, 0.0)
        # What was gathered is done with: dV and dK take its place.
        work.scatter(
            torch.bmm(weights.mT, grads, out=work.room("values", *keys.shape)), dv, chunk, piece
        )
        if piece is chunk.pieces[0]:
            torch.bmm(ds, keys, out=dq)
        else:
            dq.baddbmm_(ds, keys)
        work.scatter(
            torch.bmm(ds.mT, queries, out=work.room("keys", *keys.shape)), dk, chunk, piece
        )
    return dq.mul_(scale)


def _clear(empty, *tensors) -> None:
    """Zero what rows without keys hold: a weight of 0 times inf or NaN would be NaN."""
    for x in tensors:
        x.masked_fill_(empty if x.dim() == 2 else empty[..., None], 0.0)
