"""Dense attention by backend: the baselines that everything else is measured against."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import documents, flash_attn_4, flex
from models.dilated_op import dilated
from models.errors import UnsupportedBackend, check_choice
from models.fused_ops import as_operand
from models.inputs import prepared
from models.ops import without_autocast
from models.oracle import attend_rows

_SDPA = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
# "auto" takes the first that can: fastest first as published for Hopper and Ampere
# (FlashAttention repository, benchmarks of 2026-08); "eager" is never the fastest.
# "flex" was published together with "flash-attn-2" (391 to 376 TFLOP/s forward, 289 to 335 backward
# on an H100: MagiAttention repository, 2026-05), but compiles for seconds at every new shape.
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
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Dense self-attention `softmax(scale q k^T) v`.

    Args:
        q: (B, N, H, D), float64, float32, float16 or bfloat16.
        k, v: (B, N, Hkv, D), H a multiple of Hkv.
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k, None for 1/sqrt(D).
        backend: PyTorch's "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", and its
            compiled FlexAttention, "flex"; the packages "flash-attn-2", "flash-attn-4"; "eager",
            the explicit softmax that holds the N x N scores; or "auto", the fastest that can.
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
    q, k, v, scale = prepared(q, k, v, scale, key_padding_mask, document_ids)
    is_causal, masks = bool(is_causal), (key_padding_mask, document_ids)
    is_masked = key_padding_mask is not None or document_ids is not None
    request = {"is_causal": is_causal, "return_lse": return_lse, "is_masked": is_masked}
    q, k, v = (as_operand(x) for x in (q, k, v))
    backend = resolve_backend(q, k, backend, **request)
    if backend == "eager":
        out, lse = _eager(q, k, v, is_causal, scale, *masks)
    elif backend == "sdpa-math" and is_masked:
        out, lse = _masked_math(q, k, v, is_causal, scale, *masks)
    elif backend == "flash-attn-2":
        out, lse = _flash_attn_2(q, k, v, is_causal, scale, return_lse)
    elif backend == "flash-attn-4":
        out, lse = flash_attn_4.dense(q, k, v, is_causal, scale, return_lse)
    elif backend == "flex":
        out, lse = flex.dense(q, k, v, is_causal, scale, return_lse)
    elif return_lse or is_masked or _needs_views(backend, q, k):
        # One branch with all tokens: PyTorch's op with its LSE, differentiable in both.
        name = backend.replace("sdpa", q.device.type)
        out, lse = dilated(q, k, v, *masks, [q.shape[1]], [1], "modulo", is_causal, scale, name)
    else:
        with sdpa_kernel(_SDPA[backend]):
            out = F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)),
                is_causal=is_causal,
                scale=scale,
                **_grouping(q, k),
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
    is_masked: bool = False,
) -> str:
    """The backend that a call runs.

    Args:
        q: (B, N, H, D).
        k: (B, N, Hkv, D).
        backend: one of BACKENDS.
        is_causal: as of `dense_attention`.
        return_lse: whether the LSE is needed.
        is_masked: whether the call has a key padding mask or document ids.

    Returns:
        One of BACKENDS other than "auto".

    Raises:
        ValueError: where there is no such backend.
        UnsupportedBackend: where a named one cannot compute this; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    if backend != "auto":
        reason = _why_not(backend, q, k, is_causal, return_lse, is_masked)
        if reason:
            raise UnsupportedBackend(f"{backend}: {reason}")
        return backend
    for candidate in _BY_SPEED:
        if _why_not(candidate, q, k, is_causal, return_lse, is_masked) is None:
            return candidate
    return "eager" if return_lse or is_masked else "sdpa-math"


def _why_not(backend, q, k, is_causal, return_lse, is_masked) -> str | None:
    """Why `backend` cannot compute this, or None if it can."""
    on_cpu = q.device.type == "cpu"
    takes_masks = ("eager", "sdpa-math", "sdpa-efficient", *(["sdpa-flash"] if on_cpu else []))
    if is_masked and backend not in takes_masks:
        return "takes no key_padding_mask and no document_ids"
    if torch.compiler.is_compiling() and backend in ("flex", "flash-attn-4"):
        return "compiles itself: not available inside torch.compile"
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
    # Where views are used, PyTorch gets as many query heads as key heads.
    grouped = q.shape[2] != k.shape[2] and not _needs_views(backend, q, k)
    return _why_pytorch_declines(backend, q.device, q.dtype, q.shape[3], is_causal, grouped)


def _why_pytorch_declines(backend, device, dtype, head_dim, is_causal, grouped) -> str | None:
    """Why a fused op of PyTorch's does not take such tensors, or None if it does."""
    q, k = (
        torch.empty(1, heads, 128, head_dim, dtype=dtype, device=device)
        for heads in (2, 1 if grouped else 2)
    )
    params = torch.backends.cuda.SDPAParams(q, k, k, None, 0.0, is_causal, grouped)
    can_use = {
        "sdpa-flash": torch.backends.cuda.can_use_flash_attention,
        "sdpa-efficient": torch.backends.cuda.can_use_efficient_attention,
        "sdpa-cudnn": torch.backends.cuda.can_use_cudnn_attention,
    }[backend]
    return None if can_use(params, False) else f"PyTorch declines {dtype}, head_dim {head_dim}"


# As `torch.compiler.assume_constant_result` marks it, which would load torch.compile's modules
# here: seconds, and 35 MB that a measurement of memory would miss.
_why_pytorch_declines._dynamo_marked_constant = True


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
    """Whether grouped queries need views: only flash attention on CUDA takes them itself."""
    fused = backend == "sdpa-efficient" or (backend == "sdpa-flash" and q.device.type == "cpu")
    return fused and q.shape[2] != k.shape[2]


def _eager(q, k, v, is_causal, scale, key_padding_mask, document_ids):
    def attend(q, k, v, key_padding_mask):
        rows = torch.arange(q.shape[1], device=q.device)
        options = {"is_causal": is_causal, "scale": scale, "key_padding_mask": key_padding_mask}
        with without_autocast(q.device):
            return attend_rows(q, k, v, rows, **options)

    return documents.attend_packed("eager", attend, q, k, v, document_ids, key_padding_mask)


def _grouping(q, k) -> dict[str, bool]:
    """An option omitted where not needed: compiled code would trace the comparison as a symbol."""
    return {"enable_gqa": True} if q.shape[2] != k.shape[2] else {}


def _masked_math(q, k, v, is_causal, scale, key_padding_mask, document_ids):
    """PyTorch's attention written out in matmuls; rows without keys give 0. No LSE."""

    def attend(q, k, v, key_padding_mask):
        n = q.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool, device=q.device)
        allowed = (allowed.tril() if is_causal else allowed)[None, None]
        if key_padding_mask is not None:
            allowed = allowed & ~key_padding_mask[:, None, None, :]
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)),
                attn_mask=allowed,
                scale=scale,
                **_grouping(q, k),
            )
        return out.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0).transpose(1, 2), None

    return documents.attend_packed("sdpa-math", attend, q, k, v, document_ids, key_padding_mask)


def _flash_attn_2(q, k, v, is_causal, scale, return_lse):
    from flash_attn import flash_attn_func

    result = flash_attn_func(
        q, k, v, softmax_scale=scale, causal=is_causal, return_attn_probs=return_lse
    )
    return result[:2] if return_lse else (result, None)
