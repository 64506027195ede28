"""Block-sparse attention by gathered key blocks: plain PyTorch, any device, any float dtype.

The key blocks of some query blocks are copied side by side, and each row is one softmax over
them; query blocks with equally long lists are computed together (`models.block_schedule`), always
in the same small memory, half types in float32. The two passes are plain functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.block_schedule import Chunk, Piece, schedule
from models.block_token_mask import TokenMask
from models.block_workspace import Blocks, GatherSource, Workspace
from models.merge import merge_into
from models.patterns.block_mask import BlockMask


def backward_needs_lse(q: torch.Tensor, k: torch.Tensor, mask: BlockMask, is_causal: bool) -> bool:
    """Whether `backward` needs the LSE, because some rows are computed in pieces.

    Args:
        q: (B, N, H, D).
        k: (B, N, Hkv, D).
        mask: of blocks.
        is_causal: whether the diagonal cuts blocks.

    Returns:
        False where the LSE may be None.
    """
    mask = mask.causal() if is_causal else mask
    return q.shape[0] > 0 and schedule(mask, q, k.shape[2], is_causal).in_pieces


@torch.no_grad()
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Block-sparse attention without autograd, bitwise repeatable, in the memory of a few blocks.

    Args:
        q: (B, N, H, D), any float dtype.
        k, v: (B, N, Hkv, D).
        mask: that fits.
        is_causal: whether the diagonal cuts blocks.
        scale: factor on q.k.
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None; k and v are
            finite there.
        document_ids: (B, N) integers, or None; a token attends to those of its own document. All
            tensors are finite then (else `models.nonfinite_documents`).
        return_lse: whether the LSE is needed.

    Returns:
        out (B, N, H, D) in q's dtype, and LSE (B, H, N), float32 at least, or None; contiguous.
        Rows without keys give 0 and -inf.
    """
    masks = (key_padding_mask, document_ids)
    mask = mask.causal() if is_causal else mask
    work = Workspace(q, k, mask, is_causal)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = None
    if return_lse:
        shape = (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.empty(shape, dtype=work.dtype, device=q.device)
    for b in range(work.batch):
        masked = TokenMask(work, mask, *(x if x is None else x[b] for x in masks))
        order = work.schedule(masked.mask)
        if order.has_empty:
            out[b].zero_()
            if return_lse:
                lse[b].fill_(-torch.inf)
        heads = [
            _Head(
                work.query_blocks(q[of_queries]),
                work.source(k[of_keys]),
                work.source(v[of_keys]),
                work.query_blocks(out[of_queries]),
                work.query_blocks(lse.transpose(1, 2)[of_queries]) if return_lse else None,
            )
            for of_queries, of_keys in work.places(b, order)
        ]
        for chunk, head in order.walk(heads):
            queries = work.load("q", head.q, chunk, scale=scale)
            with_lse = return_lse or len(chunk.pieces) > 1
            parts = (
                _attend(work, masked, chunk, piece, queries, head.k, head.v, with_lse)
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
    k: GatherSource
    v: GatherSource
    out: Blocks
    lse: Blocks | None


def _attend(
    work: Workspace, masked: TokenMask, chunk: Chunk, piece: Piece, queries, keys, values, with_lse
):
    """Output (tiles, rows, D) and LSE (tiles, rows), or None, of a piece of the chunk."""
    keys = work.gather("keys", keys, chunk, piece)
    scores = work.scores(piece, queries, keys)
    masked.fill(scores, masked.where(chunk, piece), -torch.inf)
    largest = scores.amax(dim=2) if with_lse or masked.is_any else None
    if masked.is_any:
        empty = largest.isneginf()
        scores.masked_fill_(empty[..., None], 0.0)
    # In place, which the op allows: it reads each element before it writes it.
    weights = torch.softmax(scores, dim=2, out=scores)
    # The largest weight is exp(largest - LSE), and at least 1 / keys.
    lse = largest - weights.amax(dim=2).log_() if with_lse else None
    if with_lse and masked.is_any:
        lse.masked_fill_(empty, -torch.inf)
    # The keys are no longer needed: the values take their place in cache.
    values = work.gather("keys", values, chunk, piece)
    name = "out" if piece is chunk.pieces[0] else "part"
    out = torch.bmm(weights, values, out=work.buffer(name, *queries.shape))
    if masked.is_any:
        out.masked_fill_(empty[..., None], 0.0)
    return out, lse


@torch.no_grad()
def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `forward`, without autograd, bitwise repeatable.

    Args:
        grad_out: (B, N, H, D).
        grad_lse: (B, H, N) or None.
        out, lse: results of `forward`; the LSE may be None unless `backward_needs_lse`.
        q, k, v, mask, is_causal, scale, key_padding_mask, document_ids: as of `forward`.

    Returns:
        dq, dk, dv in the shapes and dtypes of q, k, v; contiguous.
    """
    masks = (key_padding_mask, document_ids)
    mask = mask.causal() if is_causal else mask
    work = Workspace(q, k, mask, is_causal)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    of_rows = {"q": q, "grads": grad_out, "out": out}
    of_rows |= {"grad_lse": grad_lse.transpose(1, 2)} if grad_lse is not None else {}
    of_rows |= {"lse": lse.transpose(1, 2)} if lse is not None else {}
    for b in range(work.batch):
        masked = TokenMask(work, mask, *(x if x is None else x[b] for x in masks))
        order = work.schedule(masked.mask)
        if order.has_empty:
            dq[b].zero_()
        heads = []
        for of_queries, of_keys in work.places(b, order):
            rows = {name: work.query_blocks(x[of_queries]) for name, x in of_rows.items()}
            dq_blocks = work.query_blocks(dq[of_queries])
            keys, values = work.source(k[of_keys]), work.source(v[of_keys])
            sums = [work.sums(x[of_keys]) for x in (dk, dv)]
            blocks = [work.key_blocks(x) for x in sums]
            heads.append((rows, dq_blocks, keys, values, blocks, (of_keys, *sums)))
        for chunk, (rows, dq_blocks, *of_keys, blocks, _) in order.walk(heads):
            part = _add_gradients(work, masked, chunk, rows, *of_keys, *blocks, scale)
            work.store(part, dq_blocks, chunk)
        if dk.dtype != work.dtype:
            for *_, (of_keys, dk_sum, dv_sum) in heads:
                dk[of_keys].copy_(dk_sum)
                dv[of_keys].copy_(dv_sum)
    return dq, dk, dv


def _add_gradients(work, masked, chunk, rows, all_keys, all_values, dk, dv, scale):
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
        if masked.is_any:
            _clear(lse.isneginf(), lse, queries, grads, delta)
    dq = work.buffer("dq", *queries.shape)
    for piece in chunk.pieces:
        keys = work.gather("keys", all_keys, chunk, piece)
        values = work.gather("values", all_values, chunk, piece)
        scores = work.scores(piece, queries, keys)
        where = masked.where(chunk, piece)
        masked.fill(scores, where, -torch.inf)
        if not is_whole:
            weights = scores.sub_(lse[..., None]).exp_()
        elif not masked.is_any:
            weights = torch.softmax(scores, dim=2, out=scores)
        else:
            empty = scores.amax(dim=2).isneginf()
            _clear(empty, scores, queries, grads, delta)
            weights = torch.softmax(scores, dim=2, out=scores)
            _clear(empty, weights)
        ds = work.buffer("ds", *weights.shape)
        torch.bmm(grads, values.mT, out=ds).sub_(delta[..., None]).mul_(weights)
        # A product with another document's values may overflow, and 0 times inf is NaN.
        masked.fill(ds, where, 0.0)
        # The gathered values and keys are no longer needed: dV and dK take their place.
        work.scatter(
            torch.bmm(weights.mT, grads, out=work.buffer("values", *keys.shape)), dv, chunk, piece
        )
        if piece is chunk.pieces[0]:
            torch.bmm(ds, keys, out=dq)
        else:
            dq.baddbmm_(ds, keys)
        work.scatter(
            torch.bmm(ds.mT, queries, out=work.buffer("keys", *keys.shape)), dk, chunk, piece
        )
    return dq.mul_(scale)


def _clear(empty, *tensors) -> None:
    """Zero the rows without keys: a weight of 0 times inf or NaN would be NaN."""
    for x in tensors:
        x.masked_fill_(empty if x.dim() == 2 else empty[..., None], 0.0)
