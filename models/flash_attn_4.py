"""FlashAttention-4, the package flash-attn-4 (CuTe DSL): dense and block-sparse.

Written against 4.0.0b36 (envs/cuda.txt), flash_attn/cute/{interface,block_sparsity}.py there;
the package is a beta, and later ones may take other arguments and block sizes.
"""

from __future__ import annotations

import importlib.util

import torch

from models.errors import UnsupportedBackend
from models.flex_lists import PaddedMask


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention.

    Args:
        q: (B, N, H, D), float16 or bfloat16.
        k, v: (B, N, Hkv, D).
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k.
        return_lse: whether the LSE is needed.

    Returns:
        out (B, N, H, D), and LSE (B, H, N), natural log, float32, or None; differentiable in both.
    """
    from flash_attn.cute import flash_attn_func

    out, lse = flash_attn_func(
        q, k, v, softmax_scale=scale, causal=is_causal, return_lse=return_lse
    )
    return out, lse if return_lse else None


def block_sparse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: PaddedMask,
    is_causal: bool,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Block-sparse attention; the gradient of q is summed in no fixed order.

    Args:
        q, k, v, is_causal, scale, return_lse: as of `dense`.
        mask: `models.patterns.BlockMask`, on q's device.

    Returns:
        As `dense`; a query without keys gives 0 and -inf.

    Raises:
        UnsupportedBackend: where `why_not_block_sparse` has a reason.
        ValueError: where the mask does not fit.
    """
    mask.check_fits(q.shape[1], q.shape[2])
    for x in (q, k, v):
        reason = why_not_block_sparse(x, mask)
        if reason:
            raise UnsupportedBackend(f"flash-attn-4: {reason}")
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    by_query, by_key = (
        BlockSparseTensorsTorch(
            mask_block_cnt=lists.partial_counts,
            mask_block_idx=lists.partial_blocks,
            full_block_cnt=lists.full_counts,
            full_block_idx=lists.full_blocks,
            block_size=(mask.block_size, mask.block_size),
        )
        for lists in mask.padded_lists(q.shape[1], is_causal)
    )
    # `causal` masks above the diagonal in every block; in full blocks nothing is above it.
    out, lse = flash_attn_func(
        q, k, v, softmax_scale=scale, causal=is_causal, return_lse=return_lse,
        block_sparse_tensors=by_query, block_sparse_tensors_bwd=by_key,
    )  # fmt: skip
    return out, lse if return_lse else None


def why_not(q: torch.Tensor) -> str | None:
    """Why flash-attn-4 cannot compute dense attention.

    Args:
        q: (B, N, H, D).

    Returns:
        The reason, None if it can.
    """
    if q.device.type != "cuda":
        return "needs a CUDA device"
    if not _installed():
        return "the package flash-attn-4 is not installed (envs/cuda.txt)"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {q.dtype}"
    major, head_dim = torch.cuda.get_device_capability(q.device)[0], q.shape[3]
    if major < 9:
        return "needs compute capability 9.0 or later"
    widest = 256 if major == 9 else 128
    # Blackwell has another kernel for exactly 256.
    fits = head_dim <= widest or (head_dim == 256 and major in (10, 11))
    if not fits or head_dim % 8:
        return f"head_dim={head_dim}: takes multiples of 8 up to {widest}"
    return None


def why_not_block_sparse(q: torch.Tensor, mask: PaddedMask) -> str | None:
    """Why flash-attn-4 cannot compute block-sparse attention.

    Args:
        q: (B, N, H, D).
        mask: of which the block size counts.

    Returns:
        The reason, None if it can.
    """
    reason = why_not(q)
    if reason:
        return reason
    major, head_dim = torch.cuda.get_device_capability(q.device)[0], q.shape[3]
    backward = q.requires_grad and torch.is_grad_enabled()
    sizes = _block_sizes(major, head_dim, backward)
    if mask.block_size in sizes:
        return None
    takes = " or ".join(map(str, sizes)) or "none"
    return (
        f"block_size={mask.block_size}: takes {takes} on compute capability {major}.x at "
        f"head_dim={head_dim}{', with gradients' if backward else ''}"
    )


def _block_sizes(major: int, head_dim: int, backward: bool) -> tuple[int, ...]:
    """Sizes of square blocks: tiles must divide their queries and, on Hopper, match their keys.

    On Hopper the forward pass cuts its tiles to 64 x 64; the backward pass keeps 128 keys
    per tile up to head_dim 128, 96 up to 192 and 64 beyond (`_tile_size_{fwd,bwd}_sm90`). On
    Blackwell two query tiles of 128 go together.
    """
    if major == 9:
        if backward:
            return (128,) if head_dim <= 128 else () if head_dim <= 192 else (64,)
        return (64, 128) if head_dim <= 128 else (64,)
    return (256,) if major in (10, 11) and head_dim <= 128 else ()


def _installed() -> bool:
    found = importlib.util.find_spec
    return found("flash_attn") is not None and found("flash_attn.cute") is not None
