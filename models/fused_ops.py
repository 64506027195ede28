"""PyTorch's fused attention ops with their LSE, and their backward on a given output and LSE.

`F.scaled_dot_product_attention` does not return the LSE; these ops do. The layout is
theirs, (B, H, N, D), any strides with a contiguous last dimension. A row without any key
has out 0 and an undefined LSE; `backward` needs a finite one there, and such rows and keys
get zero gradients.
Sources: aten/src/ATen/native/native_functions.yaml and sdp_utils, torch 2.11-2.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import UnsupportedBackend

Bias = Tensor | None
_aten = torch.ops.aten


class FusedOp:
    """A fused attention op of PyTorch's."""

    name: ClassVar[str]

    def state(self, q: Tensor, k: Tensor) -> tuple[Any, ...]:
        """What `backward` needs besides tensors of the forward pass.

        Args:
            q: (B, H, N, D).
            k: (B, Hkv, M, D).

        Returns:
            What the op's backward takes: lengths, seeds.
        """
        raise NotImplementedError

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, bias: Bias = None
    ) -> tuple[Tensor, Tensor]:
        """Attention.

        Args:
            q: (B, H, N, D).
            k, v: (B, Hkv, M, D).
            is_causal: whether query i attends to keys 0 to i only.
            scale: factor on q.k.
            bias: None or (B, 1, 1, M) in q's dtype, added to the scores: 0, and -inf for keys that
                no query attends to.

        Returns:
            out (B, H, N, D) in q's dtype, and LSE (B, H, N), float32 (float64 for float64).

        Raises:
            UnsupportedBackend: where the op takes no bias but gets one.
        """
        raise NotImplementedError

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        is_causal: bool, scale: float, bias: Bias = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Gradients for these keys, with P = exp(S - lse) and D = rowsum(grad_out * out).

        Args:
            grad_out, out: (B, H, N, D); out and lse may be those of more keys than these.
            lse: (B, H, N), finite.
            q, k, v, is_causal, scale, bias: as of `forward`.

        Returns:
            dq, dk, dv in the shapes of q, k, v.

        Raises:
            UnsupportedBackend: as `forward`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CpuFlash(FusedOp):
    """FlashAttention on the CPU: float64, float32, bfloat16, float16; any head size.

    When causal it computes all pairs of each block of 512 keys: up to 512 tokens, all N^2. Cutting
    segments of 2048 tokens into parts joined by LSE took longer (models/kernels/NOTES.md).
    """

    name = "cpu-flash"

    def state(self, q: Tensor, k: Tensor) -> tuple[Any, ...]:
        return ()

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, bias: Bias = None
    ) -> tuple[Tensor, Tensor]:
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale
        )

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        is_causal: bool, scale: float, bias: Bias = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale
        )


@dataclass(frozen=True)
class CudaFlash(FusedOp):
    """FlashAttention-2 as built into PyTorch: float16 and bfloat16, sm_80 and later."""

    name = "cuda-flash"
    max_head_dim = 256

    def state(self, q: Tensor, k: Tensor) -> tuple[Any, ...]:
        one = _tokens(q, 1)
        _, _, cum_q, cum_k, _, _, seed, offset, _ = _aten._scaled_dot_product_flash_attention(
            one, one, one, 0.0, False, scale=1.0
        )
        return cum_q, cum_k, q.shape[2], k.shape[2], seed, offset

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, bias: Bias = None
    ) -> tuple[Tensor, Tensor]:
        _refuse_bias(self, bias)
        return _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)[:2]

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        is_causal: bool, scale: float, bias: Bias = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        _refuse_bias(self, bias)
        cum_q, cum_k, max_q, max_k, seed, offset = self.state(q, k)
        return _aten._scaled_dot_product_flash_attention_backward(
            grad_out, q, k, v, out, lse.contiguous(), cum_q, cum_k, max_q, max_k,
            0.0, is_causal, seed, offset, scale=scale,
        )  # fmt: skip


@dataclass(frozen=True)
class CudaEfficient(FusedOp):
    """Memory-efficient attention as built into PyTorch: float32 too, every CUDA card."""

    name = "cuda-efficient"

    def state(self, q: Tensor, k: Tensor) -> tuple[Any, ...]:
        one = _tokens(q, 1)
        return _aten._scaled_dot_product_efficient_attention(
            one, one, one, None, True, 0.0, False, scale=1.0
        )[2:]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, bias: Bias = None
    ) -> tuple[Tensor, Tensor]:
        out, lse, _, _ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, _rows_of(bias, q), True, 0.0, is_causal, scale=scale
        )
        # The op pads the LSE to a multiple of 32 rows.
        return out, lse[..., : q.shape[2]]

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        is_causal: bool, scale: float, bias: Bias = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        seed, offset = self.state(q, k)
        # The kernel gets no row stride of these two: it assumes that they are contiguous.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        padded = F.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf).contiguous()
        return _aten._scaled_dot_product_efficient_attention_backward(
            grad_out, q, k, v, _rows_of(bias, q), out, padded, seed, offset,
            0.0, [True, True, True, False], is_causal, scale=scale,
        )[:3]  # fmt: skip


@dataclass(frozen=True)
class CudaCudnn(FusedOp):
    """cuDNN's attention through PyTorch: float16 and bfloat16, sm_80 and later.

    Its backward may get merged out and LSE, as those of the others may: it computes exp(S - stats),
    natural log, and rowsum(dO * O) from its arguments (aten/src/ATen/native/cudnn/MHA.cpp).
    """

    name = "cuda-cudnn"

    def state(self, q: Tensor, k: Tensor) -> tuple[Any, ...]:
        two = _tokens(q, 2)
        _, lse, cum_q, cum_k, _, _, seed, offset, _ = _aten._scaled_dot_product_cudnn_attention(
            two, two, two, None, True, 0.0, False, scale=1.0
        )
        # (B, H, N) or (B, H, N, 1), by version: `backward` takes the shape that forward returns.
        lse_shape = (*q.shape[:3], *lse.shape[3:])
        return cum_q, cum_k, q.shape[2], k.shape[2], seed, offset, lse_shape

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, bias: Bias = None
    ) -> tuple[Tensor, Tensor]:
        _refuse_bias(self, bias)
        if k.shape[2] == 1:
            raise UnsupportedBackend("sdpa-cudnn: a segment keeps one key, cuDNN takes two or more")
        out, lse = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )[:2]
        return out, lse.reshape(q.shape[:3])

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        is_causal: bool, scale: float, bias: Bias = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        _refuse_bias(self, bias)
        # The forward pass accepted q: only columns added for the LSE's gradient can be too many.
        if reason := why_not_cudnn(q.transpose(1, 2)):
            raise UnsupportedBackend(f"sdpa-cudnn: the gradient of the LSE takes columns: {reason}")
        cum_q, cum_k, max_q, max_k, seed, offset, lse_shape = self.state(q, k)
        # Its plans are cached by the strides of q, k, v alone (torch 2.11): all other strides must
        # follow from q's, as those of the forward's `out` do.
        out, grad_out = (torch.empty_like(q).copy_(x) for x in (out, grad_out))
        return _aten._scaled_dot_product_cudnn_attention_backward(
            grad_out, q, k, v, out, lse.reshape(lse_shape).contiguous(), seed, offset, None,
            cum_q, cum_k, max_q, max_k, 0.0, is_causal, scale=scale,
        )  # fmt: skip


def _tokens(q: Tensor, n: int) -> Tensor:
    """(1, 1, n, D) on which a CUDA op's forward is run for the seeds that its backward takes.

    Without dropout they are never read. A custom op cannot keep them from its forward pass, as
    they are no tensors of it.
    """
    return q.new_zeros(1, 1, n, q.shape[3])


def _refuse_bias(op, bias) -> None:
    if bias is not None:
        raise UnsupportedBackend(f"{op.name}: takes no key mask")


def _rows_of(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """`bias` (B, 1, 1, n_keys) for all rows, (B, H, N, n_keys), each row aligned to 16 bytes."""
    if bias is None:
        return None
    n_keys = bias.shape[3]
    rows = F.pad(bias, (0, -n_keys % 16))[..., :n_keys]
    return rows.expand(*q.shape[:3], n_keys)


OPS = {op.name: op for op in (CpuFlash(), CudaFlash(), CudaEfficient(), CudaCudnn())}


def why_not_cudnn(q: Tensor) -> str | None:
    """Why `CudaCudnn` cannot compute this.

    Args:
        q: (B, N, H, D); D counts rounded up to a multiple of 8.

    Returns:
        The reason, None if it can.
    """
    if q.device.type != "cuda":
        return "needs a CUDA device"
    head_dim = q.shape[3] + -q.shape[3] % 8
    one = q.new_empty(1, 1, 2, head_dim)
    params = torch.backends.cuda.SDPAParams(one, one, one, None, 0.0, False, False)
    if torch.backends.cuda.can_use_cudnn_attention(params, False):
        return None
    return f"PyTorch declines {q.dtype}, head_dim {head_dim}"


def head_dim_multiple(q: Tensor) -> int:
    """The alignment of the head dimension.

    Args:
        q: (B, N, H, D), of which device and dtype count.

    Returns:
        What D must be a multiple of for the op of `fused_op`.
    """
    if q.device.type == "cpu":
        return 1
    return 4 if q.dtype == torch.float32 else 8


def as_operand(x: Tensor) -> Tensor:
    """A tensor that the ops can read: they need a contiguous last dimension, and the CUDA kernels
    rows aligned to 16 bytes.

    Args:
        x: (B, N, H, D), any strides.

    Returns:
        x itself where possible, else a contiguous copy.
    """
    ready = x.stride(3) == 1
    step = 16 // x.element_size()
    # Traced by torch.compile a tensor has no address: there PyTorch aligns the ops' inputs.
    is_known = x.device.type == "cuda" and not torch.compiler.is_compiling()
    if ready and is_known and x.shape[3] % step == 0:
        strides = [x.stride(dim) for dim in range(3) if x.shape[dim] > 1]
        ready = x.data_ptr() % 16 == 0 and all(stride % step == 0 for stride in strides)
    return x if ready else x.clone(memory_format=torch.contiguous_format)


def fused_op(q: Tensor, *, is_masked: bool = False) -> CpuFlash | CudaFlash | CudaEfficient:
    """The fused op for q.

    Args:
        q: (B, N, H, D), of which device, dtype and D count.
        is_masked: whether keys are masked.

    Returns:
        One of OPS, which computes the LSE too.

    Raises:
        UnsupportedBackend: where PyTorch has none.
    """
    if q.device.type == "cpu":
        return CpuFlash()
    if q.device.type != "cuda":
        raise UnsupportedBackend(f"sdpa: no fused attention op with LSE on {q.device.type}")
    if q.dtype == torch.float64:
        raise UnsupportedBackend("sdpa: no fused CUDA attention op takes float64")
    capability = torch.cuda.get_device_capability(q.device)
    takes_flash = q.dtype != torch.float32 and q.shape[-1] <= CudaFlash.max_head_dim
    if takes_flash and capability >= (8, 0) and not is_masked:
        return CudaFlash()
    if q.dtype == torch.bfloat16 and capability < (8, 0):
        raise UnsupportedBackend(
            f"sdpa: bfloat16 needs compute capability 8.0, this card has {capability}"
        )
    return CudaEfficient()
