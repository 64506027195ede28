"""Block-sparse attention: every query block attends to the key blocks on its list.

Backends: "triton", our kernels; "sdpa", gathered key blocks in plain PyTorch, on any device;
"flex", PyTorch's FlexAttention; "flash-attn-4", the package's block sparsity.
"""

from __future__ import annotations

import torch

from models import kernels
from models.block_sparse_op import block_sparse, needs_lse
from models.errors import UnsupportedBackend, check_choice
from models.inputs import prepared
from models.patterns.block_mask import BlockMask

BACKENDS = ("auto", "triton", "sdpa", "flex", "flash-attn-4")


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Self-attention over the kept key blocks, one softmax over all kept keys of a row.

    Gradients are exact, through the LSE too.

    Args:
        q: (B, N, H, D), float64, float32, float16 or bfloat16; accumulated in float32 at least.
        k, v: (B, N, Hkv, D), H a multiple of Hkv.
        mask: of ceil(N / block_size) blocks, the last may be short, with lists for 1 or H heads,
            on q's device. Blocks are counted from the start of the sequence, not of each document.
        is_causal: cut kept blocks at the diagonal.
        scale: factor on q.k, None for 1/sqrt(D).
        backend: "triton", "sdpa", "flex", "flash-attn-4", or "auto": "triton" for half types on
            CUDA where the kernels can, else "sdpa".
        return_lse: return the LSE too.
        key_padding_mask: (B, N) bool, True where a key is not attended to, whatever it holds, NaN
            and inf too.
        document_ids: (B, N) integers; a token attends to those of its own document, all tokens
            with its id.

    Returns:
        out (B, N, H, D) in q's dtype, and with `return_lse` also LSE (B, H, N), natural log,
        float32 (float64 for float64). A query without keys gives 0 and -inf.

    Raises:
        ValueError: on bad arguments.
        UnsupportedBackend: where `backend` cannot compute this; the message says why.
    """
    masks = (key_padding_mask, document_ids)
    q, k, v, scale = prepared(q, k, v, scale, *masks)
    _check_mask(q, mask)
    is_masked = key_padding_mask is not None or document_ids is not None
    backend = resolve_backend(q, mask, backend, return_lse=return_lse, is_masked=is_masked)
    is_causal = bool(is_causal)
    if backend == "flex":
        from models import flex

        out, lse = flex.block_sparse(q, k, v, mask, is_causal, scale, return_lse)
    elif backend == "flash-attn-4":
        from models import flash_attn_4

        out, lse = flash_attn_4.block_sparse(q, k, v, mask, is_causal, scale, return_lse)
    else:
        lists = (mask.row_ptr, mask.col_idx, mask.block_size)
        with_lse = return_lse or needs_lse(q, k, v, mask, is_causal, backend)
        out, lse = block_sparse(q, k, v, *masks, *lists, is_causal, scale, backend, with_lse)
    return (out, lse) if return_lse else out


def resolve_backend(
    q: torch.Tensor,
    mask: BlockMask,
    backend: str,
    *,
    return_lse: bool = False,
    is_masked: bool = False,
) -> str:
    """The backend that a call runs.

    Args:
        q: (B, N, H, D).
        mask: of blocks.
        backend: one of BACKENDS.
        return_lse: whether the LSE is needed.
        is_masked: whether the call has a key padding mask or document ids.

    Returns:
        One of BACKENDS other than "auto".

    Raises:
        ValueError: where there is no such backend.
        UnsupportedBackend: where a named one cannot compute this; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        half = q.dtype in (torch.float16, torch.bfloat16)
        trusted = not kernels.why_withdrawn("block_sparse", str(q.dtype), q.shape[3])
        fused = q.device.type == "cuda" and half and trusted
        fused = fused and not _why_not("triton", q, mask, return_lse, is_masked)
        return "triton" if fused else "sdpa"
    reason = _why_not(backend, q, mask, return_lse, is_masked)
    if reason:
        raise UnsupportedBackend(f"{backend}: {reason}")
    return backend


def _why_not(backend, q, mask, return_lse, is_masked) -> str | None:
    """Why `backend` cannot compute this, or None if it can."""
    if backend in ("flex", "flash-attn-4"):
        if is_masked:
            return "takes no key_padding_mask and no document_ids"
        if torch.compiler.is_compiling():
            return "compiles itself: not available inside torch.compile"
    if backend == "triton":
        if not kernels.HAS_TRITON:
            return kernels.MISSING
        from models.kernels import block_sparse

        return block_sparse.why_not(q, mask)
    if backend == "flex":
        from models import flex

        return flex.why_not(q, mask.block_size, return_lse=return_lse)
    if backend == "flash-attn-4":
        from models import flash_attn_4

        return flash_attn_4.why_not_block_sparse(q, mask)
    return None


def _check_mask(q, mask) -> None:
    if not isinstance(mask, BlockMask):
        raise ValueError(f"mask={type(mask).__name__}: expected a models.patterns.BlockMask")
    mask.check_fits(q.shape[1], q.shape[2])
    if mask.device != q.device:
        raise ValueError(f"mask is on {mask.device}: expected {q.device}, as q is")
