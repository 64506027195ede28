"""Dense attention by backend: the baselines that everything else is measured against."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import flash_attn_4, flex
from models.errors import (
    UnsupportedBackend,
    check_choice,
    check_qkv,
    check_same_length,
    resolve_scale,
)
from models.fused_ops import CpuFlash, CudaEfficient, CudaFlash, as_operand, head_dim_multiple
from models.oracle import attend_rows
from models.patterns.branches import DilatedBranches
from models.strided import StridedAttention

_SDPA = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
# "auto" takes the first that can: fastest first as published for Hopper and Ampere
# (FlashAttention repository, benchmarks of 2026-08); "eager" never needs to be chosen for speed.
# "flex" is published beside "flash-attn-2" (391 to 376 TFLOP/s forward, 289 to 335 backward on an
# H100: MagiAttention repository, 2026-05), but compiles for seconds at every new shape.
_BY_SPEED = ("flash-attn-4", "sdpa-cudnn", "flash-attn-2", "sdpa-flash", "sdpa-efficient")
BACKENDS = ("auto", *_BY_SPEED, "flex", "sdpa-math", "eager")


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
):
    """Dense self-attention `softmax(scale q k^T) v`.

    q: (B, N, H, D). k, v: (B, N, Hkv, D) with H a multiple of Hkv. scale: None
    for 1/sqrt(D). backend: PyTorch's "sdpa-flash", "sdpa-efficient", "sdpa-cudnn",
    "sdpa-math" and its compiled FlexAttention, "flex"; the packages "flash-attn-2",
    "flash-attn-4"; "eager", the explicit softmax that holds the N x N scores; or
    "auto", the fastest that can.

    Returns out (B, N, H, D) in q's dtype, and with `return_lse` also LSE
    (B, H, N), natural log, float32 (float64 for float64).

    Raises ValueError on bad arguments, UnsupportedBackend where `backend` cannot
    do the request, with the reason.
    """
    check_qkv(q, k, v)
    check_same_length(q, k)
    scale = resolve_scale(scale, q.shape[3])
    q, k, v = (as_operand(x) for x in (q, k, v))
    backend = resolve_backend(q, k, backend, is_causal=is_causal, return_lse=return_lse)
    if backend == "eager":
        out, lse = _eager(q, k, v, is_causal, scale)
    elif backend == "flash-attn-2":
        out, lse = _flash_attn_2(q, k, v, is_causal, scale, return_lse)
    elif backend == "flash-attn-4":
        out, lse = flash_attn_4.dense(q, k, v, is_causal, scale, return_lse)
    elif backend == "flex":
        out, lse = flex.dense(q, k, v, is_causal, scale, return_lse)
    elif return_lse or _needs_views(backend, q, k):
        out, lse = _whole_view(q, k, v, backend, is_causal, scale)
    else:
        with sdpa_kernel(_SDPA[backend]):
            out = F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)),
                is_causal=is_causal,
                scale=scale,
                enable_gqa=q.shape[2] != k.shape[2],
            )
        out, lse = out.transpose(1, 2), None
    return (out, lse) if return_lse else out


def resolve_backend(
    q: torch.Tensor,
    k: torch.Tensor,
    backend: str,
    *,
    is_causal: bool = False,
    return_lse: bool = False,
) -> str:
    """The backend that this call runs; UnsupportedBackend with the reason where it cannot."""
    check_choice("backend", backend, BACKENDS)
    if backend != "auto":
        reason = _why_not(backend, q, k, is_causal, return_lse)
        if reason:
            raise UnsupportedBackend(f"{backend}: {reason}")
        return backend
    for candidate in _BY_SPEED:
        if _why_not(candidate, q, k, is_causal, return_lse) is None:
            return candidate
    return "eager" if return_lse else "sdpa-math"


def _why_not(backend, q, k, is_causal, return_lse) -> str | None:
    """Why `backend` cannot do this request, or None if it can."""
    if return_lse and backend in ("sdpa-math", "sdpa-cudnn"):
        return "gives no LSE"
    if backend in ("eager", "sdpa-math"):
        return None
    if backend == "flex":
        return flex.why_not(q, return_lse=return_lse)
    if q.device.type == "cpu":
        return None if backend == "sdpa-flash" else "needs a CUDA device"
    if q.device.type != "cuda":
        return f"does not run on {q.device.type}"
    if backend == "flash-attn-4":
        return flash_attn_4.why_not(q)
    if backend == "flash-attn-2":
        return _why_not_flash_attn_2(q, return_lse)
    grouped = q.shape[2] != k.shape[2]
    if _needs_views(backend, q, k):
        # Views of as many query as key heads are what PyTorch will see.
        q, grouped = q[:, :, : k.shape[2]], False
    params = torch.backends.cuda.SDPAParams(
        *(x.transpose(1, 2) for x in (q, k, k)), None, 0.0, is_causal, grouped
    )
    can_use = {
        "sdpa-flash": torch.backends.cuda.can_use_flash_attention,
        "sdpa-efficient": torch.backends.cuda.can_use_efficient_attention,
        "sdpa-cudnn": torch.backends.cuda.can_use_cudnn_attention,
    }[backend]
    return None if can_use(params, False) else f"PyTorch declines {q.dtype}, head_dim {q.shape[3]}"


def _why_not_flash_attn_2(q, return_lse) -> str | None:
    found = importlib.util.find_spec
    if found("flash_attn") is None or found("flash_attn.flash_attn_interface") is None:
        return "the package flash-attn is not installed (envs/cuda.txt)"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {q.dtype}"
    if torch.cuda.get_device_capability(q.device)[0] < 8:
        return "needs compute capability 8.0 or later"
    if q.shape[3] > 256:
        return f"head_dim={q.shape[3]}: takes up to 256"
    return "its LSE has no gradient" if return_lse and q.requires_grad else None


def _needs_views(backend, q, k) -> bool:
    """Of PyTorch's fused ops only flash attention on CUDA takes grouped queries itself."""
    fused = backend == "sdpa-efficient" or (backend == "sdpa-flash" and q.device.type == "cpu")
    return fused and q.shape[2] != k.shape[2]


def _whole_view(q, k, v, backend, is_causal, scale):
    """One view of everything: PyTorch's op with its LSE, differentiable in both."""
    if q.device.type == "cpu":
        op = CpuFlash()
    else:
        op = CudaFlash() if backend == "sdpa-flash" else CudaEfficient()
    head_dim = q.shape[3]
    extra = -head_dim % head_dim_multiple(q)
    if extra:
        q, k, v = (F.pad(x, (0, extra)) for x in (q, k, v))
    groups = tuple(DilatedBranches((q.shape[1],), (1,)).head_groups(q.shape[2], k.shape[2]))
    out, lse = StridedAttention.apply(q, k, v, op, groups, is_causal, scale)
    return out[..., :head_dim], lse


def _eager(q, k, v, is_causal, scale):
    rows = torch.arange(q.shape[1], device=q.device)
    return attend_rows(q, k, v, rows, is_causal=is_causal, scale=scale)


def _flash_attn_2(q, k, v, is_causal, scale, return_lse):
    from flash_attn import flash_attn_func

    result = flash_attn_func(
        q, k, v, softmax_scale=scale, causal=is_causal, return_attn_probs=return_lse
    )
    return result[:2] if return_lse else (result, None)
