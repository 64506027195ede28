"""`long_context::dilated`: dilated attention by any backend but "gather", as one op.

Dense attention is the branch (N, 1). Documents are separated inside. What a backend does
is in PASSES, to which `models.dilated` adds our kernels, so that dense attention does not depend
on them.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from models import documents, strided
from models.fused_ops import OPS, as_operand, head_dim_multiple
from models.ops import AttentionOp, empty_results, packed_like
from models.patterns.branches import pattern_of


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    segment_lengths: list[int],
    dilation_rates: list[int],
    head_offset: str,
    is_causal: bool,
    scale: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if q.shape[0] == 0:
        return empty_results(q)
    pattern = pattern_of(head_offset, segment_lengths, dilation_rates)
    attend = partial(PASSES[backend][0], pattern, is_causal, scale)
    if document_ids is not None:
        return documents.per_document(attend, q, k, v, document_ids, key_padding_mask)
    return attend(q, k, v, _unless_empty(key_padding_mask))


def _backward(
    grad_out,
    grad_lse,
    q,
    k,
    v,
    out,
    lse,
    key_padding_mask,
    document_ids,
    segment_lengths,
    dilation_rates,
    head_offset,
    is_causal,
    scale,
    backend,
):
    if q.shape[0] == 0:
        return tuple(packed_like(x) for x in (q, k, v))
    pattern = pattern_of(head_offset, segment_lengths, dilation_rates)
    differentiate = partial(PASSES[backend][1], pattern, is_causal, scale)
    if document_ids is None:
        padded = _unless_empty(key_padding_mask)
        return differentiate(grad_out, grad_lse, q, k, v, out, lse, padded)
    grads = tuple(torch.zeros_like(x) for x in (q, k, v))
    for batch in documents.batches(document_ids, key_padding_mask):
        own_grad_out, *own = (batch.gather(x) for x in (grad_out, q, k, v, out))
        own_grad_lse = None if grad_lse is None else batch.gather(grad_lse.mT).mT
        parts = differentiate(
            own_grad_out, own_grad_lse, *own, batch.gather(lse.mT).mT, batch.padded
        )
        grads = tuple(batch.scatter(x, part) for x, part in zip(grads, parts, strict=True))
    return grads


dilated = AttentionOp("dilated", _forward, _backward)


def _unless_empty(key_padding_mask):
    """None for a mask on the CPU that masks nothing; on CUDA, finding out would synchronise."""
    if key_padding_mask is None or key_padding_mask.is_cuda or bool(key_padding_mask.any()):
        return key_padding_mask
    return None


def _attend_views(op, pattern, is_causal, scale, q, k, v, key_padding_mask):
    head_dim = q.shape[3]
    q, k, v = (_readable(x) for x in (q, k, v))
    groups = tuple(pattern.head_groups(q.shape[2], k.shape[2]))
    out, lse = strided.forward(q, k, v, op, groups, is_causal, scale, key_padding_mask)
    return out[..., :head_dim].contiguous(), lse


def _differentiate_views(
    op, pattern, is_causal, scale, grad_out, grad_lse, q, k, v, out, lse, key_padding_mask
):
    head_dim = q.shape[3]
    grad_out, q, k, v, out = (_readable(x) for x in (grad_out, q, k, v, out))
    groups = tuple(pattern.head_groups(q.shape[2], k.shape[2]))
    grads = strided.backward(
        grad_out, grad_lse, q, k, v, out, lse, op, groups, is_causal, scale, key_padding_mask
    )
    return tuple(x[..., :head_dim].contiguous() for x in grads)


def _readable(x: torch.Tensor) -> torch.Tensor:
    """x (B, N, H, D) as the fused ops read it: copied where necessary, D padded with zeros."""
    extra = -x.shape[3] % head_dim_multiple(x)
    return as_operand(F.pad(x, (0, extra)) if extra else x)


# Per backend: (pattern, is_causal, scale, q, k, v, key_padding_mask) -> out, LSE, and
# (pattern, is_causal, scale, grad_out, grad_lse, q, k, v, out, lse, key_padding_mask) -> dq, dk,
# dv.
PASSES = {
    name: (partial(_attend_views, op), partial(_differentiate_views, op))
    for name, op in OPS.items()
}
