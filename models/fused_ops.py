"""PyTorch's fused attention ops with their LSE, and their backward on a given output and LSE.

`F.scaled_dot_product_attention` hides the LSE; these ops show it. Layout here
is the ops' own, (B, H, N, D), any strides with a contiguous last dimension.
Sources: aten/src/ATen/native/native_functions.yaml and sdp_utils, torch 2.11-2.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from models.errors import UnsupportedBackend

_aten = torch.ops.aten


@dataclass(frozen=True)
class CpuFlash:
    """FlashAttention on the CPU: float64, float32, bfloat16, float16; any head size."""

    name = "cpu-flash"

    def forward(self, q, k, v, is_causal: bool, scale: float, bias=None) -> tuple[Any, Any]:
        """Returns out and LSE (B, H, N). bias: added to the scores, broadcast to them."""
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale
        )

    def backward(self, grad_out, q, k, v, out, lse, is_causal: bool, scale: float, bias=None):
        """dq, dk, dv of the keys at hand, with P = exp(S - lse) and D = rowsum(grad_out * out)."""
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale
        )


@dataclass(frozen=True)
class CudaFlash:
    """FlashAttention-2 as built into PyTorch: float16 and bfloat16, sm_80 and later."""

    name = "cuda-flash"
    max_head_dim = 256

    def forward(self, q, k, v, is_causal, scale):
        out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = (
            _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)
        )
        return out, lse, (cum_q, cum_k, max_q, max_k, seed, offset)

    def backward(self, grad_out, q, k, v, out, lse, saved, is_causal, scale):
        cum_q, cum_k, max_q, max_k, seed, offset = saved
        return _aten._scaled_dot_product_flash_attention_backward(
            grad_out, q, k, v, out, lse.contiguous(), cum_q, cum_k, max_q, max_k,
            0.0, is_causal, seed, offset, scale=scale,
        )  # fmt: skip


@dataclass(frozen=True)
class CudaEfficient:
    """Memory-efficient attention as built into PyTorch: float32 too, every CUDA card."""

    name = "cuda-efficient"

    def forward(self, q, k, v, is_causal, scale):
        out, lse, seed, offset = _aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        # The op pads the LSE to a multiple of 32 rows.
        return out, lse[..., : q.shape[2]], (seed, offset)

    def backward(self, grad_out, q, k, v, out, lse, saved, is_causal, scale):
        seed, offset = saved[-2:]
        # The kernel is told no row stride of these two: it takes them to be packed.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        padded = F.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf).contiguous()
        return _aten._scaled_dot_product_efficient_attention_backward(
            grad_out, q, k, v, None, out, padded, seed, offset,
            0.0, [True, True, True, False], is_causal, scale=scale,
        )[:3]  # fmt: skip


@dataclass(frozen=True)
class CudaCudnn:
    """cuDNN's attention through PyTorch: float16 and bfloat16, sm_80 and later.

    Of merged out and LSE it does what the others do: its backward has exp(S - stats), natural log,
    and rowsum(dO * O) of what it is given (aten/src/ATen/native/cudnn/MHA.cpp).
    """

    name = "cuda-cudnn"

    def forward(self, q, k, v, is_causal, scale):
        if k.shape[2] == 1:
            raise UnsupportedBackend("sdpa-cudnn: a segment keeps one key, cuDNN takes two or more")
        out, lse, *saved, _ = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        # (B, H, N) or (B, H, N, 1), by version: `backward` takes it in the shape it came in.
        return out, lse.reshape(q.shape[:3]), (*saved, lse.shape, q.shape[3])

    def backward(self, grad_out, q, k, v, out, lse, saved, is_causal, scale):
        cum_q, cum_k, max_q, max_k, seed, offset, lse_shape, head_dim = saved
        reason = why_not_cudnn(q.transpose(1, 2)) if q.shape[3] > head_dim else None
        if reason:
            raise UnsupportedBackend(f"sdpa-cudnn: the gradient of the LSE takes columns: {reason}")
        # Its plans are kept by the strides of q, k, v alone (torch 2.11): those of all else must
        # follow from q's, as they do of `out` when it comes from the forward.
        out, grad_out = (torch.empty_like(q).copy_(x) for x in (out, grad_out))
        return _aten._scaled_dot_product_cudnn_attention_backward(
            grad_out, q, k, v, out, lse.reshape(lse_shape).contiguous(), seed, offset, None,
            cum_q, cum_k, max_q, max_k, 0.0, is_causal, scale=scale,
        )  # fmt: skip


def why_not_cudnn(q: torch.Tensor) -> str | None:
    """Why `CudaCudnn` cannot take q (B, N, H, D), D padded to a multiple of 8; None if it can."""
    if q.device.type != "cuda":
        return "needs a CUDA device"
    head_dim = q.shape[3] + -q.shape[3] % 8
    one = q.new_empty(1, 1, 2, head_dim)
    params = torch.backends.cuda.SDPAParams(one, one, one, None, 0.0, False, False)
    if torch.backends.cuda.can_use_cudnn_attention(params, False):
        return None
    return f"PyTorch declines {q.dtype}, head_dim {head_dim}"


def head_dim_multiple(q: torch.Tensor) -> int:
    """The head dimension must be a multiple of this for the op that `fused_op` picks."""
    if q.device.type == "cpu":
        return 1
    return 4 if q.dtype == torch.float32 else 8


def as_operand(x: torch.Tensor) -> torch.Tensor:
    """x (B, N, H, D), copied only where the ops cannot read it as it lies.

    They ask for a contiguous last dimension; the CUDA kernels also load 16 bytes at a time.
    """
    ready = x.stride(3) == 1
    step = 16 // x.element_size()
    if ready and x.device.type == "cuda" and x.shape[3] % step == 0:
        strides = [x.stride(dim) for dim in range(3) if x.shape[dim] > 1]
        ready = x.data_ptr() % 16 == 0 and all(stride % step == 0 for stride in strides)
    return x if ready else x.clone(memory_format=torch.contiguous_format)


def fused_op(q: torch.Tensor) -> CpuFlash | CudaFlash | CudaEfficient:
    """The fused op with an LSE for the device, dtype and head size of q (B, N, H, D).

    UnsupportedBackend where PyTorch has none.
    """
    if q.device.type == "cpu":
        return CpuFlash()
    if q.device.type != "cuda":
        raise UnsupportedBackend(f"sdpa: no fused attention op with LSE on {q.device.type}")
    if q.dtype == torch.float64:
        raise UnsupportedBackend("sdpa: no fused CUDA attention op takes float64")
    capability = torch.cuda.get_device_capability(q.device)
    if q.dtype != torch.float32 and capability >= (8, 0) and q.shape[-1] <= CudaFlash.max_head_dim:
        return CudaFlash()
    if q.dtype == torch.bfloat16 and capability < (8, 0):
        raise UnsupportedBackend(
            f"sdpa: bfloat16 needs compute capability 8.0, this card has {capability}"
        )
    return CudaEfficient()
