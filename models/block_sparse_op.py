"""`long_context::block_sparse`: block-sparse attention by gathered blocks or by our kernels."""

from __future__ import annotations

import torch

from models import block_gather, nonfinite_documents
from models.ops import AttentionOp, empty_results, packed_like
from models.patterns.block_mask import BlockMask


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    row_ptr: torch.Tensor,
    col_idx: torch.Tensor,
    block_size: int,
    is_causal: bool,
    scale: float,
    backend: str,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and LSE. row_ptr, col_idx, block_size: of the mask that the caller passed.

    with_lse: False lets "sdpa" omit the LSE, which is (B, H, 0) then.
    """
    if q.shape[0] == 0:
        return _results(q, with_lse=with_lse, backend=backend)
    options = (BlockMask.of(row_ptr, col_idx, block_size), is_causal, scale)

    def attend(q, k, v, key_padding_mask, document_ids):
        masks = {"key_padding_mask": key_padding_mask, "document_ids": document_ids}
        if backend == "triton":
            from models.kernels import block_sparse as kernels

            return kernels.forward(q, k, v, *options, **masks)
        return block_gather.forward(q, k, v, *options, return_lse=with_lse, **masks)

    ids = _as_int64(document_ids)
    if ids is None or nonfinite_documents.all_finite(q, k, v):
        out, lse = attend(q, k, v, key_padding_mask, ids)
    else:
        out, lse = nonfinite_documents.forward(attend, q, k, v, key_padding_mask, ids)
    return out, _no_lse(q) if lse is None else lse


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
    row_ptr,
    col_idx,
    block_size,
    is_causal,
    scale,
    backend,
    with_lse,
):
    if q.shape[0] == 0:
        return tuple(packed_like(x) for x in (q, k, v))
    if lse.shape[2] == 0:
        lse = grad_lse = None
    options = (BlockMask.of(row_ptr, col_idx, block_size), is_causal, scale)

    def differentiate(*tensors):
        *tensors, key_padding_mask, document_ids = tensors
        masks = {"key_padding_mask": key_padding_mask, "document_ids": document_ids}
        if backend == "triton":
            from models.kernels import block_sparse as kernels

            return kernels.backward(*tensors, *options, **masks)
        return block_gather.backward(*tensors, *options, **masks)

    ids = _as_int64(document_ids)
    if ids is not None and grad_lse is not None and lse is not None:
        # The LSE of rows without keys is constant: its cotangent, even NaN, has no effect.
        grad_lse = grad_lse.masked_fill(lse.isneginf(), 0.0)
    tensors = (grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, ids)
    if ids is None or nonfinite_documents.all_finite(grad_out, grad_lse, q, k, v, out):
        return differentiate(*tensors)
    return nonfinite_documents.backward(differentiate, *tensors)


def _as_int64(document_ids: torch.Tensor | None) -> torch.Tensor | None:
    """As int64: PyTorch does not compare and sort all integer dtypes."""
    return None if document_ids is None else document_ids.long()


def _results(q, *_, with_lse: bool, backend: str):
    out, lse = empty_results(q)
    return out, lse if with_lse or backend == "triton" else _no_lse(q)


def _no_lse(q: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.empty((q.shape[0], q.shape[2], 0), dtype=dtype, device=q.device)


block_sparse = AttentionOp(
    "block_sparse",
    _forward,
    _backward,
    lambda q, *rest: _results(q, backend=rest[-2], with_lse=rest[-1]),
)


def needs_lse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    is_causal: bool,
    backend: str,
) -> bool:
    """Whether a backward pass may follow that needs the LSE.

    Args:
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        mask: of blocks.
        is_causal: whether the diagonal cuts blocks.
        backend: "sdpa" or "triton", whose forward always returns it.

    Returns:
        False where the forward pass may omit it.
    """
    if backend == "triton" or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True  # neither the lists nor requires_grad are known here
    return any(x.requires_grad for x in (q, k, v)) and block_gather.backward_needs_lse(
        q, k, mask, is_causal
    )
