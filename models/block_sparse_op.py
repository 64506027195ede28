"""`long_context::block_sparse`: block-sparse attention by gathered blocks or by our kernels."""

from __future__ import annotations

import torch

from models import block_gather
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
    """out and LSE. row_ptr, col_idx, block_size: of the mask as its user has it.

    with_lse: False lets "sdpa" leave the LSE out, which is (B, H, 0) then.
    """
    if q.shape[0] == 0:
        return _results(q, with_lse=with_lse, backend=backend)
    mask = BlockMask.of(row_ptr, col_idx, block_size)
    masks = _masks(key_padding_mask, document_ids)
    if backend == "triton":
        from models.kernels import block_sparse as kernels

        return kernels.forward(q, k, v, mask, is_causal, scale, **masks)
    options = {"return_lse": with_lse, **masks}
    out, lse = block_gather.forward(q, k, v, mask, is_causal, scale, **options)
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
    mask = BlockMask.of(row_ptr, col_idx, block_size)
    masks = _masks(key_padding_mask, document_ids)
    if lse.shape[2] == 0:
        lse = grad_lse = None
    arguments = (grad_out, grad_lse, q, k, v, out, lse)
    if backend == "triton":
        from models.kernels import block_sparse as kernels

        return kernels.backward(*arguments, mask, is_causal, scale, **masks)
    return block_gather.backward(*arguments, mask, is_causal, scale, **masks)


def _masks(key_padding_mask, document_ids) -> dict:
    ids = None if document_ids is None else document_ids.long()  # not all integers are compared
    return {"key_padding_mask": key_padding_mask, "document_ids": ids}


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


def needs_lse(q, k, v, mask: BlockMask, is_causal: bool, backend: str) -> bool:
    """Whether gradients will be asked for that "sdpa" cannot give without the LSE."""
    if backend == "triton" or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True  # lists are not looked into, nor who wants gradients
    return any(x.requires_grad for x in (q, k, v)) and block_gather.backward_needs_lse(
        q, k, mask, is_causal
    )
